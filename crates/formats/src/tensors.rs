//! Tensors as files hold them.

use std::borrow::Cow;
use std::sync::Arc;

use crate::error::Result;

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Encoding {
    /// (numbers per block, bytes per block). Blocks never cross a row.
    pub fn block(self) -> (usize, usize) {
        match self {
            Encoding::F32 => (1, 4),
            Encoding::F16 | Encoding::BF16 => (1, 2),
            Encoding::Q4_0 => (32, 18),
            Encoding::Q4_1 => (32, 20),
            Encoding::Q5_0 => (32, 22),
            Encoding::Q8_0 => (32, 34),
            Encoding::Q4K => (256, 144),
            Encoding::Q5K => (256, 176),
            Encoding::Q6K => (256, 210),
        }
    }

    /// Bytes of a tensor of this shape; `None` if the last axis is not whole blocks or the size
    /// overflows.
    pub fn n_bytes(self, shape: &[usize]) -> Option<usize> {
        let (block_len, block_bytes) = self.block();
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(block_len) {
            return None;
        }
        let n = shape.iter().try_fold(1usize, |n, &axis| n.checked_mul(axis))?;
        (n / block_len).checked_mul(block_bytes)
    }

    /// The name that users type and read.
    pub fn as_str(self) -> &'static str {
        match self {
            Encoding::F32 => "f32",
            Encoding::F16 => "f16",
            Encoding::BF16 => "bf16",
            Encoding::Q4_0 => "q4_0",
            Encoding::Q4_1 => "q4_1",
            Encoding::Q5_0 => "q5_0",
            Encoding::Q8_0 => "q8_0",
            Encoding::Q4K => "q4_k",
            Encoding::Q5K => "q5_k",
            Encoding::Q6K => "q6_k",
        }
    }
}

/// One tensor of a file, not yet decoded.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    /// Hugging Face's order: `[out, in]`, row-major.
    pub shape: Vec<usize>,
    pub encoding: Encoding,
    /// `encoding.n_bytes(&shape)` bytes, little-endian.
    pub bytes: Cow<'a, [u8]>,
}

/// Where the weights of a model come from. Names and row order are Hugging Face's, whatever the
/// file's own.
pub trait TensorSource {
    /// Every parameter of the model.
    fn names(&self) -> Vec<String>;
    /// The tensor of that name.
    fn tensor(&self, name: &str) -> Result<TensorView<'_>>;
}

impl<T: TensorSource + ?Sized> TensorSource for Arc<T> {
    fn names(&self) -> Vec<String> {
        (**self).names()
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        (**self).tensor(name)
    }
}

/// A tensor in memory, under its Hugging Face name.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}
