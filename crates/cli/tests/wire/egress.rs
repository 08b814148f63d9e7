//! `policy.egress` holds before anything is sent: where a run may go no further than this machine, it does not.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::desk::{Desk, tell};
use crate::fake::{FakeTeacher, Options};
use crate::shop::{self, text};

/// A run whose sockets are watched; what would leave the machine does not.
struct Watched {
    desk: Desk,
    library: PathBuf,
}

impl Watched {
    /// `None` where there is no C compiler.
    fn new() -> Option<Watched> {
        let desk = Desk::new(8);
        let library = desk.path("sockets.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire/sockets.c");
        let flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"];
        let Ok(compiled) = Command::new("cc").args(flags).args([&library, &source]).arg("-ldl").output()
        else {
            tell("SKIPPED: sockets are not watched, there is no `cc`");
            return None;
        };
        assert!(compiled.status.success(), "{}", text(&compiled.stderr));
        Some(Watched { desk, library })
    }

    /// Runs `verb`; with what it did on the network, a line each.
    fn run(&self, verb: &str, url: &str, policy: &str) -> (Output, Vec<String>) {
        let log = self.desk.path("sockets.log");
        drop(std::fs::remove_file(&log));
        drop(std::fs::remove_dir_all(self.desk.path("out")));
        let patience = "max_attempts = 1\nbudget_s = 0.5\nconnect_timeout_s = 1";
        self.desk.recipe_under("bad.toml", url, patience, policy);
        let output = shop::command(self.desk.dir.path(), &[verb, "bad.toml", "--output", "out"])
            .env("LD_PRELOAD", &self.library)
            .env("SOCKETS", &log)
            .output()
            .expect("the binary runs");
        let lines = std::fs::read_to_string(&log).unwrap_or_default();
        (output, lines.lines().map(str::to_owned).collect())
    }
}

/// Whether a line of the log stays on this machine.
fn is_local(line: &str) -> bool {
    let place = line.split(' ').nth(1).expect("a place");
    place.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Addresses that are not this machine's, some of which look as if they were.
const ELSEWHERE: [&str; 8] = [
    "http://192.0.2.1:9/v1",
    "https://192.0.2.1:9/v1",
    "https://teacher.invalid/v1",
    "https://127.0.0.1.teacher.invalid/v1",
    "https://localhost.teacher.invalid/v1",
    "https://[2001:db8::1]/v1",
    "https://[::ffff:192.0.2.1]/v1",
    "https://127.0.0.1@192.0.2.1/v1",
];

#[test]
fn under_local_nothing_goes_anywhere_but_to_this_machine() {
    let Some(watched) = Watched::new() else { return };
    let server = FakeTeacher::start(Options::default());
    let (output, lines) = watched.run("curate", &server.base_url(), "egress = \"local\"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!lines.is_empty() && lines.iter().all(|line| is_local(line)), "{lines:?}");
    assert_eq!(server.stats().served, 8);
    for url in ELSEWHERE {
        let (output, lines) = watched.run("teach", url, "egress = \"local\"");
        assert!(matches!(output.status.code(), Some(77 | 78)), "{url}: {}", text(&output.stderr));
        assert!(lines.is_empty(), "{url}: {lines:?}");
        assert!(!watched.desk.path("out/ledger.sqlite").exists(), "{url}");
    }
}

#[test]
fn under_listed_nothing_is_asked_that_is_not_on_the_list() {
    let Some(watched) = Watched::new() else { return };
    let (server, other) = (FakeTeacher::start(Options::default()), FakeTeacher::start(Options::default()));
    let listed = |url: &str| format!("egress = \"listed\"\nlisted = [\"{}\"]", url.trim_end_matches("/v1"));
    let (output, lines) = watched.run("teach", &server.base_url(), &listed(&server.base_url()));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let there = format!("connect 127.0.0.1 {}", server.address().port());
    assert!(!lines.is_empty() && lines.iter().all(|line| *line == there), "{lines:?}");
    for policy in
        [listed(&other.base_url()), "egress = \"listed\"\nlisted = []".to_owned(), listed("http://127.0.0.1")]
    {
        let (output, lines) = watched.run("teach", &server.base_url(), &policy);
        assert_eq!(output.status.code(), Some(77), "{policy}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("error[egress]"), "{}", text(&output.stderr));
        assert!(lines.is_empty(), "{policy}: {lines:?}");
    }
    assert_eq!((server.stats().requests, other.stats().connections), (8, 0));
}

/// The watch sees what it is there for.
#[test]
fn a_run_that_leaves_the_machine_is_seen() {
    let Some(watched) = Watched::new() else { return };
    for (url, seen) in [
        ("https://192.0.2.1:9/v1", "connect 192.0.2.1 9"),
        ("https://[2001:db8::1]:9/v1", "connect 2001:db8::1 9"),
        ("https://teacher.invalid/v1", "lookup teacher.invalid 0"),
    ] {
        let (output, lines) = watched.run("teach", url, "egress = \"any\"");
        assert!(!output.status.success());
        assert!(lines.iter().any(|line| line == seen && !is_local(line)), "{url}: {lines:?}");
    }
}
