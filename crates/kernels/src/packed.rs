//! Weights laid out once for many products.

use std::ops::Range;

use crate::dequantise::{BlockFormat, dequantise};
use crate::gemm;
use crate::memory;
use crate::panels::{self, Left, PANEL, Right, packed_len};
use crate::pool::{Pool, Shards};
use crate::quantised::Quantised;
use crate::thin::{self, Numbers};

/// With more rows than this, panels are shared by enough rows that the products of training are faster.
const THIN_ROWS_MAX: usize = 48;

/// A weight \[outputs, inputs\] laid out in panels for products with many or few rows: as f32, or in the
/// blocks of its file, which give the same bits.
#[derive(Clone)]
pub struct PackedWeight {
    /// In order; each begins a new panel.
    parts: Vec<Part>,
    n_out: usize,
    n_in: usize,
}

#[derive(Clone)]
struct Part {
    outputs: Range<usize>,
    panels: PartPanels,
}

#[derive(Clone)]
enum PartPanels {
    Numbers(Vec<f32>),
    Blocks(Quantised),
}

/// Consecutive outputs of a weight as a file stores them, row after row.
#[derive(Clone, Copy)]
pub struct StoredRows<'a> {
    pub format: BlockFormat,
    pub bytes: &'a [u8],
    pub n_out: usize,
}

impl PackedWeight {
    /// f32 panels of a plain weight.
    pub(crate) fn of_numbers(pool: &Pool, w: &[f32], n_out: usize, n_in: usize) -> PackedWeight {
        assert_eq!(w.len(), n_out * n_in);
        let mut numbers = memory::zeros(packed_len(n_in, n_out));
        panels::pack_transposed(pool, &mut numbers, w, n_in, n_out);
        let part = Part { outputs: 0..n_out, panels: PartPanels::Numbers(numbers) };
        PackedWeight { parts: vec![part], n_out, n_in }
    }

    /// Rows kept as they are stored, where their format can be kept; else as f32.
    ///
    /// # Panics
    /// If the bytes are not those of so many rows of `n_in` numbers.
    pub(crate) fn of_stored(pool: &Pool, stored: &[StoredRows<'_>], n_in: usize) -> PackedWeight {
        let n_out = stored.iter().map(|rows| rows.n_out).sum();
        let mut weight = PackedWeight { parts: Vec::new(), n_out, n_in };
        let mut rest = stored;
        while let Some(first) = rest.first() {
            let alike = rest.iter().take_while(|rows| rows.format == first.format).count();
            let start = weight.parts.last().map_or(0, |part| part.outputs.end);
            let outputs = start..start + rest[..alike].iter().map(|rows| rows.n_out).sum::<usize>();
            let bytes: Vec<&[u8]> = rest[..alike].iter().map(|rows| rows.bytes).collect();
            let panels = if Quantised::keeps(first.format, n_in) {
                PartPanels::Blocks(Quantised::pack(pool, first.format, &bytes, outputs.len(), n_in))
            } else {
                PartPanels::Numbers(numbers_of(pool, first.format, &bytes, outputs.len(), n_in))
            };
            weight.parts.push(Part { outputs, panels });
            rest = &rest[alike..];
        }
        weight
    }

    pub fn n_out(&self) -> usize {
        self.n_out
    }

    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Bytes in memory.
    pub fn n_bytes(&self) -> usize {
        let of_part = |part: &Part| match &part.panels {
            PartPanels::Numbers(numbers) => size_of_val(&numbers[..]),
            PartPanels::Blocks(blocks) => blocks.n_bytes(),
        };
        self.parts.iter().map(of_part).sum()
    }

    /// Bytes in memory of `n_out` rows of `n_in` numbers that a file stores in `format`.
    pub fn n_bytes_of(format: BlockFormat, n_out: usize, n_in: usize) -> usize {
        Quantised::n_bytes_of(format, n_out, n_in).unwrap_or(size_of::<f32>() * packed_len(n_in, n_out))
    }

    /// y\[n_rows, n_out\] = x\[n_rows, n_in\]·wᵀ.
    pub(crate) fn multiply(&self, pool: &Pool, y: &mut [f32], x: &[f32], n_rows: usize) {
        if n_rows == 0 {
            return;
        }
        for part in &self.parts {
            let (y, shape) = (&mut y[part.outputs.start..], (n_rows, part.outputs.len(), self.n_in));
            #[cfg(target_arch = "x86_64")]
            if let (PartPanels::Blocks(blocks), 1, true) = (&part.panels, n_rows, Quantised::has_row_kernel())
            {
                blocks.multiply_row(pool, &mut y[..shape.1], &x[..self.n_in]);
                continue;
            }
            if n_rows > THIN_ROWS_MAX {
                let right = match &part.panels {
                    PartPanels::Numbers(numbers) => Right::packed(numbers, self.n_in),
                    PartPanels::Blocks(blocks) => Right::Blocks(blocks),
                };
                gemm::multiply(pool, y, self.n_out, Left::rows(x, self.n_in), right, shape, false);
                continue;
            }
            let shape = (n_rows, self.n_in);
            match &part.panels {
                PartPanels::Blocks(blocks) => thin::multiply(pool, y, self.n_out, x, blocks, shape),
                PartPanels::Numbers(numbers) => {
                    let w = Numbers::packed(numbers, self.n_in, part.outputs.len());
                    thin::multiply(pool, y, self.n_out, x, &w, shape);
                }
            }
        }
    }

    /// Row `i` as f32.
    ///
    /// # Panics
    /// If there is no such row.
    pub(crate) fn row(&self, i: usize, out: &mut [f32]) {
        let part = self.parts.iter().find(|part| part.outputs.contains(&i));
        let part = part.unwrap_or_else(|| panic!("row {i} of {}", self.n_out));
        let i = i - part.outputs.start;
        match &part.panels {
            PartPanels::Blocks(blocks) => blocks.row(i, out),
            PartPanels::Numbers(numbers) => {
                let panel = &numbers[i / PANEL * PANEL * self.n_in + i % PANEL..];
                out.iter_mut().zip(panel.iter().step_by(PANEL)).for_each(|(out, &v)| *out = v);
            }
        }
    }
}

/// f32 panels of stored rows; sixteen rows are decoded at a time.
fn numbers_of(pool: &Pool, format: BlockFormat, stored: &[&[u8]], n_out: usize, n_in: usize) -> Vec<f32> {
    let (block_len, block_bytes) = format.block();
    assert!(n_in.is_multiple_of(block_len), "rows of {n_in} are not whole blocks of {block_len}");
    let rows: Vec<&[u8]> =
        stored.iter().flat_map(|b| b.chunks_exact(n_in / block_len * block_bytes)).collect();
    assert_eq!(rows.len(), n_out, "bytes of {n_out} rows in {format:?}");
    let mut numbers = memory::zeros(packed_len(n_in, n_out));
    let shards = Shards::new(&mut numbers);
    pool.run(n_out.div_ceil(PANEL), &|p| {
        let rows = &rows[p * PANEL..n_out.min((p + 1) * PANEL)];
        let mut plain = vec![0.0; rows.len() * n_in];
        for (out, row) in plain.chunks_exact_mut(n_in).zip(rows) {
            dequantise(format, row, out);
        }
        // SAFETY: each panel belongs to one task.
        let panel = unsafe { shards.piece(p * PANEL * n_in, PANEL * n_in) };
        panels::pack_panel_transposed(panel, &plain, n_in, n_in, rows.len(), 0);
    });
    numbers
}
