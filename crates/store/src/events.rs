//! `events.jsonl`: what happened, one JSON object per line, appended only.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Result, StoreError};

/// Longest line, in bytes.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// The writing end of an event log.
///
/// Each event is handed to the operating system in one write, so it outlives a killed process. It
/// reaches the disk itself at [`EventLog::sync`], which callers use when a stage ends: a power cut
/// may cost the last events, and what they tell of is recorded elsewhere before they are written.
pub struct EventLog {
    path: PathBuf,
    file: File,
    len: u64,
}

impl EventLog {
    /// Opens a log for appending; half a last line, left by a crash, is cut off first.
    pub fn open(path: &Path) -> Result<EventLog> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(StoreError::io("open", path))?;
        let len = end_of_last_line(&mut file).map_err(StoreError::io("read", path))?;
        let found = file.metadata().map_err(StoreError::io("read", path))?.len();
        if found != len {
            file.set_len(len).map_err(StoreError::io("truncate", path))?;
        }
        Ok(EventLog { path: path.to_path_buf(), file, len })
    }

    /// Appends one event, which must serialise as a JSON object. Whole or not at all.
    pub fn append<T: Serialize + ?Sized>(&mut self, event: &T) -> Result<()> {
        let line = serde_json::to_vec(event).map_err(|e| self.refused(e.to_string()))?;
        self.append_line(&line)
    }

    /// Appends a JSON object that is written already, in one line without its end. Whole or not at all.
    pub fn append_line(&mut self, line: &[u8]) -> Result<()> {
        let mut line = line.to_vec();
        line.push(b'\n');
        if line.first() != Some(&b'{') {
            return Err(self.refused("not a JSON object".into()));
        }
        if line.len() > EVENT_BYTES_MAX {
            return Err(self.refused(format!("{} bytes, at most {EVENT_BYTES_MAX} fit", line.len())));
        }
        if let Err(source) = self.file.write_all(&line) {
            let _ = self.file.set_len(self.len);
            return Err(StoreError::writing("append to", &self.path, line.len() as u64, source));
        }
        self.len += line.len() as u64;
        Ok(())
    }

    fn refused(&self, reason: String) -> StoreError {
        StoreError::Unrecordable { path: self.path.clone(), reason }
    }

    /// Makes everything appended so far durable.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|e| StoreError::writing("sync", &self.path, self.len, e))
    }
}

/// Offset just behind the last line feed.
fn end_of_last_line(file: &mut File) -> std::io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut piece = [0u8; 4096];
    while end > 0 {
        let n = end.min(piece.len() as u64);
        file.seek(SeekFrom::Start(end - n))?;
        file.read_exact(&mut piece[..n as usize])?;
        if let Some(at) = piece[..n as usize].iter().rposition(|&b| b == b'\n') {
            return Ok(end - n + at as u64 + 1);
        }
        end -= n;
    }
    Ok(0)
}

/// Reads a log line by line. A last line without its line feed is taken for a crash and left out;
/// any other line that is no JSON object of type `T` is an error, after which reading may go on.
pub struct EventReader<T> {
    path: PathBuf,
    lines: BufReader<File>,
    line: u64,
    ended: bool,
    kind: PhantomData<T>,
}

impl<T: DeserializeOwned> EventReader<T> {
    pub fn open(path: &Path) -> Result<EventReader<T>> {
        let file = File::open(path).map_err(StoreError::io("open", path))?;
        let lines = BufReader::new(file);
        Ok(EventReader { path: path.to_path_buf(), lines, line: 0, ended: false, kind: PhantomData })
    }

    fn damaged(&self, reason: String) -> StoreError {
        StoreError::DamagedLine { path: self.path.clone(), line: self.line, reason }
    }
}

impl<T: DeserializeOwned> Iterator for EventReader<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        if self.ended {
            return None;
        }
        let mut bytes = Vec::new();
        self.line += 1;
        let read = (&mut self.lines).take(EVENT_BYTES_MAX as u64 + 1).read_until(b'\n', &mut bytes);
        if let Err(e) = read {
            self.ended = true;
            return Some(Err(StoreError::io("read", &self.path)(e)));
        }
        if bytes.last() != Some(&b'\n') {
            self.ended = true;
            let overlong = bytes.len() > EVENT_BYTES_MAX;
            return overlong.then(|| Err(self.damaged(format!("longer than {EVENT_BYTES_MAX} bytes"))));
        }
        Some(serde_json::from_slice(&bytes).map_err(|e| self.damaged(e.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(path: &Path) -> Vec<Value> {
        EventReader::open(path).unwrap().map(|e| e.unwrap()).collect()
    }

    #[test]
    fn a_log_cut_at_any_byte_keeps_its_whole_lines_and_goes_on() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("events.jsonl");
        let mut log = EventLog::open(&path).unwrap();
        (0..4).for_each(|i| log.append(&json!({"step": i, "text": "a\nb"})).unwrap());
        log.sync().unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let kept = whole[..cut].iter().filter(|&&b| b == b'\n').count();
            assert_eq!(read(&path).len(), kept);
            EventLog::open(&path).unwrap().append(&json!({"step": "next"})).unwrap();
            let events = read(&path);
            assert_eq!(events.len(), kept + 1);
            assert_eq!(events[kept], json!({"step": "next"}));
        }
    }

    #[test]
    fn a_damaged_line_is_named_and_only_objects_are_recorded() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("events.jsonl");
        std::fs::write(&path, "{\"a\":1}\nnonsense\n{\"a\":2}\n").unwrap();
        let lines: Vec<Result<Value>> = EventReader::open(&path).unwrap().collect();
        assert!(lines[0].is_ok() && lines[2].is_ok() && lines.len() == 3);
        assert!(matches!(lines[1], Err(StoreError::DamagedLine { line: 2, .. })));
        let mut log = EventLog::open(&path).unwrap();
        assert!(log.append(&3).is_err());
        assert!(log.append(&json!({"x": "y".repeat(EVENT_BYTES_MAX)})).is_err());
        assert_eq!(std::fs::read(&path).unwrap().len(), 25);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn text_of_all_kinds_round_trips(texts in proptest::collection::vec(any::<String>(), 0..20)) {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().join("events.jsonl");
            let mut log = EventLog::open(&path).unwrap();
            for text in &texts {
                log.append(&json!({"text": text})).unwrap();
            }
            let back: Vec<Value> = read(&path);
            prop_assert_eq!(back.len(), texts.len());
            prop_assert!(back.iter().zip(&texts).all(|(v, t)| v["text"] == t.as_str()));
        }
    }
}
