//! Files of a batch: what names a request in them, which there are, and their lines.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use stillroom_core::Digest;
use stillroom_store::StoreError;

/// Where results lie, below the folder of the batch.
pub(crate) const RESULTS: &str = "results";
/// Where it is kept which job has which file.
pub(crate) const JOBS: &str = "jobs";
/// Bytes of a line of results: as much as a reply may have.
pub(crate) const LINE_BYTES_MAX: usize = 64 << 20;
/// Files of requests in one folder.
const FILES_MAX: usize = 100_000;
const HEX_DIGITS: usize = 60;
/// Digits of a try's number.
const ATTEMPT_DIGITS_MAX: usize = 3;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The part of a request's digest that names it: 240 bits.
pub(crate) type Key = [u8; HEX_DIGITS / 2];

/// What names one try of a request, in at most 64 characters: 60 hexadecimal digits of its digest, `-`, and the number of
/// the try. The digest is of prompt, sample and body, so no other request has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CustomId {
    pub(crate) key: Key,
    pub(crate) attempt: u32,
}

pub(crate) fn key_of(request: &Digest) -> Key {
    request.as_bytes()[..HEX_DIGITS / 2].try_into().expect("a digest is longer")
}

impl CustomId {
    /// Only what [`fmt::Display`] writes reads back.
    pub(crate) fn parse(text: &str) -> Option<CustomId> {
        let (name, attempt) = text.split_once('-')?;
        let lower = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let plain = attempt == "0" || !attempt.starts_with('0');
        if name.len() != HEX_DIGITS || !name.bytes().all(lower) || !plain {
            return None;
        }
        if attempt.len() > ATTEMPT_DIGITS_MAX || !attempt.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let mut key = [0; HEX_DIGITS / 2];
        for (i, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&name[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(CustomId { key, attempt: attempt.parse().ok()? })
    }
}

impl fmt::Display for CustomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{}", self.attempt)
    }
}

/// `requests-0000.jsonl`.
pub(crate) fn requests_name(number: u32) -> String {
    format!("{}.jsonl", stem(number))
}

/// The name without its extension.
pub(crate) fn stem(number: u32) -> String {
    format!("requests-{number:04}")
}

/// Files of requests in a folder, by number.
pub(crate) fn request_files(folder: &Path) -> Result<BTreeMap<u32, PathBuf>, StoreError> {
    let mut files = BTreeMap::new();
    for path in entries(folder)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("requests-").and_then(|rest| rest.strip_suffix(".jsonl"));
        if let Some(number) = number.and_then(|number| number.parse().ok())
            && requests_name(number) == name
        {
            files.insert(number, path);
        }
    }
    if files.len() > FILES_MAX {
        let reason = format!("it has {} files of requests, of at most {FILES_MAX}", files.len());
        return Err(StoreError::Damaged { path: folder.to_path_buf(), reason });
    }
    Ok(files)
}

/// Files of results in a folder, by name; what is still being written begins with a dot.
pub(crate) fn result_files(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let is_result = |path: &PathBuf| {
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        !hidden && path.extension().is_some_and(|e| e == "jsonl") && path.is_file()
    };
    Ok(entries(folder)?.into_iter().filter(is_result).collect())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = std::fs::read_dir(folder).map_err(|e| failed("list", folder, e))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
    let mut paths = paths.map_err(|e| failed("list", folder, e))?;
    paths.sort();
    Ok(paths)
}

pub(crate) fn failed(operation: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { operation, path: path.to_path_buf(), source }
}

/// How a line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Whole,
    /// With the file, before a line feed came.
    Unended,
    /// It is longer than the cap and was passed over.
    TooLong,
}

/// The lines of a file, none of which takes more memory than the cap.
pub(crate) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    bytes_max: usize,
    /// Of the line that came last, from 1.
    pub(crate) number: u64,
}

impl Lines {
    pub(crate) fn open(path: &Path, bytes_max: usize) -> Result<Lines, StoreError> {
        let file = File::open(path).map_err(|e| failed("open", path, e))?;
        let reader = BufReader::with_capacity(256 << 10, file);
        Ok(Lines { path: path.to_path_buf(), reader, bytes_max, number: 0 })
    }

    /// The next line without white space around it; none at the end.
    pub(crate) fn next(&mut self, line: &mut Vec<u8>) -> Result<Option<Line>, StoreError> {
        let failed = |e| failed("read", &self.path, e);
        line.clear();
        let mut limited = (&mut self.reader).take(self.bytes_max as u64 + 1);
        if limited.read_until(b'\n', line).map_err(failed)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        let ended = line.last() == Some(&b'\n');
        if !ended && line.len() > self.bytes_max {
            line.clear();
            skip_line(&mut self.reader).map_err(failed)?;
            return Ok(Some(Line::TooLong));
        }
        let start =
            if self.number == 1 && line.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        let end = start + line[start..].trim_ascii_end().len();
        line.truncate(end);
        line.drain(..start);
        Ok(Some(if ended { Line::Whole } else { Line::Unended }))
    }
}

fn skip_line(reader: &mut BufReader<File>) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        match buffer.iter().position(|&b| b == b'\n') {
            Some(at) => {
                reader.consume(at + 1);
                return Ok(());
            }
            None => {
                let n = buffer.len();
                reader.consume(n);
            }
        }
    }
}

/// The name at the start of a line that [`stillroom_formats::openai::BatchLine`] wrote.
pub(crate) fn id_of_request(line: &[u8]) -> Option<CustomId> {
    let rest = line.strip_prefix(br#"{"custom_id":""#)?;
    let end = rest.iter().take(HEX_DIGITS + ATTEMPT_DIGITS_MAX + 2).position(|&b| b == b'"')?;
    CustomId::parse(std::str::from_utf8(&rest[..end]).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_reads_back_and_no_other_spelling_does() {
        let id = CustomId { key: key_of(&Digest::of(b"a")), attempt: 999 };
        let text = id.to_string();
        assert_eq!((text.len(), CustomId::parse(&text)), (64, Some(id)));
        let digest = Digest::of(b"a").to_string();
        assert_eq!(text, format!("{}-999", &digest[..60]));
        for other in [
            text.to_uppercase(),
            text.replace("-999", "-09"),
            text.replace("-999", "-1000"),
            text.replace("-999", "-+9"),
            text.replace("-999", "-"),
            text.replace('-', ""),
            text[1..].to_owned(),
            format!(" {text}"),
            String::new(),
        ] {
            assert_eq!(CustomId::parse(&other), None, "{other}");
        }
    }

    fn lines_of(bytes: &[u8], cap: usize) -> Vec<(u64, Line, Vec<u8>)> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, bytes).expect("a file");
        let mut lines = Lines::open(&path, cap).expect("a file");
        let (mut line, mut all) = (Vec::new(), Vec::new());
        while let Some(kind) = lines.next(&mut line).expect("lines") {
            all.push((lines.number, kind, line.clone()));
        }
        all
    }

    #[test]
    fn lines_are_counted_and_long_ones_are_passed_over() {
        let text = b"\xef\xbb\xbfone\r\n\nlonger than eight\nfour\ncut";
        let whole = |n, text: &[u8]| (n, Line::Whole, text.to_vec());
        let expected = [
            whole(1, b"one"),
            whole(2, b""),
            (3, Line::TooLong, Vec::new()),
            whole(4, b"four"),
            (5, Line::Unended, b"cut".to_vec()),
        ];
        assert_eq!(lines_of(text, 8), expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_bytes_are_lines(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300), cap in 1usize..40) {
            let lines = lines_of(&bytes, cap);
            let feeds = bytes.iter().filter(|&&b| b == b'\n').count();
            let expected = feeds + usize::from(bytes.last().is_some_and(|&b| b != b'\n'));
            prop_assert_eq!(lines.len(), expected);
            prop_assert!(lines.iter().all(|(_, _, line)| line.len() <= cap));
        }
    }
}
