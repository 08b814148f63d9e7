//! What is minimised: a weighted list of losses.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use stillroom_core::Tail;
use stillroom_model::{
    Divergence, DivergenceError, LabelLoss, TERMS_MAX, Term, WeightedLabelLoss, tail_mode,
};

use crate::batches::LossSums;
use crate::hidden::AlignedLayers;
use crate::preference::check_beta;
use crate::{DistillError, Result};

/// Cross-entropy on the text's own tokens, or a divergence of the student's distribution q from the teacher's
/// p, as [`Divergence`] has them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "function", rename_all = "snake_case")]
pub enum LossFunction {
    /// −log q(label), at temperature 1 always.
    HardLabels,
    /// KL(teacher‖student).
    ForwardKl,
    /// KL(student‖teacher).
    ReverseKl,
    /// β·KL(p‖m) + (1−β)·KL(q‖m) with m = βp + (1−β)q; β is the teacher's weight.
    Jsd { jsd_teacher_weight: f64 },
    /// KL(p‖αp + (1−α)q).
    SkewKl { alpha: f64 },
    /// KL(q‖(1−α)p + αq).
    SkewReverseKl { alpha: f64 },
    /// ½·Σ abs(p − q).
    Tvd,
    /// Distributions over two vocabularies by their sorted probabilities alone: [`Divergence::Uld`].
    Uld,
    /// φ of the ids that two vocabularies share, and `uld` of the others: [`Divergence::Gold`]. φ is KL(teacher‖student) for
    /// `beta` 0, KL(student‖teacher) for 1, and `jsd` with that weight of the teacher between, as TRL has it.
    Gold { beta: f64 },
    /// How likely pieces of text are to a teacher of any tokenizer: [`approximate_likelihood_loss`].
    ///
    /// [`approximate_likelihood_loss`]: crate::approximate_likelihood_loss
    Alm,
    /// −log σ(β·…) of pairs of which one reply was preferred: [`DirectPreference`](crate::DirectPreference). It stands
    /// alone, and is a mean over pairs.
    Dpo { beta: f64 },
    /// KL(student‖teacher) estimated from the tokens that the student itself drew, at temperature 1 always; of the
    /// teacher it takes their log-probabilities alone. Only on-policy steps have it.
    SampledReverseKl,
}

/// Whose text an optimiser step learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Text {
    /// Examples: every loss but `sampled_reverse_kl`, which is biased on what another wrote.
    Given,
    /// The student's own: every loss but hard labels, which would teach it what it does already.
    Own,
}

/// The weight of a loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LossWeight {
    Constant(f64),
    /// From the first optimiser step to the last in equal parts.
    Linear {
        from: f64,
        to: f64,
    },
}

/// One loss in a weighted list.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossTerm {
    #[serde(flatten)]
    pub function: LossFunction,
    pub weight: LossWeight,
    /// τ: softens both sides of a divergence, which carries τ², or of `alm`, which carries τ. Cached targets of
    /// divergences come softened at it.
    pub temperature: f64,
}

/// Where the teacher's distributions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TeacherTargets {
    /// Stored with the examples; `Tail::None` for counts of random draws.
    Cached(Tail),
    /// A teacher that reads each batch as it comes.
    Live,
    /// One that says log p of the tokens that the student wrote, and nothing else.
    Scored,
}

impl LossFunction {
    /// The name in recipes and records.
    pub fn name(self) -> &'static str {
        match self {
            LossFunction::HardLabels => "hard_labels",
            LossFunction::Alm => "alm",
            LossFunction::Dpo { .. } => "dpo",
            LossFunction::SampledReverseKl => "sampled_reverse_kl",
            other => other.divergence().map_or("", Divergence::name),
        }
    }

    /// Whether it compares distributions over two vocabularies, of a live teacher that reads the text in its own tokens.
    pub fn of_two_vocabularies(self) -> bool {
        matches!(self, LossFunction::Uld | LossFunction::Gold { .. })
    }

    /// Whether it takes what a teacher says of each token: its distribution, or its log-probability.
    pub fn asks_teacher(self) -> bool {
        self == LossFunction::SampledReverseKl || self.divergence().is_some()
    }

    /// The divergence of next-token distributions that this is; `None` for losses of the text's own tokens.
    pub fn divergence(self) -> Option<Divergence> {
        Some(match self {
            LossFunction::HardLabels
            | LossFunction::Alm
            | LossFunction::Dpo { .. }
            | LossFunction::SampledReverseKl => return None,
            LossFunction::ForwardKl => Divergence::ForwardKl,
            LossFunction::ReverseKl => Divergence::ReverseKl,
            LossFunction::Jsd { jsd_teacher_weight } => {
                Divergence::Jsd { teacher_weight: jsd_teacher_weight as f32 }
            }
            LossFunction::SkewKl { alpha } => Divergence::SkewKl { alpha: alpha as f32 },
            LossFunction::SkewReverseKl { alpha } => Divergence::SkewReverseKl { alpha: alpha as f32 },
            LossFunction::Tvd => Divergence::Tvd,
            LossFunction::Uld => Divergence::Uld,
            LossFunction::Gold { beta } => Divergence::Gold { teacher_weight: beta as f32 },
        })
    }
}

impl LossWeight {
    /// The weight in optimiser step `step` (from 1) of `n_steps`.
    ///
    /// ```
    /// use stillroom_distill::LossWeight;
    /// let weight = LossWeight::Linear { from: 1.0, to: 0.0 };
    /// assert_eq!([1, 3, 5].map(|step| weight.at(step, 5)), [1.0, 0.5, 0.0]);
    /// ```
    pub fn at(self, step: u64, n_steps: u64) -> f64 {
        match self {
            LossWeight::Constant(weight) => weight,
            LossWeight::Linear { to, .. } if step >= n_steps => to,
            LossWeight::Linear { from, to } => {
                from + (to - from) * (step.saturating_sub(1) as f64 / (n_steps - 1) as f64)
            }
        }
    }

    /// The weight of the last step, which validation uses at every step, so that its points compare.
    pub fn at_the_end(self) -> f64 {
        self.at(1, 1)
    }

    /// Whether it is 0 at every step.
    pub fn is_zero(self) -> bool {
        matches!(self, LossWeight::Constant(0.0) | LossWeight::Linear { from: 0.0, to: 0.0 })
    }

    /// In the first step and in the last.
    pub(crate) fn ends(self) -> [f64; 2] {
        match self {
            LossWeight::Constant(weight) => [weight; 2],
            LossWeight::Linear { from, to } => [from, to],
        }
    }
}

impl LossTerm {
    /// With weight 1 at temperature 1.
    pub fn new(function: LossFunction) -> LossTerm {
        LossTerm { function, weight: LossWeight::Constant(1.0), temperature: 1.0 }
    }

    pub fn with_weight(self, weight: f64) -> LossTerm {
        LossTerm { weight: LossWeight::Constant(weight), ..self }
    }

    pub fn at_temperature(self, temperature: f64) -> LossTerm {
        LossTerm { temperature, ..self }
    }

    /// The divergence with the weight given, if it is one.
    fn term(self, weight: f64) -> Option<Term> {
        let (weight, temperature) = (weight as f32, self.temperature as f32);
        Some(Term { divergence: self.function.divergence()?, weight, temperature })
    }
}

/// The losses that are computed: those with a weight, and each under its own name.
#[derive(Clone, Debug)]
pub(crate) struct Losses {
    hard: Vec<LossWeight>,
    divergences: Vec<(String, LossTerm)>,
    /// Of the alignment of hidden states, which stands behind them.
    hidden: Option<LossWeight>,
}

/// Weights of one step.
#[derive(Clone, Debug)]
pub(crate) struct StepWeights {
    pub(crate) hard_label: f64,
    /// By name, in order.
    pub(crate) divergences: Vec<f64>,
    /// Those of them that the head takes.
    pub(crate) terms: Vec<Term>,
    /// Where each of them is found in what a batch gives.
    pub(crate) places: Vec<Place>,
    /// Of the loss of the labels' log-probabilities.
    pub(crate) label_loss: f64,
    /// Of the alignment of hidden states.
    pub(crate) hidden: Option<f64>,
}

/// Where a loss is found in what a batch gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The head's divergence of this number.
    Head(usize),
    /// The loss of the labels' log-probabilities.
    Labels,
    /// The distances of hidden states.
    Hidden,
}

impl StepWeights {
    /// A loss of the labels' log-probabilities with its weight.
    pub(crate) fn of_labels<'t>(&self, loss: &'t dyn LabelLoss) -> WeightedLabelLoss<'t> {
        WeightedLabelLoss { loss, weight: self.label_loss as f32 }
    }
}

impl Losses {
    pub(crate) fn of(terms: &[LossTerm]) -> Losses {
        let mut losses = Losses { hard: Vec::new(), divergences: Vec::new(), hidden: None };
        for &term in terms.iter().filter(|term| !term.weight.is_zero()) {
            if term.function == LossFunction::HardLabels {
                losses.hard.push(term.weight);
                continue;
            }
            let name = term.function.name();
            let earlier = losses.divergences.iter().filter(|(_, other)| other.function.name() == name);
            let key = match earlier.count() {
                0 => name.to_owned(),
                n => format!("{name}_{}", n + 1),
            };
            losses.divergences.push((key, term));
        }
        losses
    }

    /// With the alignment of hidden states, if it has a weight.
    pub(crate) fn with_hidden(self, aligned: Option<&AlignedLayers>) -> Losses {
        Losses { hidden: aligned.map(|aligned| aligned.weight).filter(|weight| !weight.is_zero()), ..self }
    }

    /// Whether one of them compares next-token distributions.
    pub(crate) fn need_distributions(&self) -> bool {
        self.divergences.iter().any(|(_, term)| term.function.divergence().is_some())
    }

    /// Whether one of them takes what a teacher says of the texts.
    pub(crate) fn need_teacher(&self) -> bool {
        self.hidden.is_some() || self.divergences.iter().any(|(_, term)| term.function.asks_teacher())
    }

    /// Whether one of them compares distributions over two vocabularies.
    pub(crate) fn need_foreign_readings(&self) -> bool {
        self.divergences.iter().any(|(_, term)| term.function.of_two_vocabularies())
    }

    /// Whether one of them can only be taken of the student's own text.
    pub(crate) fn need_own_text(&self) -> bool {
        self.divergences.iter().any(|(_, term)| term.function == LossFunction::SampledReverseKl)
    }

    /// Whether something is learned from such a text at the last step.
    pub(crate) fn learn_from(&self, text: Text) -> bool {
        let weights = self.at_the_end(text);
        weights.hard_label > 0.0 || weights.divergences.iter().any(|&weight| weight > 0.0)
    }

    /// The means per token of each loss beside hard labels, each over the tokens of the texts that have it, under its
    /// name: the function's, the second of one function with `_2` behind it.
    pub(crate) fn means(&self, given: &LossSums, own: &LossSums) -> BTreeMap<String, f64> {
        let mut both = given.clone();
        both.add(own);
        let named = |(name, term): &(String, LossTerm)| {
            (name.clone(), if term.function == LossFunction::SampledReverseKl { own } else { &both })
        };
        let hidden = self.hidden.map(|_| (AlignedLayers::NAME.to_owned(), &both));
        let mean = |(i, (name, sums)): (usize, (String, &LossSums))| {
            let sum = sums.divergences.get(i).filter(|_| sums.n > 0)?;
            Some((name, sums.per_token(*sum)))
        };
        self.divergences.iter().map(named).chain(hidden).enumerate().filter_map(mean).collect()
    }

    /// τ of `alm`, if it is among them.
    pub(crate) fn alm_temperature(&self) -> Option<f64> {
        let mut alm = self.divergences.iter().filter(|(_, term)| term.function == LossFunction::Alm);
        alm.next().map(|(_, term)| term.temperature)
    }

    /// β of `dpo`, if it is among them.
    pub(crate) fn dpo_beta(&self) -> Option<f64> {
        self.divergences.iter().find_map(|(_, term)| match term.function {
            LossFunction::Dpo { beta } => Some(beta),
            _ => None,
        })
    }

    /// [`Losses::means`] where own text has this share, whatever the numbers of tokens.
    pub(crate) fn mixed_means(&self, given: &LossSums, own: &LossSums, share: f64) -> BTreeMap<String, f64> {
        let none = LossSums::default();
        let (given, own) = (self.means(given, &none), self.means(&none, own));
        let mut mixed = own.clone();
        for (name, mean) in given {
            let mean = own.get(&name).map_or(mean, |own| share * own + (1.0 - share) * mean);
            mixed.insert(name, mean);
        }
        mixed
    }

    pub(crate) fn at(&self, step: u64, n_steps: u64, text: Text) -> StepWeights {
        self.weights(text, |weight| weight.at(step, n_steps))
    }

    pub(crate) fn at_the_end(&self, text: Text) -> StepWeights {
        self.weights(text, LossWeight::at_the_end)
    }

    fn weights(&self, text: Text, at: impl Fn(LossWeight) -> f64) -> StepWeights {
        let weight = |term: &LossTerm| match term.function {
            LossFunction::SampledReverseKl if text == Text::Given => 0.0,
            _ => at(term.weight),
        };
        let mut divergences: Vec<f64> = self.divergences.iter().map(|(_, term)| weight(term)).collect();
        let with_weight = self.divergences.iter().zip(&divergences);
        let (mut terms, mut places, mut label_loss) = (Vec::new(), Vec::new(), 0.0);
        for ((_, term), &weight) in with_weight {
            match term.term(weight) {
                Some(term) => {
                    places.push(Place::Head(terms.len()));
                    terms.push(term);
                }
                None => {
                    places.push(Place::Labels);
                    label_loss = weight;
                }
            }
        }
        let hidden = self.hidden.map(&at);
        divergences.extend(hidden);
        places.extend(hidden.map(|_| Place::Hidden));
        let hard_label = match text {
            Text::Given => self.hard.iter().map(|&weight| at(weight)).sum(),
            Text::Own => 0.0,
        };
        StepWeights { hard_label, divergences, terms, places, label_loss, hidden }
    }
}

/// Refuses losses that cannot be taken of these targets, or at all: a parameter out of range, a divergence of
/// counts that they are biased for, two temperatures of targets that were softened once.
///
/// ```
/// use stillroom_core::Tail;
/// use stillroom_distill::{LossFunction, LossTerm, TeacherTargets, check_losses};
/// let jsd = LossTerm::new(LossFunction::Jsd { jsd_teacher_weight: 0.5 });
/// assert!(check_losses(&[jsd], TeacherTargets::Live).is_ok());
/// assert!(check_losses(&[jsd], TeacherTargets::Cached(Tail::Bucket)).is_ok());
/// assert!(check_losses(&[jsd], TeacherTargets::Cached(Tail::None)).is_err());
/// assert!(check_losses(&[jsd], TeacherTargets::Scored).is_err());
/// let sampled = LossTerm::new(LossFunction::SampledReverseKl);
/// assert!(check_losses(&[sampled], TeacherTargets::Scored).is_ok());
/// ```
pub fn check_losses(losses: &[LossTerm], targets: TeacherTargets) -> Result<()> {
    let mut softened_at = None;
    check_preference(losses)?;
    check_vocabularies(losses)?;
    let mut n = 0;
    for term in losses {
        let name = term.function.name();
        if let Some(value) = term.weight.ends().into_iter().find(|w| !(w.is_finite() && *w >= 0.0)) {
            return Err(DivergenceError::Weight { loss: name, value: value as f32 }.into());
        }
        let Some(divergence) = term.function.divergence() else {
            check_without_distributions(term, losses, targets)?;
            continue;
        };
        divergence.validate()?;
        if targets == TeacherTargets::Scored {
            return Err(DistillError::OnlyScored { loss: name });
        }
        check_temperature(term, TEMPERATURES, "a temperature lies between 0.01 and 100")?;
        n += 1;
        if n > TERMS_MAX {
            return Err(DivergenceError::TooMany { n }.into());
        }
        let TeacherTargets::Cached(tail) = targets else { continue };
        divergence.validate_for(tail_mode(tail))?;
        let first = *softened_at.get_or_insert(term.temperature);
        if first != term.temperature {
            let (first, other) = (first as f32, term.temperature as f32);
            return Err(DivergenceError::Temperatures { first, other }.into());
        }
    }
    Ok(())
}

/// `hard_labels`, `alm`, `dpo` and `sampled_reverse_kl`.
fn check_without_distributions(term: &LossTerm, all: &[LossTerm], targets: TeacherTargets) -> Result<()> {
    if term.function == LossFunction::HardLabels {
        return check_temperature(term, 1.0..=1.0, "hard labels are not softened: their temperature is 1");
    }
    let refuse = |rule| Err(DistillError::Config { key: "losses", value: term.function.name().into(), rule });
    if term.function == LossFunction::SampledReverseKl {
        if matches!(targets, TeacherTargets::Cached(_)) {
            return Err(DistillError::NoLiveTeacher { loss: term.function.name() });
        }
        if all.iter().any(|other| other.function == LossFunction::Alm) {
            return refuse("it needs a teacher with the student's tokenizer, `alm` is for another one");
        }
        check_temperature(term, 1.0..=1.0, "sampled tokens are not softened: their temperature is 1")?;
    }
    if matches!(term.function, LossFunction::Dpo { .. }) {
        return check_temperature(term, 1.0..=1.0, "a preference is not softened: its temperature is 1");
    }
    if all.iter().filter(|other| other.function == term.function).count() > 1 {
        return refuse("it stands in a list once, at one temperature");
    }
    if term.function == LossFunction::SampledReverseKl {
        return Ok(());
    }
    check_temperature(term, ALM_TEMPERATURES, "a temperature of `alm` lies between 0.1 and 10000")
}

/// A teacher has the student's vocabulary or its own, for all losses of its distributions alike.
fn check_vocabularies(losses: &[LossTerm]) -> Result<()> {
    let mut asked = losses.iter().filter(|term| term.function.asks_teacher());
    let of_two = |term: &&LossTerm| term.function.of_two_vocabularies();
    let Some(term) = losses.iter().find(of_two) else { return Ok(()) };
    if asked.any(|other| !of_two(&other)) {
        let rule =
            "it is for a teacher with a vocabulary of its own, and another loss for one with the student's";
        return Err(DistillError::Config { key: "losses", value: term.function.name().into(), rule });
    }
    Ok(())
}

/// A preference is learned from pairs, and the other losses are not.
fn check_preference(losses: &[LossTerm]) -> Result<()> {
    for term in losses {
        let LossFunction::Dpo { beta } = term.function else { continue };
        check_beta(beta)?;
        if losses.len() > 1 {
            let rule = "it learns from pairs, which no other loss does: let it stand alone";
            return Err(DistillError::Config { key: "losses", value: "dpo".into(), rule });
        }
    }
    Ok(())
}

fn check_temperature(term: &LossTerm, range: RangeInclusive<f64>, rule: &'static str) -> Result<()> {
    if range.contains(&term.temperature) {
        return Ok(());
    }
    let value = format!("{} of `{}`", term.temperature, term.function.name());
    Err(DistillError::Config { key: "temperature", value, rule })
}

/// Temperatures that a divergence takes.
const TEMPERATURES: RangeInclusive<f64> = 0.01..=100.0;
/// Temperatures that `alm` takes; it tends to a limit.
const ALM_TEMPERATURES: RangeInclusive<f64> = 0.1..=10_000.0;

#[cfg(test)]
mod tests {
    use super::*;

    const JSD: LossFunction = LossFunction::Jsd { jsd_teacher_weight: 0.5 };

    #[test]
    fn weights_move_in_a_line_from_the_first_step_to_the_last() {
        let line = LossWeight::Linear { from: 1.0, to: 0.25 };
        let at: Vec<f64> = (1..=4).map(|step| line.at(step, 4)).collect();
        assert_eq!(at, [1.0, 0.75, 0.5, 0.25]);
        assert_eq!((line.at(1, 1), line.at_the_end()), (0.25, 0.25));
        assert_eq!(LossWeight::Constant(0.3).at(7, 9), 0.3);
        assert!(LossWeight::Constant(0.0).is_zero() && !line.is_zero());
    }

    #[test]
    fn each_loss_has_its_own_name_and_those_without_a_weight_have_none() {
        let terms = [
            LossTerm::new(JSD),
            LossTerm::new(LossFunction::Tvd).with_weight(0.0),
            LossTerm::new(LossFunction::HardLabels).with_weight(0.25),
            LossTerm::new(JSD).at_temperature(2.0).with_weight(0.5),
        ];
        let losses = Losses::of(&terms);
        assert_eq!(losses.divergences.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["jsd", "jsd_2"]);
        let weights = losses.at(1, 10, Text::Given);
        assert_eq!((weights.hard_label, &weights.divergences[..]), (0.25, &[1.0, 0.5][..]));
        assert_eq!((weights.terms[1].weight, weights.terms[1].temperature), (0.5, 2.0));
        assert!(losses.need_teacher() && !Losses::of(&terms[1..3]).need_teacher());
    }

    #[test]
    fn a_term_is_written_as_a_recipe_says_it() {
        let term = LossTerm { weight: LossWeight::Linear { from: 1.0, to: 0.0 }, ..LossTerm::new(JSD) };
        let text = serde_json::to_string(&term).unwrap();
        let expected = "{\"function\":\"jsd\",\"jsd_teacher_weight\":0.5,\"weight\":{\"from\":1.0,\"to\":0.0},\"temperature\":1.0}";
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<LossTerm>(&text).unwrap(), term);
        let plain = LossTerm::new(LossFunction::ForwardKl).with_weight(2.0);
        let text = serde_json::to_string(&plain).unwrap();
        assert_eq!(serde_json::from_str::<LossTerm>(&text).unwrap(), plain);
    }

    #[test]
    fn what_targets_cannot_give_is_refused() {
        let refused = |terms: &[LossTerm], targets| match check_losses(terms, targets) {
            Err(DistillError::Losses(why)) => why,
            other => panic!("{other:?}"),
        };
        let (live, cached) = (TeacherTargets::Live, TeacherTargets::Cached);
        let (kl, jsd) = (LossTerm::new(LossFunction::ForwardKl), LossTerm::new(JSD));
        check_losses(&[kl], cached(Tail::None)).unwrap();
        let counts = refused(&[kl, jsd], cached(Tail::None));
        assert_eq!(counts, DivergenceError::Counts { divergence: "jsd" });
        check_losses(&[kl, jsd], cached(Tail::Bucket)).unwrap();
        let softer = kl.at_temperature(2.0);
        let two = refused(&[softer, jsd], cached(Tail::Bucket));
        assert_eq!(two, DivergenceError::Temperatures { first: 2.0, other: 1.0 });
        check_losses(&[softer, jsd, kl], live).unwrap();
        let edge = LossTerm::new(LossFunction::Jsd { jsd_teacher_weight: 1.0 });
        assert!(matches!(refused(&[edge], live), DivergenceError::TeacherWeight { .. }));
        let skew = LossTerm::new(LossFunction::SkewKl { alpha: 1.0 });
        assert!(matches!(refused(&[skew], live), DivergenceError::Alpha { .. }));
        assert!(matches!(refused(&[kl.with_weight(-1.0)], live), DivergenceError::Weight { .. }));
        let falling = LossTerm { weight: LossWeight::Linear { from: 1.0, to: f64::NAN }, ..kl };
        assert!(matches!(refused(&[falling], live), DivergenceError::Weight { .. }));
        assert_eq!(refused(&[kl; 9], live), DivergenceError::TooMany { n: 9 });
        let (uld, gold) = (LossTerm::new(LossFunction::Uld), LossTerm::new(LossFunction::Gold { beta: 0.5 }));
        check_losses(&[uld, gold.at_temperature(2.0), LossTerm::new(LossFunction::HardLabels)], live)
            .unwrap();
        assert!(matches!(refused(&[uld], cached(Tail::Bucket)), DivergenceError::Vocabulary { .. }));
        let both = check_losses(&[gold, kl], live).unwrap_err().to_string();
        assert!(
            both.contains("`losses` is gold: it is for a teacher with a vocabulary of its own"),
            "{both}"
        );
        let soft_labels = LossTerm::new(LossFunction::HardLabels).at_temperature(2.0);
        for wrong in [soft_labels, kl.at_temperature(0.0)] {
            let error = check_losses(&[wrong], live).unwrap_err();
            assert!(matches!(error, DistillError::Config { key: "temperature", .. }), "{error}");
        }
    }
}
