//! What `recipes/experiments/experiments.toml` says.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::sums::Form;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    /// What all variants have in common; beside the description.
    pub(super) recipe: String,
    /// Trains their teacher.
    pub(super) teacher: String,
    pub(super) seeds: Vec<u64>,
    pub(super) variants: BTreeMap<String, Variant>,
    pub(super) experiments: BTreeMap<String, Experiment>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Variant {
    pub(super) label: String,
    /// Overrides of the recipe, as `--set` takes them.
    pub(super) set: Vec<String>,
    /// Another recipe than the description's, without its teacher and text; beside the description.
    pub(super) recipe: Option<String>,
    /// Learns sums in this form.
    pub(super) sums: Option<Form>,
    /// Starts from the student of this variant and the first seed, under every seed; else from random weights.
    pub(super) start: Option<String>,
    /// Learns from the student of this variant and the first seed, under every seed; else from the description's teacher,
    /// or from none with a recipe of its own.
    pub(super) teacher: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Experiment {
    pub(super) title: String,
    pub(super) variants: Vec<String>,
    pub(super) compare: Vec<Comparison>,
    /// Instead of the description's.
    pub(super) seeds: Option<Vec<u64>>,
    /// What else is measured of its students.
    #[serde(default)]
    pub(super) measure: Vec<Measure>,
}

/// A mode of the example `fidelity` of `crates/model`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Measure {
    /// Of the gradient from what a cache keeps, for the first seed's students.
    Angle,
    /// What teacher and student think of what the student writes.
    Samples,
}

/// What `a` has less what `b` has.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Comparison {
    pub(super) a: String,
    pub(super) b: String,
    /// Which of the numbers is compared.
    #[serde(default)]
    pub(super) of: Quantity,
    /// As a share of `b`'s.
    #[serde(default)]
    pub(super) relative: bool,
    /// Where the interval was expected to lie, before the first run; `inf` for no bound.
    pub(super) expected: [f64; 2],
}

/// What is compared, per held-out token.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Quantity {
    /// −log q of the text's own token.
    #[default]
    Loss,
    /// KL(teacher‖student), over the whole vocabulary.
    KlToTeacher,
    /// 1 for a right answer, 0 for a wrong one, per held-out problem.
    Accuracy,
    /// KL(student‖teacher) on what the student continues held-out texts by.
    OwnReverseKl,
    /// The same in the last quarter of each such text.
    OwnReverseKlLastQuarter,
}

impl Quantity {
    /// Behind the names of two variants; nothing for the held-out loss.
    pub(super) fn in_words(self) -> &'static str {
        match self {
            Quantity::Loss => "",
            Quantity::KlToTeacher => ", KL to the teacher",
            Quantity::Accuracy => ", share of right answers",
            Quantity::OwnReverseKl => ", reverse KL on own text",
            Quantity::OwnReverseKlLastQuarter => ", reverse KL in the last quarter of own text",
        }
    }
}

impl Description {
    pub(super) fn seeds_of<'a>(&'a self, experiment: &'a Experiment) -> &'a [u64] {
        experiment.seeds.as_deref().unwrap_or(&self.seeds)
    }

    pub(super) fn read(path: &Path) -> Result<Description, String> {
        let bad = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| bad(&e))?;
        let description: Description = toml::from_str(&text).map_err(|e| bad(&e))?;
        for (name, variant) in &description.variants {
            let of = variant.start.iter().chain(&variant.teacher);
            if let Some(absent) = of.into_iter().find(|v| !description.variants.contains_key(*v)) {
                return Err(bad(&format!("`{name}` wants the student of `{absent}`, which is no variant")));
            }
        }
        for (name, experiment) in &description.experiments {
            let compared = experiment.compare.iter().flat_map(|c| [&c.a, &c.b]);
            let unknown = compared.clone().chain(&experiment.variants);
            if let Some(unknown) = unknown.into_iter().find(|v| !description.variants.contains_key(*v)) {
                return Err(bad(&format!("`{name}` names `{unknown}`, which is no variant")));
            }
            if let Some(absent) = compared.into_iter().find(|v| !experiment.variants.contains(v)) {
                return Err(bad(&format!("`{name}` compares `{absent}` without training it")));
            }
        }
        Ok(description)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_description_is_whole() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/experiments/experiments.toml");
        let description = Description::read(&path).unwrap();
        assert!(description.seeds.len() >= 3, "an interval over seeds needs some");
        let others = description.variants.values().filter_map(|variant| variant.recipe.as_ref());
        for recipe in [&description.recipe, &description.teacher].into_iter().chain(others) {
            assert!(path.with_file_name(recipe).is_file(), "{recipe}");
        }
    }

    #[test]
    fn a_name_that_is_no_variant_is_refused() {
        let dir = std::env::temp_dir().join(format!("stillroom-description-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("some.toml");
        let text = "recipe = 'r'\nteacher = 't'\nseeds = [1]\n[variants.a]\nlabel = 'a'\nset = []\n\
                    [experiments.e]\ntitle = 't'\nvariants = ['a']\ncompare = [{ a = 'a', b = 'c', expected = [0.0, inf] }]\n";
        std::fs::write(&path, text).unwrap();
        let error = Description::read(&path).unwrap_err();
        assert!(error.contains("`e` names `c`, which is no variant"), "{error}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
