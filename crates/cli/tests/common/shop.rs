//! The program run in a folder: to its end, refused, or killed.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Tables that stand in many recipes, by the word that stands there in their place.
const TABLES: [(&str, &str); 5] = [
    (
        "TINY_STUDENT",
        "[student]\nkind = \"from_scratch\"\nhidden_size = 16\nnum_hidden_layers = 1\nnum_attention_heads = 2\n\
         intermediate_size = 32",
    ),
    (
        "QUICKSTART_TEACHER",
        "[teacher]\nkind = \"local\"\npath = \"ASSETS/quickstart-teacher\"\nmodel = \"stillroom:quickstart-teacher\"",
    ),
    (
        "TWELVE_STEPS",
        "[prompts]\n\
         task = \"word_problems\"\n\
         num_examples = 40\n\
         num_validation = 6\n\
         [curate]\n\
         verify = false\n\
         [train]\n\
         learning_rate = 1e-2\n\
         max_steps = 12\n\
         per_device_train_batch_size = 2\n\
         max_length = 256\n\
         save_steps = 4\n\
         eval_steps = 6\n\
         logging_steps = 4\n\
         loss_functions = [{ function = \"forward_kl\" }]\n\
         [evaluate]\n\
         num_examples = 10\n\
         controls = []",
    ),
    (
        "TWO_STEPS",
        "[prompts]\n\
         task = \"word_problems\"\n\
         num_examples = 64\n\
         num_validation = 8\n\
         [train]\n\
         max_steps = 2\n\
         per_device_train_batch_size = 2\n\
         max_length = 256\n\
         [evaluate]\n\
         num_examples = 4\n\
         max_tokens = 2\n\
         controls = []",
    ),
    ("OUR_TEACHER", "[policy.declare.\"us:teacher\"]\nowner = \"us\"\nlicence = \"Apache-2.0\""),
];

/// The recipe of this text with the tables written out; keys that follow one belong to it. `ASSETS` stands for the folder of
/// that name.
pub(crate) fn recipe(text: &str) -> String {
    let written = TABLES.iter().fold(text.to_owned(), |text, (word, table)| text.replace(word, table));
    written.replace("ASSETS", &assets().display().to_string())
}

pub(crate) fn assets() -> PathBuf {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets");
    assets.canonicalize().expect("assets")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn json_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

pub(crate) fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stillroom"));
    command.args(args).current_dir(dir);
    command
}

pub(crate) fn stillroom(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).output().expect("the binary runs")
}

pub(crate) fn succeed(dir: &Path, args: &[&str]) -> String {
    let output = stillroom(dir, args);
    assert!(output.status.success(), "{args:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Runs the program until its log tells `n` times of an event, and kills it there.
pub(crate) fn kill_at(dir: &Path, args: &[&str], log: &Path, event: &str, n: usize) {
    let happened = || std::fs::read_to_string(log).is_ok_and(|text| text.matches(event).count() >= n);
    kill_when(command(dir, args), happened);
    assert!(happened(), "it ended before `{event}`");
}

/// Kills a command as soon as something has come; with what it had said, and whether it was killed before its end.
pub(crate) fn kill_when(mut command: Command, mut has_come: impl FnMut() -> bool) -> (Output, bool) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let begun = Instant::now();
    let mut has_ended = false;
    while !has_ended && !has_come() {
        assert!(begun.elapsed() < Duration::from_secs(120), "neither what it is killed at nor an end came");
        std::thread::sleep(Duration::from_micros(200));
        has_ended = child.try_wait().expect("a child").is_some();
    }
    child.kill().expect("the child is killed");
    let output = child.wait_with_output().expect("its end");
    assert!(!has_ended || output.status.success(), "{}: {}", output.status, text(&output.stderr));
    let is_killed = !output.status.success();
    (output, is_killed)
}

pub(crate) fn weights(dir: &Path, output: &str) -> Vec<u8> {
    std::fs::read(dir.join(output).join("models/student/model.safetensors")).expect("the student's weights")
}

/// A folder of a test's own.
pub(crate) struct Shop {
    pub(crate) dir: tempfile::TempDir,
}

impl Shop {
    /// With recipes by name, written out.
    pub(crate) fn with_recipes(recipes: &[(&str, &str)]) -> Shop {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, text) in recipes {
            std::fs::write(dir.path().join(name), recipe(text)).expect("a recipe is written");
        }
        Shop { dir }
    }

    /// A folder with the quickstart teacher's own files, its weights aside.
    pub(crate) fn shape_of_the_teacher(&self, folder: &str) -> PathBuf {
        let (teacher, folder) = (assets().join("quickstart-teacher"), self.path(folder));
        std::fs::create_dir(&folder).expect("a folder");
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            std::fs::copy(teacher.join(file), folder.join(file)).expect("a file is copied");
        }
        folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        stillroom(self.dir.path(), args)
    }

    pub(crate) fn succeed(&self, args: &[&str]) -> String {
        succeed(self.dir.path(), args)
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.bytes(name)).expect("JSON")
    }

    pub(crate) fn json_lines(&self, name: &str) -> Vec<Value> {
        json_lines(&self.path(name))
    }

    pub(crate) fn weights(&self, output: &str) -> Vec<u8> {
        weights(self.dir.path(), output)
    }

    /// [`kill_at`] by the log of a run to `output`.
    pub(crate) fn kill_at(&self, args: &[&str], output: &str, event: &str, n: usize) {
        kill_at(self.dir.path(), args, &self.path(output).join("events.jsonl"), event, n);
    }
}
