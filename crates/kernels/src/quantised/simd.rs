//! Decoding of tablets in registers, eight outputs in each.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{BlockFormat, Layout, PANEL, STEPS, WIDE};

/// A tablet's outputs, in eights.
const EIGHTS: usize = WIDE / 8;

/// Numbers for `N` eights of outputs.
type Eights<const N: usize> = [__m256; N];

/// Takes weights step by step.
trait Sink<const N: usize> {
    /// # Safety
    /// AVX2 and FMA are there; further, what the implementation says.
    unsafe fn take(&mut self, k: usize, w: Eights<N>);
}

/// One format's way from a tablet to weights.
trait Decode {
    /// Gives the weights of `N` eights from `first` on at all 32 steps, in order, to `sink`.
    ///
    /// # Safety
    /// A whole tablet of this format can be read; AVX2, FMA and F16C are there.
    unsafe fn decode<const N: usize>(tablet: *const u8, first: usize, sink: &mut impl Sink<N>);
}

/// d·u + m with unsigned u of so many bits, m stored or −d·`MIDDLE`. The product is exact (8 by 11
/// bits), so that one rounding is left as in ggml, and none where m is not stored.
struct Affine<const BITS: usize, const MIDDLE: i32>;
struct F16;
struct BF16;

#[inline(always)]
fn each<const N: usize>(f: impl Fn(usize) -> __m256) -> Eights<N> {
    // SAFETY: AVX is there, by the callers' promise. Not `array::from_fn`, into which a closure that needs
    // AVX is not inlined.
    let mut all = unsafe { [_mm256_setzero_ps(); N] };
    for (e, v) in all.iter_mut().enumerate() {
        *v = f(e);
    }
    all
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
unsafe fn scaled<const N: usize>(v: Eights<N>, by: f32) -> Eights<N> {
    // SAFETY: AVX is there.
    unsafe { each(|e| _mm256_mul_ps(v[e], _mm256_set1_ps(by))) }
}

impl<const BITS: usize, const MIDDLE: i32> Affine<BITS, MIDDLE> {
    /// Pieces of a word.
    const PIECES: usize = 32 / BITS;

    /// What one piece further multiplies u by, if it stays where it is in its word.
    const STEP: f32 = (1u32 << BITS) as f32;

    /// d, m, and where words start, of `N` eights from `first` on.
    #[inline(always)]
    unsafe fn begin<const N: usize>(tablet: *const u8, first: usize) -> (Eights<N>, Eights<N>, *const u8) {
        // SAFETY: by the promise of `Decode::decode`.
        unsafe {
            let words = tablet.add(32 * first);
            let d = each(|e| halves(tablet, first + e));
            match MIDDLE {
                0 => (d, each(|e| halves(tablet, EIGHTS + first + e)), words.add(4 * WIDE)),
                middle => (d, scaled(d, -middle as f32), words.add(2 * WIDE)),
            }
        }
    }
}

impl<const BITS: usize, const MIDDLE: i32> Decode for Affine<BITS, MIDDLE> {
    /// Piece i is taken from its word as u·2^(i·BITS), which is exact in f32, and met with
    /// d·2^(−i·BITS); so no shift is needed but for the last one, which reaches into the sign.
    #[inline(always)]
    unsafe fn decode<const N: usize>(tablet: *const u8, first: usize, sink: &mut impl Sink<N>) {
        // SAFETY: by the caller's promise.
        unsafe {
            let (mut d, m, words) = Self::begin::<N>(tablet, first);
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
            let d: Eights<N> = each(|e| halves(tablet, first + e));
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
    unsafe fn decode<const N: usize>(tablet: *const u8, first: usize, sink: &mut impl Sink<N>) {
        for k in 0..STEPS {
            // SAFETY: by the caller's promise.
            unsafe { sink.take(k, each(|e| halves(tablet, EIGHTS * k + first + e))) };
        }
    }
}

impl Decode for BF16 {
    /// The upper halves of f32.
    #[inline(always)]
    unsafe fn decode<const N: usize>(tablet: *const u8, first: usize, sink: &mut impl Sink<N>) {
        // SAFETY: by the caller's promise.
        unsafe {
            let words = tablet.add(32 * first);
            for j in 0..16 {
                let low = each(|e| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(word(words, j, e))));
                sink.take(j, low);
            }
            let mask = _mm256_set1_epi32(0xffff << 16);
            for j in 0..16 {
                let high = each(|e| _mm256_castsi256_ps(_mm256_and_si256(word(words, j, e), mask)));
                sink.take(16 + j, high);
            }
        }
    }
}

/// Sums of one row of x with 32 outputs.
struct Row {
    x: *const f32,
    sums: Eights<EIGHTS>,
}

impl Sink<EIGHTS> for Row {
    /// # Safety
    /// x can be read at `k`.
    #[inline(always)]
    unsafe fn take(&mut self, k: usize, w: Eights<EIGHTS>) {
        // SAFETY: by the caller's promise.
        unsafe {
            let x = _mm256_broadcast_ss(&*self.x.add(k));
            self.sums = each(|e| _mm256_fmadd_ps(x, w[e], self.sums[e]));
        }
    }
}

/// Stores a panel, \[k\]\[16\].
struct Store(*mut f32);

impl Sink<2> for Store {
    /// # Safety
    /// 16 numbers can be written at step `k`.
    #[inline(always)]
    unsafe fn take(&mut self, k: usize, w: Eights<2>) {
        // SAFETY: by the caller's promise.
        unsafe {
            _mm256_storeu_ps(self.0.add(k * PANEL), w[0]);
            _mm256_storeu_ps(self.0.add(k * PANEL + 8), w[1]);
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
    y.copy_from_slice(&sums[..y.len()]);
}

/// The numbers in registers.
#[target_feature(enable = "avx2,fma,f16c")]
fn numbers(v: Eights<EIGHTS>) -> [f32; WIDE] {
    let mut numbers = [0.0; WIDE];
    for (eight, v) in numbers.as_chunks_mut::<8>().0.iter_mut().zip(v) {
        // SAFETY: room for eight numbers.
        unsafe { _mm256_storeu_ps(eight.as_mut_ptr(), v) };
    }
    numbers
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
unsafe fn row_of<F: Decode>(tablets: *const u8, (n, n_bytes): (usize, usize), x: *const f32) -> [f32; WIDE] {
    let mut row = Row { x, sums: [_mm256_setzero_ps(); EIGHTS] };
    for i in 0..n {
        let tablet = tablets.wrapping_add(i * n_bytes);
        fetch_ahead(tablet, n_bytes);
        // SAFETY: by the caller's promise.
        unsafe { F::decode(tablet, 0, &mut row) };
        row.x = row.x.wrapping_add(STEPS);
    }
    numbers(row.sums)
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
    d: Eights<EIGHTS>,
    m: Eights<EIGHTS>,
    sums: Eights<EIGHTS>,
}

/// As [`row_of`] with [`Affine::decode`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn affine_row<const BITS: usize, const MIDDLE: i32>(
    tablets: *const u8,
    (n, n_bytes): (usize, usize),
    x: *const f32,
) -> [f32; WIDE] {
    let zero = [_mm256_setzero_ps(); EIGHTS];
    let mut row = AffineRow { d: zero, m: zero, sums: zero };
    let shift = _mm_cvtsi32_si128(BITS as i32);
    for i in 0..n {
        let tablet = tablets.wrapping_add(i * n_bytes);
        fetch_ahead(tablet, n_bytes);
        let x = x.wrapping_add(i * STEPS);
        // SAFETY: words and x are inside what the caller promises.
        unsafe {
            let words;
            (row.d, row.m, words) = Affine::<BITS, MIDDLE>::begin(tablet, 0);
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
    numbers(row.sums)
}

/// One of the two panels of a tablet as f32; AVX2, FMA and F16C must be there.
pub(super) fn decode_half(layout: Layout, tablet: &[u8], half: usize, out: &mut [f32]) {
    assert!(tablet.len() == layout.tablet_bytes() && half < 2 && out.len() == STEPS * PANEL);
    let (tablet, first, out) = (tablet.as_ptr(), 2 * half, out.as_mut_ptr());
    // SAFETY: a whole tablet, and room for a panel; the caller has found the features.
    unsafe {
        match layout.format {
            BlockFormat::Q4_0 => store_of::<Affine<4, 8>>(tablet, first, out),
            BlockFormat::Q4_1 => store_of::<Affine<4, 0>>(tablet, first, out),
            BlockFormat::Q8_0 => store_of::<Affine<8, 128>>(tablet, first, out),
            BlockFormat::F16 => store_of::<F16>(tablet, first, out),
            BlockFormat::BF16 => store_of::<BF16>(tablet, first, out),
            other => unreachable!("{other:?} is not kept in blocks"),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store_of<F: Decode>(tablet: *const u8, first: usize, out: *mut f32) {
    // SAFETY: by the caller's promise.
    unsafe { F::decode(tablet, first, &mut Store(out)) };
}
