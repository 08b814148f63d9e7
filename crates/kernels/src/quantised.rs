//! Weights that stay in the blocks of their file, laid out for products with them.
//!
//! A tablet holds 32 outputs at 32 steps of k: first the blocks' scales side by side, then the stored
//! numbers in the order in which a product takes them. Each weight becomes the very f32 that
//! [`dequantise`] gives, so a product has the bits of the same product with f32 weights.

#[cfg(target_arch = "x86_64")]
mod simd;

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

    /// Bytes of a matrix that is kept as it is; None where it is not kept.
    pub(crate) fn n_bytes_of(format: BlockFormat, n_out: usize, n_in: usize) -> Option<usize> {
        let layout = Layout::of(format).filter(|_| n_in.is_multiple_of(STEPS))?;
        Some(n_out.div_ceil(WIDE) * (n_in / STEPS) * layout.tablet_bytes())
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

    pub(crate) fn n_out(&self) -> usize {
        self.n_out
    }

    pub(crate) fn n_in(&self) -> usize {
        self.n_in
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

    /// Whether rows of the left-hand side are best multiplied one by one, with [`Quantised::multiply_row`].
    pub(crate) fn has_row_kernel() -> bool {
        #[cfg(target_arch = "x86_64")]
        return crate::cpu::has_avx2_fma_f16c();
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// y = x·wᵀ of one row, in parallel over outputs. The weights pass through registers only.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn multiply_row(&self, pool: &Pool, y: &mut [f32], x: &[f32]) {
        assert!(Quantised::has_row_kernel() && x.len() == self.n_in && y.len() == self.n_out);
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

    /// The unit in which k can be cut.
    pub(crate) const STEPS: usize = STEPS;

    /// Outputs 16·`p`.. at some steps of k as f32, \[k\]\[16\]; steps are whole tablets.
    pub(crate) fn decode_panel(&self, p: usize, steps: Range<usize>, out: &mut [f32]) {
        assert!(steps.start.is_multiple_of(STEPS) && steps.len().is_multiple_of(STEPS));
        let tablets = self.tablets(p / 2, steps.start).chunks_exact(self.layout.tablet_bytes());
        for (tablet, out) in tablets.zip(out[..steps.len() * PANEL].chunks_exact_mut(STEPS * PANEL)) {
            decode_half(self.layout, tablet, p % 2, out);
        }
    }

    /// Where panel `p` is stored from step `k` on, to be fetched ahead, and how many bytes a step takes.
    pub(crate) fn place(&self, p: usize, k: usize) -> (*const u8, usize) {
        let first = p / 2 * (self.n_in / STEPS) + k / STEPS;
        let bytes = self.layout.tablet_bytes();
        (Line::bytes(&self.lines).as_ptr().wrapping_add(first * bytes), bytes / STEPS)
    }
}

impl Panels for Quantised {
    fn n(&self) -> usize {
        self.n_out
    }

    fn block<'a>(
        &'a self,
        first: usize,
        count: usize,
        steps: Range<usize>,
        scratch: &'a mut [f32],
    ) -> Block<'a> {
        for p in 0..count {
            self.decode_panel(first + p, steps.clone(), &mut scratch[p * SCRATCH_STRIDE..]);
        }
        let (next, step_bytes) = self.place(first, steps.end);
        let next = (next, steps.len() * step_bytes);
        Block { data: scratch, panel_stride: SCRATCH_STRIDE, k_stride: PANEL, next }
    }
}

/// One of the two panels of a tablet as f32, \[k\]\[16\].
fn decode_half(layout: Layout, tablet: &[u8], half: usize, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::has_avx2_fma_f16c() {
        return simd::decode_half(layout, tablet, half, out);
    }
    decode_half_plainly(layout, tablet, half, out);
}

fn decode_half_plainly(layout: Layout, tablet: &[u8], half: usize, out: &mut [f32]) {
    let mut numbers = [0.0; STEPS];
    for lane in 0..PANEL {
        layout.decode(tablet, half * PANEL + lane, &mut numbers);
        out[lane..].iter_mut().step_by(PANEL).zip(&numbers).for_each(|(slot, &v)| *slot = v);
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
            let (mut plain, mut fast) = ([0.0; 2 * STEPS * PANEL], [0.0; 2 * STEPS * PANEL]);
            let halves = plain.as_chunks_mut::<{ STEPS * PANEL }>().0.iter_mut();
            for (half, (plain, fast)) in halves.zip(fast.as_chunks_mut::<{ STEPS * PANEL }>().0).enumerate() {
                decode_half_plainly(layout, &tablet(layout), half, plain);
                decode_half(layout, &tablet(layout), half, fast);
            }
            assert!(plain.iter().all(|v| v.is_finite()) && plain.iter().any(|v| *v != 0.0));
            assert_eq!(plain, fast, "{:?}", layout.format);
        }
    }
}
