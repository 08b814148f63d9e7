//! What licences ask of a release, carried out: `NOTICE` and `licences/`.

use std::path::Path;

use stillroom_governance::Decision;

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
