//! Stage `own-text`: how far every model is from the teacher on what it writes itself.

use serde_json::json;
use stillroom_evaluate::{Contender, LossDrop, Measured, OwnText, OwnTextScore, own_texts, scored_own_texts};
use stillroom_model::{GenerationRequest, SamplingParams};

use crate::failure::Result;
use crate::flow::prompt_pii::redacted;
use crate::flow::start::{shared_ids, student_shape};
use crate::flow::teach::key_of;
use crate::flow::train::stage_of;
use crate::flow::{Flow, data, measure};
use crate::models::Model;
use crate::recipe::PromptPii;

pub(crate) const STAGE: &str = "own-text";
const FOLDER: &str = "evaluation/own_text";
/// Of a text that has no question, the model continues the beginning.
const TEXT_PROMPT_TOKENS: usize = 32;
/// What is drawn is the same under every seed of a recipe, so that runs can be compared.
const SEED: u64 = 0;

/// Where a model's own texts stand.
fn file(contender: Contender) -> String {
    format!("{FOLDER}/{}.json", contender.key())
}

impl Flow {
    pub(crate) fn measures_own_text(&self) -> bool {
        self.recipe.teacher.is_some() && self.recipe.evaluate.own_text_examples > 0
    }

    pub(crate) fn own_text(&mut self) -> Result<()> {
        if !self.measures_own_text() {
            return Ok(());
        }
        let mut after = vec![data::STAGE.to_owned()];
        after.extend(self.trained().into_iter().map(stage_of));
        after.extend(self.start_stage().map(str::to_owned));
        let after: Vec<&str> = after.iter().map(String::as_str).collect();
        let recipe = &self.recipe;
        let start = json!([recipe.student, recipe.train.seed, self.start_digest()?]);
        let evaluate = json!([recipe.evaluate.own_text_examples, recipe.evaluate.max_tokens]);
        let mut settings =
            vec![json!(1), self.teachers_digest()?, start, json!(recipe.train.max_length), evaluate];
        if self.is_over_wire() {
            settings.push(self.scoring_identity()?);
        }
        let outputs: Vec<String> = self.writers().into_iter().map(file).collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        self.stage(STAGE, &settings, &after, &outputs, Flow::write_own_texts)
    }

    /// All models but the teacher.
    fn writers(&self) -> Vec<Contender> {
        self.contenders().into_iter().filter(|&contender| contender != Contender::Teacher).collect()
    }

    fn write_own_texts(&mut self) -> Result<()> {
        if self.is_over_wire() {
            return self.write_scored_own_texts();
        }
        let teachers = self.teachers()?;
        let others = teachers.others();
        let (config, tokenizer) = student_shape(&self.recipe, &self.source)?;
        let (width, (least, most)) = (config.vocab_size, teachers.live(&others, None).vocabularies());
        let n_ids = ((width, width) != (least, most)).then(|| tokenizer.vocab_size());
        let live = teachers.live(&others, n_ids);
        if teachers.first.tokenizer.digest() != tokenizer.digest()
            || n_ids.is_some_and(|n| n > width.min(least))
        {
            let none: Measured<Vec<OwnText>> =
                Measured::not_measured("teacher and student have different vocabularies");
            return self.writers().into_iter().try_for_each(|writer| self.write_json(&file(writer), &none));
        }
        for writer in self.writers() {
            let model = self.model_of(writer)?;
            let prompts = self.own_text_prompts(&model)?;
            let total = prompts.len();
            let sampling = self.own_text_sampling(live.max_positions(), &model, &prompts);
            let texts =
                own_texts(live, &model.decoder, &prompts, &sampling, measure::IN_FLIGHT, &mut |done| {
                    self.progress.update(&format!("{}: {done} of {total} own texts", writer.label()))
                })?;
            self.write_json(&file(writer), &Measured::Value(texts))?;
        }
        Ok(())
    }

    /// As a teacher behind endpoints finds the tokens that each model drew.
    fn write_scored_own_texts(&mut self) -> Result<()> {
        let n_ids = shared_ids(&self.recipe, &self.source)?;
        let scorer = self.scorer(STAGE, &[stillroom_corpus::Split::HeldOut])?;
        for writer in self.writers() {
            let model = self.model_of(writer)?;
            let prompts = self.own_text_prompts(&model)?;
            let context = model.decoder.config().max_position_embeddings;
            let sampling = self.own_text_sampling(context, &model, &prompts);
            self.progress.update(&format!("{}: {} own texts", writer.label(), prompts.len()));
            let texts =
                scored_own_texts(&scorer, &model.decoder, &prompts, &sampling, n_ids, measure::IN_FLIGHT);
            self.tell_left_out(&scorer)?;
            let texts = texts.map_err(|error| self.why_silent(&scorer).unwrap_or_else(|| error.into()))?;
            self.write_json(&file(writer), &Measured::Value(texts))?;
        }
        Ok(())
    }

    fn own_text_prompts(&self, model: &Model) -> Result<Vec<(String, GenerationRequest)>> {
        let n = self.recipe.evaluate.own_text_examples;
        let request = |id: &str, prompt_ids| {
            (id.to_owned(), GenerationRequest { prompt_ids, key: key_of(id), sample: 0 })
        };
        let prompts = self.continued(stillroom_corpus::Split::HeldOut, &model.tokenizer)?;
        Ok(prompts.into_iter().take(n).map(|(id, ids)| request(&id, ids)).collect())
    }

    /// What a model continues of a split: each prompt in the chat template, or the beginning of each text.
    pub(crate) fn continued(
        &self,
        split: stillroom_corpus::Split,
        tokenizer: &stillroom_formats::Tokenizer,
    ) -> Result<Vec<(String, Vec<u32>)>> {
        if self.learns_text() {
            let pieces = self.text_pieces(split, tokenizer)?;
            let beginning = |piece: super::train::Piece| {
                let mut ids = piece.example.ids;
                ids.truncate(TEXT_PROMPT_TOKENS.min(ids.len() / 2));
                (piece.example.id, ids)
            };
            return Ok(pieces.into_iter().map(beginning).filter(|(_, ids)| !ids.is_empty()).collect());
        }
        let mut prompts = self.prompts_of(split)?;
        // They go out with what is written behind them.
        if self.prompt_pii() == PromptPii::Redact {
            prompts = prompts.into_iter().map(redacted).collect();
        }
        let templated =
            prompts.into_iter().map(|prompt| Ok((prompt.id, tokenizer.encode_chat(&prompt.messages, true)?)));
        templated.collect()
    }

    /// The model's distribution as it is, as far as both contexts go.
    fn own_text_sampling(
        &self,
        context: usize,
        model: &Model,
        prompts: &[(String, GenerationRequest)],
    ) -> SamplingParams {
        let longest = prompts.iter().map(|(_, request)| request.prompt_ids.len()).max().unwrap_or(0);
        SamplingParams {
            max_tokens: self.recipe.evaluate.max_tokens.min(context.saturating_sub(longest)),
            temperature: 1.0,
            top_p: 1.0,
            seed: SEED,
            stop_token_ids: model.decoder.config().eos_token_ids.clone(),
        }
    }

    /// How much nearer the student is to its teacher on its own text than its start on its.
    pub(crate) fn own_text_drop(&self) -> Result<LossDrop> {
        let texts = |writer| self.read_json::<Measured<Vec<OwnText>>>(&file(writer));
        let (start, student) = (texts(Contender::Untrained)?, texts(Contender::Student)?);
        let none = Vec::new();
        Ok(LossDrop::of_own_text(start.value().unwrap_or(&none), student.value().unwrap_or(&none))?)
    }

    /// What was measured, of the models that it was measured of.
    pub(crate) fn own_text_scores(&self) -> Result<std::collections::BTreeMap<Contender, OwnTextScore>> {
        let mut scores = std::collections::BTreeMap::new();
        let writers = if self.measures_own_text() { self.writers() } else { Vec::new() };
        for writer in writers {
            let texts: Measured<Vec<OwnText>> = self.read_json(&file(writer))?;
            scores.extend(texts.value().map(|texts| (writer, OwnTextScore::of(texts))));
        }
        Ok(scores)
    }
}
