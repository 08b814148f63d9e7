//! Keys of `train.hidden_alignment`: which layers of the student follow which of the teacher's.

use serde::Serialize;
use stillroom_distill::{AlignedLayers, LossTerm, LossWeight};
use stillroom_model::LayerPair;

use super::raw::RawHidden;
use super::resolve::{Checker, weight};
use super::{Logits, Pruned, Student, Teacher};
use crate::failure::Result;

/// Where it stands in a recipe.
pub(crate) const KEY: [&str; 2] = ["train", "hidden_alignment"];

/// What the directions of the student's hidden states follow, beside the losses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct HiddenAlignment {
    /// Pairs of a layer of the teacher and one of the student. Without: every layer of the student, evenly spread.
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<[usize; 2]>>,
    weight: LossWeight,
}

impl HiddenAlignment {
    /// Of a teacher and a student with so many layers.
    pub(crate) fn between(&self, n_teacher: usize, n_student: usize) -> AlignedLayers {
        let pair = |&[teacher, student]: &[usize; 2]| LayerPair { teacher, student };
        let layers = match &self.layers {
            Some(layers) => layers.iter().map(pair).collect(),
            None => AlignedLayers::evenly_spread(n_teacher, n_student),
        };
        AlignedLayers { layers, weight: self.weight }
    }
}

/// What is aligned, if anything is.
pub(super) fn alignment(
    at: &Checker<'_>,
    raw: Option<&RawHidden>,
    losses: &[LossTerm],
    student: &Student,
    teacher: Option<&Teacher>,
) -> Result<Option<HiddenAlignment>> {
    let Some(raw) = raw else { return Ok(None) };
    let weight = weight(at, &KEY, raw.weight)?;
    let layers = match &raw.layers {
        Some(pairs) => Some(pairs.iter().map(|pair| two(at, pair)).collect::<Result<Vec<_>>>()?),
        None => layers_kept(student, teacher),
    };
    let alignment = HiddenAlignment { layers, weight };
    alignment.between(1, 1).check(losses).map_err(|refused| {
        at.bad(&KEY, refused.to_string())
            .fix("change the pairs of `layers` or `loss_functions`, or remove `hidden_alignment`")
    })?;
    if weight.is_zero() {
        return Ok(None);
    }
    if !teacher.and_then(|teacher| teacher.logits).is_some_and(Logits::is_live) {
        return Err(at
            .bad(&KEY, "hidden states are not stored: only a live teacher has some")
            .fix("write `logits = { kind = \"live\" }` in `[teacher]`, or remove `hidden_alignment`"));
    }
    Ok(Some(alignment))
}

fn two(at: &Checker<'_>, pair: &[usize]) -> Result<[usize; 2]> {
    <[usize; 2]>::try_from(pair).map_err(|_| {
        at.bad(&KEY, format!("a pair has two layers, {pair:?} has {}", pair.len()))
            .fix("write `[TEACHER, STUDENT]`, counted from 0")
    })
}

/// Where the student was cut out of the teacher: each of its layers with the one that it was.
fn layers_kept(student: &Student, teacher: Option<&Teacher>) -> Option<Vec<[usize; 2]>> {
    let (path, layers) = match student {
        Student::FromLayers { path, layers, .. }
        | Student::Pruned(Pruned { path, layers: Some(layers), .. }) => (path, layers),
        _ => return None,
    };
    let of_teacher = path.is_none() || *path == teacher?.path;
    of_teacher.then(|| layers.iter().enumerate().map(|(student, &teacher)| [teacher, student]).collect())
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
        logits = { kind = "live" }
        [prompts]
        task = "word_problems"
        num_examples = 100
        [train]
        hidden_alignment = {}
        loss_functions = [{ function = "hard_labels" }]
        [policy.declare."us:teacher"]
        owner = "us"
        licence = "Apache-2.0"
    "#;

    fn aligned(overrides: &[&str]) -> Option<HiddenAlignment> {
        let recipe = loaded(WHOLE, overrides);
        let alignment = recipe.train.hidden_alignment.clone();
        // Its teacher is read beside hard labels alone, and there is something to control for.
        assert_eq!(recipe.targets().is_some_and(Logits::is_live), alignment.is_some());
        assert_eq!(recipe.train.distils(), alignment.is_some());
        alignment
    }

    #[test]
    fn layers_are_those_that_the_student_was_cut_from_or_evenly_spread_or_named() {
        let pairs = |overrides: &[&str]| -> Vec<[usize; 2]> {
            let layers = aligned(overrides).unwrap().between(6, 2).layers;
            layers.into_iter().map(|pair| [pair.teacher, pair.student]).collect()
        };
        assert_eq!(pairs(&[]), [[0, 0], [3, 1]]);
        assert_eq!(pairs(&["student.path=assets/teacher"]), [[0, 0], [3, 1]]);
        assert_eq!(pairs(&["student.path=assets/other"]), [[2, 0], [5, 1]]);
        let narrow = ["student.kind=pruned", "student.intermediate_size=64"];
        assert_eq!(pairs(&narrow), [[0, 0], [3, 1]]);
        assert_eq!(pairs(&["train.hidden_alignment.layers=[[4, 1], [0, 0]]"]), [[4, 1], [0, 0]]);
        let rising = aligned(&["train.hidden_alignment.weight={ from = 0, to = 2 }"]).unwrap();
        assert_eq!(rising.weight, LossWeight::Linear { from: 0.0, to: 2.0 });
        assert_eq!(aligned(&["train.hidden_alignment.weight=0"]), None);
    }

    #[test]
    fn what_has_no_hidden_states_to_follow_is_refused() {
        let refused = [
            ("teacher.logits={ kind = \"top_k\" }", "only a live teacher has some"),
            ("train.hidden_alignment.weight=-1", "it lies between 0 and"),
            ("train.hidden_alignment.layers=[]", "no pair of layers"),
            ("train.hidden_alignment.layers=[[1, 0], [1, 0]]", "[1, 0] stands twice"),
            ("train.hidden_alignment.layers=[[1, 0, 2]]", "[1, 0, 2] has 3"),
            ("train.hidden_alignment.layer=[[1, 0]]", "did you mean `layers`?"),
            ("train.loss_functions=[{ function = \"alm\" }]", "`alm` does not let the teacher read"),
            ("train.loss_functions=[{ function = \"dpo\" }]", "`dpo` does not let the teacher read"),
        ];
        for (set, cause) in refused {
            let shown = load(WHOLE, &[set]).expect_err(set).to_string();
            assert!(shown.contains(cause), "{set}: {shown}");
            assert!(shown.contains("-->") && shown.contains("fix: "), "{set}: {shown}");
        }
    }
}
