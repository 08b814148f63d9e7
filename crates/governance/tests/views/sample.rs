//! Records to derive documents from.

use std::collections::BTreeMap;

use stillroom_core::Digest;
use stillroom_governance::record::{
    Costs, Counts, DataFacts, DataKind, Evaluation, Figure, FileFacts, GateFacts, Licences, MachineRecord,
    ModelFacts, ModelResult, PairedResult, ProvenanceRecord, RECORD_VERSION, RecipeFacts, ReleaseFacts, Role,
    Route, Span, Start, StudentFacts, TextFacts, TrainingFacts,
};
use stillroom_governance::{CardLicence, Grade, Obligation, Part, Program, Rule, Verdict};

pub(crate) fn file(path: &str) -> FileFacts {
    FileFacts { path: path.to_owned(), sha256: Digest::of(path.as_bytes()), bytes: path.len() as u64 }
}

pub(crate) fn licences(declared: Option<&str>, declared_in: &str, concluded: Option<&str>) -> Licences {
    Licences {
        declared: declared.map(str::to_owned),
        declared_in: declared_in.to_owned(),
        concluded: concluded.map(str::to_owned),
        texts: Vec::new(),
    }
}

/// A teacher behind somebody's interface.
pub(crate) fn served(id: &str) -> ModelFacts {
    let terms = "LicenseRef-terms-deepseek-open-platform";
    ModelFacts {
        id: id.to_owned(),
        release: Some("DeepSeek API".to_owned()),
        id_is_path: false,
        roles: vec![Role::Teacher, Role::Judge],
        share: 1.0,
        route: Route::Endpoints { origins: vec!["https://api.deepseek.com".to_owned()] },
        revision: None,
        tree_sha256: None,
        owner: None,
        licence: licences(Some(terms), "licence register", Some(terms)),
    }
}

/// A teacher with weights at hand, from the hub.
pub(crate) fn local(id: &str) -> ModelFacts {
    let mut licence = licences(Some("Apache-2.0"), "LICENSE", Some("Apache-2.0"));
    licence.texts = vec![TextFacts { name: "LICENSE".to_owned(), sha256: Digest::of(b"LICENSE") }];
    ModelFacts {
        id: id.to_owned(),
        release: Some("Qwen3-0.6B".to_owned()),
        id_is_path: false,
        roles: vec![Role::Teacher],
        share: 1.0,
        route: Route::Weights,
        revision: Some("c1899de289a04d12100db370d81485cdf75e47ca".to_owned()),
        tree_sha256: Some(Digest::of(id.as_bytes())),
        owner: None,
        licence,
    }
}

pub(crate) fn rule(id: &str, licence: &str) -> Rule {
    Rule {
        role: Part::Teacher,
        id: id.to_owned(),
        release: id.to_owned(),
        licence: licence.to_owned(),
        clause: "sec. 4".to_owned(),
        evidence: "https://example.org/terms".to_owned(),
        grade: Grade::Primary,
        checked: "2026-11".to_owned(),
        users_register: None,
        verdict: Verdict::Conditional,
        says: "outputs may train other models, on a condition".to_owned(),
        obliges: vec!["change-notices".to_owned()],
        conditions: vec!["change-notices".to_owned()],
    }
}

fn traces(teacher: &str) -> DataFacts {
    DataFacts {
        id: "tiny:traces".to_owned(),
        kind: DataKind::Synthetic,
        about: "Replies to the prompts.".to_owned(),
        tree_sha256: Some(Digest::of(b"traces")),
        made_by: vec![teacher.to_owned()],
        made_from: vec!["stillroom:procedural-tasks".to_owned()],
        licence: licences(None, "", Some("LicenseRef-terms-deepseek-open-platform")),
        counts: Counts {
            asked: Some(332),
            answered: Some(332),
            kept: Some(265),
            validation: Some(27),
            held_out: None,
            dropped: BTreeMap::from([("empty".to_owned(), 1), ("truncated".to_owned(), 39)]),
        },
        personal_data: "not looked for".to_owned(),
        egress: "listed origins: https://api.deepseek.com".to_owned(),
        files: vec![file("corpus/curated/train.parquet"), file("corpus/curated/validation.parquet")],
    }
}

fn prompts() -> DataFacts {
    DataFacts {
        id: "stillroom:procedural-tasks".to_owned(),
        kind: DataKind::Procedural,
        about: "Arithmetic word problems, made by a procedure.".to_owned(),
        tree_sha256: Some(Digest::of(b"prompts")),
        made_by: Vec::new(),
        made_from: Vec::new(),
        licence: licences(Some("Apache-2.0"), "licence register", Some("Apache-2.0")),
        counts: Counts { kept: Some(300), validation: Some(32), held_out: Some(64), ..Counts::default() },
        personal_data: "not looked for".to_owned(),
        egress: "listed origins: https://api.deepseek.com".to_owned(),
        files: Vec::new(),
    }
}

fn evaluation() -> Evaluation {
    let accuracy = |value, low, high| Figure { value: Some(value), ci95: Some([low, high]), reason: None };
    let model = |contender: &str, label: &str, value: f64| ModelResult {
        contender: contender.to_owned(),
        label: label.to_owned(),
        parameters: Some(14_080),
        accuracy: accuracy(value, value - 0.05, value + 0.05),
        nll_nats_per_token: Figure::of(1.857_134_973_573_552_5),
        bits_per_byte: Figure::of(0.953_552_286_630_565_3),
        kl_to_teacher: Figure::missing("the teacher gives no distributions"),
    };
    Evaluation {
        task: "word_problems".to_owned(),
        description: "A reply is right when its final number is the right one.".to_owned(),
        heldout_text: "the teacher's greedy replies to the held-out prompts, right or wrong".to_owned(),
        heldout_examples: 64,
        models: vec![model("teacher", "Teacher", 0.9), model("student", "Student", 0.7)],
        differences: vec![PairedResult {
            other: "teacher".to_owned(),
            metric: "accuracy".to_owned(),
            difference: -0.2,
            ci95: [-0.3, -0.1],
            claim: "worse".to_owned(),
            items: 64,
            method: "Tango 1998 paired score".to_owned(),
        }],
        checks_passed: true,
    }
}

/// A student from random weights, taught by a service.
pub(crate) fn of_outputs() -> ProvenanceRecord {
    let teacher = served("deepseek:deepseek-reasoner");
    ProvenanceRecord {
        record_version: RECORD_VERSION,
        release: ReleaseFacts {
            name: "tiny-student".to_owned(),
            licence: Some("Apache-2.0".to_owned()),
            card: CardLicence { license: "apache-2.0".to_owned(), license_name: None, license_link: None },
            trial: false,
        },
        program: Program {
            name: "stillroom".to_owned(),
            version: "0.1.0".to_owned(),
            digest: Some(Digest::of(b"binary")),
        },
        lockfile: Digest::of(b"Cargo.lock"),
        machine: MachineRecord {
            cpu: "some CPU".to_owned(),
            kernels: "avx2 fma".to_owned(),
            threads: 2,
            os: "linux".to_owned(),
        },
        time: Span {
            started: "2026-11-28T08:39:45Z".to_owned(),
            finished: "2026-11-28T08:39:50Z".to_owned(),
        },
        recipe: RecipeFacts {
            name: "tiny".to_owned(),
            sha256: Digest::of(b"recipe"),
            seeds: BTreeMap::from([("prompts".to_owned(), 5), ("train".to_owned(), 5)]),
            loss: "hard_labels".to_owned(),
            trained: "all weights".to_owned(),
        },
        student: StudentFacts {
            architecture: "llama".to_owned(),
            parameters: Some(14_080),
            tree_sha256: Digest::of(b"student"),
            start: Start::Random,
            ancestors: Vec::new(),
        },
        training: Some(TrainingFacts {
            steps: 168,
            chosen_step: Some(160),
            examples: 265,
            tokens: 72_528,
            supervised_tokens: 26_832,
            first_loss: Figure::of(7.874_742_940_022_395),
            last_loss: Figure::of(1.912_5),
            validation_loss: Figure::of(1.925),
        }),
        data: vec![prompts(), traces(&teacher.id)],
        evaluation: evaluation(),
        costs: Costs {
            wall_s: Figure::of(5.25),
            teacher_usd: Figure::of(0.42),
            energy_j: Figure::missing("no energy counters of the CPU"),
        },
        gate: GateFacts {
            verdict: Verdict::Conditional,
            passes: true,
            decided: "2026-11-28T08:39:45Z".to_owned(),
            rules: vec![rule(&teacher.id, "LicenseRef-terms-deepseek-open-platform")],
            accepted: vec!["change-notices".to_owned()],
            settled: Vec::new(),
            violated: Vec::new(),
            obligations: vec![Obligation {
                name: "change-notices".to_owned(),
                means: "files that were changed say so".to_owned(),
                asked_by: vec![teacher.id.clone()],
                carried_out: Some("`NOTICE` says so".to_owned()),
                yours_to_do: None,
            }],
            notices: vec!["Built with something".to_owned()],
            override_reason: None,
            register: Digest::of(b"register"),
            users_register: None,
        },
        files: [
            "config.json",
            "model.gguf",
            "model.safetensors",
            "provenance/croissant.json",
            "tokenizer.json",
        ]
        .map(file)
        .to_vec(),
        byproducts: ["checkpoints/step-000168/model.safetensors", "report.json"].map(file).to_vec(),
        teachers: vec![teacher],
    }
}

/// A student pruned from its teacher, under a licence of its maker's own.
pub(crate) fn of_weights() -> ProvenanceRecord {
    let teacher = local("Qwen/Qwen3-0.6B");
    let mut record = of_outputs();
    record.training = None;
    record.release.licence = Some("our own terms, version 2".to_owned());
    record.release.card = CardLicence {
        license: "other".to_owned(),
        license_name: Some("our own terms, version 2".to_owned()),
        license_link: Some("NOTICE".to_owned()),
    };
    record.files.insert(1, file("NOTICE"));
    record.files.sort_by(|a, b| a.path.cmp(&b.path));
    record.student.start = Start::Pruned;
    record.student.ancestors = vec![teacher.clone()];
    record.data[1].made_by = vec![teacher.id.clone()];
    record.data[1].licence = licences(None, "", Some("Apache-2.0"));
    record.data[0].kind = DataKind::Given;
    record.gate.rules = vec![rule(&teacher.id, "Apache-2.0")];
    record.teachers = vec![teacher];
    record
}
