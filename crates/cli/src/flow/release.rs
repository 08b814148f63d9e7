//! Stage `release`: the student as others use it, with its card and the manifest of what it was made from.

use std::path::Path;

use serde_json::json;
use stillroom_evaluate::{Contender, Report};
use stillroom_formats::{Encoding, ModelFiles, write_gguf, write_hf_dir};
use stillroom_governance::{Decision, Manifest};
use stillroom_model::Decoder;
use stillroom_store::atomic_dir;

use crate::failure::Result;
use crate::flow::logbook::Moment;
use crate::flow::train::{ADAPTER, weights_of};
use crate::flow::{Flow, obligations, report};
use crate::models::with_adapter;
use crate::recipe::WeightType;

pub(crate) const STAGE: &str = "release";
pub(super) const FOLDER: &str = "release";

impl Flow {
    pub(crate) fn release(&mut self, decision: &Decision, report: &Report) -> Result<()> {
        let signer = self.signer.as_ref().map(|signer| signer.public_key().fingerprint());
        let settings = json!([3, self.recipe.release, self.trial, decision, signer]);
        self.stage(STAGE, &settings, &["train", report::STAGE], &[FOLDER], |flow| {
            let files = ModelFiles::open(&flow.run.path(&weights_of(Contender::Student))?)?;
            let device = std::sync::Arc::clone(&flow.device);
            let mut decoder = Decoder::load(device, files.config, files.tensors.as_ref())?;
            if flow.recipe.train.lora.is_some() {
                // Beside weights that have it merged, to be written alone.
                decoder = with_adapter(decoder, flow.trained_adapter()?)?;
            }
            flow.seal_log(Moment::Grave)?;
            let record = atomic_dir(&flow.run.release(), |dir| {
                flow.copy_log(dir)?;
                flow.write_release(dir, &decoder, decision)?;
                obligations::write(dir, decision, &flow.recipe.release.name)?;
                flow.write_documents(dir, decision, report)
            })?;
            let manifest = Manifest::of_recorded(flow.run.root(), &record)?;
            manifest.write(flow.run.root())?;
            flow.sign_release(&manifest)
        })
    }

    fn write_release(&self, dir: &Path, decoder: &Decoder, decision: &Decision) -> Result<()> {
        let tokenizer = self.student_tokenizer()?;
        let release = &self.recipe.release;
        let config = decoder.config();
        write_hf_dir(dir, config, &mut decoder.tensors(), encoding(release.dtype), Some(&tokenizer))?;
        self.write_adapter(&dir.join(ADAPTER), decoder, encoding(release.dtype))?;
        let licence = decision.card_licence(release.licence.as_deref());
        let metadata = [
            ("general.name".to_owned(), release.name.clone()),
            ("general.license".to_owned(), licence.license_name.unwrap_or(licence.license)),
        ];
        let gguf = dir.join("model.gguf");
        write_gguf(&gguf, config, &mut decoder.tensors(), encoding(release.gguf), &tokenizer, &metadata)?;
        Ok(())
    }

    pub(super) fn data_id(&self) -> String {
        use crate::recipe::PromptSource;
        match &self.recipe.prompts.source {
            PromptSource::Task { .. } => "stillroom:procedural-tasks".to_owned(),
            PromptSource::Chat { path } | PromptSource::Text { path } => path.clone(),
        }
    }
}

pub(super) fn encoding(store: WeightType) -> Encoding {
    match store {
        WeightType::F32 => Encoding::F32,
        WeightType::F16 => Encoding::F16,
        WeightType::Bf16 => Encoding::BF16,
        WeightType::Q8_0 => Encoding::Q8_0,
    }
}
