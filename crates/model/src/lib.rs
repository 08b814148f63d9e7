//! One config-driven decoder (Llama, Qwen2, Qwen3): forward, backward, generation, optimiser.
//!
//! Options are numbers and flags of [`DecoderConfig`](stillroom_formats::DecoderConfig); there is no
//! file per family. q, k and v are one fused weight, gate and up another. Everything computes through
//! [`Device`], whose rows are independent of their batch; so scores,
//! targets and generated text depend neither on the batch size, nor on the number of threads.
//!
//! - [`Decoder`]: weights, and what needs no gradient: scores, teacher targets, generation.
//! - [`TrainState`]: a decoder with gradients and AdamW moments, of all weights or of an adapter
//!   ([`Decoder::with_new_adapter`]) alone.

mod backward;
mod batch;
mod choice;
mod decoder;
mod ensemble;
mod error;
mod forward;
mod generate;
mod hidden;
mod label_loss;
mod layout;
mod lora;
pub mod memory;
mod prune;
mod sampling;
mod score;
mod train;
mod workspace;

pub use backward::TOKENS_PER_GROUP;
pub use batch::{Batch, ForeignText, LiveTeacher, SparseBatch, Targets, tail_mode};
pub use decoder::{Decoder, WeightStorage};
pub use ensemble::{Ensemble, WeightedTeacher};
pub use error::ModelError;
pub use generate::{Begin, Generation, GenerationRequest, OnToken, SamplingParams, Token, Writing};
pub use hidden::{HiddenAlignment, LayerPair};
pub use label_loss::{LabelLoss, WeightedLabelLoss};
pub use prune::{Importance, Width};
pub use sampling::Spacing;
pub use score::{ScoredToken, TOKENS_PER_CHUNK};
pub use train::{AdamW, StepReport, TrainState};

pub use stillroom_kernels::divergence::TERMS_MAX;
pub use stillroom_kernels::{
    Device, Divergence, DivergenceError, HeadLosses, HeadTerms, MIXED_MAX, MatchedIds, Segment, TailMode,
    Term,
};

#[cfg(test)]
mod tests {
    /// A decoder may score and generate on several threads at once, and training may move to another.
    #[test]
    fn decoders_can_be_shared_and_states_sent() {
        fn shared<T: Send + Sync>() {}
        fn sent<T: Send>() {}
        shared::<crate::Decoder>();
        sent::<crate::TrainState>();
    }
}
