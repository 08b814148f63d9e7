//! Stage `divergence`: how far every model's distributions are from the teacher's, on the held-out text.

use std::rc::Rc;

use serde_json::json;
use stillroom_evaluate::{Contender, DocumentDivergence, Measured, Measurement, document_divergences};
use stillroom_formats::DecoderConfig;
use stillroom_model::Decoder;

use crate::failure::Result;
use crate::flow::measure::{self, held_out_texts};
use crate::flow::start::student_shape;
use crate::flow::train::stage_of;
use crate::flow::{Flow, data};
use crate::models::Model;

pub(crate) const STAGE: &str = "divergence";
const FOLDER: &str = "evaluation/divergence";
/// Weights that lie in memory beside the teacher's: the teacher reads the text once for as many models as
/// fit, one at least.
const WEIGHT_BYTES_MAX: u64 = 1 << 29;

/// Where a model's divergences stand, document by document.
pub(crate) fn file(contender: Contender) -> String {
    format!("{FOLDER}/{}.json", contender.key())
}

/// Students that go together beside the teacher.
pub(super) fn at_once(student: &DecoderConfig) -> usize {
    (WEIGHT_BYTES_MAX / (4 * student.n_parameters()).max(1)).max(1) as usize
}

impl Flow {
    pub(crate) fn diverge(&mut self) -> Result<()> {
        if self.recipe.teacher.is_none() {
            return Ok(());
        }
        let mut after = vec![data::STAGE.to_owned(), measure::stage(Contender::Teacher)];
        after.extend(self.trained().into_iter().map(stage_of));
        let after: Vec<&str> = after.iter().map(String::as_str).collect();
        let recipe = &self.recipe;
        let start = json!([recipe.student, recipe.train.seed, self.start_digest()?]);
        let settings = json!([1, self.teachers_digest()?, start, recipe.train.max_length]);
        let outputs: Vec<String> = self.contenders().into_iter().map(file).collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        self.stage(STAGE, &settings, &after, &outputs, Flow::write_divergences)
    }

    fn write_divergences(&mut self) -> Result<()> {
        if self.is_over_wire() {
            let none: Measured<Vec<DocumentDivergence>> = Measured::not_measured(
                "the teacher is behind an endpoint, which gives no whole distributions",
            );
            return self.contenders().into_iter().try_for_each(|one| self.write_json(&file(one), &none));
        }
        if !self.has_several_teachers() {
            self.write_json(&file(Contender::Teacher), &self.none_from_oneself()?)?;
        }
        let teachers = self.teachers()?;
        let (others, teacher) = (teachers.others(), &teachers.first);
        let live = teachers.live(&others, None);
        let (config, tokenizer) = student_shape(&self.recipe, &self.source)?;
        // From a mixture its first teacher is as far as it is.
        let mut students = self.contenders();
        students.retain(|&contender| contender != Contender::Teacher || !others.is_empty());
        let same = teacher.tokenizer.digest() == tokenizer.digest()
            && live.vocabularies() == (config.vocab_size, config.vocab_size);
        if !same {
            let none: Measured<Vec<DocumentDivergence>> =
                Measured::not_measured("teacher and student have different vocabularies");
            return students.iter().try_for_each(|&student| self.write_json(&file(student), &none));
        }
        let documents = self.held_out_documents(&tokenizer)?;
        let texts = held_out_texts(&documents, &tokenizer);
        for students in students.chunks(at_once(&config)) {
            let names: Vec<&str> = students.iter().map(|student| student.label()).collect();
            self.progress.update(&format!("divergence from the teacher: {}", names.join(", ")));
            let models = students.iter().map(|&student| self.model_of(student));
            let models: Vec<Rc<Model>> = models.collect::<Result<_>>()?;
            let decoders: Vec<&Decoder> = models.iter().map(|model| &model.decoder).collect();
            let found = document_divergences(live, &decoders, &texts)?;
            for (&student, rows) in students.iter().zip(found) {
                self.write_json(&file(student), &Measured::Value(rows))?;
            }
        }
        Ok(())
    }

    /// KL(p‖p) is 0 by definition, on every document that the teacher's loss is measured on.
    fn none_from_oneself(&self) -> Result<Measured<Vec<DocumentDivergence>>> {
        let teacher: Measurement = self.read_json(&measure::file(Contender::Teacher))?;
        Ok(teacher.losses.and_then(|losses| {
            let row = |loss: &stillroom_evaluate::DocumentLoss| DocumentDivergence {
                id: loss.id.clone(),
                tokens: loss.tokens,
                nats: 0.0,
            };
            Measured::Value(losses.iter().map(row).collect())
        }))
    }
}
