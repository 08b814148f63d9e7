//! `[[teacher.ensemble]]`: further teachers, and what each has of the mixture.

use serde::Serialize;
use stillroom_model::MIXED_MAX;

use super::raw::RawEnsembleTeacher;
use super::resolve::Checker;
use super::{Teacher, TeacherKind, Train};
use crate::failure::Result;

/// Where it stands in a recipe.
pub(crate) const KEY: [&str; 2] = ["teacher", "ensemble"];
const WEIGHT: [&str; 2] = ["teacher", "weight"];
/// Only what weights are beside each other counts.
const WEIGHTS: std::ops::RangeInclusive<f64> = 1e-6..=1e6;

/// A teacher beside the first one, with weights on this machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct EnsembleTeacher {
    /// The ID that the licence gate sees.
    pub(crate) model: String,
    pub(crate) path: String,
    pub(crate) weight: f64,
}

/// The first teacher's weight, where there are others, and those.
pub(super) fn ensemble(
    at: &Checker<'_>,
    kind: TeacherKind,
    weight: Option<f64>,
    raw: Option<Vec<RawEnsembleTeacher>>,
) -> Result<(Option<f64>, Vec<EnsembleTeacher>)> {
    let weight = at.number(&WEIGHT, weight.unwrap_or(1.0), WEIGHTS)?;
    let raw = raw.unwrap_or_default();
    if raw.is_empty() {
        // One teacher is the whole mixture, whatever it weighs.
        return Ok((None, Vec::new()));
    }
    if kind != TeacherKind::Local {
        return Err(at
            .bad(&KEY, "several teachers are mixed on this machine")
            .fix("write `kind = \"local\"`, or remove `ensemble`"));
    }
    if raw.len() >= MIXED_MAX {
        let cause = format!("{} teachers, of at most {MIXED_MAX}", raw.len() + 1);
        return Err(at.bad(&KEY, cause).fix("keep those that matter most"));
    }
    let further = |raw: RawEnsembleTeacher| {
        let path = at.path(&KEY, raw.path)?;
        let path =
            at.need(&KEY, path, "give each further teacher a `path`: its directory or `.gguf` file")?;
        let model = raw.model.unwrap_or_else(|| path.clone());
        at.no_environment(&KEY, &model)?;
        Ok(EnsembleTeacher { model, path, weight: at.number(&KEY, raw.weight.unwrap_or(1.0), WEIGHTS)? })
    };
    let others = raw.into_iter().map(further).collect::<Result<_>>()?;
    Ok((Some(weight), others))
}

/// Refuses what can be learned from one teacher alone.
pub(super) fn check_use(at: &Checker<'_>, teacher: Option<&Teacher>, train: &Train) -> Result<()> {
    if teacher.is_none_or(|teacher| teacher.ensemble.is_empty()) {
        return Ok(());
    }
    let what = if train.compares_two_vocabularies() {
        "`uld` and `gold` compare"
    } else if train.needs_likelihoods() {
        "`alm` compares"
    } else if train.hidden_alignment.is_some() {
        "`hidden_alignment` compares"
    } else {
        return Ok(());
    };
    Err(at
        .bad(&KEY, format!("{what} a student with one teacher, and there are several"))
        .fix("remove `[[teacher.ensemble]]`, or learn from distributions over the student's vocabulary"))
}

impl Teacher {
    /// What each teacher has of the mixture, the first one first.
    pub(crate) fn shares(&self) -> Vec<f64> {
        let weights =
            std::iter::once(self.weight.unwrap_or(1.0)).chain(self.ensemble.iter().map(|t| t.weight));
        let total: f64 = weights.clone().sum();
        weights.map(|weight| weight / total).collect()
    }

    /// IDs of all teachers, the first one first.
    pub(crate) fn models(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.model.as_str()).chain(self.ensemble.iter().map(|teacher| teacher.model.as_str()))
    }

    /// All teachers in words: their IDs and, of several, their shares.
    pub(crate) fn in_words(&self) -> String {
        if self.ensemble.is_empty() {
            return self.model.clone();
        }
        let named = |(model, share): (&str, f64)| format!("{model} ({:.1} %)", 100.0 * share);
        self.models().zip(self.shares()).map(named).collect::<Vec<_>>().join(" + ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{load, loaded};

    const WHOLE: &str = r#"
        [student]
        kind = "from_layers"
        layers = [0, 3]
        [teacher]
        kind = "local"
        path = "assets/teacher"
        model = "us:teacher"
        weight = 3
        logits = { kind = "live" }
        [[teacher.ensemble]]
        path = "assets/other"
        model = "us:other"
        [[teacher.ensemble]]
        path = "assets/third"
        weight = 0.5
        [prompts]
        task = "word_problems"
        num_examples = 100
    "#;

    #[test]
    fn teachers_have_weights_and_read_back_as_themselves() {
        let recipe = loaded(WHOLE, &[]);
        let teacher = recipe.teacher.unwrap();
        let of = |model: &str, path: &str, weight| EnsembleTeacher {
            model: model.to_owned(),
            path: path.to_owned(),
            weight,
        };
        let expected = [of("us:other", "assets/other", 1.0), of("assets/third", "assets/third", 0.5)];
        assert_eq!(teacher.ensemble, expected);
        assert_eq!(teacher.shares(), [3.0 / 4.5, 1.0 / 4.5, 0.5 / 4.5]);
        assert_eq!(teacher.in_words(), "us:teacher (66.7 %) + us:other (22.2 %) + assets/third (11.1 %)");
    }

    #[test]
    fn one_teacher_is_written_as_it_always_was() {
        let recipe = load(WHOLE, &["teacher.ensemble=[]"]).unwrap_or_else(|e| panic!("{e}"));
        let text = recipe.to_toml();
        assert!(!text.contains("ensemble") && !text.contains("weight = 3"), "{text}");
        let teacher = recipe.teacher.unwrap();
        assert!(teacher.weight.is_none() && teacher.in_words() == "us:teacher");
    }

    #[test]
    fn what_cannot_be_mixed_is_refused_with_its_key() {
        let losses = |name: &str| format!("train.loss_functions=[{{ function = \"{name}\" }}]");
        let refused = [
            ("teacher.weight=0".to_owned(), "`teacher.weight` is 0; it lies between"),
            ("teacher.ensemble=[{ path = \"x\", weight = -1 }]".to_owned(), "is -1; it lies between"),
            ("teacher.ensemble=[{ model = \"x\" }]".to_owned(), "`teacher.ensemble` is missing"),
            ("teacher.ensemble=[{ path = \"x\", kind = \"local\" }]".to_owned(), "unknown"),
            (format!("teacher.ensemble=[{}]", "{ path = \"x\" }, ".repeat(8)), "9 teachers, of at most 8"),
            ("teacher.kind=openai".to_owned(), "several teachers are mixed on this machine"),
            (losses("uld"), "`uld` and `gold` compare a student with one teacher"),
            (losses("alm"), "`alm` compares a student with one teacher"),
            ("train.hidden_alignment={}".to_owned(), "`hidden_alignment` compares a student with one"),
        ];
        for (set, cause) in refused {
            let shown = load(WHOLE, &[&set]).expect_err(&set).to_string();
            assert!(shown.contains(cause), "{set}: {shown}");
            assert!(shown.contains("-->"), "{set}: {shown}");
        }
    }
}
