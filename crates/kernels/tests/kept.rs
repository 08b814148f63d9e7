//! Weights that are kept as their file stores them give the bits of the same weights as f32.

mod common;

use common::{bits, numbers};
use half::f16;
use proptest::prelude::*;
use stillroom_kernels::{BlockFormat, Device, StoredRows, dequantise, reference};

const FORMATS: [BlockFormat; 8] = [
    BlockFormat::F32,
    BlockFormat::F16,
    BlockFormat::BF16,
    BlockFormat::Q4_0,
    BlockFormat::Q4_1,
    BlockFormat::Q8_0,
    BlockFormat::Q4K,
    BlockFormat::Q6K,
];

/// `n` numbers as a file might store them: any bytes, but scales and halves of about ±1.
fn stored(format: BlockFormat, seed: u64, n: usize) -> Vec<u8> {
    let (block_len, block_bytes) = format.block();
    let mut bytes: Vec<u8> =
        numbers(seed, n / block_len * block_bytes).iter().map(|v| (v * 4096.0) as i32 as u8).collect();
    let scales = numbers(seed ^ 1, 2 * (n / block_len));
    for (block, scales) in bytes.chunks_exact_mut(block_bytes).zip(scales.chunks_exact(2)) {
        let halves = scales.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes());
        match format {
            BlockFormat::F32 => block.copy_from_slice(&scales[0].to_le_bytes()),
            BlockFormat::BF16 => block.copy_from_slice(&scales[0].to_le_bytes()[2..]),
            BlockFormat::Q6K => block[208..].iter_mut().zip(halves).for_each(|(b, h)| *b = h),
            BlockFormat::Q4_1 | BlockFormat::Q4K => {
                block[..4].iter_mut().zip(halves).for_each(|(b, h)| *b = h)
            }
            _ => block[..2].iter_mut().zip(halves).for_each(|(b, h)| *b = h),
        }
    }
    bytes
}

fn decoded(format: BlockFormat, bytes: &[u8]) -> Vec<f32> {
    let (block_len, block_bytes) = format.block();
    let mut numbers = vec![0.0; bytes.len() / block_bytes * block_len];
    dequantise(format, bytes, &mut numbers);
    numbers
}

/// Several runs of outputs of one weight, each in a format of its own.
fn parts() -> impl Strategy<Value = Vec<(BlockFormat, usize)>> {
    prop::collection::vec((prop::sample::select(&FORMATS[..]), 1usize..150), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_have_the_bits_of_plain_chains(parts in parts(), blocks in 1usize..4, n in prop_oneof![1usize..8, 8usize..70, 130usize..140], seed: u64) {
        let n_in = 256 * blocks;
        let files: Vec<Vec<u8>> =
            parts.iter().enumerate().map(|(i, &(format, n_out))| stored(format, seed ^ i as u64, n_out * n_in)).collect();
        let plain: Vec<f32> = parts.iter().zip(&files).flat_map(|(&(format, _), bytes)| decoded(format, bytes)).collect();
        let n_out = plain.len() / n_in;
        let x = numbers(seed ^ 99, n * n_in);
        let mut y = vec![0.0; n * n_out];
        reference::linear_forward(&mut y, &x, &plain, None, n, n_in, n_out);
        for threads in 1..=3 {
            let dev = Device::cpu(threads);
            let rows: Vec<StoredRows<'_>> =
                parts.iter().zip(&files).map(|(&(format, n_out), bytes)| StoredRows { format, bytes, n_out }).collect();
            let packed = dev.pack_stored(&rows, n_in);
            prop_assert_eq!((packed.n_out(), packed.n_in()), (n_out, n_in));
            let mut found = dev.zeros(n * n_out);
            dev.linear_forward(&mut found, &dev.upload(&x), &packed, None, n);
            prop_assert_eq!(bits(&dev.download(&found)), bits(&y), "{} threads", threads);
            prop_assert_eq!(bits(&dev.download(&dev.unpack(&packed))), bits(&plain));
            let ids: Vec<u32> = (0..5).map(|i| (seed >> i) as u32 % n_out as u32).collect();
            let mut some = dev.zeros(5 * n_in);
            dev.packed_rows(&mut some, &packed, &ids);
            let expected: Vec<f32> = ids.iter().flat_map(|&i| plain[i as usize * n_in..][..n_in].to_vec()).collect();
            prop_assert_eq!(bits(&dev.download(&some)), bits(&expected));
        }
    }

    #[test]
    fn rows_of_any_length_are_taken(n_in in 1usize..90, n_out in 1usize..90, n in 1usize..9, halves: bool, seed: u64) {
        let format = if halves { BlockFormat::F16 } else { BlockFormat::F32 };
        let bytes = stored(format, seed, n_out * n_in);
        let (plain, x) = (decoded(format, &bytes), numbers(seed ^ 99, n * n_in));
        let mut y = vec![0.0; n * n_out];
        reference::linear_forward(&mut y, &x, &plain, None, n, n_in, n_out);
        let dev = Device::cpu(2);
        let packed = dev.pack_stored(&[StoredRows { format, bytes: &bytes, n_out }], n_in);
        let mut found = dev.zeros(n * n_out);
        dev.linear_forward(&mut found, &dev.upload(&x), &packed, None, n);
        prop_assert_eq!(bits(&dev.download(&found)), bits(&y));
    }
}

#[test]
fn blocks_are_kept_at_about_their_size_in_the_file() {
    let dev = Device::cpu(1);
    for format in
        [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::F16, BlockFormat::BF16]
    {
        let bytes = stored(format, 5, 96 * 64);
        let packed = dev.pack_stored(&[StoredRows { format, bytes: &bytes, n_out: 96 }], 64);
        assert_eq!(packed.n_bytes(), bytes.len(), "{format:?}");
    }
}

#[test]
#[should_panic(expected = "3 rows")]
fn bytes_of_another_matrix_are_a_bug() {
    let bytes = stored(BlockFormat::Q8_0, 5, 2 * 64);
    Device::cpu(1).pack_stored(&[StoredRows { format: BlockFormat::Q8_0, bytes: &bytes, n_out: 3 }], 64);
}
