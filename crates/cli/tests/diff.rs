//! Records compared through the binary: a release with its own documents, and two releases with each other.

#[path = "common/shop.rs"]
mod shop;

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use shop::{Shop, text};
use stillroom_core::Digest;

const RECIPE: &str = r#"
name = "tiny"
TINY_STUDENT
tokenizer = "ASSETS/quickstart-tokenizer"
TWO_STEPS
"#;

fn shop() -> Shop {
    let longer = shop::recipe(RECIPE).replace("max_steps = 2", "max_steps = 3");
    let shop = Shop::with_recipes(&[("tiny.toml", RECIPE), ("longer.toml", &longer)]);
    shop.succeed(&["release", "tiny.toml", "--output", "run", "--quiet"]);
    shop
}

fn failed(output: &Output, exit: i32, says: &str) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{}{said}", text(&output.stdout));
    assert!(said.contains(says), "{said}");
    said
}

/// Changes a file of a run or release, and its manifest with it, as somebody without a key can.
fn edit(shop: &Shop, dir: &str, in_run: &str, file: &str, change: impl FnOnce(String) -> String) {
    let manifest = match Path::new(&shop.path(dir)).join("release").exists() {
        true => format!("{dir}/release/provenance/manifest.json"),
        false => format!("{dir}/provenance/manifest.json"),
    };
    let file = format!("{dir}/{file}");
    let before = shop.bytes(&file);
    let after = change(text(&before));
    assert_ne!(text(&before), after);
    std::fs::write(shop.path(&file), &after).expect("written");
    let sealed = text(&shop.bytes(&manifest));
    let (old, new) = (Digest::of(&before).to_string(), Digest::of(after.as_bytes()).to_string());
    assert!(sealed.contains(in_run) && sealed.contains(&old), "{file}");
    let sealed = sealed.replace(&old, &new);
    std::fs::write(shop.path(&manifest), &sealed).expect("written");
    let line = format!("{}  manifest.json\n", Digest::of(sealed.as_bytes()));
    std::fs::write(shop.path(&format!("{manifest}.sha256")), line).expect("written");
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_tree(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).expect("copied")),
        }
    }
}

#[test]
fn documents_that_a_new_manifest_was_written_for_do_not_pass() {
    let shop = shop();
    let said = shop.succeed(&["verify", "run"]);
    assert!(said.contains("Documents: 8 come out of the record byte for byte"), "{said}");
    assert!(said.contains("`licence.json` (") && said.contains("`report.json` ("), "{said}");
    let read = |args: &[&str]| -> Value { serde_json::from_str(&shop.succeed(args)).expect("JSON") };
    assert_eq!(read(&["verify", "run", "--json"])["agreement"]["state"], "agrees");

    assert!(
        said.contains("opened with its secret, has licence.json, report.html, report.json as they are"),
        "{said}"
    );

    let student = shop.json("run/report.json")["models"]["student"]["nll_nats_per_token"].clone();
    let better = |report: String| report.replacen(&student.to_string(), "0.25", 1);
    copy_tree(&shop.path("run"), &shop.path("forged"));
    edit(&shop, "forged", "report.json", "report.json", better);
    let said = failed(&shop.run(&["verify", "forged"]), 65, "error[disagrees]");
    let expected =
        format!("at /models/student/nll_nats_per_token stands `0.25`, and by the record `{student}`");
    assert!(said.contains(&expected), "{said}");
    assert!(said.contains("the manifest: it was written for them as they are now"), "{said}");

    // The page has no facts to compare; its digest is in the record, and in the log by what its stage wrote down.
    copy_tree(&shop.path("run"), &shop.path("logged"));
    let stage = text(&shop.bytes("run/stages/report.json"));
    std::fs::write(shop.path("logged/stages/report.json"), stage.replace("report.html", "report.htm"))
        .expect("written");
    failed(&shop.run(&["verify", "logged"]), 65, "stage report is not in the log as the run has it now");

    copy_tree(&shop.path("run/release"), &shop.path("taken"));
    std::fs::write(shop.path("taken/.gitattributes"), "*.gguf filter=lfs").expect("written");
    std::fs::create_dir(shop.path("taken/.git")).expect("a folder");
    let said = shop.succeed(&["verify", "taken"]);
    assert!(said.contains("Not covered") && said.contains("`.git`, `.gitattributes`"), "{said}");
    edit(&shop, "taken", "release/README.md", "README.md", |card| {
        card.replace("A draft for counsel", "A promise")
    });
    failed(&shop.run(&["verify", "taken"]), 65, "`README.md` does not agree with the record: at line ");
    let output = shop.run(&["verify", "taken", "--json"]);
    let finding: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &finding["intact"]), (Some(65), &Value::from(false)));
    assert_eq!(finding["agreement"]["disagreements"][0]["document"], "README.md");
}

#[test]
fn releases_are_compared() {
    let shop = shop();
    let diff = |a: &str, b: &str, exit: i32| {
        let output = shop.run(&["diff", a, b]);
        assert_eq!(output.status.code(), Some(exit), "{}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(diff("run", "run", 0), "Nothing differs.\n");
    copy_tree(&shop.path("run/release"), &shop.path("taken"));
    assert_eq!(diff("taken", "run/release", 0), "Nothing differs.\n");
    let with_run = diff("run", "taken", 1);
    assert!(
        with_run.contains("A goes on where B ends") && with_run.contains("(RFC 9162) that holds"),
        "{with_run}"
    );
    assert!(!with_run.contains("Evaluation"), "{with_run}");
    let of_record = diff("run/release/provenance/record.json", "taken", 0);
    assert!(
        of_record.starts_with("Nothing differs.\n\nNot compared\n") && of_record.contains("  Log: "),
        "{of_record}"
    );

    shop.succeed(&["release", "longer.toml", "--output", "longer", "--quiet"]);
    let longer = diff("run", "longer", 1);
    for part in [
        "Recipe\n",
        "  settings, train.max_steps: 2 → 3\n",
        "\nTraining\n  ",
        "  steps: 2 → 3\n",
        "\nWeights (SHA-256)\n",
        "  models, student, nll_nats_per_token: ",
        "\nLog\n  two logs: ",
        "more; `--json` lists all",
    ] {
        assert!(longer.contains(part), "{part} in\n{longer}");
    }
    assert!(!longer.contains("Licence decision") && !longer.contains("Teachers"), "{longer}");
    let output = shop.run(&["diff", "run", "longer", "--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &found["equal"]), (Some(1), &Value::from(false)));
    let steps = found["changes"].as_array().expect("a list").iter();
    let steps: Vec<&Value> = steps.filter(|c| c["group"] == "training" && c["path"][0] == "steps").collect();
    assert_eq!((&steps[0]["a"], &steps[0]["b"]), (&Value::from(2), &Value::from(3)));

    failed(&shop.run(&["diff", "run", "nowhere"]), 74, "cannot read `nowhere`: no such file");
    std::fs::create_dir(shop.path("empty")).expect("a folder");
    failed(&shop.run(&["diff", "empty", "run"]), 65, "no record of a release here");
    let record = text(&shop.bytes("run/release/provenance/record.json"));
    let put = |record: &str| std::fs::write(shop.path("other.json"), record).expect("written");
    put(&record[..record.len() / 2]);
    failed(&shop.run(&["diff", "run", "other.json"]), 65, "other.json: it ends too early");
    put(&record.replace("\"record_version\": 1", "\"record_version\": 2"));
    let said = failed(&shop.run(&["diff", "run", "other.json"]), 65, "a record of version 2");
    assert!(said.contains("fix: use the version of stillroom that wrote it"), "{said}");
    // What somebody else's record is called steers nothing.
    put(&record.replace("\"name\": \"tiny\"", "\"name\": \"\\u001b[2J\\u202eyou won\\nEvaluation\""));
    let hostile = diff("run", "other.json", 1);
    assert!(!hostile.contains(['\u{1b}', '\u{202e}']) && hostile.contains("you won Evaluation"), "{hostile}");
}
