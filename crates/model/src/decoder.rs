//! The decoder's weights: random, loaded, exported.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use stillroom_core::{CounterRng, Digest, Digester};
use stillroom_formats::{DecoderConfig, Encoding, NamedTensor, TensorSource, TensorView};
use stillroom_kernels::{
    AttentionShape, BlockFormat, Buf, Device, PackedWeight, RopeScaling, RopeTable, StoredRows, Weight,
    dequantise,
};

use crate::error::ModelError;
use crate::layout::{Init, Layout, Slots, TensorSlot, attention_shape};
use crate::lora::Adapter;
use crate::workspace::Workspace;

/// Rotary tables grow by doubling from this many positions.
const ROPE_POSITIONS_MIN: usize = 256;

/// How a loaded decoder holds the matrices among its weights. What it computes has the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightStorage {
    /// As f32, to be trained; generation lays them out a second time.
    F32,
    /// Laid out for products alone, in the blocks or halves of the file where the kernels take them
    /// (see [`Device::pack_stored`]), else as f32: for scoring and generating in the least memory.
    AsStored,
}

/// Weights of one decoder on a [`Device`].
///
/// q, k and v are fused into one weight \[(n_q + 2·n_kv)·head_dim, D\], gate and up into one
/// \[2F, D\]. [`Decoder::tensors`] gives them back under Hugging Face's names.
pub struct Decoder {
    pub(crate) device: Arc<Device>,
    pub(crate) config: DecoderConfig,
    pub(crate) layout: Arc<Layout>,
    storage: WeightStorage,
    /// By parameter; matrices that are held as they are stored are empty here.
    pub(crate) weights: Vec<Buf>,
    /// Weights of products laid out for few rows, by parameter. With [`WeightStorage::F32`] they are made
    /// when generation first needs them.
    packed: OnceLock<Vec<Option<PackedWeight>>>,
    rope: Mutex<Arc<RopeTable>>,
    pub(crate) workspace: Workspace,
    /// What is trained in place of the weights, and adds to what they compute.
    pub(crate) adapter: Option<Adapter>,
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
        Decoder::load_as(WeightStorage::F32, device, config, source)
    }

    /// [`Decoder::load`] with a choice of how weights are held.
    pub fn load_as(
        storage: WeightStorage,
        device: Arc<Device>,
        config: DecoderConfig,
        source: &dyn TensorSource,
    ) -> Result<Decoder, ModelError> {
        let layout = Layout::new(&config)?;
        let ignored = |name: &str| {
            name.ends_with("rotary_emb.inv_freq") || (layout.head.is_none() && name == "lm_head.weight")
        };
        check_names(&layout, &source.names(), ignored)?;
        if storage == WeightStorage::F32 {
            let read = |slot: &TensorSlot, out: &mut [f32]| read_tensor(source, &slot.name, slot, out);
            return Decoder::assemble(device, config, layout, read);
        }
        let (mut weights, mut packed) = (Vec::new(), Vec::new());
        for id in 0..layout.parameters.len() {
            let (plain, laid_out) = load_stored(&device, &layout, id, source)?;
            weights.push(plain);
            packed.push(laid_out);
        }
        let decoder = Decoder::from_parts(device, config, Arc::new(layout), weights);
        Ok(Decoder { storage, packed: OnceLock::from(packed), ..decoder })
    }

    pub(crate) fn assemble(
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
            storage: WeightStorage::F32,
            weights,
            packed: OnceLock::new(),
            rope,
            workspace: Workspace::default(),
            adapter: None,
        }
    }

    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// How the matrices are held.
    pub fn storage(&self) -> WeightStorage {
        self.storage
    }

    /// Numbers in all weights; a tied head is counted once, an adapter not.
    pub fn n_parameters(&self) -> u64 {
        self.layout.parameters.iter().map(|p| p.len() as u64).sum()
    }

    /// All weights under Hugging Face's names, in the order of transformers' modules. An adapter is apart from
    /// them until [`Decoder::merge`].
    pub fn tensors(&self) -> impl Iterator<Item = NamedTensor> + '_ {
        export_from(&self.layout, |id| self.device.download(&self.plain(id)), "")
    }

    /// SHA-256 over every tensor's name, shape and f32 bits, in the order of [`Decoder::tensors`]; with an
    /// adapter also over its settings and its tensors.
    pub fn digest(&self) -> Digest {
        let mut digester = Digester::new();
        self.tensors().for_each(|tensor| digest_tensor(&mut digester, &tensor));
        if let Some(adapter) = &self.adapter {
            digester.update(adapter.config().to_json(None).to_string().as_bytes());
            self.trained_tensors().for_each(|tensor| digest_tensor(&mut digester, &tensor));
        }
        digester.finish()
    }

    /// A decoder with only `layers` of this one, in the order given: a student that starts from
    /// chosen layers of its teacher. Embedding, final norm and head are kept.
    ///
    /// # Panics
    /// Where there is an adapter: merge it first.
    pub fn keep_layers(&self, layers: &[usize]) -> Result<Decoder, ModelError> {
        assert!(self.adapter.is_none(), "an adapter belongs to all layers of its decoder");
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
        let weights: Vec<Buf> = chosen.map(|id| self.plain(id)).collect();
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

    /// A vector, or a matrix of a decoder that holds them as f32.
    pub(crate) fn weight(&self, id: usize) -> &Buf {
        &self.weights[id]
    }

    /// A copy of weight `id` as f32, however it is held.
    fn plain(&self, id: usize) -> Buf {
        let packed = self.packed.get().and_then(|packed| packed[id].as_ref());
        match packed.filter(|_| self.storage == WeightStorage::AsStored) {
            Some(packed) => self.device.unpack(packed),
            None => copy(&self.device, &self.weights[id]),
        }
    }

    /// x\[n\] = the embedding of ids\[n\].
    pub(crate) fn embed(&self, x: &mut Buf, ids: &[u32]) {
        match self.product(self.layout.embedding) {
            Weight::Packed(packed) if self.storage == WeightStorage::AsStored => {
                self.device.packed_rows(x, packed, ids);
            }
            _ => {
                let table = self.weight(self.layout.embedding);
                self.device.embedding_forward(x, table, ids, self.config.hidden_size);
            }
        }
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

    /// Changes the weights, which must be held as f32; what was laid out from them is dropped.
    pub(crate) fn change_weights(&mut self, change: impl FnOnce(&mut [Buf])) {
        assert_eq!(self.storage, WeightStorage::F32, "weights that are held as stored do not change");
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
        let (config, layout) = (self.config.clone(), self.layout.clone());
        let adapter = self.adapter.as_ref().map(|adapter| adapter.copy(&self.device));
        let decoder =
            Decoder { adapter, ..Decoder::from_parts(self.device.clone(), config, layout, weights) };
        match self.storage {
            WeightStorage::F32 => decoder,
            storage @ WeightStorage::AsStored => Decoder { storage, packed: self.packed.clone(), ..decoder },
        }
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("config", &self.config).finish_non_exhaustive()
    }
}

fn digest_tensor(digester: &mut Digester, tensor: &NamedTensor) {
    digester.update(&(tensor.name.len() as u64).to_le_bytes());
    digester.update(tensor.name.as_bytes());
    digester.update(&(tensor.shape.len() as u64).to_le_bytes());
    tensor.shape.iter().for_each(|&n| digester.update(&(n as u64).to_le_bytes()));
    let bytes: Vec<u8> = tensor.data.iter().flat_map(|v| v.to_le_bytes()).collect();
    digester.update(&bytes);
}

pub(crate) fn copy(device: &Device, buf: &Buf) -> Buf {
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
    layout: &'a Slots,
    buffers: &'a [Buf],
    prefix: &'a str,
) -> impl Iterator<Item = NamedTensor> + 'a {
    export_from(layout, |id| device.download(&buffers[id]), prefix)
}

/// Tensors of the parameters that `read` gives.
fn export_from<'a>(
    layout: &'a Slots,
    read: impl Fn(usize) -> Vec<f32> + 'a,
    prefix: &'a str,
) -> impl Iterator<Item = NamedTensor> + 'a {
    layout.groups.iter().flat_map(move |group| {
        let mut downloaded: Vec<(usize, Vec<f32>)> = Vec::new();
        let slots = layout.tensors[group.clone()].iter();
        let tensors: Vec<NamedTensor> = slots
            .map(|slot| {
                if !downloaded.iter().any(|(id, _)| *id == slot.parameter) {
                    downloaded.push((slot.parameter, read(slot.parameter)));
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
    layout: &Slots,
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

pub(crate) fn random_tensor(slot: &TensorSlot, seed: u64, out: &mut [f32], n_threads: usize) {
    let draw = |mut rng: CounterRng| match slot.init {
        Init::One => 1.0,
        Init::Zero => 0.0,
        Init::Normal { std } => (std * rng.normal()) as f32,
        Init::Uniform { bound } => (bound * (2.0 * rng.uniform() - 1.0)) as f32,
    };
    let digest = Digest::of(slot.name.as_bytes());
    let tensor = digest.as_bytes()[..8].iter().fold(0, |key, &byte| key << 8 | u64::from(byte));
    let piece = out.len().div_ceil(n_threads).max(1);
    std::thread::scope(|scope| {
        for (k, out) in out.chunks_mut(piece).enumerate() {
            let draw = &draw;
            scope.spawn(move || {
                for (i, value) in out.iter_mut().enumerate() {
                    let index = (k * piece + i) as u64;
                    *value = draw(CounterRng::new(&[seed, tensor, index]));
                }
            });
        }
    });
}

/// An error for a name that has no slot and is not ignored, or a slot without a name.
pub(crate) fn check_names(
    layout: &Slots,
    names: &[String],
    ignored: impl Fn(&str) -> bool,
) -> Result<(), ModelError> {
    let known: std::collections::HashSet<&str> = layout.tensors.iter().map(|t| t.name.as_str()).collect();
    if let Some(name) = names.iter().find(|name| !known.contains(name.as_str()) && !ignored(name)) {
        return Err(ModelError::UnexpectedTensor { name: name.clone() });
    }
    let found: std::collections::HashSet<&str> = names.iter().map(String::as_str).collect();
    match layout.tensors.iter().find(|t| !found.contains(t.name.as_str())) {
        Some(slot) => Err(ModelError::MissingTensor { name: slot.name.clone() }),
        None => Ok(()),
    }
}

/// Parameter `id` from a file: a vector as f32, or a matrix laid out as it is stored.
fn load_stored(
    device: &Device,
    layout: &Layout,
    id: usize,
    source: &dyn TensorSource,
) -> Result<(Buf, Option<PackedWeight>), ModelError> {
    let parameter = &layout.parameters[id];
    let slots = layout.tensors.iter().filter(|slot| slot.parameter == id);
    if !parameter.is_matrix() {
        let mut host = vec![0.0; parameter.len()];
        for slot in slots {
            read_tensor(source, &slot.name, slot, &mut host[slot.offset..slot.offset + slot.len()])?;
        }
        return Ok((device.upload(&host), None));
    }
    let mut views = Vec::new();
    for slot in slots {
        let view = view_of(source, &slot.name, slot)?;
        check_stored_finite(&slot.name, &view)?;
        views.push(view);
    }
    let rows = views.iter().map(|view| StoredRows {
        format: block_format(view.encoding),
        bytes: &view.bytes,
        n_out: view.shape[0],
    });
    let rows: Vec<StoredRows<'_>> = rows.collect();
    Ok((device.zeros(0), Some(device.pack_stored(&rows, parameter.cols))))
}

/// Reads tensor `name` in the shape of `slot` as f32.
pub(crate) fn read_tensor(
    source: &dyn TensorSource,
    name: &str,
    slot: &TensorSlot,
    out: &mut [f32],
) -> Result<(), ModelError> {
    let view = view_of(source, name, slot)?;
    dequantise(block_format(view.encoding), &view.bytes, out);
    check_finite(name, 0, out)
}

/// Tensor `name`, which has the shape of `slot` and as many bytes as that takes.
fn view_of<'a>(
    source: &'a dyn TensorSource,
    name: &str,
    slot: &TensorSlot,
) -> Result<TensorView<'a>, ModelError> {
    let view = source.tensor(name)?;
    if view.shape != slot.shape {
        return Err(ModelError::TensorShape {
            name: name.to_owned(),
            expected: slot.shape.clone(),
            found: view.shape,
        });
    }
    let expected = view.encoding.n_bytes(&view.shape).unwrap_or(0);
    if view.bytes.len() != expected {
        return Err(ModelError::TensorBytes { name: name.to_owned(), expected, found: view.bytes.len() });
    }
    Ok(view)
}

/// An error for a number that is not finite; `numbers` are those of tensor `name` from `start` on.
fn check_finite(name: &str, start: usize, numbers: &[f32]) -> Result<(), ModelError> {
    match numbers.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(ModelError::TensorNotFinite { name: name.to_owned(), index: start + index }),
        None => Ok(()),
    }
}

/// As [`check_finite`] of a tensor as it is stored, some rows of which are decoded at a time.
fn check_stored_finite(name: &str, view: &TensorView<'_>) -> Result<(), ModelError> {
    let format = block_format(view.encoding);
    let (block_len, block_bytes) = format.block();
    let mut numbers = vec![0.0; block_len * 64];
    for (i, bytes) in view.bytes.chunks(block_bytes * 64).enumerate() {
        let numbers = &mut numbers[..bytes.len() / block_bytes * block_len];
        dequantise(format, bytes, numbers);
        check_finite(name, i * block_len * 64, numbers)?;
    }
    Ok(())
}

pub(crate) fn block_format(encoding: Encoding) -> BlockFormat {
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
