//! What the command line says, word for word: help and errors, through the built binary.
//!
//! The expected texts stand in `tests/golden/`. `STILLROOM_BLESS=1 cargo test -p stillroom` writes them anew.

use std::path::{Path, PathBuf};
use std::process::Command;

struct Case {
    name: &'static str,
    args: &'static [&'static str],
    /// A recipe to write as `recipe.toml` in the working directory.
    recipe: Option<&'static str>,
    exit: i32,
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn check(cases: &[Case]) {
    let bless = std::env::var_os("STILLROOM_BLESS").is_some();
    let mut wrong = Vec::new();
    for case in cases {
        let dir = tempfile::tempdir().expect("a folder for the test");
        if let Some(recipe) = case.recipe {
            std::fs::write(dir.path().join("recipe.toml"), recipe).expect("the recipe is written");
        }
        let output = Command::new(env!("CARGO_BIN_EXE_stillroom"))
            .args(case.args)
            .current_dir(dir.path())
            .env("NO_COLOR", "1")
            .output()
            .expect("the binary runs");
        let shown = format!(
            "$ stillroom {}\nexit {}\n--- stdout\n{}--- stderr\n{}",
            case.args.join(" "),
            output.status.code().map_or("by signal".into(), |c| c.to_string()),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        let left: Vec<_> = std::fs::read_dir(dir.path()).expect("the folder is there").flatten().collect();
        let expected_files = usize::from(case.recipe.is_some());
        assert_eq!(left.len(), expected_files, "{}: something was left behind: {left:?}", case.name);
        assert_eq!(output.status.code(), Some(case.exit), "{}: {shown}", case.name);
        let path = golden_dir().join(format!("{}.txt", case.name));
        if bless {
            std::fs::write(&path, &shown).expect("the golden file is written");
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        if golden != shown {
            wrong.push(format!("{}:\n{shown}\nexpected:\n{golden}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn help_of_every_verb() {
    const VERBS: &[(&str, &[&str])] = &[
        ("help", &["--help"]),
        ("help-new", &["new", "--help"]),
        ("help-run", &["run", "--help"]),
        ("help-plan", &["plan", "--help"]),
        ("help-doctor", &["doctor", "--help"]),
        ("help-teach", &["teach", "--help"]),
        ("help-curate", &["curate", "--help"]),
        ("help-generate", &["generate", "--help"]),
        ("help-score", &["score", "--help"]),
        ("help-pull", &["pull", "--help"]),
        ("help-convert", &["convert", "--help"]),
        ("help-serve", &["serve", "--help"]),
        ("help-verify", &["verify", "--help"]),
        ("help-diff", &["diff", "--help"]),
        ("help-key", &["key", "--help"]),
        ("help-key-new", &["key", "new", "--help"]),
        ("help-bench", &["bench", "--help"]),
        ("help-bench-train", &["bench", "train", "--help"]),
        ("help-bench-score", &["bench", "score", "--help"]),
        ("help-bench-decode", &["bench", "decode", "--help"]),
        ("help-licence", &["licence", "--help"]),
        ("help-licence-check", &["license", "check", "--help"]),
        ("help-licence-list", &["licence", "list", "--help"]),
        ("help-licence-show", &["licence", "show", "--help"]),
    ];
    let cases: Vec<Case> =
        VERBS.iter().map(|&(name, args)| Case { name, args, recipe: None, exit: 0 }).collect();
    check(&cases);
}

#[test]
fn verdicts_say_why_and_what_to_do() {
    let case = |name, args, exit| Case { name, args, recipe: None, exit };
    check(&[
        case(
            "licence-allow",
            &["licence", "check", "--teacher", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"],
            0,
        ),
        case(
            "licence-conditional",
            &[
                "licence",
                "check",
                "--teacher",
                "meta-llama/Llama-3.1-8B-Instruct",
                "--student-name",
                "Llama-tiny",
            ],
            77,
        ),
        case("licence-unknown", &["licence", "check", "--teacher", "acme/mystery-7b"], 77),
        case("licence-deny", &["licence", "check", "--teacher", "openai:gpt-4o"], 77),
        case("licence-show", &["licence", "show", "Qwen/Qwen2.5-3B-Instruct"], 0),
    ]);
}

const SMALL: &str = r#"
[student]
kind = "from_scratch"
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64

[teacher]
kind = "local"
path = "nowhere"
model = "us:nowhere"
logits = { kind = "random_sampling", draws = 8 }

[prompts]
task = "word_problems"
num_examples = 8

[policy.declare."us:nowhere"]
owner = "us"
licence = "Apache-2.0"
"#;

#[test]
fn errors_name_cause_place_fix_and_next_command() {
    let case = |name, args, recipe, exit| Case { name, args, recipe, exit };
    check(&[
        case("error-verb", &["distil"], None, 2),
        case("error-flag", &["run", "recipe.toml", "--jsn"], None, 2),
        case("error-no-recipe", &["run", "recipe.toml"], None, 74),
        case("error-not-toml", &["plan", "recipe.toml"], Some("[student\nkind = 1\n"), 78),
        case("error-type", &["plan", "recipe.toml"], Some("[train]\n\nmax_steps = \"many\"\n"), 78),
        case("error-unknown-key", &["plan", "recipe.toml"], Some("[train]\nlearning_rat = 1e-3\n"), 78),
        case("error-unknown-table", &["plan", "recipe.toml"], Some("[training]\n"), 78),
        case("error-not-yet", &["plan", "recipe.toml"], Some("[train]\noptim = \"x\"\n"), 78),
        case("error-escape", &["plan", "recipe.toml"], Some("\"\\u001b[31m\\u202ered\" = 1\n"), 78),
        case("error-no-student", &["run", "recipe.toml"], Some("[prompts]\npath = \"x\"\n"), 78),
        case("error-set-syntax", &["plan", "recipe.toml", "--set", "train"], Some(SMALL), 2),
        case("error-set-key", &["plan", "recipe.toml", "--set", "train.max_step=3"], Some(SMALL), 78),
        case("error-set-range", &["plan", "recipe.toml", "--set", "train.warmup_ratio=2"], Some(SMALL), 78),
        case("error-secret", &["plan", "recipe.toml", "--set", "teacher.api_key=sk-1"], Some(SMALL), 78),
        case(
            "error-loss",
            &["plan", "recipe.toml", "--set", "train.loss_functions=[{ function = \"reverse_kl\" }]"],
            Some(SMALL),
            78,
        ),
        case(
            "error-loss-name",
            &["plan", "recipe.toml", "--set", "train.loss_functions=[{ function = \"reversed_kl\" }]"],
            Some(SMALL),
            78,
        ),
        case(
            "error-loss-beta",
            &[
                "plan",
                "recipe.toml",
                "--set",
                "teacher.logits={ kind = \"live\" }",
                "--set",
                "train.loss_functions=[{ function = \"jsd\", beta = 0.999 }]",
            ],
            Some(SMALL),
            78,
        ),
        case(
            "error-loss-temperatures",
            &[
                "plan",
                "recipe.toml",
                "--set",
                "teacher.logits={ kind = \"top_k\" }",
                "--set",
                "train.loss_functions=[{ function = \"jsd\" }, { function = \"tvd\", temperature = 2 }]",
            ],
            Some(SMALL),
            78,
        ),
        case("error-beta-elsewhere", &["plan", "recipe.toml"], Some("[train]\nbeta = 0.5\n"), 78),
    ]);
}

#[test]
fn what_cannot_be_timed_is_said_before_anything_is_computed() {
    let case = |name, args, exit| Case { name, args, recipe: None, exit };
    check(&[
        case("error-bench-model", &["bench", "score", "--model", "x", "--hidden", "64"], 2),
        case("error-bench-heads", &["bench", "train", "--hidden", "100"], 2),
        case("error-bench-kv-heads", &["bench", "train", "--kv-heads", "4"], 2),
        case("error-bench-loss", &["bench", "score", "--loss", "ce"], 2),
        case("error-bench-draws", &["bench", "train", "--draws", "9"], 2),
        case(
            "error-bench-draws-vocab",
            &["bench", "train", "--loss", "sparse_kd", "--vocab", "40", "--hidden", "8", "--heads", "2"],
            2,
        ),
        case("error-bench-masked", &["bench", "train", "--masked", "1"], 2),
        case("error-bench-tokens", &["bench", "score", "--batch", "9000"], 2),
        case("error-bench-prompt", &["bench", "decode", "--sequence", "16"], 2),
        case("error-bench-no-model", &["bench", "score", "--model", "nowhere"], 74),
    ]);
}
