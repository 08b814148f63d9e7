//! Stored numbers to f32: halves and ggml's quantised blocks.
//!
//! Block layouts and formulas are those of ggml's `ggml-common.h` and `ggml-quants.c`; each
//! number is computed in f32 in the same order as there, so the results are equal bit for bit.

use half::{bf16, f16};

/// How numbers are stored. Quantised formats hold them in blocks along the last axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockFormat {
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

impl BlockFormat {
    /// (numbers per block, bytes per block).
    pub fn block(self) -> (usize, usize) {
        match self {
            BlockFormat::F32 => (1, 4),
            BlockFormat::F16 | BlockFormat::BF16 => (1, 2),
            BlockFormat::Q4_0 => (32, 18),
            BlockFormat::Q4_1 => (32, 20),
            BlockFormat::Q5_0 => (32, 22),
            BlockFormat::Q8_0 => (32, 34),
            BlockFormat::Q4K => (256, 144),
            BlockFormat::Q5K => (256, 176),
            BlockFormat::Q6K => (256, 210),
        }
    }
}

/// Decodes `bytes` (little-endian) into `out`.
///
/// # Panics
///
/// If `bytes` is not exactly the whole blocks that hold `out.len()` numbers: whoever read the
/// file has checked that.
pub fn dequantise(format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    let (block_len, block_bytes) = format.block();
    assert!(
        out.len().is_multiple_of(block_len) && bytes.len() == out.len() / block_len * block_bytes,
        "{} bytes of {format:?} for {} numbers",
        bytes.len(),
        out.len()
    );
    match format {
        BlockFormat::F32 => each::<4, 1>(bytes, out, |b, x| x[0] = f32::from_le_bytes(*b)),
        BlockFormat::F16 => each::<2, 1>(bytes, out, |b, x| x[0] = f16::from_le_bytes(*b).to_f32()),
        BlockFormat::BF16 => each::<2, 1>(bytes, out, |b, x| x[0] = bf16::from_le_bytes(*b).to_f32()),
        BlockFormat::Q4_0 => each(bytes, out, q4_0),
        BlockFormat::Q4_1 => each(bytes, out, q4_1),
        BlockFormat::Q5_0 => each(bytes, out, q5_0),
        BlockFormat::Q8_0 => each(bytes, out, q8_0),
        BlockFormat::Q4K => each(bytes, out, q4_k),
        BlockFormat::Q5K => each(bytes, out, q5_k),
        BlockFormat::Q6K => each(bytes, out, q6_k),
    }
}

/// Applies `decode` to each block of B bytes and N numbers.
fn each<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; N]),
) {
    let (blocks, _) = bytes.as_chunks::<B>();
    let (numbers, _) = out.as_chunks_mut::<N>();
    blocks.iter().zip(numbers).for_each(|(block, numbers)| decode(block, numbers));
}

fn half_at(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

/// d·(q − 8): f16 d, 16 bytes; the low nibbles are the first half of the block.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (j, q) in block[2..].iter().enumerate() {
        out[j] = (f32::from(q & 15) - 8.0) * d;
        out[j + 16] = (f32::from(q >> 4) - 8.0) * d;
    }
}

/// d·q + m: f16 d, f16 m, 16 bytes of nibbles.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (j, q) in block[4..].iter().enumerate() {
        out[j] = f32::from(q & 15) * d + m;
        out[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// d·(q − 16): f16 d, u32 of fifth bits, 16 bytes of nibbles.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let fifth = |j: usize| ((high >> j & 1) << 4) as u8;
    for (j, q) in block[6..].iter().enumerate() {
        out[j] = (f32::from(q & 15 | fifth(j)) - 16.0) * d;
        out[j + 16] = (f32::from(q >> 4 | fifth(j + 16)) - 16.0) * d;
    }
}

/// d·q: f16 d, 32 signed bytes.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (x, q) in out.iter_mut().zip(&block[2..]) {
        *x = f32::from(*q as i8) * d;
    }
}

/// The six-bit scale and minimum of sub-block j of 8, packed in 12 bytes.
fn scale_and_minimum(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, minimum) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let low = packed[j + 4];
        (low & 15 | packed[j - 4] >> 6 << 4, low >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

/// d·scale·q − dmin·minimum: f16 d, f16 dmin, 12 bytes of scales, 128 bytes of nibbles: of each
/// 32 bytes the low nibbles are one sub-block, the high ones the next.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let nibbles = &block[16..];
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&block[4..16], j);
        let (scale, minimum) = (d * scale, dmin * minimum);
        let shift = 4 * (j % 2);
        for (x, q) in out.iter_mut().zip(&nibbles[j / 2 * 32..]) {
            *x = scale * f32::from(q >> shift & 15) - minimum;
        }
    }
}

/// As q4_k, with 32 bytes of fifth bits before the nibbles: bit j of byte l belongs to number l
/// of sub-block j.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (high, nibbles) = (&block[16..48], &block[48..]);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&block[4..16], j);
        let (scale, minimum) = (d * scale, dmin * minimum);
        let shift = 4 * (j % 2);
        for ((x, q), high) in out.iter_mut().zip(&nibbles[j / 2 * 32..]).zip(high) {
            let q = q >> shift & 15 | (high >> j & 1) << 4;
            *x = scale * f32::from(q) - minimum;
        }
    }
}

/// d·scale·(q − 32): 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales (one
/// for 16 numbers), f16 d.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    let scales = &block[192..208];
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let low = &block[64 * half..64 * half + 64];
        let high = &block[128 + 32 * half..160 + 32 * half];
        for (i, x) in out.iter_mut().enumerate() {
            let (quarter, l) = (i / 32, i % 32);
            let nibble = low[l + 32 * (quarter % 2)] >> (4 * (quarter / 2)) & 15;
            let q = nibble | (high[l] >> (2 * quarter) & 3) << 4;
            let scale = f32::from(scales[8 * half + i / 16] as i8);
            *x = d * scale * (f32::from(q) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_exact() {
        let decode = |format, bits: u16| {
            let mut x = [0.0];
            dequantise(format, &bits.to_le_bytes(), &mut x);
            x[0]
        };
        assert_eq!(decode(BlockFormat::F16, 0x3c00), 1.0);
        assert_eq!(decode(BlockFormat::F16, 0x0001), 2f32.powi(-24));
        assert_eq!(decode(BlockFormat::F16, 0xfbff), -65504.0);
        assert_eq!(decode(BlockFormat::BF16, 0x3f81), 1.0 + 2f32.powi(-7));
        // A half's neighbours differ by one unit in the last place: 2^(e-10), 2^-24 below 2^-14.
        for bits in 0..0x7bffu16 {
            let step = decode(BlockFormat::F16, bits + 1) - decode(BlockFormat::F16, bits);
            let exponent = i32::from((bits >> 10).max(1)) - 15;
            assert_eq!(step, 2f32.powi(exponent - 10), "{bits:#x}");
        }
    }

    #[test]
    #[should_panic(expected = "35 bytes of Q8_0 for 32 numbers")]
    fn bytes_that_are_not_whole_blocks_are_a_bug() {
        dequantise(BlockFormat::Q8_0, &[0; 35], &mut [0.0; 32]);
    }
}
