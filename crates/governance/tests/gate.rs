//! Cases of the gate that a row alone does not show.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use stillroom_core::{Digest, ErrorKind};
use stillroom_governance::{
    Decision, Declaration, Grade, NOT_ADVICE, Part, Question, Register, Subject, Use, Verdict, decide,
    full_text,
};

fn ask(teacher: &str) -> Decision {
    decide(&Question::about(Subject::id(teacher)))
}

fn ask_with_base(teacher: &str, base: &str) -> Decision {
    decide(&Question { student_base: Some(Subject::id(base)), ..Question::about(Subject::id(teacher)) })
}

fn model_dir(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn ask_dir(id: Option<&str>, files: &[(&str, &str)]) -> Decision {
    let dir = model_dir(files);
    let subject = match id {
        Some(id) => Subject::open_as(id, dir.path()).unwrap(),
        None => Subject::open(dir.path()).unwrap(),
    };
    decide(&Question::about(subject))
}

fn apache() -> &'static str {
    full_text("Apache-2.0").unwrap()
}

fn mit() -> &'static str {
    full_text("MIT").unwrap()
}

fn names(decision: &Decision) -> Vec<&str> {
    decision.conditions.iter().map(String::as_str).collect()
}

#[test]
fn forbidden_teachers_are_denied_with_their_clause() {
    for (id, clause) in [
        ("meta-llama/Llama-2-70b-chat-hf", "1.b.v"),
        ("Qwen/Qwen2-72B-Instruct", "5.b"),
        ("openai:gpt-4o", "3.3(e)"),
        ("anthropic:claude-opus-4", "D.4"),
        ("google:gemma-4-31b-it", "Use Restrictions"),
    ] {
        let decision = ask(id);
        assert_eq!(decision.verdict, Verdict::Deny, "{id}");
        assert!(decision.rules[0].clause.contains(clause), "{id}");
        let error = decision.enforce().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Policy);
        assert!(error.to_string().contains(clause), "{error}");
        assert!(error.fix().is_some());
    }
}

#[test]
fn an_unknown_id_is_unknown_and_says_what_would_help() {
    let decision = ask("acme/mystery-7b");
    assert_eq!(decision.verdict, Verdict::Unknown);
    assert!(decision.what_to_do[0].contains("policy.declare.\"acme/mystery-7b\""));
    assert_eq!(decision.enforce().unwrap_err().kind(), ErrorKind::Policy);
    assert_eq!(decide(&Question::default()).verdict, Verdict::Unknown);
}

#[test]
fn lineage_of_the_distilled_models_carries_the_llama_terms() {
    let decision = ask("deepseek-ai/DeepSeek-R1-Distill-Llama-8B");
    assert_eq!(decision.verdict, Verdict::Conditional);
    for name in
        ["name-begins-with-llama", "built-with-llama", "attribution-notice", "700m-mau-cap", "use-policy"]
    {
        assert!(names(&decision).contains(&name), "{name}");
    }
    assert!(decision.obliges.iter().any(|name| name == "keep-copyright-notice"));
    assert_eq!(ask("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B").verdict, Verdict::Allow);
    assert!(names(&ask("allenai/OLMo-2-1124-13B-Instruct")).contains(&"derivative-terms"));
    // A copy whose only licence file is MIT is still built on Llama.
    let copy = ask_dir(Some("deepseek-ai/DeepSeek-R1-Distill-Llama-8B"), &[("LICENSE", mit())]);
    assert_eq!(copy.verdict, Verdict::Conditional);
    assert!(names(&copy).contains(&"name-begins-with-llama"));
    let card = "---\nlicense: mit\nbase_model: meta-llama/Llama-3.1-8B\n---\n";
    let local = ask_dir(None, &[("LICENSE", mit()), ("README.md", card)]);
    assert_eq!(local.verdict, Verdict::Conditional);
    assert!(
        local
            .rules
            .iter()
            .any(|rule| rule.role == Part::TeacherBase && rule.release.starts_with("Llama 3.1"))
    );
}

#[test]
fn sizes_of_one_family_have_their_own_answers() {
    assert_eq!(ask("Qwen/Qwen2.5-7B-Instruct").verdict, Verdict::Allow);
    let three = ask("Qwen/Qwen2.5-3B-Instruct");
    assert_eq!(three.verdict, Verdict::Conditional);
    assert!(names(&three).contains(&"non-commercial") && names(&three).contains(&"confirm-licence-file"));
    let large = ask("Qwen/Qwen2.5-72B-Instruct");
    assert!(names(&large).contains(&"built-with-qwen") && !names(&large).contains(&"non-commercial"));
    assert_eq!(ask("Qwen/Qwen2-72B").verdict, Verdict::Deny);
    assert!(names(&ask("meta-llama/Llama-3.2-11B-Vision-Instruct")).contains(&"not-in-eu"));
    assert!(!names(&ask("meta-llama/Llama-3.2-1B-Instruct")).contains(&"not-in-eu"));
}

#[test]
fn the_output_ban_spares_its_own_family() {
    let within = ask_with_base("meta-llama/Llama-2-70b-chat-hf", "meta-llama/Llama-2-7b-hf");
    assert_eq!(within.verdict, Verdict::Conditional);
    assert!(names(&within).contains(&"same-family-only"));
    assert_eq!(
        ask_with_base("meta-llama/Llama-2-70b-chat-hf", "meta-llama/Llama-3.1-8B").verdict,
        Verdict::Deny
    );
    assert_eq!(ask_with_base("Qwen/Qwen2-72B-Instruct", "Qwen/Qwen2.5-7B").verdict, Verdict::Deny);
    assert_eq!(ask_with_base("Qwen/Qwen2-72B-Instruct", "Qwen/Qwen-7B").verdict, Verdict::Conditional);
    // EXAONE's ban has no such exception.
    let id = "LGAI-EXAONE/EXAONE-Deep-32B";
    assert_eq!(ask_with_base(id, "LGAI-EXAONE/EXAONE-Deep-7.8B").verdict, Verdict::Deny);
}

#[test]
fn obligations_of_weights_and_of_data_generators_unite() {
    let decision = decide(&Question {
        student_base: Some(Subject::id("meta-llama/Llama-3.2-1B")),
        data: vec![Subject::id("google/gemma-2-9b-it")],
        ..Question::about(Subject::id("Qwen/Qwen2.5-72B-Instruct"))
    });
    assert_eq!(decision.verdict, Verdict::Conditional);
    for name in ["name-begins-with-llama", "derivative-terms", "built-with-qwen"] {
        assert!(names(&decision).contains(&name), "{name}");
        assert!(!decision.meanings[name].is_empty());
    }
    let roles: Vec<Part> = decision.rules.iter().map(|rule| rule.role).collect();
    assert_eq!(roles, [Part::Teacher, Part::StudentBase, Part::Data]);
    let denied = decide(&Question {
        data: vec![Subject::id("openai:gpt-4o")],
        ..Question::about(Subject::id("deepseek-ai/DeepSeek-R1"))
    });
    assert_eq!(denied.verdict, Verdict::Deny);
}

#[test]
fn a_licence_file_counts_as_primary_and_settles_weak_rows() {
    let decision = ask_dir(None, &[("LICENSE", apache()), ("config.json", "{}")]);
    assert_eq!(decision.verdict, Verdict::Allow);
    assert_eq!(decision.rules[0].grade, Grade::Primary);
    assert!(decision.rules[0].evidence.contains("LICENSE is Apache-2.0 (SHA-256 "));
    // Recall row: unknown by its ID, settled by its file.
    assert_eq!(ask("Qwen/Qwen2-7B-Instruct").verdict, Verdict::Unknown);
    assert_eq!(ask_dir(Some("Qwen/Qwen2-7B-Instruct"), &[("LICENSE", apache())]).verdict, Verdict::Allow);
    // Secondary row: conditional by its ID.
    assert_eq!(names(&ask("microsoft/Phi-3-mini-4k-instruct")), ["confirm-licence-file"]);
    assert_eq!(
        ask_dir(Some("microsoft/Phi-3-mini-4k-instruct"), &[("LICENSE", mit())]).verdict,
        Verdict::Allow
    );
    // A weak row that believed something else gives way.
    assert_eq!(ask_dir(Some("Qwen/Qwen1.5-7B-Chat"), &[("LICENSE", apache())]).verdict, Verdict::Allow);
    // SmolLM2 as it is laid out on disk.
    let card = "---\nlicense: apache-2.0\nbase_model:\n- HuggingFaceTB/SmolLM2-135M\n---\n";
    let config = r#"{"_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}"#;
    let files = [("LICENSE", apache()), ("README.md", card), ("config.json", config)];
    assert_eq!(ask_dir(None, &files).verdict, Verdict::Allow);
}

#[test]
fn a_gguf_takes_the_licence_beside_it() {
    let dir = model_dir(&[("SmolLM2.gguf", "GGUF"), ("LICENSE", apache())]);
    let decision = decide(&Question::about(Subject::open(&dir.path().join("SmolLM2.gguf")).unwrap()));
    assert_eq!(decision.verdict, Verdict::Allow);
    assert!(Subject::open(Path::new("/nowhere/at/all")).is_err());
    assert!(Subject::from_argument("Qwen/Qwen2.5-7B").unwrap().found.is_none());
}

#[test]
fn evidence_in_conflict_is_unknown_and_both_sides_are_shown() {
    let decision = ask_dir(Some("meta-llama/Llama-2-7b-hf"), &[("LICENSE", mit())]);
    assert_eq!(decision.verdict, Verdict::Unknown);
    assert!(!decision.passes);
    let says: Vec<&str> = decision.rules.iter().map(|rule| rule.says.as_str()).collect();
    assert!(
        says.iter().any(|says| says.contains("conflict") && says.contains("MIT") && says.contains("llama-2"))
    );
    // A copy that calls itself Llama 3.1 and carries an Apache licence.
    let config = r#"{"_name_or_path": "meta-llama/Llama-3.1-8B"}"#;
    let laundered = ask_dir(None, &[("LICENSE", apache()), ("config.json", config)]);
    assert_eq!(laundered.verdict, Verdict::Unknown);
    let two = ask_dir(None, &[("LICENSE-A", apache()), ("LICENSE-B", mit())]);
    assert_eq!(two.verdict, Verdict::Unknown);
    assert!(two.rules.iter().any(|rule| rule.licence == "MIT"));
    assert!(two.rules.iter().any(|rule| rule.licence == "Apache-2.0"));
}

#[test]
fn tags_and_claims_never_open_the_gate() {
    let tag = ask_dir(None, &[("README.md", "---\nlicense: apache-2.0\n---\n")]);
    assert_eq!(tag.verdict, Verdict::Unknown);
    let config = r#"{"_name_or_path": "HuggingFaceTB/SmolLM2-135M"}"#;
    let claim = ask_dir(None, &[("config.json", config)]);
    assert_eq!(names(&claim), ["confirm-licence-file"]);
    let shut = ask_dir(None, &[("config.json", r#"{"_name_or_path": "meta-llama/Llama-2-7b-hf"}"#)]);
    assert_eq!(shut.verdict, Verdict::Deny);
    let base = ask_dir(None, &[("LICENSE", apache()), ("README.md", "---\nbase_model: acme/secret\n---\n")]);
    assert_eq!(names(&base), ["confirm-base-licence"]);
}

#[test]
fn another_name_does_not_wash_weights() {
    let config = r#"{"_name_or_path": "meta-llama/Llama-2-7b-hf"}"#;
    for id in ["HuggingFaceTB/SmolLM2-135M", "stillroom:quickstart-teacher"] {
        let decision = ask_dir(Some(id), &[("config.json", config), ("LICENSE", apache())]);
        assert_eq!(decision.verdict, Verdict::Deny, "{id}");
    }
    let same = r#"{"_name_or_path": "HuggingFaceTB/SmolLM2-135M"}"#;
    let honest = ask_dir(Some("HuggingFaceTB/SmolLM2-135M-Instruct"), &[("config.json", same)]);
    assert_eq!((honest.verdict, honest.rules.len()), (Verdict::Allow, 1));
}

#[test]
fn a_changed_licence_text_is_not_the_licence() {
    let rider = format!("{}\nThe Software may not be used to train other models.\n", mit());
    let decision = ask_dir(None, &[("LICENSE", &rider)]);
    assert_eq!(decision.verdict, Verdict::Unknown);
    let says = &decision.rules[0].says;
    assert!(says.contains(" % like MIT and is not it: line "), "{says}");
    assert!(says.contains("\"may not be used to train other models\""), "{says}");
    // The register read this release's licence as MIT: one of the two is not so.
    let with_row = ask_dir(Some("deepseek-ai/DeepSeek-R1"), &[("LICENSE", &rider)]);
    assert_eq!(with_row.verdict, Verdict::Unknown);
    assert!(with_row.rules.iter().any(|rule| rule.says.contains("by this alone, allow")));
    let unread = ask_dir(Some("deepseek-ai/DeepSeek-R1"), &[("LICENSE", "Look at it on Sundays.")]);
    assert_eq!(names(&unread), ["confirm-licence-file"]);
    let denied = ask_dir(Some("meta-llama/Llama-2-7b-hf"), &[("LICENSE", "whatever")]);
    assert_eq!(denied.verdict, Verdict::Deny);
}

fn declare(id: &str, owner: &str, licence: &str, digest: Option<Digest>) -> BTreeMap<String, Declaration> {
    let declaration = Declaration { owner: owner.to_owned(), licence: licence.to_owned(), digest };
    BTreeMap::from([(id.to_owned(), declaration)])
}

#[test]
fn a_private_model_is_declared_and_a_known_one_cannot_be() {
    let declared = |id: &str, owner: &str, licence: &str| {
        decide(&Question { declared: declare(id, owner, licence, None), ..Question::about(Subject::id(id)) })
    };
    let own = declared("my-teacher", "us", "Apache-2.0");
    assert_eq!((own.verdict, own.rules[0].grade), (Verdict::Allow, Grade::Declared));
    assert_eq!(names(&declared("my-teacher", "us", "all ours")), ["owner-permits-training"]);
    assert_eq!(declared("my-teacher", "", "Apache-2.0").verdict, Verdict::Unknown);
    assert_eq!(declared("my-teacher", "us", " ").verdict, Verdict::Unknown);
    let llama_2 = "LicenseRef-scancode-llama-2-license-2023";
    assert_eq!(declared("my-teacher", "us", llama_2).verdict, Verdict::Deny);
    for id in ["openai:gpt-4o", "gpt-4o", "claude-opus-4", "meta-llama/Llama-2-7b-hf", "Qwen/Qwen2-7B"] {
        assert!(!declared(id, "us", "MIT").passes, "{id}");
    }
    let honest = declared("HuggingFaceTB/SmolLM2-135M", "Hugging Face", "Apache-2.0");
    assert_eq!(honest.verdict, Verdict::Allow);
}

#[test]
fn a_declared_digest_has_to_be_the_models() {
    let digest = Digest::of(b"weights");
    let ask = |actual: Digest| {
        decide(&Question {
            declared: declare("mine", "us", "MIT", Some(digest)),
            ..Question::about(Subject { digest: Some(actual), ..Subject::id("mine") })
        })
    };
    assert_eq!(ask(digest).verdict, Verdict::Allow);
    assert_eq!(ask(Digest::of(b"other")).verdict, Verdict::Unknown);
}

#[test]
fn the_endpoint_decides_whose_terms_apply() {
    let through = |id: &str, url: &str| {
        decide(&Question {
            endpoints: vec![url.to_owned()],
            declared: declare("my-teacher", "us", "MIT", None),
            ..Question::about(Subject::id(id))
        })
    };
    let disguised = through("my-teacher", "https://api.openai.com/v1");
    assert_eq!(disguised.verdict, Verdict::Deny);
    assert!(disguised.rules.iter().any(|rule| rule.role == Part::Route));
    assert_eq!(through("my-teacher", "http://127.0.0.1:8080/v1").verdict, Verdict::Allow);
    assert_eq!(
        through("google/gemma-3-27b-it", "https://generativelanguage.googleapis.com").verdict,
        Verdict::Deny
    );
    assert_eq!(through("deepseek:deepseek-chat", "https://api.deepseek.com/v1").rules.len(), 1);
}

#[test]
fn a_reseller_adds_its_terms_to_the_models() {
    assert_eq!(ask("openrouter:openai/gpt-4o").verdict, Verdict::Deny);
    assert_eq!(ask("openrouter:openai/gpt-oss-20b").verdict, Verdict::Conditional);
    assert_eq!(ask("together:meta-llama/Llama-2-7b-chat-hf").verdict, Verdict::Deny);
    let llama = ask("together:meta-llama/Llama-3.3-70B-Instruct");
    assert!(names(&llama).contains(&"no-competing-service") && names(&llama).contains(&"built-with-llama"));
    assert_eq!(ask("together:acme/mystery").verdict, Verdict::Unknown);
    assert_eq!(ask("openrouter:openrouter:openrouter:x").verdict, Verdict::Unknown);
}

#[test]
fn the_students_name_is_checked_where_a_licence_prescribes_it() {
    let named = |name: &str| {
        let question = Question {
            student_name: Some(name.to_owned()),
            ..Question::about(Subject::id("meta-llama/Llama-3.1-8B-Instruct"))
        };
        let accepted = decide(&question).conditions;
        decide(&Question { accepted, ..question })
    };
    for name in ["Llama-3.1-Tiny", "llama_small", "us/Llama-tiny"] {
        assert!(named(name).passes, "{name}");
    }
    let wrong = named("Tiny-Llama");
    assert!(!wrong.passes && wrong.violated == ["name-begins-with-llama"]);
    assert!(wrong.what_to_do[0].contains("begins with `Llama`"));
    assert!(wrong.headline().contains("name-begins-with-llama"));
}

#[test]
fn an_override_is_loud_and_stays_in_the_record() {
    let with = |id: &str, reason: &str| {
        let override_reason = Some(reason.to_owned());
        decide(&Question { override_reason, ..Question::about(Subject::id(id)) })
    };
    let forced = with("openai:gpt-4o", "our contract of 2026-02 allows it");
    assert!(forced.passes && forced.verdict == Verdict::Deny);
    assert_eq!(forced.to_json()["override"], "our contract of 2026-02 allows it");
    assert!(forced.render().contains("OVERRIDDEN"));
    assert!(!with("openai:gpt-4o", "  ").passes);
    assert_eq!(with("deepseek-ai/DeepSeek-R1", "just in case").override_reason, None);
}

#[test]
fn what_this_program_brings_along_is_allowed() {
    let decision = decide(&Question {
        data: vec![Subject::id("stillroom:procedural-tasks")],
        ..Question::about(Subject::id("stillroom:quickstart-teacher"))
    });
    assert_eq!(decision.verdict, Verdict::Allow);
    assert_eq!(decision.rules[0].licence, "Apache-2.0");
    assert_eq!(ask("stillroom:anything-else").verdict, Verdict::Unknown);
}

#[test]
fn the_name_of_the_own_teacher_proves_nothing() {
    const OWN: &str = "stillroom:quickstart-teacher";
    let other = ask_dir(Some(OWN), &[("config.json", "{}"), ("model.safetensors", "others' weights")]);
    assert_eq!(other.verdict, Verdict::Unknown);
    assert!(other.rules[0].says.contains("not those that this program brings along"), "{:?}", other.rules);
    // Its own licence file speaks for it, as for any other model.
    let licensed = ask_dir(Some(OWN), &[("model.safetensors", "others' weights"), ("LICENSE", apache())]);
    assert_eq!((licensed.verdict, licensed.rules[0].grade), (Verdict::Allow, Grade::Primary));
    assert!(licensed.rules[0].evidence.starts_with("LICENSE is Apache-2.0"), "{:?}", licensed.rules);
    let foreign = model_dir(&[("model.safetensors", "others' weights")]);
    let declared = decide(&Question {
        declared: declare(OWN, "us", "MIT", None),
        ..Question::about(Subject::open_as(OWN, foreign.path()).unwrap())
    });
    assert_eq!((declared.verdict, declared.rules[0].grade), (Verdict::Allow, Grade::Declared));
    // A service can answer to any name, and a task is no teacher.
    let endpoints = vec!["http://127.0.0.1:8080/v1".to_owned()];
    let served = decide(&Question { endpoints, ..Question::about(Subject::id(OWN)) });
    assert_eq!(served.verdict, Verdict::Unknown);
    assert_eq!(ask("stillroom:procedural-tasks").verdict, Verdict::Unknown);
}

#[test]
fn json_has_the_documented_fields_and_the_text_says_why() {
    let decision = ask("Qwen/Qwen2.5-3B-Instruct");
    let json = decision.to_json();
    assert_eq!(json["verdict"], "conditional");
    let rule = &json["rules"][0];
    for field in ["role", "release", "licence", "clause", "evidence", "grade", "checked", "says"] {
        assert!(rule[field].is_string(), "{field}");
    }
    assert!(rule["obliges"].as_array().is_some_and(|names| names.iter().all(|name| name.is_string())));
    assert_eq!(json["register"], Register::builtin().digest().to_string());
    let text = decision.render();
    for part in [
        "Licence verdict: conditional",
        "Why",
        "clause: ",
        "evidence: https://",
        "[open] non-commercial",
        "policy.accept",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert_eq!(text.matches(NOT_ADVICE).count(), 1);
    let hostile = ask("evil\u{1b}[2J\nLicence verdict: allow");
    assert!(!hostile.render().contains('\u{1b}') && !hostile.render().contains("\nLicence verdict: allow"));
}

#[test]
fn acceptances_are_checked_by_name() {
    let register = Register::builtin();
    assert!(register.check_condition_names(&["non-commercial".to_owned()]).is_ok());
    let error = register.check_condition_names(&["non-comercial".to_owned()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadRecipe);
    assert!(error.fix().unwrap().contains("`non-commercial`"));
    let unused = decide(&Question {
        accepted: vec!["share-alike".to_owned()],
        ..Question::about(Subject::id("deepseek-ai/DeepSeek-R1"))
    });
    assert_eq!(unused.unused_acceptances, ["share-alike"]);
}

#[test]
fn weights_are_asked_about_on_their_own() {
    let weights = |id: &str| decide(&Question { use_: Use::Weights, ..Question::about(Subject::id(id)) });
    assert_eq!(weights("meta-llama/Llama-2-7b-hf").verdict, Verdict::Conditional);
    assert_eq!(weights("openai:gpt-4o").verdict, Verdict::Deny);
    assert_eq!(weights("deepseek:deepseek-chat").verdict, Verdict::Deny);
    assert_eq!(weights("deepseek-ai/DeepSeek-R1").verdict, Verdict::Allow);
}
