//! Decoding of quantised blocks against the gguf package (`oracles/dequantise.py`).

use serde::Deserialize;
use stillroom_kernels::{BlockFormat, dequantise};

#[derive(Deserialize)]
struct Golden {
    decode: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    format: String,
    bytes: String,
    numbers: String,
}

fn from_hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("hex"), 16).expect("hex"))
        .collect()
}

#[test]
fn blocks_decode_bit_for_bit_as_llama_cpp_decodes_them() {
    let golden: Golden = serde_json::from_str(include_str!("golden/dequantise.json")).expect("golden file");
    assert_eq!(golden.decode.len(), 9);
    for case in golden.decode {
        let format = match case.format.as_str() {
            "F16" => BlockFormat::F16,
            "BF16" => BlockFormat::BF16,
            "Q4_0" => BlockFormat::Q4_0,
            "Q4_1" => BlockFormat::Q4_1,
            "Q5_0" => BlockFormat::Q5_0,
            "Q8_0" => BlockFormat::Q8_0,
            "Q4_K" => BlockFormat::Q4K,
            "Q5_K" => BlockFormat::Q5K,
            "Q6_K" => BlockFormat::Q6K,
            other => panic!("format {other} in the golden file"),
        };
        let numbers = from_hex(&case.numbers);
        let mut decoded = vec![0.0f32; numbers.len() / 4];
        dequantise(format, &from_hex(&case.bytes), &mut decoded);
        let decoded: Vec<u8> = decoded.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(decoded, numbers, "{}", case.format);
    }
}
