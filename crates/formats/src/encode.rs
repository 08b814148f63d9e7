//! Numbers to stored bytes.

use half::{bf16, f16};

use crate::error::{FormatError, Result};
use crate::tensors::Encoding;

/// Appends `numbers` in this encoding, little-endian; halves are rounded to nearest even.
///
/// Only what this program writes: f32, f16, bf16, q8_0. For q8_0 `numbers` is whole blocks of 32.
pub(crate) fn encode(encoding: Encoding, numbers: &[f32], out: &mut Vec<u8>) -> Result<()> {
    match encoding {
        Encoding::F32 => numbers.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        Encoding::F16 => {
            numbers.iter().for_each(|&x| out.extend_from_slice(&f16::from_f32(x).to_le_bytes()));
        }
        Encoding::BF16 => {
            numbers.iter().for_each(|&x| out.extend_from_slice(&bf16::from_f32(x).to_le_bytes()));
        }
        Encoding::Q8_0 => {
            assert!(numbers.len().is_multiple_of(Q8_0_BLOCK), "whole blocks: the caller chose the encoding");
            numbers.chunks_exact(Q8_0_BLOCK).for_each(|block| q8_0_block(block, out));
        }
        other => {
            let value = other.as_str().to_owned();
            return Err(FormatError::Unsupported { what: "encoding to write", value });
        }
    }
    Ok(())
}

/// Numbers in a q8_0 block.
pub(crate) const Q8_0_BLOCK: usize = 32;

/// One block as ggml's reference writes it: d = max|x|/127 as f16, then round(x/d), half away
/// from zero, with the unrounded d.
fn q8_0_block(block: &[f32], out: &mut Vec<u8>) {
    let max = block.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let scale = max / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out.extend_from_slice(&f16::from_f32(scale).to_le_bytes());
    out.extend(block.iter().map(|x| (x * inverse).round() as i8 as u8));
}
