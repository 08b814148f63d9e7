//! What can go wrong in this crate.

use std::path::PathBuf;

use stillroom_core::ErrorKind;
use stillroom_store::StoreError;

use crate::decision::{Decision, Verdict};

/// Errors of the licence gate and of the manifest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GovernanceError {
    /// The gate is closed: the decision says why.
    #[error("licence gate: {}", .0.headline())]
    Refused(Box<Decision>),
    /// The egress policy does not cover a place that the work needs.
    #[error("the egress policy does not allow `{place}`")]
    Egress { place: String },
    /// A condition that no licence in the register asks for.
    #[error("no licence has a condition `{name}`")]
    UnknownCondition { name: String, nearest: Option<String> },
    /// A row of a register that cannot be right.
    #[error("licence register, row {row}, column `{column}`: {cause}")]
    Register { row: usize, column: &'static str, cause: String },
    /// No manifest where one was expected.
    #[error("{path}: no manifest here", path = path.display())]
    NoManifest { path: PathBuf },
    /// A manifest whose bytes cannot be read as one.
    #[error("{path}: {cause}", path = path.display())]
    Manifest { path: PathBuf, cause: ManifestFault },
    /// No record where one was expected.
    #[error("{path}: no record of a release here", path = path.display())]
    NoRecord { path: PathBuf },
    /// A record whose bytes cannot be read as one.
    #[error("{path}: {cause}", path = path.display())]
    Record { path: PathBuf, cause: RecordFault },
    /// A log that is not one, or not the one that its heads are of.
    #[error("{path}: {cause}", path = path.display())]
    Log { path: PathBuf, cause: LogFault },
    /// A run directory without something that the manifest must name.
    #[error("{path}: missing, and the manifest must name it", path = path.display())]
    NothingToSeal { path: PathBuf },
    /// Reading or writing failed.
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// A licence file is no longer the one that the gate saw.
    #[error("{path}: changed since the licence gate read it", path = path.display())]
    LicenceChanged { path: PathBuf },
    /// A key's file that cannot be used.
    #[error("{path}: {cause}", path = path.display())]
    Key { path: PathBuf, cause: KeyFault },
    /// What keeps the key outside returned something else than a signature by it.
    #[error(
        "the {bytes} bytes that the signing command wrote are no signature (DER, ECDSA; on P-256 of SHA-256, on P-384 of SHA-384) by the public key"
    )]
    ForeignSignature { bytes: usize },
    /// What keeps the key outside made no signature.
    #[error("the signing command {cause}")]
    SigningCommand { cause: String },
    /// A signature of a directory that does not say what it should.
    #[error("{path}: {cause}", path = path.display())]
    Signature { path: PathBuf, cause: SignatureFault },
    /// A file of certificates that timestamps are to be checked with.
    #[error("{path}: {cause}", path = path.display())]
    TimestampCertificate { path: PathBuf, cause: TimestampFault },
    /// A signed envelope that does not say what it should.
    #[error("signed envelope: {0}")]
    Envelope(#[source] EnvelopeFault),
    /// The run directory's own errors.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a log is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogFault {
    #[error("record {position} is of no kind that is known")]
    Kind { position: u64 },
    #[error("{bytes} bytes are no whole number of records")]
    Torn { bytes: u64 },
    #[error("there are more records, or an entry is larger, than a log may have")]
    TooLarge,
    #[error("head {number} {what}")]
    Head { number: usize, what: &'static str },
    #[error("it has records that its last head does not cover")]
    Beyond,
}

/// Why a key is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFault {
    #[error("the key file is {bytes} bytes, more than {bytes_max}")]
    TooLarge { bytes: u64, bytes_max: u64 },
    #[error("not a file")]
    NoFile,
    #[error("no PEM block `{wanted}` in it")]
    NoPem { wanted: &'static str },
    #[error("a private key stands where a public one belongs")]
    PrivateForPublic,
    #[error("a public key stands where a private one belongs")]
    PublicForPrivate,
    #[error("a private key in the form `EC PRIVATE KEY`, and PKCS#8 is needed")]
    Sec1,
    #[error("others than its owner can use it (mode {mode:03o})")]
    Exposed { mode: u32 },
    #[error("it is there already")]
    Exists,
    #[error("it needs a passphrase")]
    NeedsPassphrase,
    #[error("a passphrase is given, and it has none")]
    NotEncrypted,
    #[error("the passphrase is empty")]
    EmptyPassphrase,
    #[error("the passphrase is not its own, or it is damaged")]
    WrongPassphrase,
    #[error("no usable P-256 key: {cause}")]
    Unusable { cause: String },
    #[error("the system gave no random numbers for a key")]
    NoRandomness,
}

/// Why a signature of a directory is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureFault {
    #[error("there is no signature")]
    Absent,
    #[error("not a file")]
    NoFile,
    #[error("{bytes} bytes, more than {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("not a signature: {cause}")]
    Malformed { cause: String },
    #[error("unknown {field} `{found}`")]
    UnknownType { field: &'static str, found: String },
    #[error("it is signed by {what}")]
    Unsupported { what: String },
    #[error("it is by another key, whose PEM has the SHA-256 {hint}")]
    OtherKey { hint: String },
    #[error("{0}")]
    Envelope(#[from] EnvelopeFault),
    #[error("it names no file")]
    Empty,
    #[error("{count} files, more than {count_max}")]
    TooMany { count: usize, count_max: usize },
    #[error("`{name}` is not the plain name of a file in the directory")]
    UnsafeName { name: String },
    #[error("`{name}` is in it twice")]
    Twice { name: String },
    #[error("its root is not the digest of its list")]
    Root,
    #[error("its timestamp: {0}")]
    Timestamp(TimestampFault),
}

/// Why a timestamp is refused, or certificates to check it with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimestampFault {
    #[error("{bytes} bytes, more than {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("it is no timestamp: malformed {what}")]
    Malformed { what: &'static str },
    #[error("the time was not granted{}{words}", if words.is_empty() { "" } else { ": " })]
    NotGranted { words: String },
    #[error("it is the answer to another query")]
    WrongNonce,
    #[error("it is of other bytes")]
    WrongImprint,
    #[error("{what} is not known here")]
    Unsupported { what: String },
    #[error("the certificate of its signer is not in it")]
    NoCertificate,
    #[error("it is not signed {what}")]
    NotSigned { what: &'static str },
    #[error("its signer's certificate does not count: {cause}")]
    Untrusted { cause: String },
    #[error("no PEM block `CERTIFICATE` in it")]
    NoPem,
}

/// Why an envelope is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeFault {
    #[error("{bytes} bytes, more than {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("not an envelope: {cause}")]
    Malformed { cause: String },
    #[error("`{field}` is not base64")]
    NoBase64 { field: &'static str },
    #[error("{count} signatures, and 1 to {count_max} are expected")]
    SignatureCount { count: usize, count_max: usize },
    #[error("no signature of it is by the key {fingerprint}")]
    NotSigned { fingerprint: String },
}

/// Why a manifest is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestFault {
    #[error("the manifest is {bytes} bytes, more than {bytes_max}")]
    TooLarge { bytes: u64, bytes_max: u64 },
    #[error("the manifest ends too early ({bytes} bytes): it is truncated")]
    Truncated { bytes: usize },
    #[error("not a manifest: {cause}")]
    Malformed { cause: String },
    #[error("unknown {field} `{found}`")]
    UnknownType { field: &'static str, found: String },
    #[error("{count} subjects, more than {count_max}")]
    TooManySubjects { count: usize, count_max: usize },
    #[error("it names no file")]
    Empty,
    #[error("subject `{name}` is not a plain path inside the run directory")]
    UnsafeName { name: String },
    #[error("subject `{name}` is out of order or named twice")]
    OutOfOrder { name: String },
    #[error("`{name}` has one digest in the subject list and another in the record, or none")]
    Inconsistent { name: String },
}

/// Why a record is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordFault {
    #[error("{bytes} bytes, and no more than {bytes_max} are read")]
    TooLarge { bytes: u64, bytes_max: u64 },
    #[error("it ends too early ({bytes} bytes): it is truncated")]
    Truncated { bytes: usize },
    #[error("not a record: {cause}")]
    Malformed { cause: String },
    #[error("a record of version {found}, and this program reads version {known}")]
    Version { found: u64, known: u32 },
}

impl GovernanceError {
    /// What kind of failure this is; it decides the exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            GovernanceError::Refused(_) | GovernanceError::Egress { .. } => ErrorKind::Policy,
            GovernanceError::UnknownCondition { .. } => ErrorKind::BadRecipe,
            GovernanceError::Register { .. }
            | GovernanceError::NoManifest { .. }
            | GovernanceError::Manifest { .. }
            | GovernanceError::NoRecord { .. }
            | GovernanceError::Record { .. }
            | GovernanceError::Log { .. }
            | GovernanceError::NothingToSeal { .. }
            | GovernanceError::LicenceChanged { .. }
            | GovernanceError::Key { .. }
            | GovernanceError::ForeignSignature { .. }
            | GovernanceError::Signature { .. }
            | GovernanceError::TimestampCertificate { .. }
            | GovernanceError::Envelope(_) => ErrorKind::BadData,
            GovernanceError::SigningCommand { .. } => ErrorKind::Failed,
            GovernanceError::Io { .. } => ErrorKind::Io,
            GovernanceError::Store(error) => error.kind(),
        }
    }

    /// What the user can do about it.
    pub fn fix(&self) -> Option<String> {
        match self {
            GovernanceError::Refused(decision) => {
                let steps = decision.what_to_do.join("; ");
                (!steps.is_empty() && decision.verdict != Verdict::Allow).then_some(steps)
            }
            GovernanceError::Egress { .. } => {
                Some("list it in `policy.listed` with `egress = \"listed\"`, or stay local".to_owned())
            }
            GovernanceError::UnknownCondition { nearest: Some(nearest), .. } => {
                Some(format!("did you mean `{nearest}`?"))
            }
            GovernanceError::UnknownCondition { .. } => {
                Some("`stillroom licence list` shows every condition".to_owned())
            }
            GovernanceError::NoManifest { .. } => Some(
                "give a run directory that was released, or its release directory; `stillroom release` \
                 writes the manifest"
                    .to_owned(),
            ),
            GovernanceError::Manifest { .. } => {
                Some("take the manifest from the place that the release came from".to_owned())
            }
            GovernanceError::NoRecord { .. } => Some(
                "give a run directory that was released, a release directory or a `record.json`; `stillroom \
                 release` writes the record"
                    .to_owned(),
            ),
            GovernanceError::Record { cause: RecordFault::Version { .. }, .. } => {
                Some("use the version of stillroom that wrote it".to_owned())
            }
            GovernanceError::Record { .. } => {
                Some("take the record from the place that the release came from".to_owned())
            }
            GovernanceError::Log { .. } => {
                Some("take the log from the place that the release came from".to_owned())
            }
            GovernanceError::Store(error) => error.fix(),
            GovernanceError::LicenceChanged { .. } => {
                Some("run the same command again, so that the gate reads it anew".to_owned())
            }
            GovernanceError::Key { path, cause } => cause.fix(&path.display().to_string()),
            GovernanceError::ForeignSignature { .. } | GovernanceError::SigningCommand { .. } => Some(
                "let it read the bytes from its standard input and write the signature and nothing else, as \
                 `openssl dgst -sha256 -sign KEY` does; check that `public_key` is its key"
                    .to_owned(),
            ),
            GovernanceError::TimestampCertificate { .. } => Some(
                "give the PEM certificate of the timestamp service, or that of the authority above it"
                    .to_owned(),
            ),
            GovernanceError::Signature { .. } | GovernanceError::Envelope(_) => {
                Some("take the files and the public key from where they came".to_owned())
            }
            GovernanceError::Register { .. }
            | GovernanceError::NothingToSeal { .. }
            | GovernanceError::Io { .. } => None,
        }
    }
}

impl KeyFault {
    fn fix(&self, path: &str) -> Option<String> {
        let fix = match self {
            KeyFault::Exposed { .. } => format!("`chmod 600 {path}`"),
            KeyFault::Exists => "choose another name; a key that is lost cannot be made again".to_owned(),
            KeyFault::NeedsPassphrase => {
                "say where it comes from: `key_passphrase = \"${NAME}\"` beside `key`".to_owned()
            }
            KeyFault::NotEncrypted => "leave the passphrase out".to_owned(),
            KeyFault::Sec1 => format!("`openssl pkcs8 -topk8 -nocrypt -in {path} -out KEY` writes one"),
            KeyFault::PrivateForPublic | KeyFault::NoPem { wanted: "PUBLIC KEY" } => {
                "give the file that ends in `.pub`".to_owned()
            }
            KeyFault::PublicForPrivate => "give the file without `.pub`".to_owned(),
            KeyFault::TooLarge { .. }
            | KeyFault::NoFile
            | KeyFault::NoPem { .. }
            | KeyFault::Unusable { .. } => "`stillroom key new FILE` makes a key".to_owned(),
            KeyFault::EmptyPassphrase | KeyFault::WrongPassphrase | KeyFault::NoRandomness => return None,
        };
        Some(fix)
    }
}

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, GovernanceError>;
