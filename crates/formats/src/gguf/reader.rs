//! The header of a GGUF file: metadata and where each tensor lies.
//!
//! Nothing is allocated for a length before the bytes behind it are known to exist.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{ALIGNMENT_DEFAULT, FORMAT, MAGIC, ROPE_FREQS, TYPES};
use crate::error::{FormatError, Result};
use crate::tensors::Encoding;

const METADATA_MAX: u64 = 1 << 16;
const TENSORS_MAX: u64 = 1 << 16;
const NAME_BYTES_MAX: u64 = 1 << 16;
const STRING_BYTES_MAX: u64 = 1 << 26;
const ARRAY_LEN_MAX: u64 = 1 << 24;
const AXES_MAX: u32 = 4;
const ALIGNMENT_MAX: u64 = 1 << 20;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    Unsigneds(Vec<u64>),
    Signeds(Vec<i64>),
    Floats(Vec<f64>),
    Bools(Vec<bool>),
}

/// One tensor's place.
#[derive(Clone, Debug)]
pub(crate) struct TensorInfo {
    /// Hugging Face's order: the innermost axis last.
    pub(crate) shape: Vec<usize>,
    pub(crate) encoding: Encoding,
    /// In the file.
    pub(crate) bytes: Range<usize>,
}

/// The header of a GGUF file.
#[derive(Debug)]
pub(crate) struct Gguf {
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    pub(crate) fn read(bytes: &[u8]) -> Result<Gguf> {
        let mut cursor = Cursor { bytes, position: 0 };
        if cursor.take(4, "the magic number")? != MAGIC {
            return Err(FormatError::malformed(FORMAT, "the file does not start with `GGUF`"));
        }
        match cursor.u32("the version")? {
            2 | 3 => {}
            version if version.swap_bytes() <= 3 => {
                return Err(FormatError::Unsupported { what: "byte order", value: "big-endian".to_owned() });
            }
            version => {
                return Err(FormatError::Unsupported { what: "GGUF version", value: version.to_string() });
            }
        }
        let n_tensors = cursor.count("number of tensors", TENSORS_MAX)?;
        let n_metadata = cursor.count("number of metadata entries", METADATA_MAX)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..n_metadata {
            let key = cursor.string("a metadata key", NAME_BYTES_MAX)?;
            let kind = cursor.u32("a metadata type")?;
            let value = cursor.value(kind)?;
            if metadata.contains_key(&key) {
                return Err(FormatError::malformed(FORMAT, format!("metadata key `{key}` appears twice")));
            }
            metadata.insert(key, value);
        }
        let mut infos = Vec::new();
        for _ in 0..n_tensors {
            infos.push(cursor.tensor_info()?);
        }
        let alignment = alignment(&metadata)?;
        let data_start = cursor.position.next_multiple_of(alignment);
        let tensors = place(infos, data_start, alignment, bytes.len())?;
        Ok(Gguf { metadata, tensors })
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong_type(key, "a string")),
        }
    }

    pub(crate) fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Strings(list)) => Ok(Some(list)),
            Some(_) => Err(wrong_type(key, "an array of strings")),
        }
    }

    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>> {
        let size = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(size)) => usize::try_from(*size).ok(),
            Some(Value::Signed(size)) => usize::try_from(*size).ok(),
            Some(_) => None,
        };
        size.map(Some).ok_or_else(|| wrong_type(key, "a whole number"))
    }

    /// Numbers of an integer array of any width.
    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Signeds(list)) => Ok(Some(list.clone())),
            Some(Value::Unsigneds(list)) => {
                let list: Option<Vec<i64>> = list.iter().map(|&n| i64::try_from(n).ok()).collect();
                list.map(Some).ok_or_else(|| wrong_type(key, "an array of whole numbers"))
            }
            Some(_) => Err(wrong_type(key, "an array of whole numbers")),
        }
    }

    pub(crate) fn float(&self, key: &str) -> Result<Option<f32>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) => Ok(Some(*number as f32)),
            Some(_) => Err(wrong_type(key, "a number")),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(wrong_type(key, "true or false")),
        }
    }

    /// A token id that lies in a vocabulary of any size that we read.
    pub(crate) fn token_id(&self, key: &str) -> Result<Option<u32>> {
        let id = self.size(key)?.map(u32::try_from);
        id.transpose().map_err(|_| wrong_type(key, "a token id"))
    }
}

fn wrong_type(key: &str, expected: &str) -> FormatError {
    FormatError::Setting {
        key: key.to_owned(),
        value: "of another type or out of range".to_owned(),
        expected: expected.to_owned(),
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<usize> {
    match metadata.get("general.alignment") {
        None => Ok(ALIGNMENT_DEFAULT),
        Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= ALIGNMENT_MAX => Ok(*n as usize),
        Some(_) => Err(wrong_type("general.alignment", "a power of two up to 2^20")),
    }
}

/// A tensor as the header announces it.
struct RawInfo {
    name: String,
    shape: Vec<usize>,
    encoding: Encoding,
    offset: u64,
}

/// Checks that the tensors lie inside the file, aligned, and share no byte.
fn place(
    infos: Vec<RawInfo>,
    data_start: usize,
    alignment: usize,
    file_len: usize,
) -> Result<BTreeMap<String, TensorInfo>> {
    let mut tensors = BTreeMap::new();
    for RawInfo { name, shape, encoding, offset } in infos {
        let malformed = |what: &str| FormatError::malformed(FORMAT, format!("tensor `{name}` {what}"));
        let len = encoding
            .n_bytes(&shape)
            .ok_or_else(|| malformed(&format!("of shape {shape:?} does not fit {}", encoding.as_str())))?;
        if !offset.is_multiple_of(alignment as u64) {
            return Err(malformed(&format!("starts at {offset}, not a multiple of {alignment}")));
        }
        let start = usize::try_from(offset).ok().and_then(|offset| data_start.checked_add(offset));
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        let bytes = range.filter(|range| range.end <= file_len).ok_or_else(|| FormatError::Truncated {
            format: FORMAT,
            what: format!("tensor `{name}`"),
            offset: offset.saturating_add(data_start as u64),
            needed: len as u64,
            available: file_len as u64,
        })?;
        if tensors.insert(name.clone(), TensorInfo { shape, encoding, bytes }).is_some() {
            return Err(FormatError::malformed(FORMAT, format!("tensor `{name}` appears twice")));
        }
    }
    let mut placed: Vec<(&Range<usize>, &String)> =
        tensors.iter().map(|(name, info)| (&info.bytes, name)).collect();
    placed.sort_by_key(|(range, _)| (range.start, range.end));
    for pair in placed.windows(2) {
        if pair[1].0.start < pair[0].0.end {
            let what = format!("tensors `{}` and `{}` overlap", pair[0].1, pair[1].1);
            return Err(FormatError::malformed(FORMAT, what));
        }
    }
    Ok(tensors)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.position..];
        if len > rest.len() as u64 {
            return Err(FormatError::Truncated {
                format: FORMAT,
                what: what.to_owned(),
                offset: self.position as u64,
                needed: len,
                available: self.bytes.len() as u64,
            });
        }
        self.position += len as usize;
        Ok(&rest[..len as usize])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let bytes = self.take(N as u64, what)?;
        Ok(bytes.try_into().expect("take gives as many bytes as asked for"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<u64> {
        let value = self.u64(what)?;
        if value > limit {
            return Err(FormatError::TooLarge { what: what.to_owned(), value, limit });
        }
        Ok(value)
    }

    /// A string; what is not UTF-8 in it becomes U+FFFD.
    fn string(&mut self, what: &str, limit: u64) -> Result<String> {
        let len = self.count(&format!("length of {what}"), limit)?;
        Ok(String::from_utf8_lossy(self.take(len, what)?).into_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        const WHAT: &str = "a metadata value";
        Ok(match kind {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.array(WHAT)?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array(WHAT)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array(WHAT)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array(WHAT)?))),
            4 => Value::Unsigned(u64::from(self.u32(WHAT)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array(WHAT)?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array(WHAT)?))),
            7 => Value::Bool(boolean(self.array::<1>(WHAT)?[0])?),
            8 => Value::String(self.string(WHAT, STRING_BYTES_MAX)?),
            9 => self.array_value()?,
            10 => Value::Unsigned(self.u64(WHAT)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(WHAT)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(WHAT)?)),
            other => return Err(unknown_type(other)),
        })
    }

    fn array_value(&mut self) -> Result<Value> {
        const WHAT: &str = "a metadata array";
        let kind = self.u32(WHAT)?;
        let len = self.count("length of a metadata array", ARRAY_LEN_MAX)?;
        if kind == 8 {
            let mut strings = Vec::new();
            for _ in 0..len {
                strings.push(self.string("a string of a metadata array", STRING_BYTES_MAX)?);
            }
            return Ok(Value::Strings(strings));
        }
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            other => return Err(unknown_type(other)),
        };
        let bytes = self.take(len * size, WHAT)?;
        Ok(match kind {
            0 => Value::Unsigneds(bytes.iter().map(|&b| u64::from(b)).collect()),
            1 => Value::Signeds(bytes.iter().map(|&b| i64::from(b as i8)).collect()),
            2 => Value::Unsigneds(items(bytes, |b| u64::from(u16::from_le_bytes(b)))),
            3 => Value::Signeds(items(bytes, |b| i64::from(i16::from_le_bytes(b)))),
            4 => Value::Unsigneds(items(bytes, |b| u64::from(u32::from_le_bytes(b)))),
            5 => Value::Signeds(items(bytes, |b| i64::from(i32::from_le_bytes(b)))),
            6 => Value::Floats(items(bytes, |b| f64::from(f32::from_le_bytes(b)))),
            7 => Value::Bools(bytes.iter().map(|&b| boolean(b)).collect::<Result<_>>()?),
            10 => Value::Unsigneds(items(bytes, u64::from_le_bytes)),
            11 => Value::Signeds(items(bytes, i64::from_le_bytes)),
            _ => Value::Floats(items(bytes, f64::from_le_bytes)),
        })
    }

    fn tensor_info(&mut self) -> Result<RawInfo> {
        let name = self.string("a tensor name", NAME_BYTES_MAX)?;
        let n_axes = self.u32("a tensor's number of axes")?;
        if n_axes == 0 || n_axes > AXES_MAX {
            let what = format!("tensor `{name}` has {n_axes} axes");
            return Err(FormatError::malformed(FORMAT, what));
        }
        let mut shape = Vec::new();
        for _ in 0..n_axes {
            let axis = self.u64("a tensor's axis")?;
            // ggml's axes are signed.
            let fits = usize::try_from(axis).ok().filter(|&axis| axis > 0 && axis <= i64::MAX as usize);
            shape.push(fits.ok_or_else(|| {
                FormatError::malformed(FORMAT, format!("tensor `{name}` has an axis of {axis}"))
            })?);
        }
        shape.reverse();
        let number = self.u32("a tensor's type")?;
        let encoding = TYPES.iter().find(|(known, _)| *known == number).map(|(_, encoding)| *encoding);
        let encoding = encoding.ok_or_else(|| FormatError::Unsupported {
            what: "GGUF tensor type",
            value: unsupported_type_name(number),
        })?;
        if name == ROPE_FREQS && encoding != Encoding::F32 {
            return Err(FormatError::malformed(FORMAT, format!("`{ROPE_FREQS}` is not f32")));
        }
        let offset = self.u64("a tensor's offset")?;
        Ok(RawInfo { name, shape, encoding, offset })
    }
}

fn items<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|item| read(*item)).collect()
}

fn boolean(byte: u8) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(FormatError::malformed(FORMAT, format!("a boolean of {other}"))),
    }
}

fn unknown_type(number: u32) -> FormatError {
    FormatError::malformed(FORMAT, format!("metadata type {number}"))
}

/// Names of common types that are not decoded here, for the message.
fn unsupported_type_name(number: u32) -> String {
    let name = match number {
        7 => "q5_1",
        9 => "q8_1",
        10 => "q2_k",
        11 => "q3_k",
        15 => "q8_k",
        16 => "iq2_xxs",
        17 => "iq2_xs",
        18 => "iq3_xxs",
        19 => "iq1_s",
        20 => "iq4_nl",
        21 => "iq3_s",
        22 => "iq2_s",
        23 => "iq4_xs",
        29 => "iq1_m",
        39 => "mxfp4",
        other => return format!("number {other}"),
    };
    name.to_owned()
}
