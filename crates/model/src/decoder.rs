//! The decoder's weights: random, loaded, exported.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use stillroom_core::{CounterRng, Digest, Digester};
use stillroom_formats::{DecoderConfig, Encoding, NamedTensor, TensorSource, TensorView};
use stillroom_kernels::{
    AttentionShape, BlockFormat, Buf, Device, PackedWeight, RopeScaling, RopeTable, Weight, dequantise,
};

use crate::error::ModelError;
use crate::layout::{Init, Layout, TensorSlot, attention_shape};
use crate::workspace::Workspace;

/// Rotary tables grow by doubling from this many positions.
const ROPE_POSITIONS_MIN: usize = 256;

/// Weights of one decoder on a [`Device`].
///
/// q, k and v are fused into one weight \[(n_q + 2·n_kv)·head_dim, D\], gate and up into one
/// \[2F, D\]. [`Decoder::tensors`] gives them back under Hugging Face's names.
pub struct Decoder {
    pub(crate) device: Arc<Device>,
    pub(crate) config: DecoderConfig,
    pub(crate) layout: Arc<Layout>,
    pub(crate) weights: Vec<Buf>,
    /// Weights of products laid out for few rows, by parameter; made when generation first needs them.
    packed: OnceLock<Vec<Option<PackedWeight>>>,
    rope: Mutex<Arc<RopeTable>>,
    pub(crate) workspace: Workspace,
}

impl Decoder {
    /// Whether a decoder can be built: sizes that fit together and into memory's address range.
    pub fn check_config(config: &DecoderConfig) -> Result<(), ModelError> {
        Layout::new(config).map(|_| ())
    }

    /// A decoder with random weights N(0, 1/D), embeddings N(0, 4/D); those that write into the residual
    /// stream (`o_proj`, `down_proj`) have their deviation divided by √(2L) (GPT-2), norms are 1, biases 0.
    ///
    /// Every number comes from `CounterRng(seed, digest of the tensor's name, index)`, so a tensor
    /// starts alike wherever its name and size agree.
    ///
    /// # Panics
    /// Where [`Decoder::check_config`] gives an error.
    pub fn random(device: Arc<Device>, config: DecoderConfig, seed: u64) -> Decoder {
        let layout = Layout::new(&config).unwrap_or_else(|error| panic!("check_config first: {error}"));
        let n_threads = device.n_threads();
        let fill = |slot: &TensorSlot, out: &mut [f32]| -> Result<(), ModelError> {
            random_tensor(slot, seed, out, n_threads);
            Ok(())
        };
        match Decoder::assemble(device, config, layout, fill) {
            Ok(decoder) => decoder,
            Err(error) => unreachable!("random numbers cannot be wrong: {error}"),
        }
    }

    /// Weights from a file. Every tensor of the architecture must be there in its shape, and no other;
    /// rotary tables and, where the embedding is tied, a copy of it under `lm_head.weight` are ignored.
    pub fn load(
        device: Arc<Device>,
        config: DecoderConfig,
        source: &dyn TensorSource,
    ) -> Result<Decoder, ModelError> {
        let layout = Layout::new(&config)?;
        check_names(&layout, &source.names())?;
        Decoder::assemble(device, config, layout, |slot, out| read_tensor(source, &slot.name, slot, out))
    }

    fn assemble(
        device: Arc<Device>,
        config: DecoderConfig,
        layout: Layout,
        fill: impl Fn(&TensorSlot, &mut [f32]) -> Result<(), ModelError>,
    ) -> Result<Decoder, ModelError> {
        let weights = upload_tensors(&device, &layout, fill)?;
        Ok(Decoder::from_parts(device, config, Arc::new(layout), weights))
    }

    fn from_parts(
        device: Arc<Device>,
        config: DecoderConfig,
        layout: Arc<Layout>,
        weights: Vec<Buf>,
    ) -> Decoder {
        let rope = Mutex::new(Arc::new(rope_table(&config, ROPE_POSITIONS_MIN)));
        Decoder {
            device,
            config,
            layout,
            weights,
            packed: OnceLock::new(),
            rope,
            workspace: Workspace::default(),
        }
    }

    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Numbers in all weights; a tied head is counted once.
    pub fn n_parameters(&self) -> u64 {
        self.layout.parameters.iter().map(|p| p.len() as u64).sum()
    }

    /// All weights under Hugging Face's names, in the order of transformers' modules.
    pub fn tensors(&self) -> impl Iterator<Item = NamedTensor> + '_ {
        export(&self.device, &self.layout, &self.weights, "")
    }

    /// SHA-256 over every tensor's name, shape and f32 bits, in the order of [`Decoder::tensors`].
    pub fn digest(&self) -> Digest {
        let mut digester = Digester::new();
        for tensor in self.tensors() {
            digester.update(&(tensor.name.len() as u64).to_le_bytes());
            digester.update(tensor.name.as_bytes());
            digester.update(&(tensor.shape.len() as u64).to_le_bytes());
            tensor.shape.iter().for_each(|&n| digester.update(&(n as u64).to_le_bytes()));
            let bytes: Vec<u8> = tensor.data.iter().flat_map(|v| v.to_le_bytes()).collect();
            digester.update(&bytes);
        }
        digester.finish()
    }

    /// A decoder with only `layers` of this one, in the order given: a student that starts from
    /// chosen layers of its teacher. Embedding, final norm and head are kept.
    pub fn keep_layers(&self, layers: &[usize]) -> Result<Decoder, ModelError> {
        let n_layers = self.config.num_hidden_layers;
        if layers.is_empty() {
            return Err(ModelError::NoLayers);
        }
        if let Some(&layer) = layers.iter().find(|&&layer| layer >= n_layers) {
            return Err(ModelError::NoSuchLayer { layer, n_layers });
        }
        let config = DecoderConfig { num_hidden_layers: layers.len(), ..self.config.clone() };
        let layout = Layout::new(&config)?;
        // Parameters lie as embedding, layers, the rest; a layer has the same number of them everywhere.
        let per_layer = (self.layout.final_norm - 1) / n_layers;
        let of_layer = |&layer: &usize| (0..per_layer).map(move |k| 1 + layer * per_layer + k);
        let chosen = std::iter::once(self.layout.embedding)
            .chain(layers.iter().flat_map(of_layer))
            .chain(self.layout.final_norm..self.weights.len());
        let weights: Vec<Buf> = chosen.map(|i| copy(&self.device, &self.weights[i])).collect();
        assert_eq!(weights.len(), layout.parameters.len(), "every parameter has its weight");
        Ok(Decoder::from_parts(self.device.clone(), config, Arc::new(layout), weights))
    }

    /// An error for a token id that the embedding does not have: check foreign ids before use.
    pub fn check_ids(&self, ids: &[u32]) -> Result<(), ModelError> {
        let vocab_size = self.config.vocab_size;
        match ids.iter().position(|&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(position) => Err(ModelError::TokenOutOfRange { id: ids[position], position, vocab_size }),
        }
    }

    pub(crate) fn attention_shape(&self) -> AttentionShape {
        attention_shape(&self.config)
    }

    pub(crate) fn weight(&self, id: usize) -> &Buf {
        &self.weights[id]
    }

    /// Weight `id` as the right-hand side of a product.
    pub(crate) fn product(&self, id: usize) -> Weight<'_> {
        match self.packed.get().and_then(|packed| packed[id].as_ref()) {
            Some(packed) => Weight::Packed(packed),
            None => {
                let p = &self.layout.parameters[id];
                Weight::Plain { w: &self.weights[id], n_out: p.rows, n_in: p.cols }
            }
        }
    }

    /// Lays the weights of products out for few rows, if they are not yet.
    pub(crate) fn pack(&self) {
        self.packed.get_or_init(|| {
            let of_layers = self.layout.layers.iter().flat_map(|ids| [ids.qkv, ids.o, ids.gate_up, ids.down]);
            let products: Vec<usize> = of_layers.chain([self.layout.head_or_embedding()]).collect();
            let packed = self.layout.parameters.iter().enumerate().map(|(id, p)| {
                products.contains(&id).then(|| self.device.pack(&self.weights[id], p.rows, p.cols))
            });
            packed.collect()
        });
    }

    /// Changes the weights; what was laid out from them is dropped.
    pub(crate) fn change_weights(&mut self, change: impl FnOnce(&mut [Buf])) {
        self.packed.take();
        change(&mut self.weights);
    }

    /// cos and sin for at least `n_positions` positions.
    pub(crate) fn rope(&self, n_positions: usize) -> Arc<RopeTable> {
        let mut table = self.rope.lock().unwrap_or_else(PoisonError::into_inner);
        if table.n_positions() < n_positions {
            *table = Arc::new(rope_table(&self.config, n_positions.next_power_of_two()));
        }
        table.clone()
    }
}

impl Clone for Decoder {
    /// A second decoder with its own copy of the weights on the same device.
    fn clone(&self) -> Decoder {
        let weights = self.weights.iter().map(|w| copy(&self.device, w)).collect();
        Decoder::from_parts(self.device.clone(), self.config.clone(), self.layout.clone(), weights)
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("config", &self.config).finish_non_exhaustive()
    }
}

fn copy(device: &Device, buf: &Buf) -> Buf {
    device.upload(&device.download(buf))
}

fn rope_table(config: &DecoderConfig, n_positions: usize) -> RopeTable {
    use stillroom_formats::RopeScaling as Stated;
    let scaling = match config.rope_scaling {
        Stated::None => RopeScaling::None,
        Stated::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }
        }
    };
    RopeTable::new(config.head_dim, config.rope_theta, scaling, n_positions)
}

/// Tensors of `buffers`, which are laid out like the weights, with `prefix` before each name.
pub(crate) fn export<'a>(
    device: &'a Device,
    layout: &'a Layout,
    buffers: &'a [Buf],
    prefix: &'a str,
) -> impl Iterator<Item = NamedTensor> + 'a {
    layout.groups.iter().flat_map(move |group| {
        let mut downloaded: Vec<(usize, Vec<f32>)> = Vec::new();
        let slots = layout.tensors[group.clone()].iter();
        let tensors: Vec<NamedTensor> = slots
            .map(|slot| {
                if !downloaded.iter().any(|(id, _)| *id == slot.parameter) {
                    downloaded.push((slot.parameter, device.download(&buffers[slot.parameter])));
                }
                let found = downloaded.iter().find(|(id, _)| *id == slot.parameter);
                let data = found.map_or(&[][..], |(_, data)| &data[slot.offset..slot.offset + slot.len()]);
                NamedTensor {
                    name: format!("{prefix}{}", slot.name),
                    shape: slot.shape.clone(),
                    data: data.to_vec(),
                }
            })
            .collect();
        tensors
    })
}

/// Fills every parameter tensor by tensor and uploads it; one group is on the host at a time.
pub(crate) fn upload_tensors(
    device: &Device,
    layout: &Layout,
    fill: impl Fn(&TensorSlot, &mut [f32]) -> Result<(), ModelError>,
) -> Result<Vec<Buf>, ModelError> {
    let mut buffers: Vec<Option<Buf>> = layout.parameters.iter().map(|_| None).collect();
    for group in &layout.groups {
        let mut host: Vec<(usize, Vec<f32>)> = Vec::new();
        for slot in &layout.tensors[group.clone()] {
            let at = host.iter().position(|(id, _)| *id == slot.parameter).unwrap_or_else(|| {
                host.push((slot.parameter, vec![0.0; layout.parameters[slot.parameter].len()]));
                host.len() - 1
            });
            fill(slot, &mut host[at].1[slot.offset..slot.offset + slot.len()])?;
        }
        for (id, data) in host {
            buffers[id] = Some(device.upload(&data));
        }
    }
    Ok(buffers.into_iter().flatten().collect())
}

fn random_tensor(slot: &TensorSlot, seed: u64, out: &mut [f32], n_threads: usize) {
    let std = match slot.init {
        Init::One => return out.fill(1.0),
        Init::Zero => return out.fill(0.0),
        Init::Normal { std } => std,
    };
    let digest = Digest::of(slot.name.as_bytes());
    let tensor = digest.as_bytes()[..8].iter().fold(0, |key, &byte| key << 8 | u64::from(byte));
    let piece = out.len().div_ceil(n_threads).max(1);
    std::thread::scope(|scope| {
        for (k, out) in out.chunks_mut(piece).enumerate() {
            scope.spawn(move || {
                for (i, value) in out.iter_mut().enumerate() {
                    let index = (k * piece + i) as u64;
                    *value = (std * CounterRng::new(&[seed, tensor, index]).normal()) as f32;
                }
            });
        }
    });
}

fn check_names(layout: &Layout, names: &[String]) -> Result<(), ModelError> {
    let known: std::collections::HashSet<&str> = layout.tensors.iter().map(|t| t.name.as_str()).collect();
    let ignored = |name: &str| {
        name.ends_with("rotary_emb.inv_freq") || (layout.head.is_none() && name == "lm_head.weight")
    };
    if let Some(name) = names.iter().find(|name| !known.contains(name.as_str()) && !ignored(name)) {
        return Err(ModelError::UnexpectedTensor { name: name.clone() });
    }
    let found: std::collections::HashSet<&str> = names.iter().map(String::as_str).collect();
    match layout.tensors.iter().find(|t| !found.contains(t.name.as_str())) {
        Some(slot) => Err(ModelError::MissingTensor { name: slot.name.clone() }),
        None => Ok(()),
    }
}

/// Reads tensor `name` in the shape of `slot` as f32.
pub(crate) fn read_tensor(
    source: &dyn TensorSource,
    name: &str,
    slot: &TensorSlot,
    out: &mut [f32],
) -> Result<(), ModelError> {
    let view = source.tensor(name)?;
    if view.shape != slot.shape {
        return Err(ModelError::TensorShape {
            name: name.to_owned(),
            expected: slot.shape.clone(),
            found: view.shape,
        });
    }
    decode(name, &view, out)?;
    match out.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(ModelError::TensorNotFinite { name: name.to_owned(), index }),
        None => Ok(()),
    }
}

fn decode(name: &str, view: &TensorView<'_>, out: &mut [f32]) -> Result<(), ModelError> {
    let format = block_format(view.encoding);
    let (block_len, block_bytes) = format.block();
    let expected = (out.len() / block_len).saturating_mul(block_bytes);
    if !out.len().is_multiple_of(block_len) || view.bytes.len() != expected {
        return Err(ModelError::TensorBytes { name: name.to_owned(), expected, found: view.bytes.len() });
    }
    dequantise(format, &view.bytes, out);
    Ok(())
}

fn block_format(encoding: Encoding) -> BlockFormat {
    match encoding {
        Encoding::F32 => BlockFormat::F32,
        Encoding::F16 => BlockFormat::F16,
        Encoding::BF16 => BlockFormat::BF16,
        Encoding::Q4_0 => BlockFormat::Q4_0,
        Encoding::Q4_1 => BlockFormat::Q4_1,
        Encoding::Q5_0 => BlockFormat::Q5_0,
        Encoding::Q8_0 => BlockFormat::Q8_0,
        Encoding::Q4K => BlockFormat::Q4K,
        Encoding::Q5K => BlockFormat::Q5K,
        Encoding::Q6K => BlockFormat::Q6K,
    }
}
