//! `[curate]`: which traces a student may learn from.

use serde::Serialize;
use stillroom_corpus::balance::By;
use stillroom_corpus::contaminants;
use stillroom_corpus::filters::Filters;
use stillroom_corpus::language;
use stillroom_corpus::pass_rate::{Keep, Window};
use stillroom_corpus::pii::Class;
use stillroom_corpus::shingles::{Shingling, Unit};
use stillroom_corpus::sources::{DataSource, SourceRules};

use super::raw::{RawCurate, RawDataSource};
use super::resolve::{Checker, first_given};
use super::{PromptSource, Recipe, Source};
use crate::failure::Result;

/// Most files of evaluation items.
const FILES_MAX: usize = 256;
/// Most names in a list.
const NAMES_MAX: usize = 4096;
/// Below this, half of what is said twice would go.
const SIMILARITY_MIN: f64 = 0.2;
/// Longest shingle.
const NGRAM_MAX: usize = 64;
const NGRAM_WORDS: usize = 3;
const NGRAM_CHARACTERS: usize = 8;

/// Which of several traces for one prompt are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Select {
    #[default]
    All,
    /// Those with the answer that most have.
    Majority,
    /// The one with the best grade of `[feedback]`.
    BestOfN,
    /// The revision of each.
    Revised,
}

impl Select {
    fn is_all(&self) -> bool {
        *self == Select::All
    }
}

/// What becomes of rows that use tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToolCalls {
    /// They are left out and counted.
    Reject,
    /// They are learned as the chat templates write them.
    Keep,
}

impl ToolCalls {
    fn is_reject(&self) -> bool {
        *self == ToolCalls::Reject
    }
}

/// Of which text near-duplicates are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Compared {
    /// The conversation's last turn, reasoning and answer.
    Both,
    Prompt,
    Reply,
}

impl Compared {
    /// Those of the texts that are compared.
    pub(crate) fn of<'a>(
        self,
        asked: Option<&'a str>,
        replied: impl Iterator<Item = &'a str>,
    ) -> Vec<&'a str> {
        match self {
            Compared::Both => asked.into_iter().chain(replied).collect(),
            Compared::Prompt => asked.into_iter().collect(),
            Compared::Reply => replied.collect(),
        }
    }
}

/// Drops traces that say nearly the same as one before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Near {
    /// Least Jaccard similarity.
    #[serde(rename = "near_duplicates")]
    pub(crate) similarity: f64,
    #[serde(rename = "near_duplicates_of")]
    pub(crate) compared: Compared,
    #[serde(rename = "near_duplicates_unit")]
    pub(crate) unit: Unit,
    #[serde(rename = "near_duplicates_ngram")]
    pub(crate) n: usize,
}

impl Near {
    pub(crate) fn shingling(self) -> Shingling {
        Shingling { unit: self.unit, n: self.n }
    }
}

/// Drops traces that hold an evaluation item, nearly or word for word.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Decontamination {
    /// Files of items beside the held-out set.
    #[serde(rename = "decontaminate_against", skip_serializing_if = "Vec::is_empty")]
    pub(crate) against: Vec<String>,
    /// Share of an item's runs that is too much.
    #[serde(rename = "decontaminate_overlap")]
    pub(crate) overlap: f64,
}

/// What becomes of traces with personal data or secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PiiRule {
    Drop,
    Redact,
}

/// Looks for personal data and secrets in traces.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct TracePii {
    #[serde(rename = "pii")]
    pub(crate) rule: PiiRule,
    #[serde(rename = "pii_classes")]
    pub(crate) classes: Vec<Class>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Curate {
    /// Drop traces whose answer the verifier rejects.
    pub(crate) verify: bool,
    /// Drop what also stands in the held-out set.
    pub(crate) decontaminate: bool,
    #[serde(skip_serializing_if = "Select::is_all")]
    pub(crate) select: Select,
    /// What becomes of rows that use tools.
    #[serde(skip_serializing_if = "ToolCalls::is_reject")]
    pub(crate) tool_calls: ToolCalls,
    /// Drop prompts whose samples are right too often or too seldom.
    #[serde(flatten)]
    pub(crate) pass_rate: Option<Window>,
    /// Which of a prompt's traces that may be learned are.
    #[serde(skip_serializing_if = "Keep::is_all")]
    pub(crate) keep: Keep,
    #[serde(flatten)]
    pub(crate) pii: Option<TracePii>,
    #[serde(flatten)]
    pub(crate) filters: Filters,
    #[serde(flatten)]
    pub(crate) near: Option<Near>,
    #[serde(flatten)]
    pub(crate) decontamination: Option<Decontamination>,
    /// Most that one answer may have of the traces that are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_share_per_answer: Option<f64>,
    #[serde(flatten)]
    pub(crate) classes: Option<Classes>,
    #[serde(flatten)]
    pub(crate) sources: SourceRules,
}

/// Most that the rows of one class may have of the traces that are kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Classes {
    #[serde(rename = "max_share_per_class")]
    pub(crate) share: f64,
    /// The rows' field that says which class they are of.
    #[serde(rename = "class_field")]
    pub(crate) field: String,
}

impl Curate {
    /// What is to be balanced, and the most that one of it may have.
    pub(crate) fn balance(&self) -> Option<(By, f64)> {
        let answers = self.max_share_per_answer.map(|share| (By::Answer, share));
        answers.or(self.classes.as_ref().map(|classes| (By::Class, classes.share)))
    }

    pub(crate) fn class_field(&self) -> Option<&str> {
        self.classes.as_ref().map(|classes| classes.field.as_str())
    }
}

pub(super) fn curate(at: &Checker<'_>, raw: RawCurate) -> Result<Curate> {
    let known = [
        ("all", Select::All),
        ("majority", Select::Majority),
        ("best_of_n", Select::BestOfN),
        ("revised", Select::Revised),
    ];
    let select = at.choose(&key("select"), raw.select.as_deref().unwrap_or("all"), &known)?;
    let known = [("reject", ToolCalls::Reject), ("keep", ToolCalls::Keep)];
    let tool_calls = at.choose(&key("tool_calls"), raw.tool_calls.as_deref().unwrap_or("reject"), &known)?;
    let known = [("all", Keep::All), ("first", Keep::First), ("shortest", Keep::Shortest)];
    let keep = at.choose(&key("keep"), raw.keep.as_deref().unwrap_or("all"), &known)?;
    Ok(Curate {
        verify: raw.verify.unwrap_or(true),
        decontaminate: raw.decontaminate.unwrap_or(true),
        select,
        tool_calls,
        pass_rate: pass_rate(at, &raw)?,
        keep,
        pii: pii(at, &raw)?,
        near: near(at, &raw)?,
        decontamination: decontamination(at, &raw)?,
        max_share_per_answer: share(at, "max_share_per_answer", raw.max_share_per_answer, 0.001)?,
        classes: classes(at, &raw)?,
        sources: sources(at, &raw)?,
        filters: filters(at, raw)?,
    })
}

fn classes(at: &Checker<'_>, raw: &RawCurate) -> Result<Option<Classes>> {
    let share = share(at, "max_share_per_class", raw.max_share_per_class, 0.001)?;
    let (share, field) = match (share, &raw.class_field) {
        (None, None) => return Ok(None),
        (None, Some(_)) => {
            return Err(at.missing(&key("max_share_per_class"), "say how much one class may have"));
        }
        (Some(_), None) => {
            return Err(at.missing(&key("class_field"), "name the field of the rows that holds their class"));
        }
        (Some(share), Some(field)) => (share, field.clone()),
    };
    if raw.max_share_per_answer.is_some() {
        return Err(at
            .bad(
                &key("max_share_per_class"),
                "balance by class would undo the one by answer, or the other way round",
            )
            .fix("keep one of `max_share_per_class` and `max_share_per_answer`"));
    }
    Ok(Some(Classes { share, field }))
}

fn pass_rate(at: &Checker<'_>, raw: &RawCurate) -> Result<Option<Window>> {
    let least = share(at, "pass_rate_min", raw.pass_rate_min, 0.0)?;
    let most = share(at, "pass_rate_max", raw.pass_rate_max, 0.0)?;
    if let (Some(least), Some(most)) = (least, most)
        && least > most
    {
        let cause = format!("no share of samples is at least {least} and at most {most}");
        return Err(at.bad(&key("pass_rate_min"), cause).fix("exchange the two"));
    }
    Ok((least.is_some() || most.is_some()).then_some(Window { least, most }))
}

fn pii(at: &Checker<'_>, raw: &RawCurate) -> Result<Option<TracePii>> {
    let Some(rule) = raw.pii.as_deref() else {
        return match raw.pii_classes {
            None => Ok(None),
            Some(_) => Err(at
                .bad(
                    &key("pii_classes"),
                    "`curate.pii_classes` says what to look for, but not what to do with it",
                )
                .fix("write `pii = \"drop\"` or `pii = \"redact\"` beside it, or remove it")),
        };
    };
    let rule = at.choose(&key("pii"), rule, &[("drop", PiiRule::Drop), ("redact", PiiRule::Redact)])?;
    let known = Class::ALL.map(|class| (class.as_str(), class));
    let classes = match &raw.pii_classes {
        None => Class::ALL.to_vec(),
        Some(names) => {
            let classes: Result<Vec<_>> =
                names.iter().map(|name| at.choose(&key("pii_classes"), name, &known)).collect();
            classes?
        }
    };
    if classes.is_empty() {
        return Err(at
            .bad(&key("pii_classes"), "there is nothing to look for")
            .fix("name classes, or remove `pii`"));
    }
    Ok(Some(TracePii { rule, classes }))
}

fn key(name: &'static str) -> [&'static str; 2] {
    ["curate", name]
}

fn share(at: &Checker<'_>, name: &'static str, given: Option<f64>, least: f64) -> Result<Option<f64>> {
    given.map(|share| at.number(&key(name), share, least..=1.0)).transpose()
}

fn filters(at: &Checker<'_>, raw: RawCurate) -> Result<Filters> {
    let filters = Filters {
        min_completion_tokens: raw.min_completion_tokens,
        max_completion_tokens: raw.max_completion_tokens,
        min_chars: raw.min_chars,
        max_chars: raw.max_chars,
        max_paragraph_chars: raw.max_paragraph_chars,
        no_code_blocks: raw.no_code_blocks.unwrap_or(false),
        max_script_mixing: share(at, "max_script_mixing", raw.max_script_mixing, 0.0)?,
        languages: raw.languages.unwrap_or_default(),
        same_language: raw.same_language.unwrap_or(false),
        no_loops: raw.no_loops.unwrap_or(false),
        max_repeated_share: share(at, "max_repeated_share", raw.max_repeated_share, 0.0)?,
        no_refusals: raw.no_refusals.unwrap_or(false),
        no_self_identification: raw.no_self_identification.unwrap_or(false),
    };
    let known: Vec<_> = language::codes().map(|code| (code, ())).collect();
    for code in &filters.languages {
        at.choose(&key("languages"), code, &known)?;
    }
    let tokens = (filters.min_completion_tokens.map(u64::from), filters.max_completion_tokens.map(u64::from));
    let chars = (filters.min_chars.map(|n| n as u64), filters.max_chars.map(|n| n as u64));
    for (name, unit, bounds) in
        [("min_completion_tokens", "tokens", tokens), ("min_chars", "characters", chars)]
    {
        if let (Some(least), Some(most)) = bounds
            && least > most
        {
            let cause = format!("no trace has at least {least} and at most {most} {unit}");
            return Err(at.bad(&key(name), cause).fix("exchange the two"));
        }
    }
    Ok(filters)
}

fn near(at: &Checker<'_>, raw: &RawCurate) -> Result<Option<Near>> {
    let Some(similarity) = raw.near_duplicates else {
        let others = [
            ("near_duplicates_of", raw.near_duplicates_of.is_some()),
            ("near_duplicates_unit", raw.near_duplicates_unit.is_some()),
            ("near_duplicates_ngram", raw.near_duplicates_ngram.is_some()),
        ];
        return match first_given(others) {
            None => Ok(None),
            Some(name) => Err(at
                .bad(&key(name), format!("`curate.{name}` says how, but not how alike"))
                .fix("write `near_duplicates = 0.8` beside it, or remove it")),
        };
    };
    let known = [("both", Compared::Both), ("prompt", Compared::Prompt), ("reply", Compared::Reply)];
    let of = raw.near_duplicates_of.as_deref().unwrap_or("both");
    let compared = at.choose(&key("near_duplicates_of"), of, &known)?;
    let known = [("words", Unit::Words), ("characters", Unit::Characters)];
    let unit = raw.near_duplicates_unit.as_deref().unwrap_or("words");
    let unit = at.choose(&key("near_duplicates_unit"), unit, &known)?;
    let default = if unit == Unit::Words { NGRAM_WORDS } else { NGRAM_CHARACTERS };
    let n = raw.near_duplicates_ngram.unwrap_or(default);
    Ok(Some(Near {
        similarity: at.number(&key("near_duplicates"), similarity, SIMILARITY_MIN..=1.0)?,
        compared,
        unit,
        n: at.count(&key("near_duplicates_ngram"), n, 1..=NGRAM_MAX)?,
    }))
}

fn decontamination(at: &Checker<'_>, raw: &RawCurate) -> Result<Option<Decontamination>> {
    let against = raw.decontaminate_against.clone().unwrap_or_default();
    if against.is_empty() && raw.decontaminate_overlap.is_none() {
        return Ok(None);
    }
    at.count(&key("decontaminate_against"), against.len(), 0..=FILES_MAX)?;
    for path in &against {
        at.path(&key("decontaminate_against"), Some(path.clone()))?;
    }
    if against.is_empty() && raw.decontaminate == Some(false) {
        return Err(at
            .bad(&key("decontaminate_overlap"), "there is nothing to compare with")
            .fix("remove `decontaminate = false`, or name files in `decontaminate_against`"));
    }
    let overlap = raw.decontaminate_overlap.unwrap_or(contaminants::OVERLAP);
    let overlap = at.number(&key("decontaminate_overlap"), overlap, 0.1..=1.0)?;
    Ok(Some(Decontamination { against, overlap }))
}

fn sources(at: &Checker<'_>, raw: &RawCurate) -> Result<SourceRules> {
    let licences = match (&raw.allowed_licences, &raw.allowed_licenses) {
        (Some(_), Some(_)) => {
            return Err(at
                .bad(&key("allowed_licenses"), "`allowed_licences` and `allowed_licenses` are one key")
                .fix("keep one of them"));
        }
        (given, other) => given.clone().or_else(|| other.clone()).unwrap_or_default(),
    };
    at.count(&key("allowed_licences"), licences.len(), 0..=NAMES_MAX)?;
    let sources = raw.sources.clone().unwrap_or_default();
    at.count(&key("sources"), sources.len(), 0..=NAMES_MAX)?;
    let source = |source: RawDataSource| DataSource {
        licence: source.licence.or(source.license),
        opt_out: source.opt_out.unwrap_or(false),
    };
    let rules = SourceRules {
        allowed_licences: licences,
        respect_opt_outs: raw.respect_opt_outs.unwrap_or(false),
        sources: sources.into_iter().map(|(name, raw)| (name, source(raw))).collect(),
    };
    if rules.allow_all() && !rules.sources.is_empty() {
        return Err(at
            .bad(&key("sources"), "what is said of sources is asked by nobody")
            .fix("write `respect_opt_outs = true` or `allowed_licences = [\"…\"]` beside it"));
    }
    Ok(rules)
}

/// Refuses keys that would drop nothing.
pub(super) fn check_use(source: &Source, recipe: &Recipe) -> Result<()> {
    let (curate, filters) = (&recipe.curate, &recipe.curate.filters);
    let of_traces = [
        ("select", !curate.select.is_all()),
        ("min_completion_tokens", filters.min_completion_tokens.is_some()),
        ("max_completion_tokens", filters.max_completion_tokens.is_some()),
        ("max_paragraph_chars", filters.max_paragraph_chars.is_some()),
        ("no_code_blocks", filters.no_code_blocks),
        ("max_script_mixing", filters.max_script_mixing.is_some()),
        ("min_chars", filters.min_chars.is_some()),
        ("max_chars", filters.max_chars.is_some()),
        ("languages", !filters.languages.is_empty()),
        ("same_language", filters.same_language),
        ("no_loops", filters.no_loops),
        ("max_repeated_share", filters.max_repeated_share.is_some()),
        ("no_refusals", filters.no_refusals),
        ("no_self_identification", filters.no_self_identification),
        ("max_share_per_answer", curate.max_share_per_answer.is_some()),
        ("max_share_per_class", curate.classes.is_some()),
        ("pass_rate_min", curate.pass_rate.is_some()),
        ("keep", !curate.keep.is_all()),
        ("pii", curate.pii.is_some()),
    ];
    if let Some(name) = first_given(of_traces).filter(|_| !recipe.asks_for_traces()) {
        return Err(source
            .bad(&key(name), format!("`curate.{name}` drops traces, and nobody learns from any here"))
            .fix("remove it"));
    }
    if curate.pass_rate.is_some() && recipe.prompts.verifier.is_none() {
        return Err(source
            .bad(&key("pass_rate_min"), "only a verifier says which samples are right")
            .fix("name one as `prompts.verifier`, for example `numeric_answer`"));
    }
    if !matches!(recipe.prompts.source, PromptSource::Task { .. }) {
        return Ok(());
    }
    let of_rows = [
        ("allowed_licences", !curate.sources.allowed_licences.is_empty()),
        ("respect_opt_outs", curate.sources.respect_opt_outs),
        ("max_share_per_class", curate.classes.is_some()),
        ("near_duplicates", curate.near.is_some() && !recipe.asks_for_traces()),
        ("decontaminate_against", curate.decontamination.is_some() && !recipe.asks_for_traces()),
    ];
    match first_given(of_rows) {
        None => Ok(()),
        Some(name) => Err(source
            .bad(&key(name), format!("`curate.{name}` drops rows, and a task has none"))
            .fix("remove it")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ROWS, load, loaded};
    use super::*;

    fn curated(keys: &str) -> Result<Curate> {
        load(&format!("{ROWS}[curate]\n{keys}"), &[]).map(|recipe| recipe.curate)
    }

    #[test]
    fn without_the_keys_a_recipe_is_written_as_before() {
        let text = toml::to_string(&curated("").expect("a recipe")).expect("TOML");
        assert_eq!(text, "verify = true\ndecontaminate = true\n");
    }

    #[test]
    fn every_key_reads_back_as_itself() {
        let keys = r#"
            near_duplicates = 0.9
            near_duplicates_unit = "characters"
            decontaminate_against = ["a.jsonl"]
            max_share_per_answer = 0.25
            languages = ["eng", "deu"]
            same_language = true
            no_loops = true
            max_repeated_share = 0.5
            no_refusals = true
            no_self_identification = true
            min_chars = 1
            max_chars = 9
            keep = "shortest"
            pii = "redact"
            pii_classes = ["email", "secret"]
            allowed_licences = ["MIT"]
            respect_opt_outs = true
            [curate.sources."a b"]
            license = "MIT"
            opt_out = true
        "#;
        let recipe = loaded(&format!("{ROWS}[curate]\n{keys}"), &[]);
        let near = recipe.curate.near.expect("near-duplicates");
        assert_eq!((near.compared, near.n), (Compared::Both, NGRAM_CHARACTERS));
        let decontamination = recipe.curate.decontamination.expect("files");
        assert_eq!(decontamination.overlap, contaminants::OVERLAP);
    }

    #[test]
    fn a_share_of_classes_reads_back_as_itself() {
        let keys = "max_share_per_class = 0.25\nclass_field = \"topic\"\n";
        let recipe = loaded(&format!("{ROWS}[curate]\n{keys}"), &[]);
        assert_eq!(
            (recipe.curate.balance(), recipe.curate.class_field()),
            (Some((By::Class, 0.25)), Some("topic"))
        );
    }

    #[test]
    fn what_says_nothing_or_too_much_is_refused() {
        for keys in [
            "near_duplicates = 0.1",
            "near_duplicates = 1.5",
            "near_duplicates_of = \"reply\"",
            "near_duplicates = 0.8\nnear_duplicates_ngram = 0",
            "decontaminate = false\ndecontaminate_overlap = 0.5",
            "decontaminate_overlap = 0.0",
            "decontaminate_against = [\"${HOME}/x.jsonl\"]",
            "languages = [\"en\"]",
            "min_chars = 9\nmax_chars = 1",
            "pass_rate_min = 0.9\npass_rate_max = 0.1",
            "pass_rate_max = 0.9",
            "pii_classes = [\"email\"]",
            "pii = \"drop\"\npii_classes = []",
            "pii = \"drop\"\npii_classes = [\"name\"]",
            "keep = \"best\"",
            "max_share_per_answer = 0.0",
            "max_share_per_class = 0.5",
            "class_field = \"topic\"",
            "max_share_per_class = 0.5\nclass_field = \"topic\"\nmax_share_per_answer = 0.5",
            "sources = { x = { opt_out = true } }",
            "allowed_licences = []\nallowed_licenses = []",
        ] {
            assert!(curated(keys).is_err(), "{keys}");
        }
    }

    #[test]
    fn keys_that_would_drop_nothing_are_refused() {
        let texts = ROWS.replace("rows.jsonl", "texts.txt");
        let task = ROWS.replace("path = \"rows.jsonl\"", "task = \"word_problems\"\nnum_examples = 9");
        let works = |recipe: &str, keys: &str| load(&format!("{recipe}[curate]\n{keys}"), &[]).is_ok();
        for (keys, of_texts, of_task) in [
            ("", true, true),
            ("no_loops = true", false, true),
            ("max_completion_tokens = 9", false, true),
            ("no_code_blocks = true", false, true),
            ("max_share_per_answer = 0.5", false, true),
            ("max_share_per_class = 0.5\nclass_field = \"topic\"", false, false),
            ("near_duplicates = 0.8", true, true),
            ("decontaminate_against = [\"b.jsonl\"]", true, true),
            ("respect_opt_outs = true", true, false),
        ] {
            assert_eq!((works(&texts, keys), works(&task, keys)), (of_texts, of_task), "{keys}");
        }
    }
}
