//! From examples to a trained student: packing, schedules, the trainer, its checkpoints and events.
//!
//! - [`Example`]: token ids, which of them are supervised, and what the teacher says about each.
//!   [`examples`] builds them from traces, from data-set targets and from plain text.
//! - [`train`]: from a start to the chosen checkpoint, resumable, the same bits whatever happened on
//!   the way; [`plan`] tells beforehand how many steps and tokens that is.
//! - [`train_with_rollouts`]: the same, some or all of whose steps learn from what the student writes itself
//!   ([`OnPolicy`]).
//! - [`replay`]: steps of an earlier run again, with the digest of each batch and of the checkpoints behind them.

mod alignment;
mod alm;
mod batches;
mod checkpoint;
mod config;
mod error;
mod events;
mod example;
pub mod examples;
mod feed;
mod foreign;
mod hidden;
mod losses;
mod packing;
mod preference;
mod rollouts;
mod sampled;
mod schedule;
mod train;

pub use alignment::{Chunk, ReplyTokens, TeacherChunk, align};
pub use alm::approximate_likelihood_loss;
pub use checkpoint::{checkpoint_path, kept_steps, remove_checkpoints};
pub use config::{Overlong, SchedulerType, TrainConfig, check_on_policy};
pub use error::DistillError;
pub use events::{TrainEvent, TrainPoint, ValidationPoint};
pub use example::{Example, Rejected};
pub use feed::TrainPlan;
pub use foreign::{ForeignReading, matched_ids, read_in_own_tokens};
pub use hidden::AlignedLayers;
pub use losses::{LossFunction, LossTerm, LossWeight, TeacherTargets, check_losses};
pub use preference::{DirectPreference, PairRows, PreferenceMeans, Rewards, preference_losses};
pub use rollouts::{OnPolicy, RolloutMeans, RolloutPoint, RolloutPrompt, RolloutPrompts};
pub use schedule::learning_rate;
pub use train::{Again, Material, TrainOutcome, plan, replay, train, train_with_rollouts};

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, DistillError>;
