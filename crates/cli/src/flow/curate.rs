//! Stage `curate`: which traces the student may learn from, each drop with its reason.
//!
//! Traces come part by part, as they were taught, and go part by part into the curated files; what is held of all of them
//! are digests, and shingles where near-duplicates are looked for. A part has all samples of its prompts.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stillroom_core::{Message, Prompt, Trace};
use stillroom_corpus::balance::{Balance, By};
use stillroom_corpus::contaminants::{Contaminants, EvaluationItem, Finding, Held};
use stillroom_corpus::curation::{Curator, Dropped, Step};
use stillroom_corpus::decontamination::{self, Contamination, Overlap};
use stillroom_corpus::near_duplicates::NearDuplicates;
use stillroom_corpus::pass_rate::{self, Keep, Window};
use stillroom_corpus::pii;
use stillroom_corpus::prompts::Rows;
use stillroom_corpus::{Split, Verifier, selection};
use stillroom_formats::parquet_rows::{self, TraceWriter};
use stillroom_store::digest_file;

use crate::failure::{Exit, Failure, Result};
use crate::flow::{Flow, data, feedback, revisions, teach};
use crate::recipe::{Compared, Near, PiiRule, PromptSource, Select, TracePii};
use crate::verifiers::Remembering;

pub(crate) const STAGE: &str = "curate";
pub(super) const TRAIN: &str = "corpus/curated/train.parquet";
pub(super) const VALIDATION: &str = "corpus/curated/validation.parquet";
pub(super) const SUMMARY: &str = "corpus/curation.json";
pub(super) const DROPPED: &str = "corpus/dropped.jsonl";
/// Most traces that are named as other problems of an evaluation item's template.
const EXAMPLES_MAX: usize = 20;
/// What the held-out set is called among files of evaluation items.
const HELD_OUT: &str = "held-out set";

/// What curation did, for the report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) seen: u64,
    pub(crate) kept: u64,
    pub(crate) validation_kept: u64,
    pub(crate) dropped: BTreeMap<String, u64>,
    pub(crate) heldout_overlaps: u64,
    pub(crate) contamination: Option<Contamination>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) evaluation_items: Option<EvaluationItems>,
    /// Traces that were compared with a part only of those that may be alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) near_duplicates_cut_short: Option<u64>,
}

/// What the search for evaluation items found beside what it dropped.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct EvaluationItems {
    pub(crate) items: u64,
    /// Traces with another problem of an item's template, which stay.
    pub(crate) same_template: u64,
    pub(crate) same_template_examples: Vec<Overlap>,
}

impl Flow {
    pub(crate) fn curate(&mut self) -> Result<()> {
        if !self.asks_for_traces() {
            return Ok(());
        }
        let mut settings = vec![json!(1), json!(self.recipe.curate), json!(self.recipe.prompts.verifier)];
        settings.extend(self.evaluation_digests()?);
        let outputs = ["corpus/curated", SUMMARY, DROPPED];
        let mut after = vec![data::STAGE, teach::STAGE];
        if matches!(self.recipe.curate.select, Select::BestOfN | Select::Revised) {
            after.push(feedback::STAGE);
        }
        self.stage(STAGE, &settings, &after, &outputs, Flow::choose_traces)
    }

    fn choose_traces(&mut self) -> Result<()> {
        let judge = self.verifier();
        let remembering = judge.as_deref().map(Remembering::new);
        let verifier = remembering.as_ref().map(|verifier| verifier as &dyn Verifier);
        let mut summary = Summary::default();
        let held_out = if self.compares_held_out() { self.prompts_of(Split::HeldOut)? } else { Vec::new() };
        // Only a verifier reads whole prompts, and only held-out ones are compared with their last turns.
        let needed = |prompt: &mut Prompt| {
            if verifier.is_none() {
                let last = prompt.messages.pop().filter(|_| !held_out.is_empty());
                (prompt.messages, prompt.target) = (last.into_iter().collect(), None);
            }
        };
        let train = self.prompts_changed(Split::Train, needed)?;
        let validation = self.prompts_changed(Split::Validation, needed)?;
        let tainted = tainted(&train, &held_out);
        if self.compares_held_out() {
            summary.contamination = Some(contamination(&train, &held_out));
        }
        let grades =
            matches!(self.recipe.curate.select, Select::BestOfN).then(|| self.grades()).transpose()?;
        let revisions =
            matches!(self.recipe.curate.select, Select::Revised).then(|| self.revisions()).transpose()?;
        let judge = verifier.filter(|_| self.recipe.curate.verify);
        let curator = Curator::new(train.iter().chain(&validation), judge);
        let mut choice = Choice {
            select: self.recipe.curate.select,
            verifier,
            window: self.recipe.curate.pass_rate,
            keep: self.recipe.curate.keep,
            pii: self.recipe.curate.pii.clone(),
            prompts: self.recipe.curate.pass_rate.map(|_| by_id(&train, &validation)).unwrap_or_default(),
            grades,
            revisions,
            curator: curator.with_filters(self.recipe.curate.filters.clone()),
            validation: validation.iter().map(|prompt| prompt.id.as_str()).collect(),
            tainted,
            items: self.evaluation_items(held_out.iter().map(EvaluationItem::of_prompt))?,
            n_held_out: held_out.len(),
            near: self.recipe.curate.near.map(Seen::new),
            balance: self.recipe.curate.balance().map(|(by, _)| Balance::new(by)),
            known: match self.recipe.curate.balance() {
                None => HashMap::new(),
                Some((By::Answer, _)) => known_answers(&train),
                Some((By::Class, _)) => self.classes()?,
            },
            outvoted: Vec::new(),
            worse: Vec::new(),
            late: Vec::new(),
            summary,
        };
        let mut chosen = [Written::new()?, Written::new()?];
        for part in self.part_paths(teach::FOLDER)? {
            let bytes = std::fs::read(&part).map_err(|e| Failure::io("read", &part, &e))?;
            for trace in choice.pass(parquet_rows::read_traces(bytes)?)? {
                let in_validation = choice.validation.contains(trace.id.as_str());
                chosen[usize::from(in_validation)].push(trace)?;
            }
            remembering.iter().for_each(Remembering::forget);
        }
        let [train, validation] = chosen;
        self.finish_curation(choice, train, validation)
    }

    fn finish_curation(&self, mut choice: Choice<'_>, train: Written, validation: Written) -> Result<()> {
        let mut train = train;
        if let (Some(balance), Some((_, share))) = (&choice.balance, self.recipe.curate.balance()) {
            train = train.balanced(balance, share, &mut choice.late)?;
        }
        let (mut summary, mut dropped) = (choice.summary, self.refused()?);
        dropped.extend(choice.outvoted);
        dropped.extend(choice.curator.finish().1);
        dropped.extend(choice.worse);
        dropped.extend(choice.late);
        for drop in &dropped {
            *summary.dropped.entry(drop.step.as_str().to_owned()).or_default() += 1;
        }
        summary.near_duplicates_cut_short = choice.near.map(|near| near.texts.cut_short());
        (summary.kept, summary.validation_kept) = (train.rows, validation.rows);
        self.write_lines(DROPPED, &dropped)?;
        if summary.kept == 0 || (summary.validation_kept == 0 && !choice.validation.is_empty()) {
            return Err(nothing_left(&summary));
        }
        for (file, traces) in [(TRAIN, train), (VALIDATION, validation)] {
            self.run.write(file, &traces.finish()?)?;
        }
        self.write_json(SUMMARY, &summary)
    }

    /// The class of each training prompt that has one.
    fn classes(&self) -> Result<HashMap<String, String>> {
        #[derive(Deserialize)]
        struct Classed {
            id: String,
            class: Option<String>,
        }
        let rows = self.lines_of::<Classed>(&format!("{}/{}.jsonl", data::FOLDER, Split::Train))?;
        rows.filter_map(|row| row.map(|row| Some((row.id, row.class?))).transpose()).collect()
    }

    /// Problems of a task are disjoint by construction and were checked; other data is compared.
    pub(super) fn compares_held_out(&self) -> bool {
        self.recipe.curate.decontaminate && !matches!(self.recipe.prompts.source, PromptSource::Task { .. })
    }

    fn evaluation_files(&self) -> &[String] {
        self.recipe.curate.decontamination.as_ref().map_or(&[], |against| &against.against)
    }

    /// Of the files with evaluation items; nothing where there are none.
    pub(super) fn evaluation_digests(&self) -> Result<Vec<Value>> {
        let digest = |named: &String| -> Result<Value> {
            let path = self.source.resolve_path(named);
            if !path.is_file() {
                return Err(Failure::new(Exit::Io, format!("there is no file `{}`", path.display()))
                    .code("no-data")
                    .at(self.source.place(&["curate", "decontaminate_against"]))
                    .fix(
                        "check the path; it is looked for beside the recipe, then in the working directory",
                    ));
            }
            Ok(json!(digest_file(&path)?.0.to_string()))
        };
        self.evaluation_files().iter().map(digest).collect()
    }

    /// Items of the held-out set and of the recipe's files, each with the name of its set, where they are asked for.
    pub(super) fn evaluation_items(
        &self,
        held_out: impl Iterator<Item = EvaluationItem>,
    ) -> Result<Option<Contaminants>> {
        let Some(asked) = &self.recipe.curate.decontamination else { return Ok(None) };
        let named = |set: &str, item: EvaluationItem| EvaluationItem {
            id: format!("`{}` of {set}", item.id),
            ..item
        };
        let mut items: Vec<EvaluationItem> = held_out.map(|item| named(HELD_OUT, item)).collect();
        for file in self.evaluation_files() {
            for item in Rows::open(&self.source.resolve_path(file))? {
                items.push(named(file, EvaluationItem::of(&item?)));
            }
        }
        Ok(Some(Contaminants::new(items, asked.overlap)))
    }

    /// Prompts with a trace that holds an evaluation item: the student neither continues them nor learns preferences from
    /// them. Without traces there are none left among the prompts.
    pub(crate) fn contaminated_prompts(&self) -> Result<HashSet<String>> {
        if !self.asks_for_traces() || self.recipe.curate.decontamination.is_none() {
            return Ok(HashSet::new());
        }
        let dropped: Vec<Dropped> = self.read_lines(DROPPED)?;
        let contaminated = dropped.into_iter().filter(|drop| drop.step == Step::Contaminated);
        Ok(contaminated.map(|drop| drop.id).collect())
    }

    pub(crate) fn curated(&self, split: Split) -> Result<Vec<Trace>> {
        let path = self.run.path(if split == Split::Train { TRAIN } else { VALIDATION })?;
        let bytes = std::fs::read(&path).map_err(|e| Failure::io("read", &path, &e))?;
        Ok(parquet_rows::read_traces(bytes)?)
    }

    pub(crate) fn curation(&self) -> Result<Summary> {
        self.read_json(SUMMARY)
    }
}

/// The steps, and what they remember from part to part.
struct Choice<'a> {
    select: Select,
    verifier: Option<&'a dyn Verifier>,
    window: Option<Window>,
    keep: Keep,
    pii: Option<TracePii>,
    /// For the window only.
    prompts: HashMap<&'a str, &'a Prompt>,
    grades: Option<HashMap<(String, u32), f64>>,
    revisions: Option<revisions::Revisions>,
    curator: Curator<'a>,
    validation: HashSet<&'a str>,
    /// Prompts that the held-out set has too.
    tainted: HashSet<&'a str>,
    items: Option<Contaminants>,
    /// The first items are the held-out set's.
    n_held_out: usize,
    near: Option<Seen>,
    balance: Option<Balance>,
    /// Answers of prompts, or their classes, by what is to be balanced.
    known: HashMap<String, String>,
    outvoted: Vec<Dropped>,
    worse: Vec<Dropped>,
    late: Vec<Dropped>,
    summary: Summary,
}

impl Choice<'_> {
    /// Those of a part that stay, in order.
    fn pass(&mut self, traces: Vec<Trace>) -> Result<Vec<Trace>> {
        self.summary.seen += traces.len() as u64;
        // A vote, a revision or a prompt's pass rate comes before anything else is dropped.
        let (traces, out_of_window) = match (&self.window, self.verifier) {
            (Some(window), Some(verifier)) => pass_rate::within(traces, &self.prompts, verifier, window),
            _ => (traces, Vec::new()),
        };
        self.outvoted.extend(out_of_window);
        let (traces, outvoted) = match (self.select, self.verifier, &self.revisions) {
            (Select::Majority, Some(verifier), _) => selection::majority(traces, verifier),
            (Select::Revised, _, Some(revisions)) => selection::revised(traces, revisions),
            _ => (traces, Vec::new()),
        };
        self.outvoted.extend(outvoted);
        let mut kept = Vec::with_capacity(traces.len());
        for trace in traces {
            if self.curator.keeps(&trace)? {
                kept.push(trace);
            }
        }
        let (kept, passed_over) = pass_rate::keep(kept, self.keep);
        self.worse.extend(passed_over);
        // The best is one of those that may be learned at all.
        let (kept, worse) = match &self.grades {
            Some(grades) => selection::best_of_n(kept, grades),
            None => (kept, Vec::new()),
        };
        self.worse.extend(worse);
        let mut staying = Vec::with_capacity(kept.len());
        for trace in kept {
            if let Some(trace) = self.without_pii(trace)
                && self.stays(&trace)
            {
                staying.push(trace);
            }
        }
        Ok(staying)
    }

    /// The trace without personal data and secrets, or nothing where it goes for them.
    fn without_pii(&mut self, trace: Trace) -> Option<Trace> {
        let Some(TracePii { rule, classes }) = &self.pii else { return Some(trace) };
        let messages = trace.messages.iter().cloned().chain([trace.reply()]).collect();
        let said = Prompt { id: String::new(), messages, answer: None, target: None };
        let Some((_, finding)) = pii::find_in_prompt(&said, classes) else { return Some(trace) };
        if *rule == PiiRule::Drop {
            self.drop(&trace, Step::Pii, format!("{} ({})", finding.class, finding.kind));
            return None;
        }
        let mut messages: Vec<Message> =
            said.messages.into_iter().map(|message| pii::redact_message(message, classes)).collect();
        let Message { content, reasoning_content, .. } = messages.pop().expect("the reply is the last");
        Some(Trace { messages, content, reasoning_content, ..trace })
    }

    /// Whether a trace is no evaluation item and nearly repeats none before.
    fn stays(&mut self, trace: &Trace) -> bool {
        if self.tainted.contains(trace.id.as_str()) && !self.validation.contains(trace.id.as_str()) {
            self.summary.heldout_overlaps += 1;
            // Recipes without the newer keys keep the list that they had.
            if self.items.is_some() {
                self.drop(trace, Step::Contaminated, "the prompt is in the held-out set".into());
            }
            return false;
        }
        if let Some(reason) = self.contaminated(trace) {
            self.drop(trace, Step::Contaminated, reason);
            return false;
        }
        if let Some(reason) = self.near.as_mut().and_then(|near| near.repeats_trace(trace)) {
            self.drop(trace, Step::NearDuplicate, reason);
            return false;
        }
        if let Some(balance) = self.balance.as_mut().filter(|_| !self.validation.contains(trace.id.as_str()))
        {
            let verifier = self.verifier.filter(|_| balance.by() == By::Answer);
            let found = || verifier.and_then(|verifier| verifier.answer(&trace.reply()));
            match self.known.get(&trace.id) {
                Some(known) => balance.count(Some(known)),
                None => balance.count(found().as_deref()),
            }
        }
        true
    }

    fn contaminated(&mut self, trace: &Trace) -> Option<String> {
        let items = self.items.as_ref()?;
        let facts = self.summary.evaluation_items.get_or_insert_default();
        facts.items = items.len() as u64;
        match items.find(trace) {
            Finding::Nothing => None,
            Finding::SameTemplate(held) => {
                facts.same_template += 1;
                if facts.same_template_examples.len() < EXAMPLES_MAX {
                    let (train_id, held_out_id) = (trace.id.clone(), held.item.to_owned());
                    facts.same_template_examples.push(Overlap { train_id, held_out_id, shared: held.shared });
                }
                None
            }
            Finding::Contaminated(held) => {
                self.summary.heldout_overlaps += u64::from(held.index < self.n_held_out);
                Some(said(&held))
            }
        }
    }

    fn drop(&mut self, trace: &Trace, step: Step, reason: String) {
        self.late.push(Dropped { id: trace.id.clone(), sample: trace.sample, step, reason });
    }
}

pub(super) fn said(held: &Held<'_>) -> String {
    let side = json!(held.side);
    let side = side.as_str().unwrap_or_default();
    format!("the {side} has {:.1} % of {}", 100.0 * held.shared, held.item)
}

/// Texts that were kept, and whose they are.
pub(super) struct Seen {
    texts: NearDuplicates,
    compared: Compared,
    kept: Vec<(Box<str>, u32)>,
}

impl Seen {
    pub(super) fn new(near: Near) -> Seen {
        let texts = NearDuplicates::new(near.similarity, near.shingling());
        Seen { texts, compared: near.compared, kept: Vec::new() }
    }

    /// How much of which one before the next text nearly repeats, if it does; else it is one of those before.
    pub(super) fn repeats(
        &mut self,
        id: &str,
        sample: u32,
        text: impl FnOnce(Compared) -> String,
    ) -> Option<(f64, &str, u32)> {
        match self.texts.first_match_or_insert(&text(self.compared)) {
            Some(found) => {
                let (id, sample) = &self.kept[found.index];
                Some((found.jaccard, id, *sample))
            }
            None => {
                self.kept.push((id.into(), sample));
                None
            }
        }
    }

    fn repeats_trace(&mut self, trace: &Trace) -> Option<String> {
        let text = |compared: Compared| {
            let asked = trace.messages.last().map(|message| message.content.as_str());
            let replied = trace.reasoning_content.as_deref().into_iter().chain([trace.content.as_str()]);
            compared.of(asked, replied).join("\n")
        };
        let (share, id, sample) = self.repeats(&trace.id, trace.sample, text)?;
        Some(format!("{:.1} % like trace {sample} of `{id}`", 100.0 * share))
    }
}

/// Curated traces as Parquet, in memory.
struct Written {
    writer: TraceWriter<Vec<u8>>,
    rows: u64,
}

impl Written {
    fn new() -> Result<Written> {
        Ok(Written { writer: TraceWriter::create(Vec::new())?, rows: 0 })
    }

    fn push(&mut self, trace: Trace) -> Result<()> {
        self.rows += 1;
        Ok(self.writer.push(trace)?)
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.writer.finish()?)
    }

    /// Without what is more than an answer's or a class's share.
    fn balanced(self, balance: &Balance, share: f64, dropped: &mut Vec<Dropped>) -> Result<Written> {
        let mut balanced = Written::new()?;
        let traces = parquet_rows::read_traces(self.finish()?)?;
        for (trace, reason) in traces.into_iter().zip(balance.chosen(share)?) {
            match reason {
                None => balanced.push(trace)?,
                Some(reason) => {
                    let (id, sample) = (trace.id, trace.sample);
                    dropped.push(Dropped { id, sample, step: Step::Balance, reason });
                }
            }
        }
        Ok(balanced)
    }
}

fn by_id<'a>(train: &'a [Prompt], validation: &'a [Prompt]) -> HashMap<&'a str, &'a Prompt> {
    train.iter().chain(validation).map(|prompt| (prompt.id.as_str(), prompt)).collect()
}

fn known_answers(prompts: &[Prompt]) -> HashMap<String, String> {
    prompts.iter().filter_map(|prompt| Some((prompt.id.clone(), prompt.answer.clone()?))).collect()
}

fn last_turn(prompt: &Prompt) -> &str {
    prompt.messages.last().map_or("", |message| message.content.as_str())
}

/// Prompts whose last turn is a held-out prompt's, letter for letter.
fn tainted<'a>(train: &'a [Prompt], held_out: &[Prompt]) -> HashSet<&'a str> {
    let equal: HashSet<&str> = held_out.iter().map(last_turn).collect();
    train.iter().filter(|prompt| equal.contains(last_turn(prompt))).map(|prompt| prompt.id.as_str()).collect()
}

fn contamination(train: &[Prompt], held_out: &[Prompt]) -> Contamination {
    fn text(prompt: &Prompt) -> (&str, &str) {
        (prompt.id.as_str(), last_turn(prompt))
    }
    decontamination::contamination(train.iter().map(text), held_out.iter().map(text))
}

fn nothing_left(summary: &Summary) -> Failure {
    let dropped: Vec<String> = summary.dropped.iter().map(|(step, n)| format!("{n} by {step}")).collect();
    Failure::new(Exit::BadData, "curation left nothing to train on")
        .code("nothing-left")
        .detail(format!("{} traces seen; dropped: {}", summary.seen, dropped.join(", ")))
        .fix("look at `corpus/dropped.jsonl`; a larger `teacher.max_tokens` or a better teacher may help")
}
