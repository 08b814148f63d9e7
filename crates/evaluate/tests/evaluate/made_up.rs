//! A report made of invented data, to test how reports are computed, written and drawn.
//! None of its figures was ever measured.

use std::collections::BTreeMap;

use stillroom_core::{CounterRng, Digest, Tail};
use stillroom_evaluate::*;

pub(crate) const PROMPTS: u64 = 1_000;

/// The measurement of an invented model that is right with probability `accuracy`. Difficulty is a
/// property of the prompt, so that models succeed on the same ones.
pub(crate) fn measurement(
    model: &str,
    parameters: u64,
    accuracy: f64,
    loss: f64,
    kl: Option<f64>,
) -> Measurement {
    let stream = Digest::of(model.as_bytes()).as_bytes()[0];
    let grades = (0..PROMPTS).map(|i| {
        let difficulty = CounterRng::new(&[1, i]).uniform();
        let luck = CounterRng::new(&[2, i, u64::from(stream)]).uniform();
        let correct = 0.8 * difficulty + 0.2 * luck < 0.1 + accuracy * 0.8;
        Grade { id: id(i), correct, reason: if correct { "right answer" } else { "wrong answer" }.into() }
    });
    let document = |i: u64| {
        let tokens = 40 + CounterRng::new(&[3, i]).below(80);
        let noise = 1.0 + 0.15 * CounterRng::new(&[4, i]).normal();
        let own = 1.0 + 0.05 * CounterRng::new(&[5, i, u64::from(stream)]).normal();
        (tokens, noise * own)
    };
    let losses = (0..PROMPTS).map(|i| {
        let (tokens, noise) = document(i);
        DocumentLoss { id: id(i), tokens, bytes: tokens * 3, nats: loss * noise * tokens as f64 }
    });
    let divergences = (0..PROMPTS).map(|i| {
        let (tokens, noise) = document(i);
        DocumentDivergence { id: id(i), tokens, nats: kl.unwrap_or(0.0) * noise * tokens as f64 }
    });
    Measurement {
        model: model.into(),
        parameters: Measured::Value(parameters),
        training: None,
        grades: Measured::Value(grades.collect()),
        losses: Measured::Value(losses.collect()),
        divergences: match kl {
            Some(_) => Measured::Value(divergences.collect()),
            None => Measured::not_measured("it is the teacher"),
        },
        generation: Measured::Value(Throughput { tokens: 90_000, seconds: 3e-6 * parameters as f64 + 2.0 }),
        joules: Measured::not_measured("no energy counters of the CPU under `/sys/class/powercap`"),
        usd: Measured::not_measured("no price per hour is given (`evaluate.usd_per_hour`)"),
    }
}

fn id(i: u64) -> String {
    format!("made-up-{i:04}")
}

fn trained(steps: u64, tokens: u64, wall_s: f64) -> Option<TrainingFacts> {
    Some(TrainingFacts { steps, tokens, wall_s, best_step: Some(steps - 20) })
}

pub(crate) fn measurements() -> BTreeMap<Contender, Measurement> {
    let student = 412_160;
    let mut all = BTreeMap::from([
        (Contender::Teacher, measurement("stillroom/made-up-teacher", 3_410_432, 0.94, 0.281, None)),
        (Contender::Student, measurement("student", student, 0.902, 0.334, Some(0.051))),
        (Contender::TracesOnly, measurement("traces_only", student, 0.896, 0.347, Some(0.066))),
        (Contender::Undistilled, measurement("undistilled", student, 0.13, 2.93, Some(2.61))),
        (Contender::UndistilledEqualTokens, measurement("equal tokens", student, 0.145, 2.85, Some(2.55))),
        (Contender::Untrained, measurement("untrained", student, 0.0, 6.24, Some(5.98))),
    ]);
    for (contender, training) in [
        (Contender::Student, trained(620, 2_540_000, 131.0)),
        (Contender::TracesOnly, trained(620, 2_540_000, 118.0)),
        (Contender::Undistilled, trained(620, 720_000, 42.0)),
        (Contender::UndistilledEqualTokens, trained(2_180, 2_540_000, 121.0)),
    ] {
        all.get_mut(&contender).unwrap().training = training;
    }
    all
}

/// The whole invented report.
pub(crate) fn report() -> Report {
    let measured = measurements();
    let mut paired = BTreeMap::new();
    for second in Contender::ALL.into_iter().filter(|c| *c != Contender::Student) {
        let pair = Pair { first: Contender::Student, second };
        paired.insert(pair, compare(&measured[&Contender::Student], &measured[&second]).unwrap());
    }
    let losses = |contender| measured[&contender].losses.value().unwrap().clone();
    let mut tensors = TensorChanges::default();
    for layer in 0..4 {
        let moved = [0.5 + 0.01 * layer as f32, -0.25];
        tensors.add(&format!("model.layers.{layer}.mlp.up_proj.weight"), &[0.25, -0.5], &moved).unwrap();
    }
    let drop = LossDrop::measure(&losses(Contender::Untrained), &losses(Contender::Student)).unwrap();
    Report {
        report_version: REPORT_VERSION,
        stillroom_version: "0.0.0-made-up".into(),
        recipe: "made-up".into(),
        created: "2026-01-01T00:00:00Z".into(),
        trial: false,
        task: "word_problems".into(),
        task_description:
            "Invented data for the tests of this page. Multi-step arithmetic word problems, three \
            to eight steps; a reply is right when the number after its last `####` is the answer."
                .into(),
        heldout_text: "the teacher's replies to the held-out prompts".into(),
        heldout_examples: PROMPTS,
        accuracy_retained: accuracy_retained(
            &measured[&Contender::Student],
            &measured[&Contender::Teacher],
            7,
        )
        .unwrap(),
        models: measured.iter().map(|(contender, m)| (*contender, m.score())).collect(),
        paired,
        own_text: BTreeMap::new(),
        checks: Checks::new(tensors, drop),
        curves: curves(),
        stages: stages(),
        licence: Some(licence()),
        corpus: corpus(),
        cache: Some(CacheFacts {
            positions: 1_873_220,
            bytes: 64_120_400,
            bytes_per_token: 34.23,
            unique_ids_mean: 9.4,
            draws: Some(50),
            top_k: None,
            tail: Tail::None,
            temperature: 1.0,
        }),
        machine: MachineFacts {
            cpu: "Invented CPU 9000 @ 3.00 GHz".into(),
            logical_cores: 2,
            threads: 2,
            kernels: "avx2 fma, panels of 16 × 6".into(),
            memory_bytes: Some(8_300_000_000),
            os: "linux x86_64".into(),
            peak_resident_bytes: Some(612_000_000),
        },
        seeds: BTreeMap::from([("prompts".into(), 11), ("teacher".into(), 12), ("train".into(), 13)]),
        examples: examples(),
        digests: ["recipe.toml", "stillroom", "teacher", "traces", "logits", "release/model.safetensors"]
            .into_iter()
            .map(|name| (name.to_string(), Digest::of(name.as_bytes())))
            .collect(),
    }
}

fn curves() -> Vec<Curve> {
    let run = |model, start: f64, end: f64, steps: u64, pace: f64, loss: &str| Curve {
        model,
        loss: loss.into(),
        points: (1..=steps / 5)
            .map(|i| {
                let step = 5 * i;
                let share = (-(step as f64) / pace).exp();
                let noise = 0.05 * CounterRng::new(&[8, step]).normal();
                let level = end + (start - end) * share;
                CurvePoint {
                    step,
                    tokens: step * 4_096,
                    train_loss: Some(level * (1.0 + noise)),
                    validation_loss: (step % 40 == 0).then_some(level * 1.02),
                    ..CurvePoint::default()
                }
            })
            .collect(),
        best_step: Some(steps - 20),
    };
    let hard = "hard labels, nats per token";
    vec![
        run(Contender::Student, 5.9, 0.09, 620, 70.0, "forward KL + 0.2 × hard labels, nats per token"),
        run(Contender::TracesOnly, 6.2, 0.36, 620, 80.0, hard),
        run(Contender::Undistilled, 6.1, 1.62, 620, 30.0, hard),
    ]
}

fn stages() -> Vec<StageTime> {
    let stage = |stage: &str, wall_s, skipped| StageTime { stage: stage.into(), wall_s, skipped };
    vec![
        stage("prompts", 0.4, false),
        stage("teach", 61.2, true),
        stage("curate", 1.1, false),
        stage("train", 131.0, false),
        stage("controls", 160.0, false),
        stage("evaluate", 38.5, false),
        stage("release", 0.9, false),
    ]
}

fn licence() -> LicenceDecision {
    LicenceDecision {
        verdict: "allow".into(),
        rules: vec![LicenceRule {
            release: "stillroom/made-up-teacher".into(),
            licence: "Apache-2.0".into(),
            clause: Some("2".into()),
            evidence: Some("declared in the recipe: owner “us”".into()),
            says: "A private model of one's own; its outputs may train other models.".into(),
            obliges: vec!["Keep the notice file with the released weights.".into()],
        }],
        accepted: vec![],
        overridden: None,
        egress: Some("local".into()),
    }
}

fn corpus() -> CorpusFacts {
    CorpusFacts {
        train_prompts: 24_000,
        validation_prompts: 400,
        traces_bought: 24_000,
        traces_kept: 22_371,
        traces_with_reasoning: 22_371,
        rejected: BTreeMap::from([
            ("wrong answer".into(), 1_497),
            ("cut off at the length limit".into(), 96),
            ("the same as another trace".into(), 36),
        ]),
        supervised_tokens: 1_873_220,
        heldout_overlaps: 0,
        teacher_usd: None,
        feedback: None,
    }
}

fn examples() -> Vec<Sample> {
    let reply = |text: &str, correct| SampleReply { text: text.into(), correct: Some(correct) };
    vec![
        Sample {
            id: id(0),
            problem:
                "Mina has 7 jars. She buys 5 more and gives 3 to Tom. Tom already had 4 jars and breaks 2 of \
                his. How many more jars does Mina have than Tom?"
                    .into(),
            answer: Some("4".into()),
            replies: BTreeMap::from([
                (
                    Contender::Teacher,
                    reply(
                        "Mina: 7 + 5 = 12\nMina: 12 - 3 = 9\nTom: 4 + 3 = 7\nTom: 7 - 2 = 5\n9 - 5 = 4\n#### 4",
                        true,
                    ),
                ),
                (
                    Contender::Student,
                    reply(
                        "Mina: 7 + 5 = 12\nMina: 12 - 3 = 9\nTom: 4 + 3 = 7\nTom: 7 - 2 = 5\n9 - 5 = 4\n#### 4",
                        true,
                    ),
                ),
                (
                    Contender::TracesOnly,
                    reply("Mina: 7 + 5 = 12\nMina: 12 - 3 = 9\nTom: 4 + 3 = 7\n9 - 7 = 2\n#### 2", false),
                ),
                (Contender::Undistilled, reply("#### 6", false)),
            ]),
        },
        Sample {
            id: id(1),
            problem: "What does a page do with a reply that holds <script>alert(\"x\")</script> & markup?"
                .into(),
            answer: Some("it shows it".into()),
            replies: BTreeMap::from([
                (
                    Contender::Teacher,
                    reply("</pre><img src=x onerror=alert(1)> \u{202e}reversed\u{1b}[31m", false),
                ),
                (Contender::Student, reply("", false)),
            ]),
        },
    ]
}
