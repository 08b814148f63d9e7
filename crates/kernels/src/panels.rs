//! Operands of products, laid out as a tile reads them.
//!
//! The left side is gathered tile by tile as \[k\]\[6 rows\], the right side in panels as \[k\]\[16 columns\].
//! A matrix along which k runs is transposed on the way, eight by eight.

use crate::pool::{Pool, Shards};
use crate::quantised::Quantised;

/// Columns in a panel of the right-hand side.
pub(crate) const PANEL: usize = 16;
/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 6;
/// Numbers that a gathered block may spill beyond its last tile.
pub(crate) const SPILL: usize = 8 - TILE_ROWS;

/// A matrix of the left-hand side: element (m, k) is at `m·row_stride + k·k_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) k_stride: usize,
}

impl<'a> Left<'a> {
    /// Rows of `row_stride` numbers, k running along them.
    pub(crate) fn rows(data: &'a [f32], row_stride: usize) -> Left<'a> {
        Left { data, row_stride, k_stride: 1 }
    }

    /// The transpose of rows of `row_stride` numbers: k runs across the rows.
    pub(crate) fn transposed(data: &'a [f32], row_stride: usize) -> Left<'a> {
        Left { data, row_stride: 1, k_stride: row_stride }
    }
}

/// A right-hand side \[k, n\].
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// Panel p, row k holds columns 16p..16p+16 at `(p·panel_stride) + k·k_stride`; columns beyond n are
    /// zero or never stored.
    Panels { data: &'a [f32], panel_stride: usize, k_stride: usize },
    /// Rows of `stride` numbers, k running across them.
    Rows { data: &'a [f32], stride: usize },
    /// The transpose of rows of `stride` numbers: k runs along them.
    Transposed { data: &'a [f32], stride: usize },
    /// The transpose of a matrix in the blocks of its file.
    Blocks(&'a Quantised),
}

impl<'a> Right<'a> {
    /// Panels packed for a product over `k`.
    pub(crate) fn packed(data: &'a [f32], k: usize) -> Right<'a> {
        Right::Panels { data, panel_stride: k * PANEL, k_stride: PANEL }
    }

    /// Whether a product over k with n columns stays inside the matrix.
    pub(crate) fn covers(self, n: usize, k: usize) -> bool {
        match self {
            Right::Panels { data, panel_stride, k_stride } => {
                data.len() >= (n.div_ceil(PANEL) - 1) * panel_stride + (k - 1) * k_stride + PANEL
            }
            Right::Rows { data, stride } => stride >= n && data.len() >= (k - 1) * stride + n,
            Right::Transposed { data, stride } => stride >= k && data.len() >= (n - 1) * stride + k,
            Right::Blocks(blocks) => (blocks.n_out(), blocks.n_in()) == (n, k),
        }
    }

    /// k is cut into pieces of a multiple of so many steps only.
    pub(crate) fn step_unit(self) -> usize {
        if matches!(self, Right::Blocks(_)) { Quantised::STEPS } else { 1 }
    }
}

/// Piece `i` of `pieces` even ones.
pub(crate) fn even_piece(range: std::ops::Range<usize>, pieces: usize, i: usize) -> std::ops::Range<usize> {
    let at = |i: usize| range.start + range.len() * i / pieces;
    at(i)..at(i + 1)
}

/// Numbers that the panels of a \[k, n\] right-hand side take.
pub(crate) fn packed_len(k: usize, n: usize) -> usize {
    n.div_ceil(PANEL) * PANEL * k
}

/// Packs panel `p` of the transpose of `src` \[n, k\] (rows of `row_stride`).
pub(crate) fn pack_panel_transposed(
    panel: &mut [f32],
    src: &[f32],
    row_stride: usize,
    k: usize,
    n: usize,
    p: usize,
) {
    let columns = PANEL.min(n - p * PANEL);
    if columns < PANEL {
        panel.fill(0.0);
    }
    let row = |j: usize| &src[(p * PANEL + j) * row_stride..][..k];
    let halves = columns / 8;
    for half in 0..halves {
        transpose_into(&mut panel[half * 8..], PANEL, std::array::from_fn(|j| row(half * 8 + j)));
    }
    for j in halves * 8..columns {
        panel[j..].iter_mut().step_by(PANEL).zip(row(j)).for_each(|(slot, &v)| *slot = v);
    }
}

/// Packs panel `p` of `src` \[k, n\] (rows of `row_stride`).
pub(crate) fn pack_panel(panel: &mut [f32], src: &[f32], row_stride: usize, k: usize, n: usize, p: usize) {
    let columns = PANEL.min(n - p * PANEL);
    if columns == PANEL {
        for (slot, i) in panel.as_chunks_mut::<PANEL>().0.iter_mut().zip(0..k) {
            slot.copy_from_slice(&src[i * row_stride + p * PANEL..][..PANEL]);
        }
        return;
    }
    for (slot, i) in panel.chunks_exact_mut(PANEL).zip(0..k) {
        slot[..columns].copy_from_slice(&src[i * row_stride + p * PANEL..][..columns]);
        slot[columns..].fill(0.0);
    }
}

/// Packs the transpose of `src` \[n, k\], panels in parallel.
pub(crate) fn pack_transposed(pool: &Pool, out: &mut [f32], src: &[f32], k: usize, n: usize) {
    let panels = n.div_ceil(PANEL);
    assert_eq!(out.len(), panels * PANEL * k);
    let shards = Shards::new(out);
    let group = panels.div_ceil(4 * pool.n_threads()).max(1);
    pool.run(panels.div_ceil(group), &|task| {
        for p in task * group..((task + 1) * group).min(panels) {
            // SAFETY: each panel belongs to one task.
            let panel = unsafe { shards.piece(p * PANEL * k, PANEL * k) };
            pack_panel_transposed(panel, src, k, k, n, p);
        }
    });
}

/// Packs rows `k0..k0 + depth` of panel `p`, where `right` is not in panels already.
pub(crate) fn pack_block(
    panel: &mut [f32],
    right: Right<'_>,
    (k0, depth): (usize, usize),
    n: usize,
    p: usize,
) {
    match right {
        Right::Panels { .. } => unreachable!("panels need no packing"),
        Right::Rows { data, stride } => pack_panel(panel, &data[k0 * stride..], stride, depth, n, p),
        Right::Transposed { data, stride } => {
            pack_panel_transposed(panel, &data[k0..], stride, depth, n, p);
        }
        Right::Blocks(blocks) => blocks.decode_panel(p, k0..k0 + depth, panel),
    }
}

/// Copies rows of the left-hand side tile by tile, so that a tile reads along memory. A tile that walks
/// six rows far apart touches six pages, and with a stride of a power of two always the same set of the
/// first-level cache; where k runs across rows it does so at every step. The block is [`SPILL`] longer
/// than its tiles.
pub(crate) fn gather_left(
    block: &mut [f32],
    a: Left<'_>,
    rows: std::ops::Range<usize>,
    k0: usize,
    depth: usize,
) {
    let len = TILE_ROWS * depth;
    if a.row_stride == 1 {
        return gather_across(block, &a.data[rows.start + k0 * a.k_stride..], a.k_stride, depth, rows.len());
    }
    for (i, row) in rows.clone().step_by(TILE_ROWS).enumerate() {
        // Ascending: what spills into the next tile is overwritten by it.
        let tile = &mut block[i * len..][..len + SPILL];
        let height = TILE_ROWS.min(rows.end - row);
        // Missing rows repeat the last one and are never stored.
        let from = |r: usize| &a.data[(row + r.min(height - 1)) * a.row_stride + k0..][..depth];
        transpose_into(tile, TILE_ROWS, std::array::from_fn(from));
    }
}

/// Rows that lie side by side: six neighbours at each k. A few steps of k at a time, so that the lines
/// which neighbouring tiles share are still in the first-level cache.
fn gather_across(block: &mut [f32], src: &[f32], k_stride: usize, depth: usize, n_rows: usize) {
    const STEPS: usize = 16;
    for k0 in (0..depth).step_by(STEPS) {
        let steps = k0..(k0 + STEPS).min(depth);
        for row in (0..n_rows).step_by(TILE_ROWS) {
            let tile =
                &mut block[row * depth..][..TILE_ROWS * depth].as_chunks_mut::<TILE_ROWS>().0[steps.clone()];
            let six = |k: usize| &src[k * k_stride + row..];
            if six(depth - 1).len() >= TILE_ROWS {
                for (slot, k) in tile.iter_mut().zip(steps.clone()) {
                    let from: &[f32; TILE_ROWS] = six(k).first_chunk().unwrap_or_else(|| unreachable!());
                    *slot = *from;
                }
            } else {
                // The matrix ends in this tile; what is missing is never stored.
                for (slot, k) in tile.iter_mut().zip(steps.clone()) {
                    slot.iter_mut().zip(six(k)).for_each(|(slot, v)| *slot = *v);
                }
            }
        }
    }
}

/// out\[k·stride + j\] = rows\[j\]\[k\] for eight rows of equal length; with a stride below eight, what
/// later k do not overwrite spills behind the last one.
fn transpose_into(out: &mut [f32], stride: usize, rows: [&[f32]; 8]) {
    let depth = rows[0].len();
    if depth == 0 {
        return;
    }
    assert!(out.len() >= (depth - 1) * stride + 8 && rows.iter().all(|row| row.len() == depth));
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::has_avx2_fma() {
        done = depth / 8 * 8;
        for k in (0..done).step_by(8) {
            // SAFETY: k + 8 ≤ depth, the assertion above, and the features were detected.
            unsafe {
                transpose_8x8(out.as_mut_ptr().add(k * stride), stride, rows.map(|row| row.as_ptr().add(k)))
            };
        }
    }
    for k in done..depth {
        for (slot, row) in out[k * stride..].iter_mut().zip(&rows) {
            *slot = row[k];
        }
    }
}

/// Eight rows of eight numbers, transposed and stored in ascending order.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn transpose_8x8(out: *mut f32, stride: usize, rows: [*const f32; 8]) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise: eight numbers behind each pointer, 7·stride + 8 behind `out`.
    unsafe {
        // Written out: a closure handed to a function without these features would not be inlined.
        let [r0, r1, r2, r3, r4, r5, r6, r7] = rows;
        let (r0, r1) = (_mm256_loadu_ps(r0), _mm256_loadu_ps(r1));
        let (r2, r3) = (_mm256_loadu_ps(r2), _mm256_loadu_ps(r3));
        let (r4, r5) = (_mm256_loadu_ps(r4), _mm256_loadu_ps(r5));
        let (r6, r7) = (_mm256_loadu_ps(r6), _mm256_loadu_ps(r7));
        // Pairs of rows, then quadruples, then the 128-bit halves.
        let (lo01, hi01) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
        let (lo23, hi23) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
        let (lo45, hi45) = (_mm256_unpacklo_ps(r4, r5), _mm256_unpackhi_ps(r4, r5));
        let (lo67, hi67) = (_mm256_unpacklo_ps(r6, r7), _mm256_unpackhi_ps(r6, r7));
        let (a0, a1) = (_mm256_shuffle_ps::<0x44>(lo01, lo23), _mm256_shuffle_ps::<0xEE>(lo01, lo23));
        let (a2, a3) = (_mm256_shuffle_ps::<0x44>(hi01, hi23), _mm256_shuffle_ps::<0xEE>(hi01, hi23));
        let (b0, b1) = (_mm256_shuffle_ps::<0x44>(lo45, lo67), _mm256_shuffle_ps::<0xEE>(lo45, lo67));
        let (b2, b3) = (_mm256_shuffle_ps::<0x44>(hi45, hi67), _mm256_shuffle_ps::<0xEE>(hi45, hi67));
        let columns = [
            _mm256_permute2f128_ps::<0x20>(a0, b0),
            _mm256_permute2f128_ps::<0x20>(a1, b1),
            _mm256_permute2f128_ps::<0x20>(a2, b2),
            _mm256_permute2f128_ps::<0x20>(a3, b3),
            _mm256_permute2f128_ps::<0x31>(a0, b0),
            _mm256_permute2f128_ps::<0x31>(a1, b1),
            _mm256_permute2f128_ps::<0x31>(a2, b2),
            _mm256_permute2f128_ps::<0x31>(a3, b3),
        ];
        for (k, column) in columns.into_iter().enumerate() {
            _mm256_storeu_ps(out.add(k * stride), column);
        }
    }
}
