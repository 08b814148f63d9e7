//! Hidden states of the student held against those of a live teacher: of which layers, and how much they count.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use stillroom_formats::DecoderConfig;
use stillroom_model::{DivergenceError, HiddenAlignment, LayerPair};

use crate::losses::{LossFunction, LossTerm, LossWeight};
use crate::{DistillError, Result};

/// Layers whose outputs should point the same way, and the weight of that beside the other losses.
///
/// The loss of a supervised row is the mean over the pairs of 1 − cos(student's output, teacher's output), in the residual
/// stream behind the layers; that of a step, as of every loss, is the mean over supervised tokens. Source: Sanh et al.
/// 2019, "DistilBERT", section 3.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlignedLayers {
    /// Pairs \[teacher, student\], counted from 0.
    #[serde(serialize_with = "write_pairs", deserialize_with = "read_pairs")]
    pub layers: Vec<LayerPair>,
    pub weight: LossWeight,
}

fn write_pairs<S: Serializer>(layers: &[LayerPair], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(layers.iter().map(|pair| [pair.teacher, pair.student]))
}

fn read_pairs<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<LayerPair>, D::Error> {
    let pairs = Vec::<[usize; 2]>::deserialize(deserializer)?;
    Ok(pairs.into_iter().map(|[teacher, student]| LayerPair { teacher, student }).collect())
}

impl AlignedLayers {
    /// The name in recipes and records.
    pub const NAME: &'static str = "hidden_alignment";

    /// Every layer of the student with one of the teacher's, the last with the last, in equal steps.
    ///
    /// ```
    /// use stillroom_distill::AlignedLayers;
    /// let pairs = |teacher, student| -> Vec<[usize; 2]> {
    ///     let layers = AlignedLayers::evenly_spread(teacher, student);
    ///     layers.into_iter().map(|pair| [pair.teacher, pair.student]).collect()
    /// };
    /// assert_eq!(pairs(6, 3), [[1, 0], [3, 1], [5, 2]]);
    /// assert_eq!(pairs(5, 2), [[2, 0], [4, 1]]);
    /// assert_eq!(pairs(2, 3), [[0, 0], [1, 1], [1, 2]]);
    /// ```
    pub fn evenly_spread(n_teacher: usize, n_student: usize) -> Vec<LayerPair> {
        let of = |student: usize| ((student + 1) * n_teacher).div_ceil(n_student) - 1;
        (0..n_student).map(|student| LayerPair { teacher: of(student), student }).collect()
    }

    /// Refuses pairs that these models do not have, and states that are not of one width.
    pub fn check_models(&self, teacher: &DecoderConfig, student: &DecoderConfig) -> Result<()> {
        let (width, other) = (student.hidden_size, teacher.hidden_size);
        if width != other {
            let what = format!("the teacher's are {other} numbers wide, the student's {width}");
            return Err(DistillError::HiddenStates { what });
        }
        for pair in &self.layers {
            let of = [("teacher", pair.teacher, teacher), ("student", pair.student, student)];
            for (whose, layer, config) in of {
                let n = config.num_hidden_layers;
                if layer >= n {
                    let what = format!("the {whose} has no layer {layer}, only 0 to {}", n.saturating_sub(1));
                    return Err(DistillError::HiddenStates { what });
                }
            }
        }
        Ok(())
    }

    /// Refuses a list without pairs or with one twice, weights below 0, and losses that it cannot stand beside: those of
    /// texts that the teacher does not read in the student's tokens.
    pub fn check(&self, losses: &[LossTerm]) -> Result<()> {
        let refuse = |what: String| Err(DistillError::HiddenStates { what });
        if self.layers.is_empty() {
            return refuse("no pair of layers is named".to_owned());
        }
        let twice = self.layers.iter().enumerate().find(|(i, pair)| self.layers[..*i].contains(pair));
        if let Some((_, LayerPair { teacher, student })) = twice {
            return refuse(format!("the pair [{teacher}, {student}] stands twice"));
        }
        if let Some(value) = self.weight.ends().into_iter().find(|w| !(w.is_finite() && *w >= 0.0)) {
            return Err(DivergenceError::Weight { loss: Self::NAME, value: value as f32 }.into());
        }
        let beside = |function: LossFunction| {
            let asks = function.asks_teacher() && !function.of_two_vocabularies();
            asks || function == LossFunction::HardLabels
        };
        match losses.iter().find(|term| !beside(term.function)) {
            Some(other) => refuse(format!(
                "`{}` does not let the teacher read the student's tokens",
                other.function.name()
            )),
            None => Ok(()),
        }
    }

    /// As the model takes it in a step with this weight.
    pub(crate) fn with_weight(&self, weight: f64) -> HiddenAlignment<'_> {
        HiddenAlignment { pairs: &self.layers, weight: weight as f32 }
    }
}
