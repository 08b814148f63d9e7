//! `stillroom convert`: Hugging Face directory ↔ GGUF.

use std::path::Path;
use std::process::ExitCode;

use stillroom_formats::{Encoding, ModelFiles, NamedTensor, write_gguf, write_hf_dir};
use stillroom_model::Decoder;

use crate::args::{Convert, Machine, StoreType};
use crate::failure::{Exit, Failure, Result};
use crate::{models, terminal};

pub(super) fn convert(args: &Convert) -> Result<ExitCode> {
    let to_gguf = args.output.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if args.store == StoreType::Q8_0 && !to_gguf {
        return Err(Failure::new(Exit::Usage, "`q8_0` is a type of GGUF files")
            .at("--type")
            .fix("name an output that ends in `.gguf`, or choose f32, f16 or bf16"));
    }
    refuse_to_overwrite(&args.output)?;
    let files = ModelFiles::open(&models::locate(&args.input)?)?;
    let path = files.path.clone();
    let config = files.config.clone();
    let tokenizer = files.tokenizer;
    // Through the decoder: whatever it loads is complete and of the right shapes.
    let device = models::device(&Machine { threads: None });
    let mut decoder = Decoder::load(device, files.config, files.tensors.as_ref())
        .map_err(|e| Failure::from(e).at(path.display().to_string()))?;
    if let Some(adapter) = &args.adapter {
        decoder = models::with_adapter(decoder, models::adapter_files(adapter)?)?;
        decoder.merge();
    }
    let mut tensors = decoder.tensors();
    let store = encoding(args.store);
    let tensors: &mut dyn Iterator<Item = NamedTensor> = &mut tensors;
    if to_gguf {
        let tokenizer = tokenizer.ok_or_else(|| {
            Failure::new(
                Exit::BadData,
                format!("`{}` has no tokenizer, and a GGUF file needs one", path.display()),
            )
            .fix("put its `tokenizer.json` beside `config.json`")
        })?;
        write_gguf(&args.output, &config, tensors, store, &tokenizer, &[])?;
    } else {
        write_hf_dir(&args.output, &config, tensors, store, tokenizer.as_ref())?;
    }
    terminal::note(&format!("wrote {}", args.output.display()));
    Ok(ExitCode::SUCCESS)
}

fn refuse_to_overwrite(output: &Path) -> Result<()> {
    let occupied = match std::fs::read_dir(output) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => output.exists(),
    };
    if !occupied {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, format!("`{}` exists already", output.display()))
        .code("exists")
        .fix("remove it, or name another output"))
}

pub(crate) fn encoding(store: StoreType) -> Encoding {
    match store {
        StoreType::F32 => Encoding::F32,
        StoreType::F16 => Encoding::F16,
        StoreType::Bf16 => Encoding::BF16,
        StoreType::Q8_0 => Encoding::Q8_0,
    }
}
