//! Products with few rows, as decoding has them.
//!
//! A weight is read once per product: with one row its way from memory counts, with some tens of rows
//! the arithmetic. Rows are dealt evenly to tiles of at most six; up to three rows take several panels
//! at once, so that enough chains run side by side to hide the latency of a multiply-add. While tiles
//! use one block of a panel, they fetch the next.

use std::cell::RefCell;
use std::ops::Range;

use crate::panels::{PANEL, TILE_ROWS, even_piece};
use crate::pool::{Pool, Shards};

/// Panels of a tile.
const TILE_PANELS: usize = 4;
/// k per block: 8 KiB of a panel stay in the first-level cache while tiles share them.
const BLOCK_K: usize = 192;
/// Numbers between panels that are decoded on the way; a little more than they hold, since addresses a
/// multiple of 4 KiB apart share their places in the cache.
pub(crate) const SCRATCH_STRIDE: usize = BLOCK_K * PANEL + PANEL;
/// Panels of a task at least: whole groups of panels, and enough work to pay for a second thread.
const TASK_PANELS_MIN: usize = 4;

/// A right-hand side \[k, n\] in panels: panel p holds columns 16p..16p+16.
pub(crate) trait Panels: Sync {
    /// Columns, the last panel's padding not counted.
    fn n(&self) -> usize;

    /// The `count` panels from `first` on at some steps of k, in place or decoded into `scratch`.
    fn block<'a>(
        &'a self,
        first: usize,
        count: usize,
        steps: Range<usize>,
        scratch: &'a mut [f32],
    ) -> Block<'a>;
}

/// Numbers of some panels at some steps of k: step i of panel p is at `p·panel_stride + i·k_stride`.
pub(crate) struct Block<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) panel_stride: usize,
    pub(crate) k_stride: usize,
    /// What the next block is read from: where it starts, and how many bytes.
    pub(crate) next: (*const u8, usize),
}

/// Panels as f32.
#[derive(Clone, Copy)]
pub(crate) struct Numbers<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) panel_stride: usize,
    pub(crate) k_stride: usize,
    pub(crate) n: usize,
}

impl<'a> Numbers<'a> {
    /// Panels packed for a product over `k`.
    pub(crate) fn packed(data: &'a [f32], k: usize, n: usize) -> Numbers<'a> {
        Numbers { data, panel_stride: k * PANEL, k_stride: PANEL, n }
    }
}

impl Panels for Numbers<'_> {
    fn n(&self) -> usize {
        self.n
    }

    fn block<'a>(&'a self, first: usize, count: usize, steps: Range<usize>, _: &'a mut [f32]) -> Block<'a> {
        let (panel_stride, k_stride) = (self.panel_stride, self.k_stride);
        let start = first * panel_stride + steps.start * k_stride;
        let len = (count - 1) * panel_stride + (steps.len() - 1) * k_stride + PANEL;
        let data = &self.data[start..start + len];
        let bytes = steps.len() * k_stride * size_of::<f32>();
        Block { data, panel_stride, k_stride, next: (data.as_ptr().cast::<u8>().wrapping_add(bytes), bytes) }
    }
}

thread_local! {
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// y\[n_rows, n\] (rows of `y_stride`) = x\[n_rows, k\]·w, panels in parallel.
pub(crate) fn multiply(
    pool: &Pool,
    y: &mut [f32],
    y_stride: usize,
    x: &[f32],
    w: &impl Panels,
    (n_rows, k): (usize, usize),
) {
    if n_rows == 0 || w.n() == 0 {
        return;
    }
    check_bounds(y.len(), y_stride, (x.len(), k), w.n(), (n_rows, k));
    let out = Shards::new(y);
    for_panels(pool, w.n(), &|panels| {
        let y = Output { start: out.address(0), stride: y_stride };
        multiply_panels(y, Left { start: x, stride: k }, w, panels, (n_rows, k));
    });
}

/// As [`multiply`] on the calling thread only, x in rows of `x_stride`.
pub(crate) fn multiply_serial(
    y: &mut [f32],
    y_stride: usize,
    (x, x_stride): (&[f32], usize),
    w: &impl Panels,
    (n_rows, k): (usize, usize),
) {
    check_bounds(y.len(), y_stride, (x.len(), x_stride), w.n(), (n_rows, k));
    let y = Output { start: y.as_mut_ptr(), stride: y_stride };
    multiply_panels(y, Left { start: x, stride: x_stride }, w, 0..w.n().div_ceil(PANEL), (n_rows, k));
}

/// Calls `f` with ranges of the panels of n columns, in parallel.
pub(crate) fn for_panels(pool: &Pool, n: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
    let panels = n.div_ceil(PANEL);
    // Many panels are cut finer than the threads, so that one that is held up does not hold up all.
    let tasks = if panels >= 256 { 4 * pool.n_threads() } else { pool.n_threads() };
    let per_task = panels.div_ceil(tasks).max(TASK_PANELS_MIN).next_multiple_of(2);
    pool.run(panels.div_ceil(per_task), &|task| {
        f(task * per_task..((task + 1) * per_task).min(panels));
    });
}

fn check_bounds(
    y_len: usize,
    y_stride: usize,
    (x_len, x_stride): (usize, usize),
    n: usize,
    (n_rows, k): (usize, usize),
) {
    assert!(k > 0 && y_stride >= n && y_len >= (n_rows - 1) * y_stride + n, "product output too small");
    assert!(x_len >= (n_rows - 1) * x_stride + k, "left side too small");
}

/// Rows of the left side, k running along them.
#[derive(Clone, Copy)]
struct Left<'a> {
    start: &'a [f32],
    stride: usize,
}

#[derive(Clone, Copy)]
struct Output {
    start: *mut f32,
    stride: usize,
}

fn multiply_panels(
    y: Output,
    x: Left<'_>,
    w: &impl Panels,
    panels: Range<usize>,
    (n_rows, k): (usize, usize),
) {
    let together = match n_rows {
        1 => TILE_PANELS,
        2 | 3 => 2,
        _ => 1,
    };
    DECODED.with_borrow_mut(|scratch| {
        scratch.resize(TILE_PANELS * SCRATCH_STRIDE, 0.0);
        let mut first = panels.start;
        while first < panels.end {
            let left = panels.end - first;
            let count = if left >= together { together } else { left.min(2) };
            for k0 in (0..k).step_by(BLOCK_K) {
                let steps = k0..(k0 + BLOCK_K).min(k);
                let block = w.block(first, count, steps.clone(), scratch);
                multiply_block(y, x, &block, n_rows, (first, count, w.n()), steps);
            }
            first += count;
        }
    });
}

fn multiply_block(
    y: Output,
    x: Left<'_>,
    block: &Block<'_>,
    n_rows: usize,
    (first, count, n): (usize, usize, usize),
    steps: Range<usize>,
) {
    let tiles = n_rows.div_ceil(TILE_ROWS);
    let share = block.next.1.div_ceil(tiles);
    for t in 0..tiles {
        let rows = even_piece(0..n_rows, tiles, t);
        let tile = Tile {
            x: x.start[rows.start * x.stride + steps.start..].as_ptr(),
            x_stride: x.stride,
            w: block.data.as_ptr(),
            panel_stride: block.panel_stride,
            k_stride: block.k_stride,
            y: y.start.wrapping_add(rows.start * y.stride + first * PANEL),
            y_stride: y.stride,
            columns: (count * PANEL).min(n - first * PANEL),
            depth: steps.len(),
            continues: steps.start > 0,
            ahead: block.next.0.wrapping_add(t * share),
            // Alone, a tile reads in the very order of memory, which the processor sees for itself.
            ahead_step: if tiles > 1 { share / steps.len() } else { 0 },
        };
        tile.run(rows.len(), count);
    }
}

/// Up to 6 rows by 16 columns of the output, or up to 3 rows by several panels, over some steps of k.
struct Tile {
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    panel_stride: usize,
    k_stride: usize,
    y: *mut f32,
    y_stride: usize,
    columns: usize,
    depth: usize,
    continues: bool,
    /// What to fetch on the way, `ahead_step` bytes per step of k.
    ahead: *const u8,
    ahead_step: usize,
}

impl Tile {
    fn run(&self, rows: usize, panels: usize) {
        match (rows, panels) {
            (1, 4) => self.run_shape::<1, 4>(),
            (1, 2) => self.run_shape::<1, 2>(),
            (1, 1) => self.run_shape::<1, 1>(),
            (2, 2) => self.run_shape::<2, 2>(),
            (2, 1) => self.run_shape::<2, 1>(),
            (3, 2) => self.run_shape::<3, 2>(),
            (3, 1) => self.run_shape::<3, 1>(),
            (4, 1) => self.run_shape::<4, 1>(),
            (5, 1) => self.run_shape::<5, 1>(),
            (6, 1) => self.run_shape::<6, 1>(),
            _ => unreachable!("a tile of {rows} rows by {panels} panels"),
        }
    }

    fn run_shape<const R: usize, const P: usize>(&self) {
        // SAFETY: `check_bounds` and the slice of `Panels::block` cover every address that the tile reads
        // and writes, its part of the output is this task's own, and the features were detected.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if crate::cpu::has_avx2_fma() {
                return if self.ahead_step > 0 {
                    self.avx2::<R, P, true>()
                } else {
                    self.avx2::<R, P, false>()
                };
            }
            self.portable(R);
        }
    }

    unsafe fn portable(&self, rows: usize) {
        for r in 0..rows {
            for j in 0..self.columns {
                // SAFETY: see `run_shape`.
                unsafe {
                    let w = self.w.add(j / PANEL * self.panel_stride + j % PANEL);
                    let y = self.y.add(r * self.y_stride + j);
                    let mut sum = if self.continues { *y } else { 0.0 };
                    for k in 0..self.depth {
                        sum = (*self.x.add(r * self.x_stride + k)).mul_add(*w.add(k * self.k_stride), sum);
                    }
                    *y = sum;
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const R: usize, const P: usize, const AHEAD: bool>(&self) {
        use std::arch::x86_64::*;
        let mut sums = [[[_mm256_setzero_ps(); 2]; P]; R];
        // SAFETY: see `run_shape`; a padded panel is read whole, and fetching ahead reads nothing.
        unsafe {
            if self.continues {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (p, sums) in sums.iter_mut().enumerate() {
                        sums[0] = self.load_eight(r, 2 * p);
                        sums[1] = self.load_eight(r, 2 * p + 1);
                    }
                }
            }
            let (mut x, mut w, mut ahead) = (self.x, self.w, self.ahead);
            for _ in 0..self.depth {
                if AHEAD {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    ahead = ahead.wrapping_add(self.ahead_step);
                }
                for p in 0..P {
                    let low = _mm256_loadu_ps(w.add(p * self.panel_stride));
                    let high = _mm256_loadu_ps(w.add(p * self.panel_stride + 8));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = _mm256_broadcast_ss(&*x.add(r * self.x_stride));
                        sums[p][0] = _mm256_fmadd_ps(x, low, sums[p][0]);
                        sums[p][1] = _mm256_fmadd_ps(x, high, sums[p][1]);
                    }
                }
                x = x.wrapping_add(1);
                w = w.wrapping_add(self.k_stride);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (p, sums) in sums.iter().enumerate() {
                    self.store_eight(r, 2 * p, sums[0]);
                    self.store_eight(r, 2 * p + 1, sums[1]);
                }
            }
        }
    }

    /// The numbers of the output in row `r` from column 8·`eight` on, and how many of eight there are.
    fn eight(&self, r: usize, eight: usize) -> (*mut f32, usize) {
        let columns = self.columns.saturating_sub(8 * eight).min(8);
        (self.y.wrapping_add(r * self.y_stride + 8 * eight), columns)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_eight(&self, r: usize, eight: usize) -> std::arch::x86_64::__m256 {
        let (y, columns) = self.eight(r, eight);
        // SAFETY: see `run_shape`.
        unsafe { load_eight(y, columns) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store_eight(&self, r: usize, eight: usize, v: std::arch::x86_64::__m256) {
        let (y, columns) = self.eight(r, eight);
        // SAFETY: see `run_shape`.
        unsafe { store_eight(y, v, columns) }
    }
}

/// The first `n` of eight numbers; the rest are zero.
///
/// # Safety
/// `n` numbers can be read, and AVX is there.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn load_eight(from: *const f32, n: usize) -> std::arch::x86_64::__m256 {
    // SAFETY: by the caller's promise.
    unsafe {
        if n == 8 {
            return std::arch::x86_64::_mm256_loadu_ps(from);
        }
        let mut eight = [0.0f32; 8];
        std::ptr::copy_nonoverlapping(from, eight.as_mut_ptr(), n);
        std::arch::x86_64::_mm256_loadu_ps(eight.as_ptr())
    }
}

/// Stores the first `n` of eight numbers.
///
/// # Safety
/// `n` numbers can be written, and AVX is there.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn store_eight(to: *mut f32, v: std::arch::x86_64::__m256, n: usize) {
    // SAFETY: by the caller's promise.
    unsafe {
        if n == 8 {
            return std::arch::x86_64::_mm256_storeu_ps(to, v);
        }
        let mut eight = [0.0f32; 8];
        std::arch::x86_64::_mm256_storeu_ps(eight.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(eight.as_ptr(), to, n);
    }
}
