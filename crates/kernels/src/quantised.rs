//! Weights that stay in the blocks of their file, laid out for products with them.
//!
//! A tablet holds 32 outputs at 32 steps of k: first the blocks' scales side by side, then the stored
//! numbers in the order in which a product takes them. Each weight becomes the very f32 that
//! [`dequantise`] gives, so a product has the bits of the same product with f32 weights.

use std::ops::Range;

use crate::dequantise::{BlockFormat, dequantise};
use crate::memory;
use crate::panels::PANEL;
use crate::pool::{Pool, Shards};
use crate::thin::{self, Block, Panels, SCRATCH_STRIDE};

/// Steps of k of a tablet.
const STEPS: usize = 32;
/// Signed bytes become unsigned, 128 more.
const SIGN: u8 = 0x80;
/// Outputs of a tablet: two panels.
const WIDE: usize = 2 * PANEL;

/// A matrix \[outputs, inputs\] in tablets, \[outputs / 32\]\[inputs / 32\].
#[derive(Clone)]
pub(crate) struct Quantised {
    layout: Layout,
    lines: Vec<Line>,
    n_out: usize,
    n_in: usize,
}

/// A line of the cache; tablets of every format are whole lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Line {
    fn bytes(lines: &[Line]) -> &[u8] {
        // SAFETY: a line is 64 bytes without gaps.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
    }

    fn bytes_mut(lines: &mut [Line]) -> &mut [u8] {
        // SAFETY: as above, and any bytes are a line.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
    }
}

/// How blocks of one format lie in a tablet.
#[derive(Clone, Copy)]
struct Layout {
    format: BlockFormat,
    /// Bytes of a stored block of 32 before its numbers: 16-bit fields.
    fields: usize,
    /// Bits of a stored number.
    bits: usize,
}

impl Layout {
    /// None for formats that are not kept.
    fn of(format: BlockFormat) -> Option<Layout> {
        let (fields, bits) = match format {
            BlockFormat::Q4_0 => (2, 4),
            BlockFormat::Q4_1 => (4, 4),
            BlockFormat::Q8_0 => (2, 8),
            BlockFormat::F16 | BlockFormat::BF16 => (0, 16),
            _ => return None,
        };
        Some(Layout { format, fields, bits })
    }

    /// Bytes of 32 numbers of one output in a file.
    fn stored_bytes(self) -> usize {
        self.fields + STEPS * self.bits / 8
    }

    fn tablet_bytes(self) -> usize {
        WIDE * self.stored_bytes()
    }

    /// Where number k of output `lane` lies within a tablet: byte and shift.
    fn number(self, lane: usize, k: usize) -> (usize, usize) {
        let start = WIDE * self.fields;
        if self.format == BlockFormat::F16 {
            // Side by side, as the conversion of eight takes them.
            return (start + 2 * (k * WIDE + lane), 0);
        }
        // Words of 32 bits, those of all outputs side by side. There are as many as bits in a number, and
        // step i·bits + j is piece i of word j: one mask serves many steps.
        let (piece, word) = (k / self.bits, k % self.bits);
        let bit = piece * self.bits;
        (start + 4 * (word * WIDE + lane) + bit / 8, bit % 8)
    }

    /// Byte and shift of number k in a stored block.
    fn stored_number(self, k: usize) -> (usize, usize) {
        match self.bits {
            4 => (self.fields + k % 16, 4 * (k / 16)),
            bits => (self.fields + k * bits / 8, 0),
        }
    }

    /// Where field byte `b` of output `lane` lies: each field of all outputs side by side.
    fn field(self, lane: usize, b: usize) -> usize {
        b / 2 * 2 * WIDE + 2 * lane + b % 2
    }

    /// Puts a stored block of one output into a tablet whose place for it is zero.
    fn put(self, tablet: &mut [u8], lane: usize, stored: &[u8]) {
        for b in 0..self.fields {
            tablet[self.field(lane, b)] = stored[b];
        }
        for k in 0..STEPS {
            let ((from, right), (to, left)) = (self.stored_number(k), self.number(lane, k));
            match self.bits {
                4 => tablet[to] |= (stored[from] >> right & 15) << left,
                8 => tablet[to] = stored[from] ^ SIGN,
                _ => tablet[to..to + 2].copy_from_slice(&stored[from..from + 2]),
            }
        }
    }

    /// The inverse of [`Layout::put`], into zeros.
    fn take(self, tablet: &[u8], lane: usize, stored: &mut [u8]) {
        for b in 0..self.fields {
            stored[b] = tablet[self.field(lane, b)];
        }
        for k in 0..STEPS {
            let ((to, left), (from, right)) = (self.stored_number(k), self.number(lane, k));
            match self.bits {
                4 => stored[to] |= (tablet[from] >> right & 15) << left,
                8 => stored[to] = tablet[from] ^ SIGN,
                _ => stored[to..to + 2].copy_from_slice(&tablet[from..from + 2]),
            }
        }
    }

    /// 32 numbers of output `lane`.
    fn decode(self, tablet: &[u8], lane: usize, out: &mut [f32]) {
        let mut stored = [0; 2 * STEPS];
        let stored = &mut stored[..self.stored_bytes()];
        self.take(tablet, lane, stored);
        dequantise(self.format, stored, out);
    }
}

impl Quantised {
    /// Whether rows of `n_in` numbers in this format can be kept as they are.
    pub(crate) fn keeps(format: BlockFormat, n_in: usize) -> bool {
        Layout::of(format).is_some() && n_in.is_multiple_of(STEPS)
    }

    /// Lays out the rows in `stored`, row after row as a file has them.
    ///
    /// # Panics
    /// If the format is not kept, or the bytes are not those of the matrix.
    pub(crate) fn pack(
        pool: &Pool,
        format: BlockFormat,
        stored: &[&[u8]],
        n_out: usize,
        n_in: usize,
    ) -> Quantised {
        let layout = Layout::of(format).filter(|_| n_in.is_multiple_of(STEPS));
        let layout = layout.unwrap_or_else(|| panic!("{format:?} in rows of {n_in} is not kept as it is"));
        let tablets = n_in / STEPS;
        let row_bytes = tablets * layout.stored_bytes();
        let rows: Vec<&[u8]> = stored.iter().flat_map(|bytes| bytes.chunks_exact(row_bytes)).collect();
        assert_eq!(rows.len(), n_out, "{n_out} rows of {row_bytes} bytes");
        let stripe = tablets * layout.tablet_bytes();
        let mut lines = vec![Line([0; 64]); n_out.div_ceil(WIDE) * stripe / size_of::<Line>()];
        memory::advise_huge(&lines);
        let shards = Shards::new(Line::bytes_mut(&mut lines));
        pool.run(n_out.div_ceil(WIDE), &|i| {
            // SAFETY: each stripe of tablets belongs to one task.
            let stripe = unsafe { shards.piece(i * stripe, stripe) };
            for (lane, row) in rows[i * WIDE..].iter().take(WIDE).enumerate() {
                let to = stripe.chunks_exact_mut(layout.tablet_bytes());
                for (tablet, stored) in to.zip(row.chunks_exact(layout.stored_bytes())) {
                    layout.put(tablet, lane, stored);
                }
            }
        });
        Quantised { layout, lines, n_out, n_in }
    }

    pub(crate) fn n_bytes(&self) -> usize {
        size_of_val(&self.lines[..])
    }

    /// The tablets of outputs 32·`stripe`.. from step `k` on.
    fn tablets(&self, stripe: usize, k: usize) -> &[u8] {
        let first = stripe * (self.n_in / STEPS) + k / STEPS;
        &Line::bytes(&self.lines)[first * self.layout.tablet_bytes()..]
    }

    /// Row `i` as f32.
    pub(crate) fn row(&self, i: usize, out: &mut [f32]) {
        let tablets = self.tablets(i / WIDE, 0).chunks_exact(self.layout.tablet_bytes());
        for (tablet, out) in tablets.zip(out[..self.n_in].chunks_exact_mut(STEPS)) {
            self.layout.decode(tablet, i % WIDE, out);
        }
    }

    /// y\[n_rows, n_out\] (rows of `y_stride`) = x\[n_rows, n_in\]·wᵀ, in parallel over outputs.
    pub(crate) fn multiply(&self, pool: &Pool, y: &mut [f32], y_stride: usize, x: &[f32], n_rows: usize) {
        #[cfg(target_arch = "x86_64")]
        if n_rows == 1 && crate::cpu::has_avx2_fma_f16c() {
            return self.multiply_row(pool, &mut y[..self.n_out], &x[..self.n_in]);
        }
        thin::multiply(pool, y, y_stride, x, self, (n_rows, self.n_in));
    }

    #[cfg(target_arch = "x86_64")]
    fn multiply_row(&self, pool: &Pool, y: &mut [f32], x: &[f32]) {
        let out = Shards::new(y);
        thin::for_panels(pool, self.n_out, &|panels| {
            let columns = panels.start * PANEL..(panels.end * PANEL).min(self.n_out);
            // SAFETY: each range of panels belongs to one task.
            let y = unsafe { out.piece(columns.start, columns.len()) };
            for (i, y) in y.chunks_mut(WIDE).enumerate() {
                simd::multiply_row(self.layout, self.tablets(panels.start / 2 + i, 0), x, y);
            }
        });
    }
}

impl Panels for Quantised {
    fn n(&self) -> usize {
        self.n_out
    }

    /// Tablets are decoded whole: two panels at once.
    fn together(&self, _: usize) -> usize {
        2
    }

    fn block<'a>(&'a self, first: usize, _: usize, steps: Range<usize>, scratch: &'a mut [f32]) -> Block<'a> {
        let n_bytes = steps.len() / STEPS * self.layout.tablet_bytes();
        let (tablets, next) = self.tablets(first / 2, steps.start).split_at(n_bytes);
        let tablets = tablets.chunks_exact(self.layout.tablet_bytes());
        for (i, tablet) in tablets.enumerate() {
            decode_tablet(self.layout, tablet, &mut scratch[i * STEPS * PANEL..], SCRATCH_STRIDE);
        }
        Block { data: scratch, panel_stride: SCRATCH_STRIDE, k_stride: PANEL, next: (next.as_ptr(), n_bytes) }
    }
}

/// A tablet as two panels of f32, \[panel\]\[k\]\[16\], `stride` numbers apart.
fn decode_tablet(layout: Layout, tablet: &[u8], out: &mut [f32], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::has_avx2_fma_f16c() {
        return simd::decode_tablet(layout, tablet, out, stride);
    }
    decode_tablet_plainly(layout, tablet, out, stride);
}

fn decode_tablet_plainly(layout: Layout, tablet: &[u8], out: &mut [f32], stride: usize) {
    let mut numbers = [0.0; STEPS];
    for lane in 0..WIDE {
        layout.decode(tablet, lane, &mut numbers);
        let panel = &mut out[lane / PANEL * stride + lane % PANEL..];
        panel.iter_mut().step_by(PANEL).zip(&numbers).for_each(|(slot, &v)| *slot = v);
    }
}

/// Decoding in registers, eight outputs in each.
#[cfg(target_arch = "x86_64")]
mod simd {
    use std::arch::asm;
    use std::arch::x86_64::*;

    use super::{BlockFormat, Layout, PANEL, STEPS, WIDE};
    use crate::thin::store_eight;

    /// Weights of a tablet's 32 outputs at one step.
    type Wide = [__m256; 4];

    /// Takes the weights of a tablet step by step.
    trait Sink {
        /// # Safety
        /// AVX2 and FMA are there; further, what the implementation says.
        unsafe fn take(&mut self, k: usize, w: Wide);
    }

    /// One format's way from a tablet to weights.
    trait Decode {
        /// Gives the weights at all 32 steps, in order, to `sink`.
        ///
        /// # Safety
        /// A whole tablet of this format can be read; AVX2, FMA and F16C are there.
        unsafe fn decode(tablet: *const u8, sink: &mut impl Sink);
    }

    /// d·u + m with unsigned u of so many bits, m stored or −d·`MIDDLE`. The product is exact (8 by 11
    /// bits), so that one rounding is left as in ggml, and none where m is not stored.
    struct Affine<const BITS: usize, const MIDDLE: i32>;
    struct F16;
    struct BF16;

    #[inline(always)]
    fn each(f: impl Fn(usize) -> __m256) -> Wide {
        [f(0), f(1), f(2), f(3)]
    }

    /// Halves `i`·8.. as f32.
    #[inline(always)]
    unsafe fn halves(at: *const u8, i: usize) -> __m256 {
        // SAFETY: by the promise of `Decode::decode`.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.add(16 * i).cast())) }
    }

    /// Word `j` of eight outputs, where words start at `at`.
    #[inline(always)]
    unsafe fn word(at: *const u8, j: usize, eight: usize) -> __m256i {
        // SAFETY: by the promise of `Decode::decode`.
        unsafe { _mm256_loadu_si256(at.add(4 * WIDE * j + 32 * eight).cast()) }
    }

    #[inline(always)]
    unsafe fn scaled(v: Wide, by: f32) -> Wide {
        // SAFETY: AVX is there.
        unsafe { each(|e| _mm256_mul_ps(v[e], _mm256_set1_ps(by))) }
    }

    impl<const BITS: usize, const MIDDLE: i32> Affine<BITS, MIDDLE> {
        /// Pieces of a word.
        const PIECES: usize = 32 / BITS;

        /// What one piece further multiplies u by, if it stays where it is in its word.
        const STEP: f32 = (1u32 << BITS) as f32;

        /// d, m, and where words start.
        #[inline(always)]
        unsafe fn begin(tablet: *const u8) -> (Wide, Wide, *const u8) {
            // SAFETY: by the promise of `Decode::decode`.
            unsafe {
                let d = each(|e| halves(tablet, e));
                match MIDDLE {
                    0 => (d, each(|e| halves(tablet, 4 + e)), tablet.add(4 * WIDE)),
                    middle => (d, scaled(d, -middle as f32), tablet.add(2 * WIDE)),
                }
            }
        }
    }

    impl<const BITS: usize, const MIDDLE: i32> Decode for Affine<BITS, MIDDLE> {
        /// Piece i is taken from its word as u·2^(i·BITS), which is exact in f32, and met with
        /// d·2^(−i·BITS); so no shift is needed but for the last one, which reaches into the sign.
        #[inline(always)]
        unsafe fn decode(tablet: *const u8, sink: &mut impl Sink) {
            // SAFETY: by the caller's promise.
            unsafe {
                let (mut d, m, words) = Self::begin(tablet);
                let mut mask = _mm256_set1_epi32((1 << BITS) - 1);
                let shift = _mm_cvtsi32_si128(BITS as i32);
                for piece in 0..Self::PIECES - 1 {
                    for j in 0..BITS {
                        let u = |e| _mm256_cvtepi32_ps(_mm256_and_si256(word(words, j, e), mask));
                        sink.take(piece * BITS + j, each(|e| _mm256_fmadd_ps(u(e), d[e], m[e])));
                    }
                    mask = _mm256_sll_epi32(mask, shift);
                    d = scaled(d, 1.0 / Self::STEP);
                }
                let d = each(|e| halves(tablet, e));
                let shift = _mm_cvtsi32_si128(32 - BITS as i32);
                for j in 0..BITS {
                    let u = |e| _mm256_cvtepi32_ps(_mm256_srl_epi32(word(words, j, e), shift));
                    sink.take(32 - BITS + j, each(|e| _mm256_fmadd_ps(u(e), d[e], m[e])));
                }
            }
        }
    }

    impl Decode for F16 {
        #[inline(always)]
        unsafe fn decode(tablet: *const u8, sink: &mut impl Sink) {
            for k in 0..STEPS {
                // SAFETY: by the caller's promise.
                unsafe { sink.take(k, each(|e| halves(tablet, 4 * k + e))) };
            }
        }
    }

    impl Decode for BF16 {
        /// The upper halves of f32.
        #[inline(always)]
        unsafe fn decode(tablet: *const u8, sink: &mut impl Sink) {
            // SAFETY: by the caller's promise.
            unsafe {
                for j in 0..16 {
                    let low = each(|e| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(word(tablet, j, e))));
                    sink.take(j, low);
                }
                let mask = _mm256_set1_epi32(0xffff << 16);
                for j in 0..16 {
                    let high = each(|e| _mm256_castsi256_ps(_mm256_and_si256(word(tablet, j, e), mask)));
                    sink.take(16 + j, high);
                }
            }
        }
    }

    /// Sums of one row of x with 32 outputs.
    struct Row {
        x: *const f32,
        sums: Wide,
    }

    impl Sink for Row {
        /// # Safety
        /// x can be read at `k`.
        #[inline(always)]
        unsafe fn take(&mut self, k: usize, w: Wide) {
            // SAFETY: by the caller's promise.
            unsafe {
                let x = _mm256_broadcast_ss(&*self.x.add(k));
                self.sums = each(|e| _mm256_fmadd_ps(x, w[e], self.sums[e]));
            }
        }
    }

    /// Stores two panels, \[panel\]\[k\]\[16\].
    struct Store {
        out: *mut f32,
        stride: usize,
    }

    impl Sink for Store {
        /// # Safety
        /// 16 numbers can be written at step `k` of both panels.
        #[inline(always)]
        unsafe fn take(&mut self, k: usize, w: Wide) {
            // SAFETY: by the caller's promise.
            unsafe {
                let panels = [self.out.add(k * PANEL), self.out.add(self.stride + k * PANEL)];
                _mm256_storeu_ps(panels[0], w[0]);
                _mm256_storeu_ps(panels[0].add(8), w[1]);
                _mm256_storeu_ps(panels[1], w[2]);
                _mm256_storeu_ps(panels[1].add(8), w[3]);
            }
        }
    }

    /// y = x·wᵀ for the up to 32 outputs whose tablets these are; AVX2, FMA and F16C must be there.
    pub(super) fn multiply_row(layout: Layout, tablets: &[u8], x: &[f32], y: &mut [f32]) {
        let (n, n_bytes) = (x.len() / STEPS, layout.tablet_bytes());
        assert!(x.len() == n * STEPS && tablets.len() >= n * n_bytes && y.len() <= WIDE);
        let (at, x) = (tablets.as_ptr(), x.as_ptr());
        // SAFETY: as many whole tablets as pieces of x; the caller has found the features.
        let sums = unsafe {
            match layout.format {
                BlockFormat::Q4_0 => affine_row::<4, 8>(at, (n, n_bytes), x),
                BlockFormat::Q4_1 => affine_row::<4, 0>(at, (n, n_bytes), x),
                BlockFormat::Q8_0 => affine_row::<8, 128>(at, (n, n_bytes), x),
                BlockFormat::F16 => row_of::<F16>(at, (n, n_bytes), x),
                BlockFormat::BF16 => row_of::<BF16>(at, (n, n_bytes), x),
                other => unreachable!("{other:?} is not kept in blocks"),
            }
        };
        for (y, sum) in y.chunks_mut(8).zip(sums) {
            // SAFETY: at most eight numbers.
            unsafe { store_eight(y.as_mut_ptr(), sum, y.len()) };
        }
    }

    /// How far ahead of the sums tablets are fetched.
    const AHEAD: usize = 4096;

    /// Fetches what lies `AHEAD` of a tablet; reads nothing.
    #[inline(always)]
    fn fetch_ahead(tablet: *const u8, n_bytes: usize) {
        for line in (0..n_bytes).step_by(64) {
            // SAFETY: no memory is accessed.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(tablet.wrapping_add(AHEAD + line).cast()) };
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn row_of<F: Decode>(tablets: *const u8, (n, n_bytes): (usize, usize), x: *const f32) -> Wide {
        let mut row = Row { x, sums: [_mm256_setzero_ps(); 4] };
        for i in 0..n {
            let tablet = tablets.wrapping_add(i * n_bytes);
            fetch_ahead(tablet, n_bytes);
            // SAFETY: by the caller's promise.
            unsafe { F::decode(tablet, &mut row) };
            row.x = row.x.wrapping_add(STEPS);
        }
        row.sums
    }

    /// sums += x·(d·u + m) at one step: u is what `$load` with an address and `$then` leave in `{t}`.
    ///
    /// Sums, d and m of 32 outputs take 12 of the 16 registers, and no compiler was found to keep them
    /// there: left to itself it moved some of them to and from memory, at a third of the speed.
    macro_rules! affine_step {
        ($load:literal, $then:literal, $row:expr, $words:expr, $x:expr, $($operand:tt)*) => {
            asm!(
                "vbroadcastss {x}, dword ptr [{xs}]",
                affine_step!(@eight $load, $then, "", "{d0}", "{m0}", "{s0}"),
                affine_step!(@eight $load, $then, " + 32", "{d1}", "{m1}", "{s1}"),
                affine_step!(@eight $load, $then, " + 64", "{d2}", "{m2}", "{s2}"),
                affine_step!(@eight $load, $then, " + 96", "{d3}", "{m3}", "{s3}"),
                x = out(ymm_reg) _,
                t = out(ymm_reg) _,
                w = in(reg) $words,
                xs = in(reg) $x,
                d0 = in(ymm_reg) $row.d[0], d1 = in(ymm_reg) $row.d[1],
                d2 = in(ymm_reg) $row.d[2], d3 = in(ymm_reg) $row.d[3],
                m0 = in(ymm_reg) $row.m[0], m1 = in(ymm_reg) $row.m[1],
                m2 = in(ymm_reg) $row.m[2], m3 = in(ymm_reg) $row.m[3],
                s0 = inout(ymm_reg) $row.sums[0], s1 = inout(ymm_reg) $row.sums[1],
                s2 = inout(ymm_reg) $row.sums[2], s3 = inout(ymm_reg) $row.sums[3],
                $($operand)*,
                options(readonly, nostack, preserves_flags)
            )
        };
        (@eight $load:literal, $then:literal, $at:literal, $d:literal, $m:literal, $sum:literal) => {
            concat!(
                $load, " ymmword ptr [{w}", $at, "]\n", $then, "\n",
                "vcvtdq2ps {t}, {t}\n",
                "vfmadd213ps {t}, ", $d, ", ", $m, "\n",
                "vfmadd231ps ", $sum, ", {x}, {t}"
            )
        };
    }

    struct AffineRow {
        d: Wide,
        m: Wide,
        sums: Wide,
    }

    /// As [`row_of`] with [`Affine::decode`].
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn affine_row<const BITS: usize, const MIDDLE: i32>(
        tablets: *const u8,
        (n, n_bytes): (usize, usize),
        x: *const f32,
    ) -> Wide {
        let zero = [_mm256_setzero_ps(); 4];
        let mut row = AffineRow { d: zero, m: zero, sums: zero };
        let shift = _mm_cvtsi32_si128(BITS as i32);
        for i in 0..n {
            let tablet = tablets.wrapping_add(i * n_bytes);
            fetch_ahead(tablet, n_bytes);
            let x = x.wrapping_add(i * STEPS);
            // SAFETY: words and x are inside what the caller promises.
            unsafe {
                let words;
                (row.d, row.m, words) = Affine::<BITS, MIDDLE>::begin(tablet);
                let mut mask = _mm256_set1_epi32((1 << BITS) - 1);
                for piece in 0..Affine::<BITS, MIDDLE>::PIECES - 1 {
                    for j in 0..BITS {
                        let (words, x) = (words.add(4 * WIDE * j), x.add(piece * BITS + j));
                        affine_step!("vpand {t}, {mask},", "", row, words, x, mask = in(ymm_reg) mask);
                    }
                    mask = _mm256_sll_epi32(mask, shift);
                    row.d = scaled(row.d, 1.0 / Affine::<BITS, MIDDLE>::STEP);
                }
                row.d = each(|e| halves(tablet, e));
                for j in 0..BITS {
                    let (words, x) = (words.add(4 * WIDE * j), x.add(32 - BITS + j));
                    affine_step!("vmovdqa {t},", "vpsrld {t}, {t}, {shift}", row, words, x, shift = const 32 - BITS);
                }
            }
        }
        row.sums
    }

    /// A tablet as two panels of f32; AVX2, FMA and F16C must be there.
    pub(super) fn decode_tablet(layout: Layout, tablet: &[u8], out: &mut [f32], stride: usize) {
        assert!(tablet.len() == layout.tablet_bytes() && out.len() >= stride + STEPS * PANEL);
        let (tablet, store) = (tablet.as_ptr(), Store { out: out.as_mut_ptr(), stride });
        // SAFETY: a whole tablet, and room for two panels; the caller has found the features.
        unsafe {
            match layout.format {
                BlockFormat::Q4_0 => store_of::<Affine<4, 8>>(tablet, store),
                BlockFormat::Q4_1 => store_of::<Affine<4, 0>>(tablet, store),
                BlockFormat::Q8_0 => store_of::<Affine<8, 128>>(tablet, store),
                BlockFormat::F16 => store_of::<F16>(tablet, store),
                BlockFormat::BF16 => store_of::<BF16>(tablet, store),
                other => unreachable!("{other:?} is not kept in blocks"),
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn store_of<F: Decode>(tablet: *const u8, mut store: Store) {
        // SAFETY: by the caller's promise.
        unsafe { F::decode(tablet, &mut store) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [BlockFormat; 5] =
        [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::F16, BlockFormat::BF16];

    /// A tablet of many different bytes, none of them a half that is not finite.
    fn tablet(layout: Layout) -> Vec<u8> {
        (0..layout.tablet_bytes()).map(|i| (i * 167 + i / 7 + 13) as u8 & 0xbb).collect()
    }

    #[test]
    fn blocks_come_back_from_a_tablet_as_they_were() {
        for layout in FORMATS.map(|format| Layout::of(format).expect("a kept format")) {
            let mut tablet_again = vec![0; layout.tablet_bytes()];
            for lane in 0..WIDE {
                let mut block = vec![0; layout.stored_bytes()];
                layout.take(&tablet(layout), lane, &mut block);
                layout.put(&mut tablet_again, lane, &block);
            }
            assert_eq!(tablet_again, tablet(layout), "{:?}", layout.format);
        }
    }

    #[test]
    fn every_path_decodes_alike() {
        for layout in FORMATS.map(|format| Layout::of(format).expect("a kept format")) {
            let stride = STEPS * PANEL + 5;
            let (mut plain, mut fast) = (vec![0.0; 2 * stride], vec![0.0; 2 * stride]);
            decode_tablet_plainly(layout, &tablet(layout), &mut plain, stride);
            decode_tablet(layout, &tablet(layout), &mut fast, stride);
            assert!(plain.iter().all(|v| v.is_finite()) && plain.iter().any(|v| *v != 0.0));
            assert_eq!(plain, fast, "{:?}", layout.format);
        }
    }
}
