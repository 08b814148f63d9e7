//! Held-out metrics and the report of teacher against student.
//!
//! - [`Measurement`]: what was measured of one model, item by item; [`Measurement::score`] makes its
//!   figures, [`compare`] and [`accuracy_retained`] pair two models on the same items.
//! - [`document_losses`], [`document_divergences`], [`tensor_changes`]: what decoders make of held-out
//!   text, and how far training moved their weights.
//! - [`own_texts`], [`OwnTextScore`]: how far a model is from its teacher on what it writes itself.
//! - [`Checks`]: did every tensor move, did the held-out loss fall.
//! - [`Report`]: `report.json`, [`Report::verdict`] in words, [`Report::to_html`] as a page.
//! - [`EnergyMeter`], [`MachineFacts`]: what the machine says about itself.

mod checks;
mod energy;
mod error;
mod heldout;
mod html;
mod machine;
mod measured;
mod measurement;
mod own_text;
mod report;
mod score;
mod words;

pub use checks::{Checks, HeldOutLoss, LossDrop, TensorChanges};
pub use energy::EnergyMeter;
pub use error::EvaluateError;
pub use heldout::{HeldOutText, document_divergences, document_losses, tensor_changes};
pub use machine::{MachineFacts, peak_resident_bytes};
pub use measured::Measured;
pub use measurement::{
    Claim, Comparison, DocumentDivergence, DocumentLoss, Grade, Measurement, Metric, Throughput,
    accuracy_retained, compare, grade_replies,
};
pub use own_text::{OwnText, OwnTextScore, check_own_texts, own_texts, scored_own_texts};
pub use report::{
    Agreement, CacheFacts, Contender, CorpusFacts, Curve, CurvePoint, FeedbackFacts, LicenceDecision,
    LicenceRule, Pair, REPORT_BYTES_MAX, REPORT_VERSION, Report, RevisionFacts, Sample, SampleReply,
    StageTime,
};
pub use score::{ModelScore, TrainingFacts};
pub use words::{Statement, Verdict};
