//! Stage `prompts`: what is asked, in three parts that share nothing.

use std::cell::Cell;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use stillroom_core::{CounterRng, Prompt};
use stillroom_corpus::curation::{Dropped, Step, tool_use};
use stillroom_corpus::prompts::{Allowed, Files, Item, for_each, rows_of};
use stillroom_corpus::sources::Origin;
use stillroom_corpus::word_problems::{self, WordProblem};
use stillroom_corpus::{Split, Verifier};
use stillroom_store::{atomic_write_with, digest_file};

use crate::failure::{Exit, Failure, Result};
use crate::flow::Flow;
use crate::flow::spool::{Note, Spool};
use crate::recipe::{PromptSource, Recipe, ToolCalls};

pub(crate) const STAGE: &str = "prompts";
pub(super) const FOLDER: &str = "corpus/prompts";
/// Held-out items are taken in one order under every seed, so that runs can be compared.
const HELD_OUT_ORDER: u64 = 0;

/// A text that is learned as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Document {
    pub(crate) id: String,
    pub(crate) text: String,
}

impl Flow {
    pub(crate) fn learns_text(&self) -> bool {
        matches!(self.recipe.prompts.source, PromptSource::Text { .. })
    }

    /// Whether anybody learns from what the teacher writes.
    pub(crate) fn asks_for_traces(&self) -> bool {
        self.recipe.asks_for_traces()
    }

    /// Draws or reads the data, parts it, and writes the parts down.
    pub(crate) fn prompts(&mut self) -> Result<()> {
        let recipe = &self.recipe;
        let digests = match &recipe.prompts.source {
            PromptSource::Task { .. } => Vec::new(),
            PromptSource::Chat { path } | PromptSource::Text { path } => self.source_digests(path)?,
        };
        let worked = recipe.teacher.is_none();
        let mut settings = vec![json!(1), json!(recipe.prompts), json!(recipe.evaluate.num_examples)];
        settings.extend([json!(worked), json!(digests)]);
        if recipe.student.is_nobody() {
            settings.push(json!("nothing is held out"));
        }
        if recipe.curate.tool_calls == ToolCalls::Keep {
            settings.push(json!(recipe.curate.tool_calls));
        }
        if !recipe.curate.sources.allow_all() {
            settings.push(json!(recipe.curate.sources));
        }
        if let Some(field) = recipe.curate.class_field() {
            settings.push(json!({ "class": field }));
        }
        settings.extend(self.rows_settings()?);
        self.stage(STAGE, &settings, &[], &[FOLDER], |flow| {
            let parts = match flow.recipe.prompts.source.clone() {
                PromptSource::Task { .. } => flow.draw_problems(worked)?,
                PromptSource::Chat { path } | PromptSource::Text { path } => return flow.part_data(&path),
            };
            for (split, prompts) in Split::ALL.iter().zip(&parts) {
                flow.write_lines(&format!("{FOLDER}/{split}.jsonl"), prompts)?;
            }
            Ok(())
        })
    }

    /// The prompts of a part one by one, whatever their number.
    pub(crate) fn prompt_rows(&self, split: Split) -> Result<impl Iterator<Item = Result<Prompt>> + use<>> {
        self.lines_of(&format!("{FOLDER}/{split}.jsonl"))
    }

    /// The prompts of a part, as the stage wrote them.
    pub(crate) fn prompts_of(&self, split: Split) -> Result<Vec<Prompt>> {
        self.prompt_rows(split)?.collect()
    }

    /// The prompts of a part as `change` leaves them: all of them at once may be much.
    pub(crate) fn prompts_changed(&self, split: Split, change: impl Fn(&mut Prompt)) -> Result<Vec<Prompt>> {
        let changed = self.prompt_rows(split)?.map(|prompt| {
            let mut prompt = prompt?;
            change(&mut prompt);
            Ok(prompt)
        });
        changed.collect()
    }

    pub(crate) fn texts_of(&self, split: Split) -> Result<Vec<Document>> {
        self.read_lines(&format!("{FOLDER}/{split}.jsonl"))
    }

    /// What judges replies, where the recipe has it.
    pub(crate) fn verifier(&self) -> Option<Arc<dyn Verifier>> {
        self.judge.clone()
    }

    /// The files that the data is read from, each with its digest: which part a row belongs to, and what it is called where
    /// it has no id, is in their names.
    fn source_digests(&self, path: &str) -> Result<Vec<(String, String)>> {
        let root = self.source.resolve_path(path);
        if !root.exists() {
            return Err(Failure::new(Exit::Io, format!("there is no data at `{}`", root.display()))
                .code("no-data")
                .at(self.source.place(&["prompts", "path"]))
                .fix("check the path; it is looked for beside the recipe, then in the working directory"));
        }
        let digest = |file: &PathBuf| {
            let name = file.strip_prefix(&root).unwrap_or(file).display().to_string();
            Ok((name, digest_file(file)?.0.to_string()))
        };
        let files = Files::of(&root, &self.recipe.prompts.choice)?;
        // Which part a file is in may be the card's to say.
        files.all().chain(&files.card).map(digest).collect()
    }

    fn draw_problems(&mut self, worked: bool) -> Result<[Vec<Prompt>; 3]> {
        let (prompts, alone) = (&self.recipe.prompts, self.recipe.student.is_nobody());
        let wanted = [
            (Split::Train, prompts.num_examples.unwrap_or(0)),
            (Split::Validation, if alone { 0 } else { prompts.num_validation }),
            (Split::HeldOut, if alone { 0 } else { self.recipe.evaluate.num_examples }),
        ];
        let problems = wanted.map(|(split, n)| {
            // Held-out problems are the same under every seed.
            let seed = if split == Split::HeldOut { HELD_OUT_ORDER } else { prompts.seed };
            word_problems::problems(seed, split, n)
        });
        let all: Vec<WordProblem> = problems.iter().flatten().cloned().collect();
        word_problems::check_disjoint(&all)?;
        let prompt = |problem: &WordProblem| {
            let prompt = problem.prompt();
            if worked { Prompt { target: Some(problem.worked()), ..prompt } } else { prompt }
        };
        Ok(problems.map(|part| part.iter().map(prompt).collect()))
    }

    /// Reads the data row by row, and writes the parts of it that are wanted.
    fn part_data(&mut self, path: &str) -> Result<()> {
        let Gathered { mut spool, mut parts } = self.gather(path)?;
        let alone = self.recipe.student.is_nobody();
        let (prompts, held_out) = (&self.recipe.prompts, self.recipe.evaluate.num_examples);
        let n_train = prompts.num_examples.unwrap_or(usize::MAX);
        let wanted = if alone { [n_train, 0, 0] } else { [n_train, prompts.num_validation, held_out] };
        let seeds = [prompts.seed, prompts.seed, HELD_OUT_ORDER];
        for (part, split) in parts.iter_mut().zip(Split::ALL) {
            if part.is_empty() && !(alone && split != Split::Train) {
                return Err(self.nothing_for(split)?);
            }
            // Where nobody is trained every row is to be answered, in the order of the file.
            if !alone {
                CounterRng::new(&[0x7061_7274, seeds[split as usize], split as u64]).shuffle(part);
            }
            part.truncate(wanted[split as usize]);
            if let Some(note) = part.iter().find(|note| note.is_text && !self.learns_text()) {
                return Err(self.no_prompt(spool.item(*note)?.id()));
            }
        }
        for (part, split) in parts.iter().zip(Split::ALL) {
            self.write_rows(&mut spool, part, split)?;
        }
        Ok(())
    }

    /// All rows that may be used, parted; those that may not are written down.
    fn gather(&self, path: &str) -> Result<Gathered> {
        let root = self.source.resolve_path(path);
        let mut gathered =
            Gathered { spool: Spool::create(&self.run.dir(FOLDER)?)?, parts: Default::default() };
        let (mut refused, mut with_tools) = (Vec::new(), [const { Vec::new() }; 3]);
        let mut templates: [Option<Prompt>; 3] = Default::default();
        let keeps_tools = self.keeps_tools();
        // Of the row that was looked at last.
        let class = Cell::new(None);
        let each = |split: Split, item: Item| -> Result<()> {
            let i = split as usize;
            if let Some((prompt, reason)) =
                item.as_prompt().and_then(|prompt| Some((prompt, tool_use(prompt)?)))
            {
                if !keeps_tools {
                    let (id, reason) = (item.id().to_owned(), reason.to_owned());
                    with_tools[i].push(Dropped { id, sample: 0, step: Step::ToolCalls, reason });
                    return Ok(());
                }
                templates[i].get_or_insert_with(|| prompt.clone());
            }
            let note = gathered.spool.push(item, class.take())?;
            gathered.parts[i].push(note);
            Ok(())
        };
        let mut passes = self.allowed(&mut refused);
        let mut allowed = |item: &Item, origin: &Origin, file: &str| {
            class.set(origin.class.clone());
            passes(item, origin, file)
        };
        each_row(&self.recipe, &root, &mut allowed, each)?;
        drop(passes);
        templates.iter().flatten().try_for_each(|prompt| self.check_template(prompt))?;
        refused.extend(with_tools.into_iter().flatten());
        if !self.recipe.student.is_nobody() {
            self.refuse_rows(&mut gathered.parts, &mut gathered.spool, &mut refused)?;
        }
        self.write_refused(&refused)?;
        Ok(gathered)
    }

    fn write_rows(&self, spool: &mut Spool, part: &[Note], split: Split) -> Result<()> {
        let path = self.run.path(&format!("{FOLDER}/{split}.jsonl"))?;
        atomic_write_with(&path, |out| {
            let mut out = BufWriter::new(out);
            let failed = |e: std::io::Error| Failure::io("write", &path, &e);
            for note in part {
                let mut line = match self.learns_text() && !note.is_text {
                    true => as_text(spool.item(*note)?)?,
                    false => spool.bytes(*note)?,
                };
                line.push(b'\n');
                out.write_all(&line).map_err(failed)?;
            }
            out.flush().map_err(failed)
        })
    }

    fn no_prompt(&self, id: &str) -> Failure {
        Failure::new(Exit::BadData, format!("`{id}` is a text without a question"))
            .at(self.source.place(&["prompts", "path"]))
            .fix("write `kind = \"text\"` under `[prompts]` to learn texts as they stand")
    }

    /// Whether a row's source allows it to be used; those that it does not are `refused`.
    fn allowed(&self, refused: &mut Vec<Dropped>) -> impl FnMut(&Item, &Origin, &str) -> bool {
        let rules = &self.recipe.curate.sources;
        move |item, origin, file| {
            let Some(reason) = rules.refuse(origin, file) else { return true };
            refused.push(Dropped { id: item.id().to_owned(), sample: 0, step: Step::Source, reason });
            false
        }
    }

    fn nothing_for(&self, split: Split) -> Result<Failure> {
        let failure = Failure::new(Exit::BadData, format!("the data has nothing for {split}"))
            .code("no-data")
            .at(self.source.place(&["prompts", "path"]));
        let refused = self.refused()?;
        let with_tools = refused.iter().filter(|drop| drop.step == Step::ToolCalls).count();
        Ok(match (refused.len() - with_tools, with_tools) {
            (0, 0) => {
                failure.fix("give more rows, or put `validation.jsonl` and `test.jsonl` beside `train.jsonl`")
            }
            (0, n) => failure
                .detail(format!("{n} rows with tool calls were left out"))
                .fix("give rows without tools, or write `tool_calls = \"keep\"` under `[curate]`"),
            (n, _) => failure
                .detail(format!("{n} rows were left out; `corpus/prompts/refused.jsonl` has the reasons"))
                .fix("give more rows, or ask less of them under `[curate]`"),
        })
    }
}

/// Goes through the rows of a recipe's data, with the part of each. Where nobody is trained nothing is held out.
pub(super) fn each_row(
    recipe: &Recipe,
    root: &Path,
    allowed: &mut Allowed<'_>,
    mut each: impl FnMut(Split, Item) -> Result<()>,
) -> Result<()> {
    let class_field = recipe.curate.class_field().map(str::to_owned);
    let files = Files { class_field, ..Files::of(root, &recipe.prompts.choice)? };
    match recipe.student.is_nobody() {
        true => rows_of(&files, Split::Train, allowed, |item| each(Split::Train, item)),
        false => for_each(&files, allowed, each),
    }
}

/// What was read, and where each row of a part lies.
struct Gathered {
    spool: Spool,
    parts: [Vec<Note>; 3],
}

/// Question and target of a row as one text.
fn as_text(item: Item) -> Result<Vec<u8>> {
    let document = match item {
        Item::Text { id, text } => Document { id, text },
        Item::Prompt(Prompt { id, messages, target, .. }) => {
            let turns = messages.iter().chain(&target).map(|message| message.content.as_str());
            Document { id, text: turns.collect::<Vec<_>>().join("\n") }
        }
    };
    serde_json::to_vec(&document)
        .map_err(|e| Failure::new(Exit::Failed, format!("a row cannot be written as JSON: {e}")))
}
