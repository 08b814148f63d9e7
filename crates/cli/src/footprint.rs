//! What a process takes beside the buffers of the engine: what `plan` predicts and what `bench` sets beside its
//! measurement are these and [`stillroom_model::memory`].

use stillroom_formats::{DecoderConfig, Encoding, TensorSource};
use stillroom_model::WeightStorage;
use stillroom_model::memory::weight_bytes;

use crate::failure::Result;

/// The program's own pages, its stacks, and what its threads borrow for products.
pub(crate) const PROGRAM_BYTES: u64 = 16 << 20;
/// Of a token in a tokenizer: its string, its place in both directions, its merge.
const BYTES_PER_WORD: u64 = 280;

/// A model in a file and as it is held to score and to write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    /// Its tensors in the file, which are in memory too while it is read.
    pub(crate) in_file: u64,
    pub(crate) held: u64,
    vocabulary: u64,
}

impl Stored {
    pub(crate) fn of(config: &DecoderConfig, tensors: &dyn TensorSource) -> Result<Stored> {
        let mut encodings = std::collections::HashMap::new();
        let mut in_file = 0;
        for (name, shape) in config.parameters() {
            let encoding = tensors.tensor(&name)?.encoding;
            in_file += encoding.n_bytes(&shape).unwrap_or(0) as u64;
            encodings.insert(name, encoding);
        }
        let encoding = |name: &str| encodings.get(name).copied().unwrap_or(Encoding::F32);
        let held = weight_bytes(config, WeightStorage::AsStored, &encoding);
        Ok(Stored { in_file, held, vocabulary: vocabulary(config) })
    }

    /// A model that was trained here and written as f32.
    pub(crate) fn trained(config: &DecoderConfig) -> Stored {
        let held = weight_bytes(config, WeightStorage::AsStored, &|_| Encoding::F32);
        Stored { in_file: 4 * config.n_parameters(), held, vocabulary: vocabulary(config) }
    }

    /// While it is read, and then while `work` is done with it.
    pub(crate) fn with(self, work: u64) -> u64 {
        self.vocabulary + self.held + self.in_file.max(work)
    }
}

fn vocabulary(config: &DecoderConfig) -> u64 {
    BYTES_PER_WORD * config.vocab_size as u64
}
