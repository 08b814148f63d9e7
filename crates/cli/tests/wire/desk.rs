//! Prompts, a recipe of a teacher alone, and what the run left: its corpus and its ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use stillroom_core::Trace;
use stillroom_formats::parquet_rows;

use crate::fake::{Entry, FakeTeacher, Options};
use crate::shop::{self, text};

/// US dollars per token of a prompt and of a reply.
pub(crate) const PRICE: (f64, f64) = (2e-6, 10e-6);

const RECIPE: &str = r#"
name = "wire"
[teacher]
model = "us:teacher"
max_tokens = 64
price = { input_usd_per_mtok = 2.0, output_usd_per_mtok = 10.0 }
KEYS
[prompts]
path = "prompts.jsonl"
[policy]
POLICY
OUR_TEACHER
"#;

/// Nothing leaves this machine.
pub(crate) const LOCAL: &str = "egress = \"local\"";

/// A folder with prompts and recipes.
pub(crate) struct Desk {
    pub(crate) dir: tempfile::TempDir,
}

/// A row of the ledger.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) call: u64,
    /// The start of the request's digest, as the request's name has it.
    pub(crate) request: String,
    pub(crate) state: String,
    pub(crate) usd: f64,
    /// Of prompt and reply.
    pub(crate) tokens: u64,
    pub(crate) estimated: bool,
    pub(crate) fault: Option<String>,
    pub(crate) has_receipt: bool,
}

impl Desk {
    pub(crate) fn new(n_prompts: usize) -> Desk {
        let line =
            |i| format!("{{\"id\": \"p{i}\", \"prompt\": \"Tell me about thing #{i} of the list.\"}}\n");
        Desk::with_prompts(&(0..n_prompts).map(line).collect::<String>())
    }

    pub(crate) fn with_prompts(lines: &str) -> Desk {
        let desk = Desk { dir: tempfile::tempdir().expect("a folder") };
        std::fs::write(desk.path("prompts.jsonl"), lines).expect("prompts are written");
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a recipe that asks `url`, with further keys of the teacher.
    pub(crate) fn recipe(&self, name: &str, url: &str, teacher: &str) {
        self.recipe_under(name, url, teacher, LOCAL);
    }

    pub(crate) fn recipe_under(&self, name: &str, url: &str, teacher: &str, policy: &str) {
        let endpoint = format!("kind = \"openai\"\nendpoints = [{{ base_url = \"{url}\" }}]");
        self.write(name, &format!("{endpoint}\n{teacher}"), policy);
    }

    /// Writes a recipe of a teacher of any kind.
    pub(crate) fn write(&self, name: &str, teacher: &str, policy: &str) {
        let text = shop::recipe(&RECIPE.replace("KEYS", teacher).replace("POLICY", policy));
        std::fs::write(self.path(name), text).expect("a recipe is written");
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        shop::stillroom(self.dir.path(), args)
    }

    pub(crate) fn succeed(&self, args: &[&str]) -> Output {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
        output
    }

    /// What a run without faults, kills and cuts leaves: files below `corpus/` by name.
    pub(crate) fn calm(&self, verb: &str, teacher: &str) -> BTreeMap<String, Vec<u8>> {
        let server = FakeTeacher::start(Options::default());
        self.recipe("calm.toml", &server.base_url(), teacher);
        self.succeed(&[verb, "calm.toml", "--output", "calm"]);
        self.corpus("calm")
    }

    /// Every file below `corpus/`.
    pub(crate) fn corpus(&self, output: &str) -> BTreeMap<String, Vec<u8>> {
        let root = self.path(output).join("corpus");
        let files = files_below(&root);
        let name = |path: &Path| path.strip_prefix(&root).expect("below").display().to_string();
        files.iter().map(|path| (name(path), std::fs::read(path).expect("a file"))).collect()
    }

    /// Files below `corpus/` that are not what they should be, by name.
    pub(crate) fn differing(&self, output: &str, expected: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
        let found = self.corpus(output);
        let names: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
        names.into_iter().filter(|name| found.get(*name) != expected.get(*name)).cloned().collect()
    }

    pub(crate) fn traces(&self, output: &str) -> Vec<Trace> {
        self.parts(output).into_iter().flatten().collect()
    }

    /// Traces as they were written, part by part.
    pub(crate) fn parts(&self, output: &str) -> Vec<Vec<Trace>> {
        let files = files_below(&self.path(output).join("corpus/traces"));
        let parts = files.iter().filter(|path| path.extension().is_some_and(|e| e == "parquet"));
        let read = |path: &PathBuf| parquet_rows::read_traces(std::fs::read(path).expect("a part"));
        parts.map(|path| read(path).expect("traces")).collect()
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        let path = self.path(name);
        serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON")
    }

    /// All calls, by number; read without changing anything.
    pub(crate) fn ledger(&self, output: &str) -> BTreeMap<u64, Row> {
        let path = self.path(output).join("ledger.sqlite");
        let ledger = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("a ledger");
        let mut statement = ledger
            .prepare(
                "SELECT call, lower(hex(request)), state, usd, estimated, fault, body IS NOT NULL,
                        coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0)
                 FROM calls LEFT JOIN receipts USING (call)",
            )
            .expect("its tables");
        let rows = statement.query_map([], |row| {
            Ok(Row {
                call: row.get::<_, i64>(0)? as u64,
                request: row.get::<_, String>(1)?[..32].to_owned(),
                state: row.get(2)?,
                usd: row.get(3)?,
                estimated: row.get(4)?,
                fault: row.get(5)?,
                has_receipt: row.get(6)?,
                tokens: row.get::<_, i64>(7)? as u64,
            })
        });
        rows.expect("rows").map(|row| row.expect("a row")).map(|row| (row.call, row)).collect()
    }
}

/// Every file below a folder, in the order of their paths.
pub(crate) fn files_below(root: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (BTreeSet::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path);
            }
        }
    }
    files.into_iter().collect()
}

/// The number of a call and the start of its request's digest, which the client sends as the request's name.
pub(crate) fn call_of(entry: &Entry) -> (u64, &str) {
    let (request, call) = entry.request_id.as_deref().expect("a name").split_once('-').expect("two parts");
    (call.parse().expect("a number"), request)
}

pub(crate) fn billed_usd(entry: &Entry) -> f64 {
    entry.billed_prompt_tokens as f64 * PRICE.0 + entry.billed_completion_tokens as f64 * PRICE.1
}

/// Every call that the server has seen has a row of its own, for the same request; the row comes with it.
pub(crate) fn matched<'a>(ledger: &'a BTreeMap<u64, Row>, entries: &'a [Entry]) -> Vec<(&'a Row, &'a Entry)> {
    let mut seen = BTreeSet::new();
    let matched = entries.iter().map(|entry| {
        let (call, request) = call_of(entry);
        assert!(seen.insert(call), "call {call} was sent twice");
        let row = ledger.get(&call).unwrap_or_else(|| panic!("call {call} was sent and has no row"));
        assert_eq!(row.request, request, "call {call} has the row of another request");
        (row, entry)
    });
    matched.collect()
}

/// A size that the environment may raise.
pub(crate) fn size(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |text| text.parse().expect("a number"))
}

/// Says a figure, for whoever runs a test to measure.
pub(crate) fn tell(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

pub(crate) fn retry_soon(options: Options) -> Options {
    Options { retry_after: Duration::from_millis(150), ..options }
}
