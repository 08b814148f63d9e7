//! From the licence gate to the release: what a licence asks for is refused, or carried out and recorded.

#[path = "common/shop.rs"]
mod shop;

use serde_json::Value;
use shop::{Shop, assets, text};

const RECIPE: &str = r#"
name = "named"
seed = 3
TINY_STUDENT
num_key_value_heads = 1
[teacher]
kind = "local"
path = "tuned"
model = "acme/tuned"
max_tokens = 96
logits = { kind = "live" }
TWELVE_STEPS
[release]
name = "Llama-tiny"
licence = "MIT"
"#;

/// A model of ours with an Apache licence, whose card says that it was built on Llama 3.1.
fn shop() -> Shop {
    let shop = Shop::with_recipes(&[("named.toml", RECIPE)]);
    let (teacher, weights) = (assets().join("quickstart-teacher"), "model.safetensors");
    let tuned = shop.shape_of_the_teacher("tuned");
    std::fs::copy(teacher.join(weights), tuned.join(weights)).expect("a file is copied");
    std::fs::copy(assets().join("licence_texts/Apache-2.0.txt"), shop.path("tuned/LICENSE"))
        .expect("a licence");
    let card = "---\nlicense: apache-2.0\nbase_model: meta-llama/Llama-3.1-8B\ndatasets:\n- acme/talk\n---\n";
    std::fs::write(shop.path("tuned/README.md"), card).expect("a card");
    std::fs::write(shop.path("tuned/NOTICE"), "Thanks to all.\n").expect("a notice");
    shop
}

fn json(shop: &Shop, path: &str) -> Value {
    serde_json::from_slice(&shop.bytes(path)).expect("JSON")
}

/// What `licence.json` says of one obligation.
fn obligation<'a>(licence: &'a Value, name: &str) -> &'a Value {
    let all = licence["obligations"].as_array().expect("obligations");
    all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name} in {licence}"))
}

const ACCEPT: &str = "policy.accept=[\"700m-mau-cap\", \"attribution-notice\", \"built-with-llama\", \
                      \"licence-copy\", \"no-suit-over-outputs\", \"use-policy\"]";

#[test]
fn a_name_that_the_licence_does_not_allow_is_refused_before_anything_is_trained() {
    let shop = shop();
    let args = ["run", "named.toml", "--output", "out", "--set", ACCEPT, "--set", "release.name=tiny"];
    for more in [&[][..], &["--set", "policy.accept=[\"name-begins-with-llama\"]"]] {
        let refused = shop.run(&[&args[..], more].concat());
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(77), "{said}");
        assert!(said.contains("name-begins-with-llama") && said.contains("begins with `Llama`"), "{said}");
        let left: Vec<_> = std::fs::read_dir(shop.path("out")).expect("a folder").flatten().collect();
        assert!(left.len() == 1 && left[0].file_name() == "licence.json", "{left:?}");
    }
    let licence = json(&shop, "out/licence.json");
    assert_eq!(licence["violated"], serde_json::json!(["name-begins-with-llama"]));
    let left_to_do = obligation(&licence, "name-begins-with-llama")["yours_to_do"].as_str().expect("a step");
    assert!(left_to_do.contains("change `release.name`"), "{left_to_do}");
}

#[test]
fn a_release_carries_out_what_licences_ask_for_and_says_what_is_left() {
    let shop = shop();
    shop.succeed(&["run", "named.toml", "--output", "out", "--quiet", "--set", ACCEPT]);
    let licence = json(&shop, "out/licence.json");
    assert_eq!(licence["settled"], serde_json::json!(["name-begins-with-llama"]));
    let says =
        |name: &str, who: &str| obligation(&licence, name)[who].as_str().unwrap_or_default().to_owned();
    assert_eq!(says("name-begins-with-llama", "carried_out"), "the student is called `Llama-tiny`");
    assert!(says("built-with-llama", "carried_out").contains("`Built with Llama`"));
    assert!(says("licence-copy", "yours_to_do").contains("LicenseRef-scancode-llama-3.1-license-2024"));
    assert!(!says("700m-mau-cap", "yours_to_do").is_empty());
    let card = text(&shop.bytes("out/release/README.md"));
    let notice = text(&shop.bytes("out/release/NOTICE"));
    assert!(card.starts_with("---\nlicense: mit\n"), "{card}");
    let line = "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.";
    for document in [&card, &notice] {
        assert!(document.contains("Built with Llama") && document.contains(line), "{document}");
    }
    assert!(notice.contains("acme/talk"), "the data set on the teacher's card: {notice}");
    for one in licence["obligations"].as_array().expect("obligations") {
        for who in ["carried_out", "yours_to_do"] {
            let Some(said) = one[who].as_str() else { continue };
            let line = format!("  - {}: {said}", who.replace('_', " "));
            assert!(card.contains(&line), "{line} in\n{card}");
        }
    }
    for copy in licence["licence_copies"].as_array().expect("copies") {
        let path = copy["path"].as_str().expect("a path");
        let digest = stillroom_core::Digest::of(&shop.bytes(&format!("out/release/{path}"))).to_string();
        assert_eq!(copy["sha256"].as_str().or(copy["digest"].as_str()), Some(digest.as_str()), "{path}");
        assert!(notice.contains(&digest), "{path}");
    }
    let copied = shop.bytes("out/release/licences/acme--tuned/LICENSE");
    assert_eq!(copied, shop.bytes("tuned/LICENSE"));
    assert_eq!(text(&shop.bytes("out/release/licences/acme--tuned/NOTICE")), "Thanks to all.\n");
    shop.succeed(&["verify", "out"]);
    std::fs::write(shop.path("out/release/licences/acme--tuned/LICENSE"), "no licence").expect("changed");
    let tampered = shop.run(&["verify", "out"]);
    assert_eq!(tampered.status.code(), Some(65));
    assert!(text(&tampered.stderr).contains("release/licences/acme--tuned/LICENSE"), "{tampered:?}");
}

#[test]
fn an_override_is_seen_wherever_somebody_looks() {
    let shop = shop();
    let reason = "policy.override=our counsel read it on 2026-11-02";
    let run = ["run", "named.toml", "--output", "out", "--quiet", "--set", reason];
    let output = shop.run(&[&run[..], &["--set", "release.name=tiny"]].concat());
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let why = "our counsel read it on 2026-11-02";
    assert!(said.contains("warning[licence]: OVERRIDDEN") && said.contains(why), "{said}");
    assert_eq!(json(&shop, "out/licence.json")["override"], why);
    assert_eq!(json(&shop, "out/report.json")["licence"]["overridden"], why);
    for file in ["report.html", "release/README.md", "release/NOTICE"] {
        let document = text(&shop.bytes(&format!("out/{file}")));
        assert!(document.contains(why), "{file}");
    }
}

#[test]
fn a_register_of_ones_own_counts_in_recipes_and_in_questions() {
    let shop = shop();
    let csv = shop.succeed(&["licence", "list", "--csv"]);
    let head = csv.lines().next().expect("a heading");
    let row = |licence: &str, outputs: &str| {
        format!(
            "{head}\nOurs,acme/mystery,2026,{licence},1,{outputs},as agreed,no,yes,https://counsel.example,7,read,primary\n"
        )
    };
    std::fs::write(shop.path("ours.csv"), row("LicenseRef-acme", "yes")).expect("a table");
    let check = ["licence", "check", "--teacher", "acme/mystery", "--json"];
    assert_eq!(shop.run(&check).status.code(), Some(77));
    let allowed = shop.succeed(&[&check[..], &["--register", "ours.csv"]].concat());
    let allowed: Value = serde_json::from_str(&allowed).expect("JSON");
    assert_eq!(
        (&allowed["verdict"], &allowed["rules"][0]["users_register"]),
        (&"allow".into(), &"ours.csv".into())
    );
    let shown = shop.succeed(&["licence", "show", "acme/mystery", "--register", "ours.csv"]);
    assert!(shown.contains("from your register ours.csv"), "{shown}");
    assert!(
        shop.succeed(&["licence", "list", "--register", "ours.csv"])
            .contains("acme/mystery: LicenseRef-acme (your register)")
    );
    let files = shop.succeed(&["licence", "show", "tuned"]);
    assert!(files.contains("LICENSE is Apache-2.0") && files.contains("meta-llama/Llama-3.1-8B"), "{files}");
    let in_recipe = ["plan", "named.toml", "--json", "--set", "teacher.model=acme/mystery", "--set", ACCEPT];
    let registered = [&in_recipe[..], &["--set", "policy.register=ours.csv"]].concat();
    std::fs::remove_file(shop.path("tuned/LICENSE")).expect("gone");
    assert_eq!(shop.run(&in_recipe).status.code(), Some(77));
    let plan: Value = serde_json::from_str(&shop.succeed(&registered)).expect("JSON");
    assert_eq!(plan["licence"]["rules"][0]["users_register"], "ours.csv");
    std::fs::write(shop.path("ours.csv"), row("LicenseRef-acme", "perhaps")).expect("a table");
    let broken = shop.run(&registered);
    let said = text(&broken.stderr);
    assert_eq!(broken.status.code(), Some(65), "{said}");
    assert!(said.contains("row 1") && said.contains("`perhaps` is no grant"), "{said}");
}

/// A row from memory, or none, is settled by the model's own licence file.
#[test]
fn licence_files_of_a_model_behind_an_endpoint_count_as_if_it_were_here() {
    let shop = Shop::with_recipes(&[("wire.toml", WIRE)]);
    std::fs::create_dir(shop.path("papers")).expect("a folder");
    std::fs::write(shop.path("p.jsonl"), "{\"id\":\"a\",\"prompt\":\"b\"}\n").expect("prompts");
    let plan = ["plan", "wire.toml", "--json"];
    let with = ["--set", "policy.licence_files={ \"acme/mystery\" = \"papers\" }"];
    assert_eq!(shop.run(&plan).status.code(), Some(77));
    let none = shop.run(&[&plan[..], &with].concat());
    assert!(text(&none.stderr).contains("has no licence file of `acme/mystery`"), "{}", text(&none.stderr));
    std::fs::copy(assets().join("licence_texts/Apache-2.0.txt"), shop.path("papers/LICENSE"))
        .expect("a licence");
    let planned: Value = serde_json::from_str(&shop.succeed(&[&plan[..], &with].concat())).expect("JSON");
    let rules = &planned["licence"]["rules"];
    assert!(rules.to_string().contains("Apache-2.0"), "{rules}");
    let other = ["--set", "policy.licence_files={ \"acme/mistery\" = \"papers\" }"];
    let slip = shop.run(&[&plan[..], &other].concat());
    let said = text(&slip.stderr);
    assert!(said.contains("no model of this recipe is called `acme/mistery`"), "{said}");

    let check = ["licence", "check", "--teacher", "Qwen/QwQ-32B"];
    assert_eq!(shop.run(&check).status.code(), Some(77));
    let allowed = shop.succeed(&[&check[..], &["--licence-files", "Qwen/QwQ-32B=papers"]].concat());
    assert!(allowed.contains("Apache-2.0"), "{allowed}");
    let slip = shop.run(&[&check[..], &["--licence-files", "Qwen/QwQ-23B=papers"]].concat());
    assert_eq!(slip.status.code(), Some(2), "{}", text(&slip.stderr));
}

const WIRE: &str = r#"
[teacher]
kind = "openai"
model = "acme/mystery"
endpoints = [{ base_url = "http://127.0.0.1:9/v1" }]
[prompts]
path = "p.jsonl"
"#;
