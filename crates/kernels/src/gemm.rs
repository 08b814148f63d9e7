//! Matrix products in which every element is one chain of fused multiply-adds over ascending k.
//!
//! A tile of 6 × 16 outputs stays in registers while it walks along k (Goto and van de Geijn 2008; the
//! layout of the operands is in `panels`). A chain that is cut into blocks of k continues from the stored
//! f32, which changes no bit; so blocking, tiling, edges, threads and the instruction set are all
//! invisible in the result.

use std::cell::RefCell;

use crate::panels::{Left, PANEL, Right, SPILL, TILE_ROWS, even_piece, gather_left, pack_block};
use crate::pool::{Pool, Shards};

/// Most steps of k in a block: a panel block of 384 × 16 floats is three quarters of a 32 KiB first-level
/// cache, and what a tile costs to begin and end is spread over many steps.
const BLOCK_K: usize = 384;
/// Most tiles in a block of rows: with `BLOCK_K`, 396 KiB of the second-level cache.
const BLOCK_TILES: usize = 43;
/// So many tiles are still one block where there are no more: a little that comes from the next cache
/// costs less than to lay out every panel twice.
const WHOLE_TILES: usize = 2 * BLOCK_TILES;
/// Panels from which on a block of the left-hand side is gathered.
const GATHER_PANELS_MIN: usize = 8;
/// Pieces of a product for each thread: the last ones even out what disturbs a thread.
const TASKS_PER_THREAD: usize = 1;
/// Numbers in a cache line.
const LINE: usize = 16;

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
    let (row_cuts, panel_cuts) =
        cuts(m, panels, pool.n_threads(), m * n * k, matches!(b, Right::Panels { .. }));
    let out = Shards::new(c);
    pool.run(row_cuts * panel_cuts, &|task| {
        let rows = even_piece(0..m.div_ceil(TILE_ROWS), row_cuts, task % row_cuts);
        let rows = rows.start * TILE_ROWS..(rows.end * TILE_ROWS).min(m);
        let region = Region { rows, panels: even_piece(0..panels, panel_cuts, task / row_cuts) };
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

/// How many pieces rows and panels are cut into: enough for the threads, none too small to pay, and of
/// those the cut that copies operands least. Each piece of columns gathers all rows, each piece of rows
/// packs all panels that are not packed yet.
fn cuts(m: usize, panels: usize, n_threads: usize, work: usize, packed: bool) -> (usize, usize) {
    const WORK_MIN: usize = 1 << 16;
    if n_threads == 1 || work < 2 * WORK_MIN {
        return (1, 1);
    }
    let wanted = (TASKS_PER_THREAD * n_threads).min(work / WORK_MIN).max(1);
    let rows_max = m.div_ceil(TILE_ROWS).min(wanted);
    let copied = |&(rows, columns): &(usize, usize)| {
        m * columns + if packed { 0 } else { panels * PANEL * rows } + m * panels * PANEL / (rows * columns)
    };
    let cuts = (1..=rows_max).map(|rows| (rows, wanted.div_ceil(rows).min(panels)));
    cuts.min_by_key(copied).unwrap_or((1, 1))
}

fn check_bounds(c_len: usize, c_stride: usize, a: Left<'_>, b: Right<'_>, (m, n, k): (usize, usize, usize)) {
    assert!(c_stride >= n && c_len >= (m - 1) * c_stride + n, "product output too small");
    if k > 0 {
        assert!(a.data.len() > (m - 1) * a.row_stride + (k - 1) * a.k_stride, "left side too small");
        assert!(b.covers(n, k), "right side too small");
    }
}

thread_local! {
    /// A block of the left-hand side and a block of a panel, of the product that this thread is in.
    static BLOCKS: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
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
    let tiles = region.rows.len().div_ceil(TILE_ROWS);
    let row_blocks = if tiles <= WHOLE_TILES { 1 } else { tiles.div_ceil(BLOCK_TILES) };
    BLOCKS.with_borrow_mut(|(left, panel)| {
        left.resize(WHOLE_TILES * TILE_ROWS * BLOCK_K + SPILL, 0.0);
        panel.resize(PANEL * BLOCK_K, 0.0);
        let (k_blocks, unit) = (k.div_ceil(BLOCK_K), b.step_unit());
        for steps in (0..k_blocks).map(|i| even_piece(0..k / unit, k_blocks, i)) {
            let (k0, depth) = (steps.start * unit, steps.len() * unit);
            for i in 0..row_blocks {
                let tiles = even_piece(0..tiles, row_blocks, i);
                let end = (region.rows.start + tiles.end * TILE_ROWS).min(region.rows.end);
                let rows = region.rows.start + tiles.start * TILE_ROWS..end;
                let left = left_block(left, a, b, region.panels.len(), rows.clone(), (k0, depth));
                let block = Block { left, rows, k0, depth, accumulate: accumulate || k0 > 0 };
                multiply_block(c, c_stride, &block, b, panel, region.panels.clone(), n);
            }
        }
    });
}

/// The left-hand side's block, gathered where that is repaid by many panels.
fn left_block<'a>(
    gathered: &'a mut [f32],
    a: Left<'a>,
    b: Right<'_>,
    n_panels: usize,
    rows: std::ops::Range<usize>,
    (k0, depth): (usize, usize),
) -> LeftBlock<'a> {
    let strided = matches!(b, Right::Panels { k_stride, .. } if k_stride != PANEL);
    if !strided && (a.k_stride != 1 || n_panels >= GATHER_PANELS_MIN) {
        gather_left(gathered, a, rows, k0, depth);
        return LeftBlock { start: gathered, tile_stride: TILE_ROWS * depth, strides: None };
    }
    let start = &a.data[rows.start * a.row_stride + k0 * a.k_stride..];
    LeftBlock { start, tile_stride: TILE_ROWS * a.row_stride, strides: Some((a.row_stride, a.k_stride)) }
}

/// A block of the left-hand side where its tiles read it.
struct LeftBlock<'a> {
    start: &'a [f32],
    tile_stride: usize,
    /// Of rows and of k; gathered where there are none.
    strides: Option<(usize, usize)>,
}

/// Rows and a range of k of one product.
struct Block<'a> {
    left: LeftBlock<'a>,
    rows: std::ops::Range<usize>,
    k0: usize,
    depth: usize,
    accumulate: bool,
}

fn multiply_block(
    c: *mut f32,
    c_stride: usize,
    block: &Block<'_>,
    b: Right<'_>,
    packed: &mut [f32],
    panels: std::ops::Range<usize>,
    n: usize,
) {
    let Block { left, rows, .. } = block;
    // Each tile fetches its share of the next panel, which the first would else wait for.
    let share = block.depth.div_ceil(rows.len().div_ceil(TILE_ROWS));
    for p in panels {
        let (panel, b_k) = match b {
            Right::Panels { data, panel_stride, k_stride } => {
                (data[p * panel_stride + block.k0 * k_stride..].as_ptr(), k_stride)
            }
            Right::Rows { .. } | Right::Transposed { .. } | Right::Blocks(_) => {
                let packed = &mut packed[..block.depth * PANEL];
                pack_block(packed, b, (block.k0, block.depth), n, p);
                (packed.as_ptr(), PANEL)
            }
        };
        for (i, row) in rows.clone().step_by(TILE_ROWS).enumerate() {
            let tile = Tile {
                a: left.start[i * left.tile_stride..].as_ptr(),
                a_strides: left.strides.unwrap_or((1, TILE_ROWS)),
                b: panel,
                b_k,
                c: c.wrapping_add(row * c_stride + p * PANEL),
                c_row: c_stride,
                depth: block.depth,
                columns: PANEL.min(n - p * PANEL),
                accumulate: block.accumulate,
            };
            // What the next tile writes, and a part of the next panel.
            (TILE_ROWS..2 * TILE_ROWS).for_each(|r| prefetch(tile.c.wrapping_add(r * c_stride)));
            prefetch_panel(b, block, p + 1, i * share..(i + 1) * share);
            let height = TILE_ROWS.min(rows.end - row);
            match left.strides {
                None => tile.run::<true>(height),
                Some(_) => tile.run::<false>(height),
            }
        }
    }
}

/// Asks for steps `steps` of panel `p`, which need not exist.
fn prefetch_panel(b: Right<'_>, block: &Block<'_>, p: usize, steps: std::ops::Range<usize>) {
    match b {
        Right::Panels { data, panel_stride, k_stride } => {
            let start = data.as_ptr().wrapping_add(p * panel_stride + block.k0 * k_stride);
            steps.for_each(|k| prefetch(start.wrapping_add(k * k_stride)));
        }
        Right::Rows { data, stride } => {
            let start = data.as_ptr().wrapping_add(block.k0 * stride + p * PANEL);
            steps.for_each(|k| prefetch(start.wrapping_add(k * stride)));
        }
        Right::Transposed { data, stride } => {
            let start = data.as_ptr().wrapping_add(p * PANEL * stride + block.k0);
            // As many lines: column by column, `LINE` steps of k in each.
            let per_column = block.depth.div_ceil(LINE);
            steps.for_each(|line| {
                prefetch(start.wrapping_add(line / per_column * stride + line % per_column * LINE));
            });
        }
        Right::Blocks(blocks) => {
            let (start, step_bytes) = blocks.place(p, block.k0);
            steps.for_each(|k| prefetch(start.wrapping_add(k * step_bytes).cast()));
        }
    }
}

/// Asks for the cache line at an address, which need not be valid, in the second-level cache: the
/// first is full of the panel in use.
#[inline(always)]
fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it reads nothing and faults on nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
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
    /// Of rows and of k.
    a_strides: (usize, usize),
    b: *const f32,
    b_k: usize,
    c: *mut f32,
    c_row: usize,
    depth: usize,
    columns: usize,
    accumulate: bool,
}

impl Tile {
    /// With `GATHERED` both sides lie as a tile reads them, and their strides are constants.
    fn run<const GATHERED: bool>(&self, rows: usize) {
        match rows {
            6 => self.run_rows::<6, GATHERED>(),
            5 => self.run_rows::<5, GATHERED>(),
            4 => self.run_rows::<4, GATHERED>(),
            3 => self.run_rows::<3, GATHERED>(),
            2 => self.run_rows::<2, GATHERED>(),
            _ => self.run_rows::<1, GATHERED>(),
        }
    }

    fn run_rows<const R: usize, const GATHERED: bool>(&self) {
        // SAFETY: `check_bounds` covered every address that the tile reads and writes (a padded
        // panel is read whole), the region is this task's own, and the features were detected.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if crate::cpu::has_avx2_fma() {
                return match self.columns {
                    PANEL => self.avx2::<R, GATHERED>(),
                    _ => self.avx2_edge::<R, GATHERED>(),
                };
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
                        let a = *self.a.add(r * self.a_strides.0 + k * self.a_strides.1);
                        sum = a.mul_add(*self.b.add(k * self.b_k + j), sum);
                    }
                    *c = sum;
                }
            }
        }
    }

    /// A tile with fewer columns than a panel goes through one that is whole.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2_edge<const R: usize, const GATHERED: bool>(&self) {
        let mut spare = [0.0f32; TILE_ROWS * PANEL];
        // SAFETY: see `run_rows`; `spare` holds 6 × 16 numbers.
        unsafe {
            for r in 0..R {
                let from = self.c.add(r * self.c_row);
                std::ptr::copy_nonoverlapping(from, spare.as_mut_ptr().add(r * PANEL), self.columns);
            }
            Tile { c: spare.as_mut_ptr(), c_row: PANEL, columns: PANEL, ..*self }.avx2::<R, GATHERED>();
            for r in 0..R {
                let to = self.c.add(r * self.c_row);
                std::ptr::copy_nonoverlapping(spare.as_ptr().add(r * PANEL), to, self.columns);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const R: usize, const GATHERED: bool>(&self) {
        use std::arch::x86_64::*;
        // SAFETY: see `run_rows`.
        unsafe {
            let (c, c_row) = (self.c, self.c_row);
            let mut sums = [[_mm256_setzero_ps(); 2]; R];
            if self.accumulate {
                for (r, sum) in sums.iter_mut().enumerate() {
                    sum[0] = _mm256_loadu_ps(c.add(r * c_row));
                    sum[1] = _mm256_loadu_ps(c.add(r * c_row + 8));
                }
            }
            let (mut a, mut b) = (self.a, self.b);
            let ((a_row, a_k), b_k) =
                if GATHERED { ((1, TILE_ROWS), PANEL) } else { (self.a_strides, self.b_k) };
            for _ in 0..self.depth {
                let b0 = _mm256_loadu_ps(b);
                let b1 = _mm256_loadu_ps(b.add(8));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = _mm256_broadcast_ss(&*a.add(r * a_row));
                    sum[0] = _mm256_fmadd_ps(x, b0, sum[0]);
                    sum[1] = _mm256_fmadd_ps(x, b1, sum[1]);
                }
                a = a.wrapping_add(a_k);
                b = b.wrapping_add(b_k);
            }
            for (r, sum) in sums.iter().enumerate() {
                _mm256_storeu_ps(c.add(r * c_row), sum[0]);
                _mm256_storeu_ps(c.add(r * c_row + 8), sum[1]);
            }
        }
    }
}
