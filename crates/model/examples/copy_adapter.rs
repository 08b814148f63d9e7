//! Reads a PEFT adapter onto its model and writes it again, for `oracles/lora.py --check`.
//!
//!     cargo run --release -p stillroom-model --example copy_adapter -- MODEL_DIR ADAPTER_DIR OUT_DIR

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use stillroom_formats::{Encoding, ModelFiles, PeftAdapter, write_peft_dir};
use stillroom_model::{Decoder, Device};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, adapter, out] = arguments.as_slice() else {
        return Err("usage: copy_adapter MODEL_DIR ADAPTER_DIR OUT_DIR".into());
    };
    let model = ModelFiles::open(Path::new(model))?;
    let PeftAdapter { config, base_model, tensors, .. } = PeftAdapter::open(Path::new(adapter))?;
    let decoder = Decoder::load(Arc::new(Device::cpu(1)), model.config.clone(), &*model.tensors)?;
    let decoder = decoder.with_adapter(config.clone(), &*tensors)?;
    let mut tensors = decoder.trained_tensors();
    let base = base_model.as_deref();
    write_peft_dir(Path::new(out), &config, base, &model.config, &mut tensors, Encoding::F32)?;
    Ok(())
}
