//! Signed releases through the binary: keys are made, used and kept from others; whoever has the public key sees what was changed.

#[path = "common/shop.rs"]
mod shop;

use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::Instant;

use serde_json::Value;
use shop::{Shop, text};

const RECIPE: &str = r#"
name = "tiny"
TINY_STUDENT
tokenizer = "ASSETS/quickstart-tokenizer"
TWO_STEPS
[release]
SIGNING
"#;

fn recipe_with(signing: &str) -> String {
    RECIPE.replace("SIGNING", signing)
}

fn failed(output: &Output, exit: i32, says: &str) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{said}");
    assert!(said.contains(says), "{said}");
    said
}

/// A release that is signed by `KEY`, in `run/release`; with another key beside it.
fn signed_shop() -> Shop {
    let shop = Shop::with_recipes(&[("tiny.toml", &recipe_with("key = \"a.key\""))]);
    shop.succeed(&["key", "new", "a.key"]);
    shop.succeed(&["key", "new", "b.key"]);
    shop.succeed(&["release", "tiny.toml", "--output", "run", "--quiet"]);
    shop
}

#[test]
fn a_release_is_signed_and_checked() {
    let shop = signed_shop();
    for place in ["run", "run/release"] {
        let said = shop.succeed(&["verify", place, "--public-key", "a.key.pub"]);
        assert!(said.contains("Signed by the key ") && said.contains(" files of the release."), "{said}");
        let log: Value =
            serde_json::from_str(&shop.succeed(&["verify", place, "--public-key", "a.key.pub", "--json"]))
                .expect("JSON");
        let log = &log["log"];
        assert!(log["heads"].as_u64() > Some(5) && log["signed_heads"] == log["heads"], "{log}");
        let said = shop.succeed(&["verify", place]);
        assert!(
            said.contains("by whom was not checked: give the signer's key with `--public-key`"),
            "{said}"
        );
        let other = shop.run(&["verify", place, "--public-key", "b.key.pub"]);
        failed(&other, 65, "model.sig` does not count: it is by another key");
    }
    let report = |args: &[&str]| -> Value {
        let output = shop.run(args);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output.stderr)))
    };
    let finding = report(&["verify", "run", "--public-key", "a.key.pub", "--json"]);
    assert_eq!(finding["signature"]["state"], "valid");
    let listed = std::fs::read_dir(shop.path("run/release")).expect("a folder").count();
    assert!(
        finding["signature"]["files"].as_u64().expect("a number") as usize >= listed - 1,
        "all but itself"
    );
    assert_eq!(report(&["verify", "run", "--json"])["signature"]["state"], "unchecked");
    let private = shop.run(&["verify", "run", "--public-key", "a.key"]);
    failed(&private, 65, "a private key stands where a public one belongs");

    // Somebody changes the weights and writes the manifest anew, by this very program.
    let kept = shop.bytes("run/release/model.sig");
    let mut weights = shop.bytes("run/release/model.safetensors");
    *weights.last_mut().expect("bytes") ^= 1;
    std::fs::write(shop.path("run/release/model.safetensors"), weights).expect("written");
    let changed = shop.run(&["verify", "run/release", "--public-key", "a.key.pub"]);
    failed(&changed, 65, "`model.safetensors` differs");
    std::fs::write(shop.path("run/release/model.sig"), &kept[..kept.len() / 2]).expect("written");
    let truncated = report(&["verify", "run/release", "--public-key", "a.key.pub", "--json"]);
    assert_eq!(truncated["signature"]["state"], "invalid");
    assert!(truncated["differences"].as_array().expect("a list").iter().any(|d| d["what"] == "signature"));
    std::fs::remove_file(shop.path("run/release/model.sig")).expect("removed");
    // The stage's own record finds it gone; the release is written and signed again.
    shop.succeed(&["release", "tiny.toml", "--output", "run", "--quiet"]);
    shop.succeed(&["verify", "run", "--public-key", "a.key.pub"]);
    std::fs::remove_file(shop.path("run/release/model.sig")).expect("removed");
    let missing = shop.run(&["verify", "run/release", "--public-key", "a.key.pub"]);
    failed(&missing, 65, "`model.sig` is missing");
    assert!(shop.succeed(&["verify", "run/release"]).contains("Not signed"));
}

#[test]
fn keys_are_made_once_and_kept_from_others() {
    let shop =
        Shop::with_recipes(&[("tiny.toml", &recipe_with("key = \"a.key\"\nkey_passphrase = \"${PASS}\""))]);
    let made: Value = serde_json::from_str(&shop.succeed(&["key", "new", "a.key", "--json"])).expect("JSON");
    assert_eq!((&made["public_key"], &made["encrypted"]), (&Value::from("a.key.pub"), &Value::from(false)));
    assert_eq!(made["fingerprint"].as_str().expect("text").len(), 64);
    let mode = shop.path("a.key").metadata().expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    failed(&shop.run(&["key", "new", "a.key"]), 65, "a.key.pub: it is there already");
    let release = |pass: Option<&str>| {
        let mut command =
            shop::command(shop.dir.path(), &["release", "tiny.toml", "--output", "run", "--quiet"]);
        match pass {
            Some(pass) => command.env("PASS", pass),
            None => command.env_remove("PASS"),
        };
        command.output().expect("the binary runs")
    };
    failed(&release(None), 78, "the environment has no `PASS`");
    failed(&release(Some("long")), 65, "a passphrase is given, and it has none");
    let new = |pass: &str| {
        let mut command =
            shop::command(shop.dir.path(), &["key", "new", "c.key", "--passphrase-env", "PASS"]);
        command.env("PASS", pass).output().expect("the binary runs")
    };
    failed(&new(""), 78, "the environment has no `PASS`");
    assert!(new("long").status.success());
    std::fs::rename(shop.path("c.key"), shop.path("a.key")).expect("renamed");
    failed(&release(Some("short")), 65, "the passphrase is not its own");
    std::fs::set_permissions(shop.path("a.key"), std::fs::Permissions::from_mode(0o644)).expect("its mode");
    let said = failed(&release(Some("long")), 65, "others than its owner can use it (mode 644)");
    assert!(said.contains("`chmod 600 ") && said.contains("a.key`"), "{said}");
    assert!(!shop.path("run").exists(), "nothing is done before the key is there");
    std::fs::set_permissions(shop.path("a.key"), std::fs::Permissions::from_mode(0o600)).expect("its mode");
    let done = release(Some("long"));
    assert!(done.status.success(), "{}", text(&done.stderr));
    shop.succeed(&["verify", "run", "--public-key", "c.key.pub"]);
    for file in ["run/recipe.toml", "run/events.jsonl", "run/plan.json"] {
        assert!(!text(&shop.bytes(file)).contains("long\""), "{file}");
    }
    assert!(text(&shop.bytes("run/recipe.toml")).contains("key_passphrase = \"${PASS}\""));
}

/// A script beside the recipe signs; it is asked for nothing without consent, and not waited for without end.
#[test]
fn a_command_signs_where_it_may() {
    let shop = Shop::with_recipes(&[
        (
            "tiny.toml",
            &recipe_with("sign_command = [\"./sign\"]\npublic_key = \"a.key.pub\"\nsign_timeout_s = 20.0"),
        ),
        ("wrong.toml", &recipe_with("sign_command = [\"./sign\"]\npublic_key = \"b.key.pub\"")),
        (
            "slow.toml",
            &recipe_with(
                "sign_command = [\"sleep\", \"60\"]\npublic_key = \"a.key.pub\"\nsign_timeout_s = 0.5",
            ),
        ),
        (
            "broken.toml",
            &recipe_with(
                "sign_command = [\"sh\", \"-c\", \"echo no card >&2; exit 3\"]\npublic_key = \"a.key.pub\"",
            ),
        ),
    ]);
    shop.succeed(&["key", "new", "a.key"]);
    shop.succeed(&["key", "new", "b.key"]);
    let script = "#!/bin/sh\ntouch ran\nexec openssl dgst -sha256 -sign a.key\n";
    std::fs::write(shop.path("sign"), script).expect("written");
    std::fs::set_permissions(shop.path("sign"), std::fs::Permissions::from_mode(0o755)).expect("its mode");
    let release = |recipe: &str, more: &[&str]| {
        let args = [&["release", recipe, "--output", "run", "--quiet"], more].concat();
        shop.run(&args)
    };
    let said = failed(&release("tiny.toml", &[]), 77, "the recipe asks to run a command on this machine");
    assert!(said.contains("it would run `./sign` for each signature"), "{said}");
    assert!(!shop.path("run").exists() && !shop.path("ran").exists(), "nothing was run");
    failed(&release("broken.toml", &["--allow-commands"]), 1, "the signing command failed with 3: no card");
    let begun = Instant::now();
    failed(&release("slow.toml", &["--allow-commands"]), 1, "the signing command took longer than 0.5 s");
    assert!(begun.elapsed().as_secs() < 40, "{:?}", begun.elapsed());
    assert!(!shop.path("run/release/model.sig").exists());
    if std::process::Command::new("openssl").arg("version").output().is_err() {
        return;
    }
    let wrong = release("wrong.toml", &["--allow-commands"]);
    failed(
        &wrong,
        65,
        "are no signature (DER, ECDSA; on P-256 of SHA-256, on P-384 of SHA-384) by the public key",
    );
    let done = release("tiny.toml", &["--allow-commands"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    // A command is asked for the decision's head and the release's, and not for each of the others.
    let log = shop.succeed(&["verify", "run/release", "--public-key", "a.key.pub", "--json"]);
    let log: Value = serde_json::from_str(&log).expect("JSON");
    assert_eq!(log["log"]["signed_heads"], 2, "{log}");
    shop.succeed(&["verify", "run/release", "--public-key", "a.key.pub"]);
    failed(&shop.run(&["verify", "run/release", "--public-key", "b.key.pub"]), 65, "by another key");
}
