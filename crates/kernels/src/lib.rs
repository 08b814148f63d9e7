//! Numeric operations, forward and backward, behind one [`Device`].
//!
//! The rule that everything here keeps: **each output number is one chain of operations whose
//! order depends only on its own inputs.** A product's element is a chain of fused
//! multiply-adds over ascending k; a reduction runs over fixed pieces in a fixed order.
//! Neither the number of threads, nor the batch around a row, nor the instruction set changes
//! a bit. `reference` holds the plain twin of every fast kernel.

mod device;
mod head;
pub mod reference;

pub use device::{AttentionShape, Buf, Device, KvCache, PackedWeight, RopeScaling, RopeTable, Segment};
pub use head::{HeadLosses, HeadTargets, HeadWeights, SparseTargets, TailMode};
pub use reference::AdamWStep;
