//! Matrix products in which every element is one chain of fused multiply-adds over ascending k.
//!
//! The right-hand side is laid out in panels of [`PANEL`] columns, so a tile of 6 × 16 outputs
//! stays in registers while it walks along k (the layout of Goto and van de Geijn 2008). A
//! chain that is cut into blocks of k continues from the stored f32, which changes no bit; so
//! blocking, tiling, edges, threads and the instruction set are all invisible in the result.

use crate::pool::{Pool, Shards};

/// Columns in a panel of the right-hand side.
pub(crate) const PANEL: usize = 16;
/// Rows of a tile.
const TILE_ROWS: usize = 6;
/// k per block: a panel block of 256 × 16 floats is half of a 32 KiB first-level cache.
const BLOCK_K: usize = 256;
/// Rows of a block: with `BLOCK_K`, at most 120 KiB of the second-level cache.
const BLOCK_ROWS: usize = 120;

/// A matrix of the left-hand side: element (m, k) is at `start + m·row_stride + k·k_stride`.
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

/// A right-hand side \[k, n\] in panels: panel p, row k holds columns 16p..16p+16 at
/// `(p·panel_stride) + k·k_stride`; columns beyond n are zero or never stored.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) panel_stride: usize,
    pub(crate) k_stride: usize,
}

impl<'a> Right<'a> {
    /// Panels packed for a product over `k`.
    pub(crate) fn packed(data: &'a [f32], k: usize) -> Right<'a> {
        Right { data, panel_stride: k * PANEL, k_stride: PANEL }
    }
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
    for j in 0..columns {
        let row = &src[(p * PANEL + j) * row_stride..][..k];
        for (slot, &v) in panel[j..].iter_mut().step_by(PANEL).zip(row) {
            *slot = v;
        }
    }
}

/// Packs panel `p` of `src` \[k, n\] (rows of `row_stride`).
pub(crate) fn pack_panel(panel: &mut [f32], src: &[f32], row_stride: usize, k: usize, n: usize, p: usize) {
    let columns = PANEL.min(n - p * PANEL);
    for (slot, i) in panel.chunks_exact_mut(PANEL).zip(0..k) {
        slot[..columns].copy_from_slice(&src[i * row_stride + p * PANEL..][..columns]);
        slot[columns..].fill(0.0);
    }
}

/// Packs the transpose of `src` \[n, k\], panels in parallel.
pub(crate) fn pack_transposed(pool: &Pool, out: &mut [f32], src: &[f32], k: usize, n: usize) {
    pack_panels(pool, out, k, n, &|panel, p| pack_panel_transposed(panel, src, k, k, n, p));
}

/// Packs `src` \[k, n\], panels in parallel.
pub(crate) fn pack_plain(pool: &Pool, out: &mut [f32], src: &[f32], k: usize, n: usize) {
    pack_panels(pool, out, k, n, &|panel, p| pack_panel(panel, src, n, k, n, p));
}

fn pack_panels(pool: &Pool, out: &mut [f32], k: usize, n: usize, pack: &(dyn Fn(&mut [f32], usize) + Sync)) {
    let panels = n.div_ceil(PANEL);
    assert_eq!(out.len(), panels * PANEL * k);
    let shards = Shards::new(out);
    let group = panels.div_ceil(4 * pool.n_threads()).max(1);
    pool.run(panels.div_ceil(group), &|task| {
        for p in task * group..((task + 1) * group).min(panels) {
            // SAFETY: each panel belongs to one task.
            let panel = unsafe { shards.piece(p * PANEL * k, PANEL * k) };
            pack(panel, p);
        }
    });
}

/// c\[m, n\] (rows of `c_stride`) = a·b, or c + a·b where `accumulate`; in parallel.
pub(crate) fn multiply(
    pool: &Pool,
    c: &mut [f32],
    c_stride: usize,
    a: Left<'_>,
    b: Right<'_>,
    (m, n, k): (usize, usize, usize),
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    check_bounds(c.len(), c_stride, a, b, (m, n, k));
    let panels = n.div_ceil(PANEL);
    let (row_cuts, panel_cuts) = cuts(m, panels, pool.n_threads(), m * n * k);
    let out = Shards::new(c);
    pool.run(row_cuts * panel_cuts, &|task| {
        let rows = slice_of(m.div_ceil(TILE_ROWS), row_cuts, task % row_cuts);
        let rows = rows.start * TILE_ROWS..(rows.end * TILE_ROWS).min(m);
        let region = Region { rows, panels: slice_of(panels, panel_cuts, task / row_cuts) };
        multiply_region(out.address(0), c_stride, a, b, region, (n, k), accumulate);
    });
}

/// As [`multiply`], on the calling thread only.
pub(crate) fn multiply_serial(
    c: &mut [f32],
    c_stride: usize,
    a: Left<'_>,
    b: Right<'_>,
    (m, n, k): (usize, usize, usize),
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    check_bounds(c.len(), c_stride, a, b, (m, n, k));
    let region = Region { rows: 0..m, panels: 0..n.div_ceil(PANEL) };
    multiply_region(c.as_mut_ptr(), c_stride, a, b, region, (n, k), accumulate);
}

struct Region {
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
}

/// How many pieces rows and panels are cut into: enough for the threads, none too small to pay.
fn cuts(m: usize, panels: usize, n_threads: usize, work: usize) -> (usize, usize) {
    const WORK_MIN: usize = 1 << 16;
    if n_threads == 1 || work < 2 * WORK_MIN {
        return (1, 1);
    }
    let wanted = (4 * n_threads).min(work / WORK_MIN).max(1);
    let rows = (m / (4 * TILE_ROWS)).clamp(1, wanted);
    let columns = wanted.div_ceil(rows).clamp(1, panels);
    (rows, columns)
}

fn slice_of(n: usize, pieces: usize, i: usize) -> std::ops::Range<usize> {
    n * i / pieces..n * (i + 1) / pieces
}

fn check_bounds(c_len: usize, c_stride: usize, a: Left<'_>, b: Right<'_>, (m, n, k): (usize, usize, usize)) {
    assert!(c_stride >= n && c_len >= (m - 1) * c_stride + n, "product output too small");
    if k > 0 {
        assert!(a.data.len() > (m - 1) * a.row_stride + (k - 1) * a.k_stride, "left side too small");
        let last_panel = (n.div_ceil(PANEL) - 1) * b.panel_stride;
        assert!(b.data.len() >= last_panel + (k - 1) * b.k_stride + PANEL, "right side too small");
    }
}

fn multiply_region(
    c: *mut f32,
    c_stride: usize,
    a: Left<'_>,
    b: Right<'_>,
    region: Region,
    (n, k): (usize, usize),
    accumulate: bool,
) {
    if k == 0 && !accumulate {
        clear(c, c_stride, &region, n);
    }
    for k0 in (0..k).step_by(BLOCK_K) {
        let depth = BLOCK_K.min(k - k0);
        for row0 in region.rows.clone().step_by(BLOCK_ROWS) {
            let row_end = (row0 + BLOCK_ROWS).min(region.rows.end);
            for p in region.panels.clone() {
                let columns = PANEL.min(n - p * PANEL);
                let panel = b.data[p * b.panel_stride + k0 * b.k_stride..].as_ptr();
                for row in (row0..row_end).step_by(TILE_ROWS) {
                    let tile = Tile {
                        a: a.data[row * a.row_stride + k0 * a.k_stride..].as_ptr(),
                        a_row: a.row_stride,
                        a_k: a.k_stride,
                        b: panel,
                        b_k: b.k_stride,
                        c: c.wrapping_add(row * c_stride + p * PANEL),
                        c_row: c_stride,
                        depth,
                        columns,
                        accumulate: accumulate || k0 > 0,
                    };
                    tile.run(TILE_ROWS.min(row_end - row));
                }
            }
        }
    }
}

fn clear(c: *mut f32, c_stride: usize, region: &Region, n: usize) {
    let from = region.panels.start * PANEL;
    let to = (region.panels.end * PANEL).min(n);
    for row in region.rows.clone() {
        for column in from..to {
            // SAFETY: inside the output, by `check_bounds`; the region is this task's own.
            unsafe {
                *c.add(row * c_stride + column) = 0.0;
            }
        }
    }
}

/// One tile of the output: up to 6 rows and 16 columns, over `depth` steps of k.
struct Tile {
    a: *const f32,
    a_row: usize,
    a_k: usize,
    b: *const f32,
    b_k: usize,
    c: *mut f32,
    c_row: usize,
    depth: usize,
    columns: usize,
    accumulate: bool,
}

impl Tile {
    fn run(&self, rows: usize) {
        match rows {
            6 => self.run_rows::<6>(),
            5 => self.run_rows::<5>(),
            4 => self.run_rows::<4>(),
            3 => self.run_rows::<3>(),
            2 => self.run_rows::<2>(),
            _ => self.run_rows::<1>(),
        }
    }

    fn run_rows<const R: usize>(&self) {
        // SAFETY: `check_bounds` covered every address that the tile reads and writes (a padded
        // panel is read whole), the region is this task's own, and the features were detected.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if crate::cpu::has_avx2_fma() {
                return self.avx2::<R>();
            }
            self.portable::<R>();
        }
    }

    unsafe fn portable<const R: usize>(&self) {
        for r in 0..R {
            for j in 0..self.columns {
                // SAFETY: see `run_rows`.
                unsafe {
                    let c = self.c.add(r * self.c_row + j);
                    let mut sum = if self.accumulate { *c } else { 0.0 };
                    for k in 0..self.depth {
                        let a = *self.a.add(r * self.a_row + k * self.a_k);
                        sum = a.mul_add(*self.b.add(k * self.b_k + j), sum);
                    }
                    *c = sum;
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const R: usize>(&self) {
        use std::arch::x86_64::*;
        let mut spare = [0.0f32; TILE_ROWS * PANEL];
        let whole = self.columns == PANEL;
        // SAFETY: see `run_rows`; `spare` holds 6 × 16 numbers.
        unsafe {
            let (c, c_row) = if whole { (self.c, self.c_row) } else { (spare.as_mut_ptr(), PANEL) };
            if !whole && self.accumulate {
                for r in 0..R {
                    let from = self.c.add(r * self.c_row);
                    std::ptr::copy_nonoverlapping(from, c.add(r * c_row), self.columns);
                }
            }
            let mut sums = [[_mm256_setzero_ps(); 2]; R];
            if self.accumulate {
                for (r, sum) in sums.iter_mut().enumerate() {
                    sum[0] = _mm256_loadu_ps(c.add(r * c_row));
                    sum[1] = _mm256_loadu_ps(c.add(r * c_row + 8));
                }
            }
            let (mut a, mut b) = (self.a, self.b);
            for _ in 0..self.depth {
                let b0 = _mm256_loadu_ps(b);
                let b1 = _mm256_loadu_ps(b.add(8));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = _mm256_broadcast_ss(&*a.add(r * self.a_row));
                    sum[0] = _mm256_fmadd_ps(x, b0, sum[0]);
                    sum[1] = _mm256_fmadd_ps(x, b1, sum[1]);
                }
                a = a.wrapping_add(self.a_k);
                b = b.wrapping_add(self.b_k);
            }
            for (r, sum) in sums.iter().enumerate() {
                _mm256_storeu_ps(c.add(r * c_row), sum[0]);
                _mm256_storeu_ps(c.add(r * c_row + 8), sum[1]);
            }
            if !whole {
                for r in 0..R {
                    let to = self.c.add(r * self.c_row);
                    std::ptr::copy_nonoverlapping(c.add(r * c_row), to, self.columns);
                }
            }
        }
    }
}
