//! May I, and can I prove it: licence register and gate, release manifest and its verification.
//!
//! - [`decide`] answers whether a student may be made from given teachers, base and data, by the
//!   [`Register`] of releases compiled into this program and by licence files read from disk.
//! - [`Decision::clear`] mints the leave to use the network, where an [`Egress`] policy agrees.
//! - [`record::ProvenanceRecord`] says all there is to say about a release; [`views`] derives the documents about it.
//! - [`Manifest`] lists the SHA-256 digests of everything a release was made from;
//!   [`verify`] names the first file that differs, is missing or is extra.
//! - [`keys`] sign and check, [`dsse`] has the envelopes of what is signed, [`oms`] the signature of a release.
//!
//! Nothing here is legal advice; the register says what was read, where and when.

mod agreement;
mod decision;
pub mod diff;
pub mod dsse;
mod egress;
mod error;
mod gate;
mod identity;
pub mod keys;
mod licence_text;
mod lineage;
pub mod log;
mod manifest;
pub mod merkle;
mod obligations;
pub mod oms;
mod own_assets;
pub mod record;
mod register;
mod rules;
mod subject;
mod tags;
mod text;
pub mod timestamp;
mod users_register;
mod verify;
pub mod views;
mod words;

pub use agreement::{Agreement, AgreementState, Checked, DISAGREEMENTS_MAX, Disagreement, PROGRAM_VERSION};
pub use decision::{Decision, NOT_ADVICE, Part, Rule, Verdict};
pub use egress::Egress;
pub use error::{
    EnvelopeFault, GovernanceError, KeyFault, LogFault, ManifestFault, RecordFault, Result, SignatureFault,
    TimestampFault,
};
pub use gate::{Declaration, Question, Use, decide, decide_by};
pub use identity::{EXPANSIONS_MAX, ID_BYTES_MAX, model_of_route, service_of_endpoint};
pub use licence_text::{Identified, TEXT_BYTES_MAX, fingerprint, full_text, identify, runs_record};
pub use manifest::{
    MANIFEST_BYTES_MAX, MANIFEST_PATH, Manifest, ModelRecord, PREDICATE_TYPE, Program, RunRecord,
    STATEMENT_TYPE, SUBJECTS_MAX, Subject as ManifestSubject,
};
pub use obligations::{CardLicence, CopySource, LicenceCopy, Obligation};
pub use own_assets::digest_of_weights;
pub use register::{Condition, Grade, Grant, LicenceTerms, ROWS_MAX, Register, Row, Tables};
pub use subject::{CARD_BYTES_MAX, ENTRIES_MAX, LICENCE_FILES_MAX, LicenceFile, ModelEvidence, Subject};
pub use users_register::{REGISTER_BYTES_MAX, UsersRegister, Views};
pub use verify::{Difference, Differs, SignatureReport, SignatureState, VerifyReport, verify};
