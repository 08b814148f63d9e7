//! safetensors: bit-exact round trips and refusals.

use std::collections::BTreeMap;

use proptest::prelude::*;
use stillroom_formats::safetensors_file::{self, F32Tensor};

fn file(header: &str, data_len: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data_len, 0);
    bytes
}

fn refused(bytes: &[u8]) -> String {
    safetensors_file::read(bytes).expect_err("refused").to_string()
}

#[test]
fn numbers_and_metadata_come_back_bit_for_bit() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let path = temp.path().join("state.safetensors");
    let odd = [f32::NAN, -0.0, f32::INFINITY, f32::MIN_POSITIVE / 2.0, f32::from_bits(0x7fa0_0001), 1.0];
    let tensors: [F32Tensor<'_>; 3] = [("b", &[2, 3], &odd), ("a", &[], &[2.5]), ("empty", &[0, 4], &[])];
    let metadata =
        BTreeMap::from([("step".to_owned(), "17".to_owned()), ("\u{e9}".to_owned(), "\n\"".to_owned())]);
    safetensors_file::write(&path, &tensors, &metadata).expect("writing");
    let bytes = std::fs::read(&path).expect("reading");
    let read = safetensors_file::read(&bytes).expect("valid");
    assert_eq!(read.metadata(), &metadata);
    assert_eq!(read.names().count(), 3);
    for (name, shape, data) in tensors {
        let (read_shape, read_data) = read.f32_tensor(name).expect("written");
        assert_eq!(read_shape, shape);
        let bits = |data: &[f32]| data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read_data), bits(data));
    }
    assert!(read.tensor("c").is_err());
    // The data starts at a multiple of eight.
    assert_eq!(bytes[8..16].first(), Some(&b'{'));
    assert!(u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")).is_multiple_of(8));
}

#[test]
fn what_breaks_the_rules_is_refused() {
    let one = |extra: &str| format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}{extra}}}"#);
    assert!(safetensors_file::read(&file(&one(""), 8)).is_ok());
    let cases = [
        (one(""), 7, "truncated safetensors: the data up to `a`"),
        (one(""), 9, "1 bytes after the last tensor"),
        (one(r#","a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}"#), 16, "`a` appears twice"),
        (one(r#","b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#), 12, "an overlap before `b`"),
        (one(r#","b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}"#), 20, "a hole before `b`"),
        (one(r#","b":{"dtype":"F32","shape":[2],"data_offsets":[16,8]}"#), 16, "before its start"),
        (
            one(r#","b":{"dtype":"F32","shape":[3],"data_offsets":[8,16]}"#),
            16,
            "`b` of shape [3] in F32 has 8",
        ),
        (one(r#","b":{"dtype":"F16","shape":[4294967296,4294967296,2],"data_offsets":[8,16]}"#), 16, "`b`"),
        (one(r#","b":{"dtype":"F32","shape":[-1],"data_offsets":[8,16]}"#), 16, "header"),
        (one(r#","b":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[8,16]}"#), 16, "9 axes"),
        (
            one(r#","b":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[8,16]}"#),
            16,
            "duplicate field",
        ),
        (one(r#","__metadata__":{"a":1}"#), 8, "header"),
        ("[]".to_owned(), 0, "header"),
        ("{".to_owned(), 0, "header"),
    ];
    for (header, data_len, message) in cases {
        let error = refused(&file(&header, data_len));
        assert!(error.contains(message), "{error} should contain {message}");
    }
    assert!(refused(&[0; 7]).contains("header length"));
    assert!(refused(&u64::MAX.to_le_bytes()).contains("above the limit of 100000000"));
    assert!(refused(&1000u64.to_le_bytes()).contains("truncated"));
    let listed = file(r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, 8);
    let error = safetensors_file::read(&listed).expect("other types may be there").tensor("a").unwrap_err();
    assert_eq!(error.to_string(), "unsupported number type: `I64`");
}

#[test]
fn a_header_nested_a_million_deep_is_an_error() {
    let header = format!(r#"{{"a":{}"#, "[".repeat(1_000_000));
    assert!(refused(&file(&header, 0)).contains("header"));
}

proptest! {
    #[test]
    fn any_tensors_come_back(shapes in prop::collection::vec(prop::collection::vec(0usize..5, 0..4), 0..6)) {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let path = temp.path().join("x.safetensors");
        let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = shapes
            .into_iter()
            .enumerate()
            .map(|(i, shape)| {
                let n = shape.iter().product::<usize>();
                (format!("t{i}"), shape, (0..n).map(|k| (k * 7 + i) as f32).collect())
            })
            .collect();
        let list: Vec<F32Tensor<'_>> =
            tensors.iter().map(|(name, shape, data)| (name.as_str(), shape.as_slice(), data.as_slice())).collect();
        safetensors_file::write(&path, &list, &BTreeMap::new()).expect("writing");
        let bytes = std::fs::read(&path).expect("reading");
        let read = safetensors_file::read(&bytes).expect("valid");
        for (name, shape, data) in &tensors {
            prop_assert_eq!(read.f32_tensor(name).expect("written"), (shape.clone(), data.clone()));
        }
    }

    #[test]
    fn damaged_headers_never_panic(flips in prop::collection::vec((0usize..150, any::<u8>()), 1..5)) {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[8,10]}}"#;
        let mut bytes = file(header, 10);
        for (at, value) in flips {
            bytes[at] = value;
        }
        if let Ok(read) = safetensors_file::read(&bytes) {
            for name in read.names() {
                let _ = read.tensor(name);
            }
        }
    }
}

/// A file against what should be in it: whatever is otherwise is named, the first of it.
#[test]
fn what_differs_from_what_was_to_be_written_is_named() {
    let tensor = |name: &str, shape: &[usize], data: &[f32]| stillroom_formats::NamedTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        data: data.to_vec(),
    };
    let trained = [tensor("a", &[2, 2], &[1.0, -2.0, 0.1, 4.0]), tensor("b", &[2], &[0.0, 5.0])];
    let compared = |written: &[stillroom_formats::NamedTensor], store: stillroom_formats::Encoding| {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("x.safetensors");
        let views: Vec<_> = written.iter().map(|t| (t.name.as_str(), &t.shape[..], &t.data[..])).collect();
        safetensors_file::write(&path, &views, &Default::default()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors_file::read(&bytes).unwrap();
        safetensors_file::compare(&file, trained.iter().cloned().map(Ok), store).unwrap()
    };
    use stillroom_formats::Encoding::{BF16, F32};
    let [a, b] = &trained;
    assert_eq!(compared(&trained, F32), (2, None));
    assert_eq!(compared(&[b.clone(), a.clone()], F32), (2, None), "in any order");
    let first = |written: &[_], store| compared(written, store).1.unwrap();
    assert_eq!(first(std::slice::from_ref(a), F32), "`b` is missing");
    assert_eq!(first(&[a.clone(), b.clone(), tensor("c", &[1], &[1.0])], F32), "`c` was not trained");
    assert_eq!(first(&[a.clone(), tensor("b", &[2], &[-0.0, 5.0])], F32), "`b` has other numbers");
    let other = tensor("a", &[4], &a.data);
    assert_eq!(first(&[other, b.clone()], F32), "`a` is F32 [4], and F32 [2, 2] was trained");
    assert_eq!(first(&trained, BF16), "`a` is F32 [2, 2], and BF16 [2, 2] was trained");
}
