//! The run's log: an append-only list of commitments to what happened, in the order in which it happened.
//!
//! An entry is a kind, a number within its kind and bytes. Of the bytes the log holds a salted digest only:
//!
//! ```text
//! salt       = HMAC-SHA256(secret, "stillroom/log/v1" ‖ position ‖ kind ‖ number)     numbers: 8 bytes, little-endian
//! commitment = SHA-256(salt ‖ bytes)
//! record     = kind (1 byte) ‖ number (8) ‖ commitment (32)
//! ```
//!
//! Records are the leaves of an RFC 9162 tree ([`crate::merkle`]). So one entry can be opened (bytes, salt, proof) to
//! somebody who has the tree's head, without a word on any other; who has no salt cannot try out what an entry may have
//! been. The secret stays in the run, and nothing but salts depends on it.
//!
//! A log shows what is in it, in an order that cannot be changed later. It does not show that nothing was left out.

mod told;

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stillroom_core::{Digest, Digester};
use stillroom_store::StoreError;

use crate::dsse::Envelope;
use crate::error::{EnvelopeFault, GovernanceError, LogFault, Result};
use crate::keys::{PublicKey, Signer};
use crate::log::told::{Found, Told};
use crate::merkle::{Frontier, consistency_proof, inclusion_proof, is_included, leaf_hash};

/// Bytes of a record.
pub const RECORD_BYTES: usize = 41;
/// Records that are read at most.
pub const RECORDS_MAX: u64 = 1 << 28;
/// Largest entry, in bytes.
pub const ENTRY_BYTES_MAX: usize = 64 << 20;
/// Hashes of a proof at most: of a tree of 2^64 leaves.
pub const PROOF_MAX: usize = 65;
/// Goes into each salt, so that no other use of the secret gives the same bytes.
const PURPOSE: &[u8] = b"stillroom/log/v1";
const BLOCK: usize = 64;

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// The licence decision.
    Decision,
    /// A stage that ended: its inputs, and the digests of its outputs.
    Stage,
    /// A call of a teacher behind an endpoint.
    Call,
    /// A reply of a teacher.
    Trace,
    /// A reply that curation kept.
    Kept,
    /// A reply that curation dropped, and why.
    Dropped,
    /// The texts of an optimiser step.
    Batch,
    /// A checkpoint.
    Checkpoint,
    /// An answer that a served model gave.
    Answer,
}

impl Kind {
    /// All there are, each at its byte in a record minus one.
    pub const ALL: [Kind; 9] = [
        Kind::Decision,
        Kind::Stage,
        Kind::Call,
        Kind::Trace,
        Kind::Kept,
        Kind::Dropped,
        Kind::Batch,
        Kind::Checkpoint,
        Kind::Answer,
    ];

    fn byte(self) -> u8 {
        self as u8 + 1
    }

    fn of(byte: u8) -> Option<Kind> {
        Kind::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }

    /// Whether what a number of this kind stands for never changes.
    fn is_final(self) -> bool {
        self == Kind::Call
    }

    /// As it is written on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Decision => "decision",
            Kind::Stage => "stage",
            Kind::Call => "call",
            Kind::Trace => "trace",
            Kind::Kept => "kept",
            Kind::Dropped => "dropped",
            Kind::Batch => "batch",
            Kind::Checkpoint => "checkpoint",
            Kind::Answer => "answer",
        }
    }
}

/// What the salts of a log are made from.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    pub fn new(bytes: [u8; 32]) -> Secret {
        Secret(bytes)
    }

    fn salt(&self, position: u64, kind: Kind, number: u64) -> Digest {
        let message = [PURPOSE, &position.to_le_bytes(), &[kind.byte()], &number.to_le_bytes()].concat();
        hmac(&self.0, &message)
    }
}

/// HMAC-SHA256 (RFC 2104) by a key no longer than a block.
fn hmac(key: &[u8; 32], message: &[u8]) -> Digest {
    let padded = |with: u8| {
        let mut block = [with; BLOCK];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let mut inner = Digester::new();
    inner.update(&padded(0x36));
    inner.update(message);
    let mut outer = Digester::new();
    outer.update(&padded(0x5c));
    outer.update(inner.finish().as_bytes());
    outer.finish()
}

fn commitment(salt: &Digest, bytes: &[u8]) -> Digest {
    let mut digester = Digester::new();
    digester.update(salt.as_bytes());
    digester.update(bytes);
    digester.finish()
}

/// One line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub kind: Kind,
    pub number: u64,
    pub commitment: Digest,
}

impl Record {
    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[0] = self.kind.byte();
        bytes[1..9].copy_from_slice(&self.number.to_le_bytes());
        bytes[9..].copy_from_slice(self.commitment.as_bytes());
        bytes
    }

    fn of(bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
        let (mut number, mut digest) = ([0; 8], [0; 32]);
        number.copy_from_slice(&bytes[1..9]);
        digest.copy_from_slice(&bytes[9..]);
        let kind = Kind::of(bytes[0])?;
        Some(Record { kind, number: u64::from_le_bytes(number), commitment: Digest::from_bytes(digest) })
    }

    /// Its hash as a leaf of the tree.
    pub fn leaf(self) -> Digest {
        leaf_hash(&self.to_bytes())
    }
}

/// The state of a log at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Records.
    pub size: u64,
    /// Root of the tree of them.
    pub root: Digest,
    /// Digest of the line of the head before this one; none of the first.
    pub previous: Option<Digest>,
    /// When, by the clock of the machine: seconds since 1970-01-01 UTC.
    pub unix_s: u64,
}

/// What the payload of a signed head is.
pub const HEAD_TYPE: &str = "application/vnd.stillroom.log-head.v1+json";

/// A head as it was written: one line of JSON, the head itself or an envelope (DSSE) of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadLine {
    pub head: Head,
    /// Its bytes, without the line's end.
    pub line: Vec<u8>,
    envelope: Option<Envelope>,
}

impl HeadLine {
    /// Writes a head, signed where there is somebody to sign.
    pub fn new(head: Head, signer: Option<&Signer>) -> Result<HeadLine> {
        let json = serde_json::to_vec(&head).map_err(|e| GovernanceError::from(malformed_head(&e)))?;
        let Some(signer) = signer else { return Ok(HeadLine { head, line: json, envelope: None }) };
        let envelope = Envelope::sign(HEAD_TYPE, &json, signer)?;
        Ok(HeadLine { head, line: envelope.to_bytes()?, envelope: Some(envelope) })
    }

    /// Reads a line that nobody vouches for yet.
    pub fn read(line: &[u8]) -> Result<HeadLine> {
        let line = line.to_vec();
        if let Ok(head) = serde_json::from_slice(&line) {
            return Ok(HeadLine { head, line, envelope: None });
        }
        let envelope = Envelope::from_bytes(&line)?;
        let payload = envelope.unverified_payload()?;
        let head = serde_json::from_slice(&payload).map_err(|e| GovernanceError::from(malformed_head(&e)))?;
        Ok(HeadLine { head, line, envelope: Some(envelope) })
    }

    /// Whether it is signed at all.
    pub fn is_signed(&self) -> bool {
        self.envelope.is_some()
    }

    /// Whether it is signed by this key, as a head.
    pub fn is_by(&self, key: &PublicKey) -> bool {
        self.envelope
            .as_ref()
            .is_some_and(|envelope| envelope.payload_type() == HEAD_TYPE && envelope.verify(key).is_ok())
    }
}

fn malformed_head(error: &serde_json::Error) -> EnvelopeFault {
    EnvelopeFault::Malformed { cause: error.to_string() }
}

/// The writing end of a log.
pub struct LogWriter {
    path: PathBuf,
    file: BufWriter<File>,
    secret: Secret,
    frontier: Frontier,
    /// Of each kind, at its place in [`Kind::ALL`].
    told: Vec<Told>,
}

impl LogWriter {
    /// Opens a log for appending; half a last record, left by a crash, is cut off first.
    pub fn open(path: &Path, secret: Secret) -> Result<LogWriter> {
        let io = |operation| move |source| StoreError::Io { operation, path: path.to_path_buf(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io("open"))?;
        let length = file.metadata().map_err(io("read"))?.len();
        let whole = whole_records(&mut file, length).map_err(io("read"))?;
        if whole != length {
            file.set_len(whole).map_err(io("truncate"))?;
        }
        let mut writer = LogWriter {
            path: path.to_path_buf(),
            file: BufWriter::new(file.try_clone().map_err(io("open"))?),
            secret,
            frontier: Frontier::default(),
            told: Kind::ALL.iter().map(|&kind| Told::nothing(kind)).collect(),
        };
        each_record(path, &mut file, |record| {
            writer.remember(record);
            Ok(())
        })?;
        writer.file.seek(SeekFrom::Start(whole)).map_err(io("seek"))?;
        Ok(writer)
    }

    /// Records so far.
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Numbers of calls that are not in the log, those of calls to come among them.
    pub fn calls_to_come(&self) -> Vec<Range<u64>> {
        match &self.told[Kind::Call as usize] {
            Told::Numbers(numbers) => numbers.holes(),
            Told::Runs { .. } => Vec::new(),
        }
    }

    /// Where the newest record of a call is, and the call's number; none before the first.
    pub fn newest_call(&mut self) -> Result<Option<(u64, u64)>> {
        for at in (0..self.size()).rev() {
            let record = self.read(at)?;
            if record.kind == Kind::Call {
                return Ok(Some((at, record.number)));
            }
        }
        Ok(None)
    }

    /// Whether the record at `at` stands for these bytes.
    pub fn stands_for(&mut self, at: u64, bytes: &[u8]) -> Result<bool> {
        let Record { kind, number, commitment } = self.read(at)?;
        Ok(self.commitment(at, kind, number, bytes) == commitment)
    }

    /// Calls are counted anew from here on: what is told of them is of another ledger.
    pub fn forget_calls(&mut self) {
        self.told[Kind::Call as usize] = Told::nothing(Kind::Call);
    }

    /// Appends an entry, unless it is there already: a call by its number, anything else if its number stood for the same
    /// bytes when it was last appended. The position of a new record.
    pub fn append(&mut self, kind: Kind, number: u64, bytes: &[u8]) -> Result<Option<u64>> {
        if bytes.len() > ENTRY_BYTES_MAX || self.size() >= RECORDS_MAX {
            return Err(self.fault(LogFault::TooLarge));
        }
        match self.told[kind as usize].find(number) {
            Found::Nowhere => {}
            Found::Told => return Ok(None),
            Found::At(at) if self.stands_for(at, bytes)? => return Ok(None),
            Found::At(_) => {}
        }
        let at = self.size();
        let record = Record { kind, number, commitment: self.commitment(at, kind, number, bytes) };
        self.file.write_all(&record.to_bytes()).map_err(|source| self.io("append to", source))?;
        self.remember(record);
        Ok(Some(at))
    }

    /// Hands everything appended so far to the system: it outlives a killed process.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|source| self.io("append to", source))
    }

    /// Makes everything appended so far durable.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.file.get_ref().sync_data().map_err(|source| self.io("sync", source))
    }

    /// The state of the log now, after `previous`, the line of the last head.
    pub fn head(&self, previous: Option<&[u8]>, unix_s: u64) -> Head {
        let previous = previous.map(Digest::of);
        Head { size: self.size(), root: self.frontier.root(), previous, unix_s }
    }

    fn commitment(&self, at: u64, kind: Kind, number: u64, bytes: &[u8]) -> Digest {
        commitment(&self.secret.salt(at, kind, number), bytes)
    }

    fn remember(&mut self, record: Record) {
        let at = self.size();
        self.told[record.kind as usize].add(record.number, at);
        self.frontier.push(record.leaf());
    }

    /// A record that was written before.
    fn read(&mut self, at: u64) -> Result<Record> {
        self.flush()?;
        let mut bytes = [0; RECORD_BYTES];
        let read = (|| {
            let mut file = self.file.get_ref();
            file.seek(SeekFrom::Start(at * RECORD_BYTES as u64))?;
            file.read_exact(&mut bytes)?;
            file.seek(SeekFrom::End(0))
        })();
        read.map_err(|source| self.io("read", source))?;
        Record::of(&bytes).ok_or_else(|| self.fault(LogFault::Kind { position: at }))
    }

    fn io(&self, operation: &'static str, source: std::io::Error) -> GovernanceError {
        StoreError::Io { operation, path: self.path.clone(), source }.into()
    }

    fn fault(&self, cause: LogFault) -> GovernanceError {
        GovernanceError::Log { path: self.path.clone(), cause }
    }
}

/// Bytes up to the end of the last record: a crash may leave half of one behind it, or zeros where bytes were to come.
fn whole_records(file: &mut File, length: u64) -> std::io::Result<u64> {
    let mut whole = length - length % RECORD_BYTES as u64;
    let mut kind = [0];
    while let Some(before) = whole.checked_sub(RECORD_BYTES as u64) {
        file.seek(SeekFrom::Start(before))?;
        file.read_exact(&mut kind)?;
        if kind != [0] {
            break;
        }
        whole = before;
    }
    Ok(whole)
}

fn each_record(path: &Path, file: &mut File, mut take: impl FnMut(Record) -> Result<()>) -> Result<()> {
    let io = |source| StoreError::Io { operation: "read", path: path.to_path_buf(), source };
    let fault = |cause| GovernanceError::Log { path: path.to_path_buf(), cause };
    let length = file.metadata().map_err(io)?.len();
    let records = length / RECORD_BYTES as u64;
    if records > RECORDS_MAX {
        return Err(fault(LogFault::TooLarge));
    }
    if !length.is_multiple_of(RECORD_BYTES as u64) {
        return Err(fault(LogFault::Torn { bytes: length }));
    }
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut reader = BufReader::new(file);
    for position in 0..records {
        let mut bytes = [0; RECORD_BYTES];
        reader.read_exact(&mut bytes).map_err(io)?;
        take(Record::of(&bytes).ok_or_else(|| fault(LogFault::Kind { position }))?)?;
    }
    Ok(())
}

/// A log, read whole.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub records: Vec<Record>,
}

impl Log {
    pub fn read(path: &Path) -> Result<Log> {
        let io = |source| StoreError::Io { operation: "open", path: path.to_path_buf(), source };
        let mut file = File::open(path).map_err(io)?;
        let mut records = Vec::new();
        each_record(path, &mut file, |record| {
            records.push(record);
            Ok(())
        })?;
        Ok(Log { records })
    }

    /// Whether the record at `at` stands for these bytes, by this secret; not where there is no such record.
    pub fn stands_for(&self, secret: &Secret, at: u64, bytes: &[u8]) -> bool {
        self.records.get(at as usize).is_some_and(|record| {
            commitment(&secret.salt(at, record.kind, record.number), bytes) == record.commitment
        })
    }

    /// Where the newest record of an entry is.
    pub fn position(&self, kind: Kind, number: u64) -> Option<u64> {
        let of = |record: &Record| record.kind == kind && record.number == number;
        self.records.iter().rposition(of).map(|at| at as u64)
    }

    /// Opens the newest record of an entry under `head`; none unless these are the bytes that it stands for, by this secret.
    ///
    /// # Panics
    /// If `head` is of more records than there are.
    pub fn open(
        &self,
        secret: &Secret,
        kind: Kind,
        number: u64,
        bytes: &[u8],
        head: &Head,
    ) -> Option<Opening> {
        let covered = &self.records[..head.size as usize];
        let of = |record: &Record| record.kind == kind && record.number == number;
        let position = covered.iter().rposition(of)? as u64;
        let salt = secret.salt(position, kind, number);
        if covered[position as usize].commitment != commitment(&salt, bytes) {
            return None;
        }
        let proof = inclusion_proof(&leaves(covered), position as usize);
        let entry = String::from_utf8(bytes.to_vec()).ok()?;
        Some(Opening { kind, number, entry, salt, position, size: head.size, proof })
    }

    /// The proof that the log under a later head begins with the one under an earlier.
    ///
    /// # Panics
    /// Unless 0 < `old` ≤ `new` ≤ the number of records.
    pub fn consistency(&self, old: u64, new: u64) -> Vec<Digest> {
        consistency_proof(&leaves(&self.records[..new as usize]), old as usize)
    }

    /// That all heads are of this log, each after the one before it, and how many records the last does not cover. Their chain is made
    /// of their lines.
    pub fn check_heads(&self, heads: &[HeadLine]) -> std::result::Result<u64, LogFault> {
        let mut frontier = Frontier::default();
        let mut records = self.records.iter();
        let mut previous: Option<Digest> = None;
        for (number, HeadLine { head, line, .. }) in heads.iter().enumerate() {
            let wrong = |what| LogFault::Head { number, what };
            if head.previous != previous {
                return Err(wrong("does not follow the one before it"));
            }
            if head.size < frontier.size() {
                return Err(wrong("is of fewer records than the one before it"));
            }
            if head.size > self.records.len() as u64 {
                return Err(wrong("is of more records than the log has"));
            }
            let more = (head.size - frontier.size()) as usize;
            frontier.extend(records.by_ref().take(more).map(|record| record.leaf()));
            if frontier.root() != head.root {
                return Err(wrong("is of other records than the log has"));
            }
            previous = Some(Digest::of(line));
        }
        Ok(records.len() as u64)
    }
}

fn leaves(records: &[Record]) -> Vec<Digest> {
    records.iter().map(|record| record.leaf()).collect()
}

/// One entry of a log, shown to somebody who has the head that it is under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    pub kind: Kind,
    pub number: u64,
    pub entry: String,
    pub salt: Digest,
    /// Of its record, from 0.
    pub position: u64,
    /// Records under the head.
    pub size: u64,
    /// Of inclusion, lowest first.
    pub proof: Vec<Digest>,
}

impl Opening {
    /// Whether this entry is where it says under `head`.
    pub fn holds(&self, head: &Head) -> bool {
        let commitment = commitment(&self.salt, self.entry.as_bytes());
        let record = Record { kind: self.kind, number: self.number, commitment };
        self.size == head.size
            && self.proof.len() <= PROOF_MAX
            && is_included(&record.leaf(), self.position, head.size, &self.proof, &head.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::is_consistent;

    fn secret() -> Secret {
        Secret::new([7; 32])
    }

    fn entry(i: u64) -> Vec<u8> {
        format!("{{\"row\":{i}}}").into_bytes()
    }

    /// A log of `n` entries with a head after each tenth and at the end.
    fn written(path: &Path, n: u64) -> Vec<HeadLine> {
        let mut writer = LogWriter::open(path, secret()).unwrap();
        let mut heads: Vec<HeadLine> = Vec::new();
        for i in 0..n {
            let kind = if i % 3 == 0 { Kind::Call } else { Kind::Trace };
            assert_eq!(writer.append(kind, i, &entry(i)).unwrap(), Some(i));
            if i % 10 == 9 || i + 1 == n {
                let head = writer.head(heads.last().map(|last| &last.line[..]), i);
                heads.push(HeadLine::new(head, None).unwrap());
            }
        }
        writer.sync().unwrap();
        heads
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn hmac_is_that_of_the_published_cases() {
        // RFC 4231, cases 1 and 2, whose keys are padded with zeros to 32 bytes by HMAC itself.
        let padded = |key: &[u8]| {
            let mut padded = [0; 32];
            padded[..key.len()].copy_from_slice(key);
            padded
        };
        let first = hmac(&padded(&[0x0b; 20]), b"Hi There");
        assert_eq!(hex(first.as_bytes()), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
        let second = hmac(&padded(b"Jefe"), b"what do ya want for nothing?");
        assert_eq!(
            hex(second.as_bytes()),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn an_entry_opens_under_each_later_head_and_says_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("records");
        let heads = written(&path, 35);
        let log = Log::read(&path).unwrap();
        assert_eq!(log.check_heads(&heads), Ok(0));
        let first = heads.iter().position(|line| line.head.size > 13).unwrap();
        for HeadLine { head, .. } in &heads[first..] {
            let opening = log.open(&secret(), Kind::Trace, 13, &entry(13), head).unwrap();
            assert!(opening.holds(head));
            let text = serde_json::to_string(&opening).unwrap();
            assert_eq!(serde_json::from_str::<Opening>(&text).unwrap(), opening);
            for i in (0..35).filter(|&i| i != 13) {
                assert!(!text.contains(std::str::from_utf8(&entry(i)).unwrap()));
            }
            let other = Opening { entry: "{\"row\":12}".to_owned(), ..opening.clone() };
            assert!(!other.holds(head));
            assert!(!Opening { salt: Digest::of(b""), ..opening.clone() }.holds(head));
            assert!(!Opening { kind: Kind::Kept, ..opening.clone() }.holds(head));
            assert!(!Opening { position: 12, ..opening.clone() }.holds(head));
            assert!(!Opening { number: 12, ..opening }.holds(head));
        }
        assert!(log.open(&secret(), Kind::Trace, 13, b"forged", &heads[3].head).is_none());
        assert!(log.open(&Secret::new([8; 32]), Kind::Trace, 13, &entry(13), &heads[3].head).is_none());
        assert!(log.open(&secret(), Kind::Trace, 99, &entry(99), &heads[3].head).is_none());
        for pair in heads.windows(2) {
            let (old, new) = (&pair[0].head, &pair[1].head);
            let proof = log.consistency(old.size, new.size);
            assert!(is_consistent(old.size, &old.root, new.size, &new.root, &proof));
        }
    }

    #[test]
    fn equal_entries_cannot_be_told_by_their_records() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("records");
        let mut writer = LogWriter::open(&path, secret()).unwrap();
        for i in 0..4 {
            writer.append(Kind::Trace, i, b"the same").unwrap();
        }
        writer.sync().unwrap();
        let records = Log::read(&path).unwrap().records;
        let distinct: std::collections::BTreeSet<_> = records.iter().map(|r| r.commitment).collect();
        assert_eq!(distinct.len(), 4);
    }

    #[test]
    fn what_is_told_again_is_not_written_again_and_what_has_changed_is() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("records");
        written(&path, 12);
        let whole = std::fs::read(&path).unwrap();
        // A crash in the middle of a record, or before the bytes of some had come.
        for tail in [&[0; 4 * RECORD_BYTES + 3][..], b"torn"] {
            std::fs::write(&path, [&whole[..], tail].concat()).unwrap();
            assert_eq!(LogWriter::open(&path, secret()).unwrap().size(), 12);
        }
        let mut writer = LogWriter::open(&path, secret()).unwrap();
        assert_eq!(writer.append(Kind::Trace, 4, &entry(4)).unwrap(), None);
        assert_eq!(writer.append(Kind::Trace, 4, b"otherwise").unwrap(), Some(12));
        assert_eq!(writer.append(Kind::Trace, 4, b"otherwise").unwrap(), None);
        assert_eq!(writer.append(Kind::Call, 4, b"otherwise").unwrap(), Some(13));
        // It is an append-only log: the old word comes back as a new record.
        assert_eq!(writer.append(Kind::Trace, 4, &entry(4)).unwrap(), Some(14));
        assert_eq!(writer.append(Kind::Trace, 3, b"new, below the newest").unwrap(), Some(15));
        writer.sync().unwrap();
        let log = Log::read(&path).unwrap();
        assert_eq!((log.records.len(), log.position(Kind::Trace, 4)), (16, Some(14)));
        assert_eq!(std::fs::read(&path).unwrap()[..whole.len()], whole);
    }

    /// Calls end in any order and are told of once each, by whoever hears of them first.
    #[test]
    fn calls_are_told_once_by_their_numbers_and_another_ledgers_anew() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("records");
        let mut writer = LogWriter::open(&path, secret()).unwrap();
        let to_come = writer.calls_to_come();
        assert_eq!((to_come.len(), &to_come[0]), (1, &(0..u64::MAX)));
        assert_eq!(writer.newest_call().unwrap(), None);
        let order = [3, 1, 2, 7, 9, 5, 8];
        for (at, number) in (0..).zip(order) {
            assert_eq!(writer.append(Kind::Call, number, &entry(number)).unwrap(), Some(at));
            assert_eq!(writer.append(Kind::Call, number, &entry(number)).unwrap(), None);
        }
        writer.append(Kind::Trace, 0, b"{}").unwrap();
        writer.sync().unwrap();
        let mut writer = LogWriter::open(&path, secret()).unwrap();
        assert_eq!(writer.calls_to_come(), [0..1, 4..5, 6..7, 10..u64::MAX]);
        assert!(order.iter().all(|&number| writer.append(Kind::Call, number, b"").unwrap().is_none()));
        let (at, number) = writer.newest_call().unwrap().unwrap();
        assert_eq!((at, number), (6, 8));
        assert!(writer.stands_for(at, &entry(8)).unwrap() && !writer.stands_for(at, &entry(9)).unwrap());
        writer.forget_calls();
        assert_eq!(writer.append(Kind::Call, 3, b"of another ledger").unwrap(), Some(8));
        writer.sync().unwrap();
        assert_eq!(Log::read(&path).unwrap().position(Kind::Call, 3), Some(8));
    }

    #[test]
    fn a_dropped_swapped_doubled_or_altered_record_and_a_head_used_again_are_found() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("records");
        let heads = written(&path, 35);
        let log = Log::read(&path).unwrap();
        let found = |alter: &dyn Fn(&mut Vec<Record>)| {
            let mut altered = log.clone();
            alter(&mut altered.records);
            altered.check_heads(&heads) != Ok(0)
        };
        for i in 0..35 {
            assert!(found(&|records| records.retain(|r| *r != log.records[i])), "{i} dropped");
            assert!(found(&|records| records.insert(i, records[i])), "{i} doubled");
            assert!(found(&|records| records[i].number += 1), "{i} renamed");
            assert!(found(&|records| records[i].commitment = Digest::of(b"")), "{i} altered");
            assert!(i == 34 || found(&|records| records.swap(i, i + 1)), "{i} swapped");
        }
        assert!(found(&|records| records.truncate(30)));
        for i in 0..heads.len() {
            let mut fewer = heads.clone();
            fewer.remove(i);
            assert_ne!(log.check_heads(&fewer), Ok(0), "head {i} dropped");
            let mut again = heads.clone();
            again.insert(i, heads[i].clone());
            assert!(log.check_heads(&again).is_err(), "head {i} used again");
        }
    }

    #[test]
    fn a_signed_head_is_its_signers_and_no_other_paper_passes_for_one() {
        let temp = tempfile::tempdir().unwrap();
        let signer = Signer::create(&temp.path().join("key"), None).unwrap();
        let other = Signer::create(&temp.path().join("other"), None).unwrap();
        let mut writer = LogWriter::open(&temp.path().join("records"), secret()).unwrap();
        writer.append(Kind::Call, 1, b"{}").unwrap();
        let head = writer.head(None, 7);
        let plain = HeadLine::new(head.clone(), None).unwrap();
        let signed = HeadLine::new(head.clone(), Some(&signer)).unwrap();
        assert!(!plain.is_signed() && !plain.is_by(signer.public_key()));
        let read = HeadLine::read(&signed.line).unwrap();
        assert_eq!((&read, &read.head), (&signed, &head));
        assert!(read.is_by(signer.public_key()) && !read.is_by(other.public_key()));
        let json = serde_json::to_vec(&head).unwrap();
        let paper = Envelope::sign("application/vnd.in-toto+json", &json, &signer).unwrap();
        assert!(!HeadLine::read(&paper.to_bytes().unwrap()).unwrap().is_by(signer.public_key()));
        let text = String::from_utf8(signed.line.clone()).unwrap();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let forged =
                HeadLine::read(&bytes).is_ok_and(|line| line.head != head && line.is_by(signer.public_key()));
            assert!(!forged, "byte {at}");
        }
    }

    #[test]
    fn bytes_that_are_no_log_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("records");
        std::fs::write(&path, [0u8; RECORD_BYTES]).unwrap();
        assert!(Log::read(&path).is_err());
        std::fs::write(&path, [1u8; RECORD_BYTES + 3]).unwrap();
        assert!(Log::read(&path).is_err());
    }
}
