//! Numeric operations, forward and backward, behind one [`Device`].
//!
//! The rule that everything here keeps: **each output number is one chain of operations whose
//! order depends only on its own inputs.** A product's element is a chain of fused
//! multiply-adds over ascending k; a reduction runs over fixed pieces in a fixed order.
//! Neither the number of threads, nor the batch around a row, nor the instruction set changes
//! a bit. `reference` holds the plain twin of every fast kernel.

#![allow(unsafe_code, reason = "SIMD and the thread pool live here; each block says why it is sound")]

mod attention;
mod cpu;
mod dequantise;
mod device;
pub mod divergence;
mod gemm;
mod head;
mod hidden;
mod kv_cache;
mod lora;
mod math;
mod memory;
mod mixture;
mod packed;
mod panels;
mod peak;
mod pool;
mod quantised;
pub mod reference;
mod rows;
mod scratch;
mod soften;
mod thin;
mod uld;

pub use cpu::cpu_features;
pub use dequantise::{BlockFormat, dequantise};
pub use device::{AttentionShape, Buf, Device, RopeScaling, RopeTable, Segment, Weight, logits_chunk_rows};
pub use divergence::{Divergence, DivergenceError, HeadTerms, SparseRow, TeacherRow, Term, row_losses};
pub use head::{DenseTargets, ForeignVocabulary, HeadLosses, HeadTargets, SparseTargets, TailMode};
pub use kv_cache::KvCache;
pub use lora::{Columns, Dropout};
pub use mixture::{MIXED_MAX, Mixture};
pub use packed::{PackedWeight, StoredRows};
pub use reference::AdamWStep;
pub use soften::{SUM_BLOCK, Softened, first_maximum, log_sum_exp, soften, weigh};
pub use uld::{ForeignRow, MatchedIds};
