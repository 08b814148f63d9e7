//! Stage `report`: `report.json` and `report.html`, from what the stages before it wrote down.

use std::collections::{BTreeMap, HashMap};

use serde_json::json;
use stillroom_core::{Digest, Message, Prompt, Tail, Trace};
use stillroom_corpus::Split;
use stillroom_evaluate::{
    CacheFacts, Checks, Contender, CorpusFacts, Curve, CurvePoint, LicenceDecision, LicenceRule, LossDrop,
    MachineFacts, Measured, Measurement, Pair, REPORT_VERSION, Report, Sample, SampleReply, StageTime,
    TensorChanges, accuracy_retained, compare, tensor_changes,
};
use stillroom_formats::{ModelFiles, NamedTensor, parquet_rows};
use stillroom_governance::Decision;
use stillroom_kernels::cpu_features;
use stillroom_model::Decoder;

use crate::failure::{Exit, Failure, Result};
use crate::flow::train::{Training, training_of, weights_of};
use crate::flow::{Flow, curate, data, divergence, logits, measure, own_text, teach};
use crate::models::with_adapter;
use crate::recipe::{Logits, PromptSource};

pub(crate) const STAGE: &str = "report";
/// Held-out problems shown with every model's reply.
const SAMPLES: usize = 6;

impl Flow {
    /// Writes the report; a run whose checks fail has failed.
    pub(crate) fn report(&mut self, decision: &Decision) -> Result<Report> {
        let mut after: Vec<String> = vec![data::STAGE.to_owned()];
        after.extend(self.contenders().into_iter().map(measure::stage));
        after.extend(self.recipe.teacher.as_ref().map(|_| divergence::STAGE.to_owned()));
        after.extend(self.measures_own_text().then(|| own_text::STAGE.to_owned()));
        after.extend(self.trained().into_iter().map(super::train::stage_of));
        let settings = json!([REPORT_VERSION, self.recipe, self.trial, decision]);
        let after: Vec<&str> = after.iter().map(String::as_str).collect();
        self.stage(STAGE, &settings, &after, &["report.json", "report.html"], |flow| {
            let report = flow.compile(decision)?;
            flow.run.write("report.json", report.to_json().as_bytes())?;
            flow.run.write("report.html", report.to_html().as_bytes())?;
            Ok(())
        })?;
        let path = self.run.path("report.json")?;
        let text = std::fs::read_to_string(&path).map_err(|e| Failure::io("read", &path, &e))?;
        Ok(Report::from_json(&text)?)
    }

    fn compile(&mut self, decision: &Decision) -> Result<Report> {
        let mut measured: BTreeMap<Contender, Measurement> = BTreeMap::new();
        for contender in self.contenders() {
            measured.insert(contender, self.measurement(contender)?);
        }
        let (student, untrained) = (&measured[&Contender::Student], &measured[&Contender::Untrained]);
        let empty = Vec::new();
        let losses = |m: &Measurement| m.losses.value().cloned().unwrap_or_default();
        let drop = if self.recipe.train.learns_preferences() {
            self.preference_drop()?
        } else if self.recipe.train.only_own_text() && self.measures_own_text() {
            self.own_text_drop()?
        } else {
            LossDrop::measure(&losses(untrained), &losses(student))?
        };
        let retained = match measured.get(&Contender::Teacher) {
            Some(teacher) => accuracy_retained(student, teacher, self.recipe.seed)?,
            None => None,
        };
        let learns_text = self.learns_text();
        let heldout_examples = if learns_text {
            self.texts_of(Split::HeldOut)?.len()
        } else {
            self.prompts_of(Split::HeldOut)?.len()
        };
        let (task, mut task_description) = self.task_in_words();
        if self.has_several_teachers() {
            task_description.push_str(&format!(
                " There are several teachers: {}. Divergences are from their mixture; all else that is said of the \
                 teacher is said of the first one.",
                self.teachers_in_words()
            ));
        }
        let prompts = if learns_text { empty } else { self.prompts_of(Split::HeldOut)? };
        Ok(Report {
            report_version: REPORT_VERSION,
            stillroom_version: env!("CARGO_PKG_VERSION").to_owned(),
            recipe: self.recipe.name.clone(),
            created: rfc3339(super::unix_s()),
            trial: self.trial,
            task,
            task_description,
            heldout_text: self.held_out_text().to_owned(),
            heldout_examples: heldout_examples as u64,
            accuracy_retained: retained,
            paired: pairs(&measured, self.one_tokenizer()?)?,
            own_text: self.own_text_scores()?,
            checks: Checks::new(self.tensor_changes()?, drop),
            curves: self.curves()?,
            stages: self.stage_times(),
            licence: Some(self.licence_facts(decision)),
            corpus: self.corpus_facts()?,
            cache: self.cache_facts()?,
            machine: MachineFacts::read(self.device.n_threads(), cpu_features()),
            seeds: self.seeds(),
            examples: self.samples(&prompts, &measured)?,
            digests: self.digests()?,
            models: measured.iter().map(|(contender, m)| (*contender, m.score())).collect(),
        })
    }

    fn task_in_words(&self) -> (String, String) {
        match &self.recipe.prompts.source {
            PromptSource::Task { task } => (
                task.clone(),
                "Arithmetic word problems of three to eight steps, made by a procedure. A reply is right when its \
                 final number is the right one. No chain of steps occurs in more than one part of the data."
                    .to_owned(),
            ),
            PromptSource::Chat { .. } => (
                "prompts of the user's own".to_owned(),
                match &self.recipe.prompts.verifier {
                    Some(judge) => format!("Replies are judged by the verifier `{}`.", judge.name),
                    None => "Nothing judges the replies; models are compared by loss and divergence.".to_owned(),
                },
            ),
            PromptSource::Text { .. } => (
                "texts of the user's own".to_owned(),
                "Models continue held-out texts; they are compared by loss and by divergence from the teacher."
                    .to_owned(),
            ),
        }
    }

    /// Whether the teacher, if there is one, reads text in the student's tokens.
    fn one_tokenizer(&self) -> Result<bool> {
        // What no loss is measured of shares none.
        if self.recipe.teacher.is_none() || self.is_over_wire() {
            return Ok(true);
        }
        let student = self.student_tokenizer()?.digest();
        Ok(self.teacher_files()?.tokenizer.is_none_or(|teacher| teacher.digest() == student))
    }

    /// Every tensor before and after training.
    fn tensor_changes(&mut self) -> Result<TensorChanges> {
        let start = self.start()?.decoder;
        if start.adapter_config().is_some() {
            return self.adapter_changes(start);
        }
        let files = ModelFiles::open(&self.run.path(&weights_of(Contender::Student))?)?;
        let trained =
            Decoder::load(std::sync::Arc::clone(&self.device), files.config, files.tensors.as_ref())?;
        Ok(tensor_changes(start.tensors(), trained.tensors(), &|_| true)?)
    }

    /// A and B of every target before and after training. The weights are frozen: what evaluation saw must be
    /// the start with the trained adapter merged, bit for bit.
    fn adapter_changes(&self, start: Decoder) -> Result<TensorChanges> {
        let before: Vec<NamedTensor> = start.trained_tensors().collect();
        let mut trained = with_adapter(start, self.trained_adapter()?)?;
        let mut changes = tensor_changes(before.into_iter(), trained.trained_tensors(), &|_| true)?;
        trained.merge();
        let files = ModelFiles::open(&self.run.path(&weights_of(Contender::Student))?)?;
        let device = std::sync::Arc::clone(&self.device);
        let evaluated = Decoder::load(device, files.config, files.tensors.as_ref())?;
        for (expected, found) in trained.tensors().zip(evaluated.tensors()) {
            changes.frozen += 1;
            let same = expected.data.iter().zip(&found.data).all(|(a, b)| a.to_bits() == b.to_bits());
            if expected.name != found.name || !same {
                let cause = format!("`{}` is not its start with the adapter merged", found.name);
                return Err(Failure::new(Exit::BadData, cause)
                    .at(files.path.display().to_string())
                    .fix("remove its record in `stages/` and run the same command again"));
            }
        }
        Ok(changes)
    }

    fn curves(&self) -> Result<Vec<Curve>> {
        self.trained()
            .into_iter()
            .map(|model| {
                let training: Training = self.read_json(&training_of(model))?;
                let mut points: BTreeMap<u64, CurvePoint> = BTreeMap::new();
                for point in &training.curve {
                    let point = CurvePoint {
                        step: point.step,
                        tokens: point.tokens,
                        train_loss: Some(point.loss),
                        train_terms: terms(point.hard_label, &point.divergences),
                        ..CurvePoint::default()
                    };
                    points.insert(point.step, point);
                }
                for point in &training.validation {
                    let (step, tokens) = (point.step, point.tokens);
                    let fresh = CurvePoint { step, tokens, ..CurvePoint::default() };
                    let entry = points.entry(step).or_insert(fresh);
                    entry.validation_loss = Some(point.loss);
                    entry.validation_terms = terms(point.hard_label, &point.divergences);
                }
                let points = points.into_values().collect();
                Ok(Curve { model, loss: training.loss, points, best_step: training.best_step })
            })
            .collect()
    }

    fn stage_times(&self) -> Vec<StageTime> {
        let time = |timed: &super::Timed| StageTime {
            stage: timed.stage.clone(),
            wall_s: timed.wall_s,
            skipped: timed.skipped,
        };
        self.times.iter().map(time).collect()
    }

    fn licence_facts(&self, decision: &Decision) -> LicenceDecision {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let rules = decision.rules.iter().map(|rule| LicenceRule {
            release: rule.release.clone(),
            licence: rule.licence.clone(),
            clause: some(&rule.clause),
            evidence: some(&rule.evidence),
            says: rule.says.clone(),
            obliges: rule.obliges.clone(),
        });
        LicenceDecision {
            verdict: decision.verdict.as_str().to_owned(),
            rules: rules.collect(),
            accepted: decision.accepted.clone(),
            overridden: decision.override_reason.clone(),
            egress: serde_json::to_value(self.recipe.policy.egress)
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned)),
        }
    }

    fn corpus_facts(&self) -> Result<CorpusFacts> {
        let student: Training = self.read_json(&training_of(Contender::Student))?;
        let mut facts =
            CorpusFacts { supervised_tokens: student.supervised_tokens_per_epoch, ..CorpusFacts::default() };
        for drop in self.refused()? {
            *facts.rejected.entry(drop.step.as_str().to_owned()).or_default() += 1;
        }
        if self.learns_text() {
            facts.train_prompts = self.texts_of(Split::Train)?.len() as u64;
            facts.validation_prompts = self.texts_of(Split::Validation)?.len() as u64;
            return Ok(facts);
        }
        facts.train_prompts = self.prompts_of(Split::Train)?.len() as u64;
        facts.validation_prompts = self.prompts_of(Split::Validation)?.len() as u64;
        facts.feedback = self.feedback_facts()?;
        if self.asks_for_traces() {
            let curation: curate::Summary = self.curation()?;
            let traces = self.curated(Split::Train)?;
            facts.traces_bought = curation.seen;
            facts.traces_kept = curation.kept;
            facts.traces_with_reasoning =
                traces.iter().filter(|t| t.reasoning_content.is_some()).count() as u64;
            facts.rejected = curation.dropped;
            facts.heldout_overlaps = curation.heldout_overlaps;
            facts.teacher_usd = Some(self.teacher_usd()?);
        }
        if self.is_scored() {
            facts.teacher_usd = Some(facts.teacher_usd.unwrap_or(0.0) + self.scoring_usd()?);
        }
        Ok(facts)
    }

    fn cache_facts(&self) -> Result<Option<CacheFacts>> {
        let Some(logits) = self.recipe.cached_targets() else { return Ok(None) };
        let (mut positions, mut bytes, mut ids) = (0u64, 0u64, 0u64);
        for part in self.part_files(logits::FOLDER)? {
            bytes += part.len() as u64;
            for row in parquet_rows::read_logits(part)?.1 {
                positions += row.rows.len() as u64;
                ids += row.rows.iter().map(|position| position.ids.len() as u64).sum::<u64>();
            }
        }
        let per_position = |n: u64| n as f64 / positions.max(1) as f64;
        let (draws, top_k, tail) = match logits {
            Logits::RandomSampling { draws, .. } => (Some(draws), None, Tail::None),
            Logits::TopK { k, tail, .. } => (None, Some(k), tail),
            Logits::Live { .. } => unreachable!("of a live teacher nothing is stored"),
        };
        Ok(Some(CacheFacts {
            positions,
            bytes,
            bytes_per_token: per_position(bytes),
            unique_ids_mean: per_position(ids),
            draws,
            top_k,
            tail,
            temperature: logits.temperature(),
        }))
    }

    fn seeds(&self) -> BTreeMap<String, u64> {
        let mut seeds = BTreeMap::from([
            ("prompts".to_owned(), self.recipe.prompts.seed),
            ("train".to_owned(), self.recipe.train.seed),
        ]);
        seeds.extend(self.recipe.teacher.as_ref().map(|teacher| ("teacher".to_owned(), teacher.seed)));
        seeds
    }

    fn samples(
        &self,
        prompts: &[Prompt],
        measured: &BTreeMap<Contender, Measurement>,
    ) -> Result<Vec<Sample>> {
        let mut replies: BTreeMap<Contender, Vec<Trace>> = BTreeMap::new();
        for &contender in measured.keys() {
            if let Some(traces) = self.replies(contender)? {
                replies.insert(contender, traces);
            }
        }
        let correct: HashMap<Contender, HashMap<&str, bool>> = measured
            .iter()
            .filter_map(|(contender, m)| {
                let grades = m.grades.value()?;
                Some((*contender, grades.iter().map(|grade| (grade.id.as_str(), grade.correct)).collect()))
            })
            .collect();
        let samples = prompts.iter().take(SAMPLES).enumerate().map(|(i, prompt)| {
            let replies = replies.iter().filter_map(|(contender, traces)| {
                let trace = traces.get(i)?;
                let correct =
                    correct.get(contender).and_then(|grades| grades.get(prompt.id.as_str())).copied();
                Some((*contender, SampleReply { text: in_full(&trace.reply()), correct }))
            });
            Sample {
                id: prompt.id.clone(),
                problem: prompt.messages.last().map(|message| message.content.clone()).unwrap_or_default(),
                answer: prompt.answer.clone(),
                replies: replies.collect(),
            }
        });
        Ok(samples.collect())
    }

    fn digests(&self) -> Result<BTreeMap<String, Digest>> {
        let mut digests = BTreeMap::from([
            ("recipe".to_owned(), Digest::of(self.recipe.to_toml().as_bytes())),
            ("student".to_owned(), super::weights_digest(&self.run.path(&weights_of(Contender::Student))?)?),
        ]);
        digests.extend(super::binary_digest().map(|digest| ("binary".to_owned(), digest)));
        if self.recipe.teacher.is_some() && !self.is_over_wire() {
            digests.insert("teacher".to_owned(), self.teacher_digest()?);
        }
        for (name, stage) in [("data", data::STAGE), ("traces", teach::STAGE), ("logits", logits::STAGE)] {
            digests.extend(
                self.run.stage_record(stage)?.map(|record| (name.to_owned(), record.outputs_digest())),
            );
        }
        Ok(digests)
    }
}

/// The losses of a point, each under the name of its function; none where hard labels are all there is.
fn terms(hard_label: f64, divergences: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let mut terms = divergences.clone();
    if !terms.is_empty() {
        terms.insert("hard_labels".to_owned(), hard_label);
    }
    terms
}

/// The student against every other model, on every metric that both have. With a teacher of another tokenizer it has no
/// loss per token in common.
fn pairs(
    measured: &BTreeMap<Contender, Measurement>,
    one_tokenizer: bool,
) -> Result<BTreeMap<Pair, BTreeMap<stillroom_evaluate::Metric, stillroom_evaluate::Comparison>>> {
    let student = &measured[&Contender::Student];
    let mut pairs = BTreeMap::new();
    for (&second, measurement) in measured.iter().filter(|(contender, _)| **contender != Contender::Student) {
        let mut measurement = measurement.clone();
        if second == Contender::Teacher && !one_tokenizer {
            measurement.losses = Measured::not_measured("tokens of another tokenizer");
        }
        let mut comparisons = compare(student, &measurement)?;
        if second == Contender::Teacher {
            // The teacher's divergence from itself is no opponent.
            comparisons.remove(&stillroom_evaluate::Metric::KlToTeacher);
        }
        pairs.insert(Pair { first: Contender::Student, second }, comparisons);
    }
    Ok(pairs)
}

fn in_full(message: &Message) -> String {
    match &message.reasoning_content {
        Some(reasoning) => format!("<think>{reasoning}</think>{}", message.content),
        None => message.content.clone(),
    }
}

/// Checks decide whether a run has succeeded.
pub(crate) fn verdict_of(checks: &Checks) -> Result<()> {
    if checks.passed() {
        return Ok(());
    }
    let mut failure =
        Failure::new(Exit::Failed, "the run finished, but its checks failed").code("checks-failed");
    if !checks.student_tensors_changed {
        let names = checks.tensors.unchanged.iter().chain(&checks.tensors.not_finite).take(5);
        let names: Vec<&str> = names.map(String::as_str).collect();
        failure = failure.detail(format!("student_tensors_changed: false ({})", names.join(", ")));
    }
    if !checks.heldout_loss_fell {
        let drop = checks.heldout_loss.drop.map_or("not measurable".to_owned(), |drop| {
            let interval = drop.interval;
            let unit = checks.heldout_loss.unit();
            format!("{:.4} {unit}, 95 % interval {:.4} to {:.4}", drop.value, interval.low, interval.high)
        });
        failure = failure.detail(format!("heldout_loss_fell: false ({drop})"));
    }
    Err(failure.fix("train longer or with a lower `train.learning_rate`; `report.html` shows the curves"))
}

/// Seconds since 1970-01-01 UTC as RFC 3339 (days to civil date after Howard Hinnant's algorithm).
pub(crate) fn rfc3339(unix_s: u64) -> String {
    let (days, second) = ((unix_s / 86_400) as i64 + 719_468, unix_s % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(rfc3339(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn each_failed_check_fails_the_run_and_is_named() {
        let mut changed = TensorChanges::default();
        changed.add("a", &[1.0], &[2.0]).unwrap();
        let fell = |n: u64| {
            let losses = |nats: f64| -> Vec<stillroom_evaluate::DocumentLoss> {
                let row =
                    |i| stillroom_evaluate::DocumentLoss { id: format!("{i}"), tokens: 1, bytes: 1, nats };
                (0..n).map(row).collect()
            };
            LossDrop::measure(&losses(2.0), &losses(1.0)).unwrap()
        };
        assert!(verdict_of(&Checks::new(changed.clone(), fell(3))).is_ok());
        let failed = verdict_of(&Checks::new(changed, fell(1))).unwrap_err();
        assert!(failed.exit() == Exit::Failed && failed.to_string().contains("heldout_loss_fell"));
        let mut stuck = TensorChanges::default();
        stuck.add("embedding", &[1.0], &[1.0]).unwrap();
        let failed = verdict_of(&Checks::new(stuck, fell(3))).unwrap_err().to_string();
        assert!(failed.contains("student_tensors_changed: false (embedding)"), "{failed}");
    }
}
