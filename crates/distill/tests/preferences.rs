//! The preference loss against TRL's own (`oracles/preferences.py`).

use serde::Deserialize;
use stillroom_distill::{DirectPreference, PairRows};
use stillroom_model::LabelLoss;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    beta: f64,
    /// By pair: of the preferred reply, then of the other.
    logprobs: Vec<[Vec<f32>; 2]>,
    reference: Vec<[f64; 2]>,
    loss: f64,
    gradients: Vec<[Vec<f64>; 2]>,
    accuracy: f64,
    margin: f64,
}

#[test]
fn losses_gradients_and_rewards_are_those_of_trl() {
    let golden: Golden = serde_json::from_str(include_str!("data/preferences.json")).unwrap();
    assert_eq!(golden.cases.len(), 4);
    for case in golden.cases {
        let n = case.logprobs.len() as f64;
        let pairs = case.logprobs.iter().zip(&case.reference).map(|(replies, &reference)| {
            let sizes = [replies[0].len(), replies[1].len()];
            PairRows { sizes, reference }
        });
        let loss = DirectPreference { beta: case.beta, pairs: pairs.collect() };
        let logprobs: Vec<f32> = case.logprobs.concat().concat();
        let (mut losses, mut slopes) = (vec![0.0; logprobs.len()], vec![0.0; logprobs.len()]);
        loss.evaluate(0..logprobs.len(), &logprobs, &mut losses, &mut slopes);
        let mean = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / n;
        assert!((mean - case.loss).abs() < 1e-6, "{mean} against {}", case.loss);
        for (slope, expected) in slopes.iter().zip(case.gradients.concat().concat()) {
            assert!((f64::from(*slope) / n - expected).abs() < 1e-7, "{slope} against {expected}");
        }
        let mut start = 0;
        let rewards = loss.pairs.iter().map(|pair| {
            let end = start + pair.sizes[0] + pair.sizes[1];
            let rewards = loss.rewards(pair, &logprobs[start..end]);
            start = end;
            rewards
        });
        let margins: Vec<f64> = rewards.map(|rewards| rewards.margin()).collect();
        assert!((margins.iter().sum::<f64>() / n - case.margin).abs() < 1e-6);
        assert!((margins.iter().filter(|&&m| m > 0.0).count() as f64 / n - case.accuracy).abs() < 1e-6);
    }
}
