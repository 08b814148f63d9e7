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

#[cfg(test)]
mod tests {
    use super::*;

    fn from_hex(value: &serde_json::Value) -> Vec<u8> {
        let text = value.as_str().expect("hexadecimal");
        (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hexadecimal"))
            .collect()
    }

    #[test]
    fn q8_0_is_that_of_llama_cpp_byte_for_byte() {
        let golden = include_str!("../../kernels/tests/golden/dequantise.json");
        let golden: serde_json::Value = serde_json::from_str(golden).expect("a golden file");
        let case = &golden["encode_q8_0"];
        let bytes = from_hex(&case["numbers"]);
        let numbers: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let mut encoded = Vec::new();
        encode(Encoding::Q8_0, &numbers, &mut encoded).expect("whole blocks");
        assert_eq!(encoded, from_hex(&case["bytes"]));
    }

    #[test]
    fn halves_round_to_nearest_even_and_keep_what_is_not_a_number() {
        let encoded = |encoding, x: f32| {
            let mut out = Vec::new();
            encode(encoding, &[x], &mut out).expect("an encoding to write");
            u16::from_le_bytes([out[0], out[1]])
        };
        assert_eq!(encoded(Encoding::BF16, f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(encoded(Encoding::BF16, f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(encoded(Encoding::F16, 2049.0), 0x6800);
        assert_eq!(encoded(Encoding::F16, 1e6), 0x7c00);
        assert!(half::f16::from_bits(encoded(Encoding::F16, f32::NAN)).is_nan());
        assert!(encode(Encoding::Q4K, &[0.0], &mut Vec::new()).is_err());
    }
}
