//! Numbered part files of a stage that can be resumed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stillroom_core::Digest;

use crate::{Result, StoreError, atomic_write, check_name, create_dir_durable, digest_file};

/// Largest number of parts in one store.
const PARTS_MAX: u32 = 1_000_000;
/// Largest record of a part, in bytes.
const RECORD_BYTES_MAX: u64 = 4096;
/// Suffix of the records.
const RECORD_SUFFIX: &str = "record";

/// Files `part-000000.<extension>`, `part-000001.<extension>` … of one directory, each whole or absent.
///
/// A part counts once its record `part-000000.<extension>.record` (digest, size, digest of the inputs
/// it was made from) is written, which happens after the part itself. Whatever does not match its
/// record, or was made from other inputs, is listed as rejected and has to be made again.
#[derive(Debug)]
pub struct PartStore {
    dir: PathBuf,
    extension: String,
    inputs: Digest,
    done: BTreeMap<u32, PartRecord>,
    rejected: Vec<RejectedPart>,
}

/// A part that was found but cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedPart {
    pub number: u32,
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PartRecord {
    digest: Digest,
    bytes: u64,
    inputs: Digest,
}

impl PartStore {
    /// Opens a directory of parts, created where it is missing, and checks every part's digest.
    ///
    /// `inputs` is the digest of all that the parts depend on, except their number.
    pub fn open(dir: &Path, extension: &str, inputs: Digest) -> Result<PartStore> {
        check_name(extension)?;
        create_dir_durable(dir)?;
        let mut store = PartStore {
            dir: dir.to_path_buf(),
            extension: extension.into(),
            inputs,
            done: BTreeMap::new(),
            rejected: Vec::new(),
        };
        for number in store.numbers_on_disk()? {
            match store.examine(number)? {
                Ok(record) => {
                    store.done.insert(number, record);
                }
                Err(reason) => store.rejected.push(RejectedPart { number, reason }),
            }
        }
        Ok(store)
    }

    /// Numbers of the parts that are done, ascending.
    pub fn done(&self) -> impl Iterator<Item = u32> + '_ {
        self.done.keys().copied()
    }

    /// Numbers in `0..n_parts` that are still to be made, ascending.
    pub fn missing(&self, n_parts: u32) -> impl Iterator<Item = u32> + '_ {
        (0..n_parts).filter(|number| !self.done.contains_key(number))
    }

    /// Whether a part is done.
    pub fn contains(&self, number: u32) -> bool {
        self.done.contains_key(&number)
    }

    /// Parts that were found unusable when the store was opened.
    pub fn rejected(&self) -> &[RejectedPart] {
        &self.rejected
    }

    /// Where a part is, or would be.
    pub fn path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("part-{number:06}.{}", self.extension))
    }

    /// Writes a part and then its record, each atomically.
    pub fn put(&mut self, number: u32, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.path(number);
        if number >= PARTS_MAX {
            let reason = format!("at most {PARTS_MAX} parts are kept");
            return Err(StoreError::Unrecordable { path, reason });
        }
        let record = PartRecord { digest: Digest::of(bytes), bytes: bytes.len() as u64, inputs: self.inputs };
        let text = serde_json::to_vec(&record)
            .map_err(|e| StoreError::Unrecordable { path: path.clone(), reason: e.to_string() })?;
        self.done.remove(&number);
        atomic_write(&path, bytes)?;
        atomic_write(&self.record_path(number), &text)?;
        self.done.insert(number, record);
        Ok(path)
    }

    /// The bytes of a part that is done, checked against its record.
    pub fn read(&self, number: u32) -> Result<Vec<u8>> {
        let path = self.path(number);
        let damaged = |reason: &str| StoreError::Damaged { path: path.clone(), reason: reason.into() };
        let record = self.done.get(&number).ok_or_else(|| damaged("not done yet"))?;
        let file = fs::File::open(&path).map_err(StoreError::io("open", &path))?;
        let mut bytes = Vec::new();
        file.take(record.bytes + 1).read_to_end(&mut bytes).map_err(StoreError::io("read", &path))?;
        if bytes.len() as u64 != record.bytes || Digest::of(&bytes) != record.digest {
            return Err(damaged("it does not match its digest"));
        }
        Ok(bytes)
    }

    /// Removes every part that is not one of the done parts in `0..n_parts`, and records without a part,
    /// so that the directory holds exactly what a finished stage consists of.
    pub fn seal(&mut self, n_parts: u32) -> Result<()> {
        for number in self.numbers_on_disk()? {
            if number < n_parts && self.done.contains_key(&number) {
                continue;
            }
            self.done.remove(&number);
            for path in [self.record_path(number), self.path(number)] {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != ErrorKind::NotFound => {
                        return Err(StoreError::io("remove", &path)(e));
                    }
                    _ => {}
                }
            }
        }
        self.rejected.clear();
        crate::sync_dir(&self.dir)
    }

    fn record_path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("part-{number:06}.{}.{RECORD_SUFFIX}", self.extension))
    }

    /// Numbers of which the directory has the part, the record or both.
    fn numbers_on_disk(&self) -> Result<Vec<u32>> {
        let failed = |e| StoreError::io("list", &self.dir)(e);
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            numbers.extend(name.to_str().and_then(|name| self.number_of(name)));
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    fn number_of(&self, name: &str) -> Option<u32> {
        let (digits, rest) = name.strip_prefix("part-")?.split_at_checked(6)?;
        let rest = rest.strip_prefix('.')?.strip_prefix(self.extension.as_str())?;
        let ours = rest.is_empty() || rest.strip_prefix('.') == Some(RECORD_SUFFIX);
        (ours && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
    }

    /// The record of a part that is as recorded, or why it is not.
    fn examine(&self, number: u32) -> Result<std::result::Result<PartRecord, &'static str>> {
        let record_path = self.record_path(number);
        let text = match fs::File::open(&record_path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Err("its record is missing")),
            Err(e) => return Err(StoreError::io("open", &record_path)(e)),
            Ok(file) => {
                let mut text = Vec::new();
                file.take(RECORD_BYTES_MAX)
                    .read_to_end(&mut text)
                    .map_err(StoreError::io("read", &record_path))?;
                text
            }
        };
        let Ok(record) = serde_json::from_slice::<PartRecord>(&text) else {
            return Ok(Err("its record is damaged"));
        };
        if record.inputs != self.inputs {
            return Ok(Err("it was made from other inputs"));
        }
        let path = self.path(number);
        match path.metadata() {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Err("it is missing")),
            Err(e) => return Err(StoreError::io("read", &path)(e)),
            Ok(m) if m.len() != record.bytes => return Ok(Err("its size is wrong")),
            Ok(_) => {}
        }
        let matches = digest_file(&path)?.0 == record.digest;
        Ok(if matches { Ok(record) } else { Err("it does not match its digest") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::{self, Fault};
    use crate::remove_partials;

    fn body(number: u32) -> Vec<u8> {
        (0..50 + number).map(|i| (i * 7 + number) as u8).collect()
    }

    fn open(dir: &Path) -> PartStore {
        PartStore::open(dir, "parquet", Digest::of(b"recipe")).unwrap()
    }

    #[test]
    fn a_kill_at_any_operation_loses_at_most_the_part_in_hand() {
        for n in 0.. {
            let temp = tempfile::tempdir().unwrap();
            let mut store = open(temp.path());
            store.put(0, &body(0)).unwrap();
            faults::arm(n, Fault::Kill);
            let outcome = store.put(1, &body(1));
            faults::disarm();
            remove_partials(temp.path()).unwrap();
            let mut store = open(temp.path());
            assert!(store.contains(0));
            if outcome.is_ok() {
                assert!(store.contains(1) && n >= 10);
                break;
            }
            for number in store.missing(3).collect::<Vec<_>>() {
                store.put(number, &body(number)).unwrap();
            }
            let store = open(temp.path());
            assert_eq!(store.done().collect::<Vec<_>>(), [0, 1, 2]);
            (0..3).for_each(|number| assert_eq!(store.read(number).unwrap(), body(number)));
        }
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_noticed() {
        let temp = tempfile::tempdir().unwrap();
        open(temp.path()).put(4, &body(4)).unwrap();
        let path = open(temp.path()).path(4);
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(!open(temp.path()).contains(4), "cut at {cut}");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &flipped).unwrap();
            assert!(!open(temp.path()).contains(4), "bit {bit}");
        }
        fs::write(&path, &whole).unwrap();
        let store = open(temp.path());
        assert!(store.contains(4));
        fs::write(&path, b"changed behind our back").unwrap();
        assert!(matches!(store.read(4), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn parts_of_other_inputs_are_rejected_and_sealed_away() {
        let temp = tempfile::tempdir().unwrap();
        let mut store = open(temp.path());
        (0..3).for_each(|number| drop(store.put(number, &body(number)).unwrap()));
        fs::write(temp.path().join("part-zzzzzz.parquet"), b"").unwrap();
        fs::write(temp.path().join("notes.txt"), b"").unwrap();
        let mut other = PartStore::open(temp.path(), "parquet", Digest::of(b"other")).unwrap();
        assert_eq!(other.done().count(), 0);
        assert_eq!(other.rejected().len(), 3);
        assert_eq!(other.rejected()[0].reason, "it was made from other inputs");
        other.put(0, &body(9)).unwrap();
        other.seal(1).unwrap();
        let other = PartStore::open(temp.path(), "parquet", Digest::of(b"other")).unwrap();
        assert_eq!((other.done().collect::<Vec<_>>(), other.rejected().len()), (vec![0], 0));
        assert!(temp.path().join("notes.txt").exists() && !temp.path().join("part-000001.parquet").exists());
        assert!(PartStore::open(temp.path(), "../x", Digest::of(b"")).is_err());
        assert!(store.put(PARTS_MAX, b"").is_err());
    }
}
