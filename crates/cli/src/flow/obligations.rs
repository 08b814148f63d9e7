//! What licences ask of a release, carried out: `NOTICE`, `licences/`, and their lines on the card.

use std::fmt::Write as _;
use std::path::Path;

use stillroom_governance::{CardLicence, Decision, NOT_ADVICE};

use crate::failure::{Failure, Result};

/// Writes `NOTICE` and the copies of licence files into a release directory.
pub(super) fn write(dir: &Path, decision: &Decision, student: &str) -> Result<()> {
    let put = |path: &str, bytes: &[u8]| {
        let path = dir.join(path);
        let parent = path.parent().unwrap_or(dir);
        std::fs::create_dir_all(parent).map_err(|e| Failure::io("create", parent, &e))?;
        std::fs::write(&path, bytes).map_err(|e| Failure::io("write", &path, &e))
    };
    put("NOTICE", decision.notice_file(student).as_bytes())?;
    for copy in &decision.licence_copies {
        put(&copy.path, &copy.bytes()?)?;
    }
    Ok(())
}

/// The licence lines of a card's front matter.
pub(super) fn front_matter(licence: &CardLicence) -> String {
    let mut lines = format!("license: {}\n", licence.license);
    if let Some(name) = &licence.license_name {
        let _ = writeln!(lines, "license_name: {}", quoted(name));
    }
    if let Some(link) = &licence.license_link {
        let _ = writeln!(lines, "license_link: {link}");
    }
    lines
}

/// The card's chapter on licences: prescribed words, why the work was allowed, and who does what.
pub(super) fn chapter(decision: &Decision) -> String {
    let mut text = String::from("\n## Licences\n\n");
    for line in &decision.notices {
        let _ = writeln!(text, "**{line}**\n");
    }
    let _ = writeln!(text, "Licence verdict on the way it was made: {}.", decision.verdict.as_str());
    if let Some(reason) = &decision.override_reason {
        let _ = writeln!(text, "\n**{}**\n", one_line(&decision.override_in_words(reason)));
    }
    for rule in &decision.rules {
        let clause = if rule.clause.is_empty() { String::new() } else { format!(", clause {}", rule.clause) };
        let said = format!("{} ({}{clause}): {}", rule.release, rule.licence, rule.says);
        let _ = writeln!(text, "- {}", one_line(&said));
    }
    if !decision.obligations.is_empty() {
        text.push_str("\nWhat these licences ask for:\n\n");
    }
    for obligation in &decision.obligations {
        let _ = writeln!(text, "- `{}`: {}", obligation.name, one_line(&obligation.means));
        if let Some(done) = &obligation.carried_out {
            let _ = writeln!(text, "  - carried out: {}", one_line(done));
        }
        if let Some(left) = &obligation.yours_to_do {
            let _ = writeln!(text, "  - yours to do: {}", one_line(left));
        }
    }
    let _ = writeln!(text, "\n`NOTICE` and `licences/` belong to this release. {NOT_ADVICE}");
    text
}

/// Text of others in one line of Markdown.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A YAML scalar: plain where it can be, else in double quotes, which JSON's are too.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || " .-".contains(c);
    if text.chars().all(plain) && text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return text.to_owned();
    }
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillroom_governance::{Question, Subject, decide};

    fn about(teacher: &str, base: Option<&str>, student: &str) -> Decision {
        let question = Question {
            student_base: base.map(Subject::id),
            student_name: Some(student.to_owned()),
            ..Question::about(Subject::id(teacher))
        };
        let accepted = decide(&question).conditions;
        decide(&Question { accepted, ..question })
    }

    #[test]
    fn the_card_names_the_licences_that_a_student_comes_under() {
        let lines = |teacher: &str, base: Option<&str>, student: &str, own: Option<&str>| {
            front_matter(&about(teacher, base, student).card_licence(own))
        };
        let (r1, llama, gemma) =
            ("deepseek-ai/DeepSeek-R1", "meta-llama/Llama-3.1-8B", "google/gemma-2-9b-it");
        assert_eq!(lines(r1, None, "x", Some("Apache-2.0")), "license: apache-2.0\n");
        assert_eq!(lines(r1, Some(llama), "Llama-x", None), "license: llama3.1\n");
        assert_eq!(
            lines(r1, Some(llama), "Llama-x", Some("MIT")),
            "license: other\nlicense_name: mit and llama3.1\nlicense_link: NOTICE\n"
        );
        assert_eq!(lines(gemma, None, "x", None), "license: gemma\n");
        assert_eq!(
            lines(gemma, None, "x", Some("MIT")),
            "license: other\nlicense_name: mit and gemma\nlicense_link: NOTICE\n"
        );
        let none = lines(r1, None, "x", None);
        assert_eq!(none, "license: other\nlicense_name: not-stated\nlicense_link: NOTICE\n");
        assert!(lines(r1, None, "x", Some("a: \"b\"\n- c")).contains(r#"license_name: "a: \"b\"\n- c""#));
    }

    #[test]
    fn prescribed_words_and_who_does_what_stand_on_the_card() {
        let decision = about("meta-llama/Llama-3.1-8B-Instruct", None, "Llama-tiny");
        let card = chapter(&decision);
        for part in [
            "**Built with Llama**",
            "**Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta",
            "clause 1.b.i",
            "carried out: the student is called `Llama-tiny`",
            "yours to do: put a copy of LicenseRef-scancode-llama-3.1-license-2024",
        ] {
            assert!(card.contains(part), "{part} in\n{card}");
        }
        assert_eq!(card.matches(NOT_ADVICE).count(), 1);
    }

    #[test]
    fn every_obligation_says_who_does_it() {
        for (teacher, base) in [
            ("meta-llama/Llama-3.1-8B-Instruct", Some("meta-llama/Llama-3.2-1B")),
            ("google/gemma-2-9b-it", Some("Qwen/Qwen2.5-7B")),
            ("deepseek-ai/DeepSeek-V3", None),
            ("allenai/Llama-3.1-Tulu-3-8B", Some("deepseek-ai/DeepSeek-R1-Distill-Llama-8B")),
            ("stabilityai/stablelm-2-12b-chat", Some("tiiuae/falcon-11B")),
        ] {
            let decision = about(teacher, base, "Llama-tiny");
            let named: Vec<&str> = decision.obligations.iter().map(|o| o.name.as_str()).collect();
            assert_eq!(named, decision.obliges.iter().map(String::as_str).collect::<Vec<_>>());
            for obligation in &decision.obligations {
                assert!(!obligation.asked_by.is_empty(), "{teacher}: {}", obligation.name);
                let said = obligation.carried_out.iter().chain(&obligation.yours_to_do);
                assert!(
                    said.clone().count() > 0 && said.clone().all(|text| !text.is_empty()),
                    "{obligation:?}"
                );
            }
        }
    }

    #[test]
    fn licence_files_are_copied_as_the_gate_saw_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let base = dir.path().join("base");
        std::fs::create_dir(&base).expect("a directory");
        let mit = stillroom_governance::full_text("MIT").expect("a text");
        let mit = format!("Copyright (c) 2024 Somebody\n\n{mit}");
        std::fs::write(base.join("LICENSE"), &mit).expect("a file");
        std::fs::write(base.join("NOTICE"), "Thanks to all.\n").expect("a file");
        let decision = decide(&Question {
            student_base: Some(Subject::open_as("acme/base", &base).expect("a base")),
            ..Question::about(Subject::id("deepseek-ai/DeepSeek-R1"))
        });
        assert!(decision.passes, "{}", decision.render());
        let release = dir.path().join("release");
        write(&release, &decision, "tiny").expect("written");
        let read = |path: &str| std::fs::read_to_string(release.join(path)).expect("a file");
        assert_eq!(read("licences/acme--base/LICENSE"), mit);
        assert_eq!(read("licences/acme--base/NOTICE"), "Thanks to all.\n");
        let notice = read("NOTICE");
        assert!(notice.contains("Copyright (c) 2024 Somebody") && notice.contains("acme/base"), "{notice}");
        for copy in &decision.licence_copies {
            assert!(notice.contains(&copy.digest.to_string()), "{notice}");
        }
        std::fs::write(base.join("LICENSE"), "another").expect("a file");
        let changed = write(&release, &decision, "tiny").unwrap_err();
        assert!(changed.to_string().contains("changed since the licence gate read it"), "{changed}");
    }
}
