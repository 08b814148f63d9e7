//! safetensors: a JSON header and one buffer of numbers.
//!
//! Layout: u64 little-endian header length, the header (JSON, at most 100 MB), the buffer.
//! Refused here: duplicate names, overlaps and holes, offsets outside the file, sizes that do
//! not match the shape.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::encode::encode;
use crate::error::{FormatError, Result};
use crate::files::{MappedFile, StagedFile};
use crate::tensors::{Encoding, NamedTensor, TensorSource, TensorView};

/// The reference implementation's cap on the header.
const HEADER_BYTES_MAX: u64 = 100_000_000;
const RANK_MAX: usize = 8;
const FORMAT: &str = "safetensors";

/// The header of a safetensors file.
#[derive(Clone, Debug)]
pub struct Header {
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Tensors in the order of their data.
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    data_start: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// A file in memory or mapped, its header checked.
#[derive(Clone, Debug)]
pub struct Safetensors<'a> {
    header: Cow<'a, Header>,
    bytes: &'a [u8],
}

/// Reads a safetensors file's bytes.
pub fn read(bytes: &[u8]) -> Result<Safetensors<'_>> {
    Ok(Safetensors { header: Cow::Owned(Header::read(bytes)?), bytes })
}

impl<'a> Safetensors<'a> {
    /// `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Names in the order of the data.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.entries.iter().map(|entry| entry.name.as_str())
    }

    /// The tensor of that name, if its numbers are f32, f16 or bf16.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'a>> {
        self.header.tensor(self.bytes, name)
    }

    /// All tensors, which are f32, one at a time in the order of the data.
    pub fn f32_tensors(&self) -> impl Iterator<Item = Result<NamedTensor>> + '_ {
        self.names().map(|name| {
            let (shape, data) = self.f32_tensor(name)?;
            Ok(NamedTensor { name: name.to_owned(), shape, data })
        })
    }

    /// Shape and numbers of an f32 tensor, bit for bit.
    pub fn f32_tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let view = self.tensor(name)?;
        if view.encoding != Encoding::F32 {
            let value = view.encoding.as_str().to_owned();
            return Err(FormatError::Unsupported { what: "number type where f32 is expected", value });
        }
        let numbers = view.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        Ok((view.shape, numbers.collect()))
    }
}

impl Header {
    /// Reads and checks the header at the start of a file's bytes.
    pub fn read(bytes: &[u8]) -> Result<Header> {
        let truncated = |what: &str, offset: u64, needed: u64| FormatError::Truncated {
            format: FORMAT,
            what: what.to_owned(),
            offset,
            needed,
            available: bytes.len() as u64,
        };
        let length = bytes.first_chunk::<8>().ok_or_else(|| truncated("the header length", 0, 8))?;
        let length = u64::from_le_bytes(*length);
        if length > HEADER_BYTES_MAX {
            let what = "safetensors header length".to_owned();
            return Err(FormatError::TooLarge { what, value: length, limit: HEADER_BYTES_MAX });
        }
        let data_start = 8 + length as usize;
        let text = bytes.get(8..data_start).ok_or_else(|| truncated("the header", 8, length))?;
        let raw: RawHeader = serde_json::from_slice(text)
            .map_err(|error| FormatError::malformed(FORMAT, format!("header: {error}")))?;
        let mut entries = raw.tensors;
        entries.sort_by_key(|entry| (entry.start, entry.end));
        let mut expected_start = 0;
        for entry in &entries {
            entry.check(expected_start)?;
            expected_start = entry.end;
        }
        let data_len = bytes.len() - data_start;
        if expected_start > data_len {
            let last = entries.last().map_or("", |entry| &entry.name);
            return Err(truncated(
                &format!("the data up to `{last}`"),
                data_start as u64,
                expected_start as u64,
            ));
        }
        if expected_start < data_len {
            let what = format!("{} bytes after the last tensor", data_len - expected_start);
            return Err(FormatError::malformed(FORMAT, what));
        }
        let by_name = entries.iter().enumerate().map(|(i, entry)| (entry.name.clone(), i)).collect();
        Ok(Header { metadata: raw.metadata, entries, by_name, data_start })
    }

    fn tensor<'a>(&self, bytes: &'a [u8], name: &str) -> Result<TensorView<'a>> {
        let index =
            self.by_name.get(name).ok_or_else(|| FormatError::MissingTensor { name: name.to_owned() })?;
        let entry = &self.entries[*index];
        let encoding = match entry.dtype.as_str() {
            "F32" => Encoding::F32,
            "F16" => Encoding::F16,
            "BF16" => Encoding::BF16,
            other => {
                return Err(FormatError::Unsupported { what: "number type", value: other.to_owned() });
            }
        };
        // `read` checked the range against these very bytes.
        let bytes = &bytes[self.data_start + entry.start..self.data_start + entry.end];
        Ok(TensorView { shape: entry.shape.clone(), encoding, bytes: Cow::Borrowed(bytes) })
    }
}

impl Entry {
    fn check(&self, expected_start: usize) -> Result<()> {
        let name = &self.name;
        let malformed = |what: String| Err(FormatError::malformed(FORMAT, what));
        if self.end < self.start {
            return malformed(format!("`{name}` ends at {} before its start {}", self.end, self.start));
        }
        if self.start != expected_start {
            let kind = if self.start < expected_start { "an overlap" } else { "a hole" };
            return malformed(format!("{kind} before `{name}`, which starts at {}", self.start));
        }
        if self.shape.len() > RANK_MAX {
            return malformed(format!("`{name}` has {} axes", self.shape.len()));
        }
        let n = self.shape.iter().try_fold(1usize, |n, &axis| n.checked_mul(axis));
        let size = match self.dtype.as_str() {
            "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => 1,
            "I16" | "U16" | "F16" | "BF16" => 2,
            "I32" | "U32" | "F32" => 4,
            "I64" | "U64" | "F64" => 8,
            // Listed but never read; its size is not ours to check.
            _ => return Ok(()),
        };
        if n.and_then(|n| n.checked_mul(size)) != Some(self.end - self.start) {
            let (shape, dtype) = (&self.shape, &self.dtype);
            return malformed(format!(
                "`{name}` of shape {shape:?} in {dtype} has {} bytes",
                self.end - self.start
            ));
        }
        Ok(())
    }
}

/// The header's JSON, with duplicate names refused.
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<Entry>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut seen = std::collections::HashSet::new();
        let mut header = RawHeader { metadata: BTreeMap::new(), tensors: Vec::new() };
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("`{name}` appears twice")));
            }
            if name == "__metadata__" {
                header.metadata = map.next_value()?;
                continue;
            }
            let RawEntry { dtype, shape, data_offsets: [start, end] } = map.next_value()?;
            header.tensors.push(Entry { name, dtype, shape, start, end });
        }
        Ok(header)
    }
}

/// A mapped safetensors file.
pub(crate) struct SafetensorsFile {
    header: Header,
    bytes: MappedFile,
}

impl SafetensorsFile {
    pub(crate) fn open(path: &Path) -> Result<SafetensorsFile> {
        let bytes = MappedFile::open(path)?;
        let header = Header::read(&bytes).map_err(|error| error.in_file(path))?;
        Ok(SafetensorsFile { header, bytes })
    }
}

impl TensorSource for SafetensorsFile {
    fn names(&self) -> Vec<String> {
        self.header.entries.iter().map(|entry| entry.name.clone()).collect()
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.header.tensor(&self.bytes, name)
    }
}

impl TensorSource for Safetensors<'_> {
    fn names(&self) -> Vec<String> {
        self.names().map(str::to_owned).collect()
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.tensor(name)
    }
}

/// An f32 tensor to write: name, shape, numbers in row-major order.
pub type F32Tensor<'a> = (&'a str, &'a [usize], &'a [f32]);

/// The first way in which `file` is not what writing `tensors` in this encoding makes: a tensor that is missing, has another
/// number type or shape or other bits, or that nobody wrote. The order of tensors does not matter. How many were alike.
pub fn compare(
    file: &Safetensors<'_>,
    tensors: impl Iterator<Item = Result<NamedTensor>>,
    store: Encoding,
) -> Result<(usize, Option<String>)> {
    let (mut alike, mut bytes) = (0, Vec::new());
    let mut others: BTreeSet<&str> = file.names().collect();
    for tensor in tensors {
        let NamedTensor { name, shape, data } = tensor?;
        let Some(entry) = file.header.by_name.get(&name).map(|&i| &file.header.entries[i]) else {
            return Ok((alike, Some(format!("`{name}` is missing"))));
        };
        let dtype = dtype_of(store)?;
        if entry.dtype != dtype || entry.shape != shape {
            let (found, is) = (&entry.dtype, &entry.shape);
            return Ok((
                alike,
                Some(format!("`{name}` is {found} {is:?}, and {dtype} {shape:?} was trained")),
            ));
        }
        bytes.clear();
        encode(store, &data, &mut bytes)?;
        if file.tensor(&name)?.bytes != bytes {
            return Ok((alike, Some(format!("`{name}` has other numbers"))));
        }
        others.remove(name.as_str());
        alike += 1;
    }
    let more = others.first().map(|name| format!("`{name}` was not trained"));
    Ok((alike, more))
}

fn dtype_of(store: Encoding) -> Result<&'static str> {
    match store {
        Encoding::F32 => Ok("F32"),
        Encoding::F16 => Ok("F16"),
        Encoding::BF16 => Ok("BF16"),
        other => {
            let value = other.as_str().to_owned();
            Err(FormatError::Unsupported { what: "encoding in safetensors", value })
        }
    }
}

/// Writes f32 tensors in the given order, and `metadata` under `__metadata__`.
///
/// The file gets its name only when it is whole.
pub fn write(path: &Path, tensors: &[F32Tensor<'_>], metadata: &BTreeMap<String, String>) -> Result<()> {
    let shapes: Vec<(String, Vec<usize>)> =
        tensors.iter().map(|(name, shape, _)| ((*name).to_owned(), shape.to_vec())).collect();
    let mut file = StagedFile::create(path)?;
    let mut writer = Writer::start(file.writer(), path, &shapes, Encoding::F32, metadata)?;
    for (name, shape, data) in tensors {
        writer.put(name, shape, data)?;
    }
    writer.finish()?;
    file.commit()
}

/// Writes a file whose shapes are known before its numbers, which may come in any order.
pub(crate) struct Writer<'a, W: Write + Seek> {
    out: &'a mut W,
    path: &'a Path,
    store: Encoding,
    data_start: u64,
    /// Position and shape of each tensor that has not come yet.
    missing: BTreeMap<String, (u64, Vec<usize>)>,
    position: u64,
}

impl<'a, W: Write + Seek> Writer<'a, W> {
    /// Writes the header.
    pub(crate) fn start(
        out: &'a mut W,
        path: &'a Path,
        tensors: &[(String, Vec<usize>)],
        store: Encoding,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Writer<'a, W>> {
        let dtype = dtype_of(store)?;
        let mut header = Map::new();
        if !metadata.is_empty() {
            header.insert("__metadata__".to_owned(), json!(metadata));
        }
        let mut missing = BTreeMap::new();
        let mut offset = 0usize;
        for (name, shape) in tensors {
            let end = store.n_bytes(shape).and_then(|size| offset.checked_add(size)).ok_or_else(|| {
                FormatError::malformed(FORMAT, format!("the size of `{name}` {shape:?} overflows"))
            })?;
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]});
            if name == "__metadata__" || header.insert(name.clone(), entry).is_some() {
                return Err(FormatError::UnexpectedTensor { name: name.clone() });
            }
            missing.insert(name.clone(), (offset as u64, shape.clone()));
            offset = end;
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        out.write_all(&(text.len() as u64).to_le_bytes()).map_err(FormatError::io("write", path))?;
        out.write_all(&text).map_err(FormatError::io("write", path))?;
        Ok(Writer { out, path, store, data_start: 8 + text.len() as u64, missing, position: 0 })
    }

    /// Writes the numbers of one tensor.
    pub(crate) fn put(&mut self, name: &str, shape: &[usize], data: &[f32]) -> Result<()> {
        let (position, expected) = self
            .missing
            .remove(name)
            .ok_or_else(|| FormatError::UnexpectedTensor { name: name.to_owned() })?;
        check_shape(name, shape, &expected, data.len())?;
        if position != self.position {
            let seek = SeekFrom::Start(self.data_start + position);
            self.out.seek(seek).map_err(FormatError::io("write", self.path))?;
        }
        self.position = position;
        let mut bytes = Vec::new();
        for numbers in data.chunks(CHUNK_NUMBERS) {
            bytes.clear();
            encode(self.store, numbers, &mut bytes)?;
            self.out.write_all(&bytes).map_err(FormatError::io("write", self.path))?;
            self.position += bytes.len() as u64;
        }
        Ok(())
    }

    /// Checks that every tensor came.
    pub(crate) fn finish(self) -> Result<()> {
        match self.missing.into_keys().next() {
            Some(name) => Err(FormatError::MissingTensor { name }),
            None => Ok(()),
        }
    }
}

/// Numbers encoded at a time.
const CHUNK_NUMBERS: usize = 1 << 16;

/// A tensor to write has the shape that its file announces, and as many numbers.
pub(crate) fn check_shape(name: &str, found: &[usize], expected: &[usize], n_numbers: usize) -> Result<()> {
    if found != expected || n_numbers != expected.iter().product::<usize>() {
        let found = if found == expected { vec![n_numbers] } else { found.to_vec() };
        return Err(FormatError::Shape { name: name.to_owned(), found, expected: expected.to_vec() });
    }
    Ok(())
}
