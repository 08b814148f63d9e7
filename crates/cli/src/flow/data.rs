//! Stage `prompts`: what is asked, in three parts that share nothing.

use std::io::{BufRead, BufReader};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use stillroom_core::{CounterRng, Prompt};
use stillroom_corpus::curation::{Dropped, Step};
use stillroom_corpus::prompts::{DataSet, Item, allowed_rows};
use stillroom_corpus::sources::Origin;
use stillroom_corpus::word_problems::{self, WordProblem};
use stillroom_corpus::{Split, Verifier};
use stillroom_store::digest_file;

use crate::failure::{Exit, Failure, Result};
use crate::flow::{Flow, unreadable};
use crate::recipe::{PromptSource, ToolCalls};

pub(crate) const STAGE: &str = "prompts";
const FOLDER: &str = "corpus/prompts";
/// Held-out items are taken in one order under every seed, so that runs can be compared.
const HELD_OUT_ORDER: u64 = 0;

/// A text that is learned as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Document {
    pub(crate) id: String,
    pub(crate) text: String,
}

/// One part of the data.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    Prompts(Vec<Prompt>),
    Texts(Vec<Document>),
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
        settings.extend(self.rows_settings()?);
        self.stage(STAGE, &settings, &[], &[FOLDER], |flow| {
            let parts = match flow.recipe.prompts.source.clone() {
                PromptSource::Task { .. } => flow.draw_problems(worked)?,
                PromptSource::Chat { path } | PromptSource::Text { path } => flow.read_data(&path)?,
            };
            for (split, part) in Split::ALL.iter().zip(&parts) {
                let file = format!("{FOLDER}/{split}.jsonl");
                match part {
                    Part::Prompts(prompts) => flow.write_lines(&file, prompts)?,
                    Part::Texts(texts) => flow.write_lines(&file, texts)?,
                }
            }
            Ok(())
        })
    }

    /// The prompts of a part one by one, whatever their number.
    pub(crate) fn prompt_rows(&self, split: Split) -> Result<impl Iterator<Item = Result<Prompt>> + use<>> {
        let path = self.run.path(&format!("{FOLDER}/{split}.jsonl"))?;
        let file = std::fs::File::open(&path).map_err(|e| Failure::io("open", &path, &e))?;
        Ok(BufReader::new(file).lines().map(move |line| {
            let line = line.map_err(|e| Failure::io("read", &path, &e))?;
            serde_json::from_str(&line).map_err(|e| unreadable(&path, &e))
        }))
    }

    /// The prompts of a part, as the stage wrote them.
    pub(crate) fn prompts_of(&self, split: Split) -> Result<Vec<Prompt>> {
        self.read_lines(&format!("{FOLDER}/{split}.jsonl"))
    }

    /// The prompts of a part as `change` leaves them: all of them at once may be much.
    pub(crate) fn prompts_changed(&self, split: Split, change: impl Fn(&mut Prompt)) -> Result<Vec<Prompt>> {
        let prompts = self.lines_of(&format!("{FOLDER}/{split}.jsonl"))?;
        let changed = prompts.map(|prompt: Result<Prompt>| {
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

    /// Digests of the files that the data is read from.
    fn source_digests(&self, path: &str) -> Result<Vec<String>> {
        let root = self.source.resolve_path(path);
        if !root.exists() {
            return Err(Failure::new(Exit::Io, format!("there is no data at `{}`", root.display()))
                .code("no-data")
                .at(self.source.place(&["prompts", "path"]))
                .fix("check the path; it is looked for beside the recipe, then in the working directory"));
        }
        let mut files = vec![root.clone()];
        if root.is_dir() {
            let entries = std::fs::read_dir(&root).map_err(|e| Failure::io("list", &root, &e))?;
            files = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
            files.sort();
        }
        files.iter().map(|file| Ok(digest_file(file)?.0.to_string())).collect()
    }

    fn draw_problems(&mut self, worked: bool) -> Result<[Part; 3]> {
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
        Ok(problems.map(|part| Part::Prompts(part.iter().map(prompt).collect())))
    }

    /// Where nobody is trained, nothing is held out: every row is to be answered, in the order of the file.
    fn read_all(&mut self, path: &str) -> Result<[Part; 3]> {
        let root = self.source.resolve_path(path);
        let file = if root.is_dir() { root.join("train.jsonl") } else { root };
        let mut refused = Vec::new();
        let items = allowed_rows(&file, &mut self.allowed(&mut refused))?;
        let mut parts = [items, Vec::new(), Vec::new()];
        self.refuse_tools(&mut parts, &mut refused)?;
        self.write_refused(&refused)?;
        let [mut items, ..] = parts;
        items.truncate(self.recipe.prompts.num_examples.unwrap_or(usize::MAX));
        if items.is_empty() {
            return Err(self.nothing_for(Split::Train)?);
        }
        Ok([self.only_prompts(items)?, Part::Prompts(Vec::new()), Part::Prompts(Vec::new())])
    }

    fn read_data(&mut self, path: &str) -> Result<[Part; 3]> {
        if self.recipe.student.is_nobody() {
            return self.read_all(path);
        }
        let as_text = self.learns_text();
        let mut refused = Vec::new();
        let data = DataSet::open_allowed(&self.source.resolve_path(path), &mut self.allowed(&mut refused))?;
        let n_train = self.recipe.prompts.num_examples.unwrap_or(usize::MAX);
        let wanted = [n_train, self.recipe.prompts.num_validation, self.recipe.evaluate.num_examples];
        let seeds = [self.recipe.prompts.seed, self.recipe.prompts.seed, HELD_OUT_ORDER];
        let mut parts = [data.train, data.validation, data.held_out];
        self.refuse_tools(&mut parts, &mut refused)?;
        self.refuse_rows(&mut parts, &mut refused)?;
        self.write_refused(&refused)?;
        let mut taken = Vec::with_capacity(3);
        for ((mut items, n), (seed, split)) in
            parts.into_iter().zip(wanted).zip(seeds.into_iter().zip(Split::ALL))
        {
            if items.is_empty() {
                return Err(self.nothing_for(split)?);
            }
            CounterRng::new(&[0x7061_7274, seed, split as u64]).shuffle(&mut items);
            items.truncate(n);
            taken.push(if as_text { texts(items) } else { self.only_prompts(items)? });
        }
        Ok(taken.try_into().unwrap_or_else(|_| unreachable!("three parts")))
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

    fn only_prompts(&self, items: Vec<Item>) -> Result<Part> {
        let prompts = items.into_iter().map(|item| match item {
            Item::Prompt(prompt) => Ok(prompt),
            Item::Text { id, .. } => {
                Err(Failure::new(Exit::BadData, format!("`{id}` is a text without a question"))
                    .at(self.source.place(&["prompts", "path"]))
                    .fix("write `kind = \"text\"` under `[prompts]` to learn texts as they stand"))
            }
        });
        Ok(Part::Prompts(prompts.collect::<Result<_>>()?))
    }
}

/// Question and target of a row are one text.
fn texts(items: Vec<Item>) -> Part {
    let text = |item: Item| match item {
        Item::Text { id, text } => Document { id, text },
        Item::Prompt(Prompt { id, messages, target, .. }) => {
            let turns = messages.iter().chain(&target).map(|message| message.content.as_str());
            Document { id, text: turns.collect::<Vec<_>>().join("\n") }
        }
    };
    Part::Texts(items.into_iter().map(text).collect())
}
