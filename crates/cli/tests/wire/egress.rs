//! `policy.egress` holds before anything is sent: where a run may go no further than this machine, it does not.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

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

#[test]
fn a_teacher_that_may_not_teach_is_refused_within_a_second_and_without_a_socket() {
    let Some(watched) = Watched::new() else { return };
    let verdicts = [
        ("https://api.openai.com/v1", "deny"),
        ("https://api.anthropic.com/v1", "deny"),
        ("https://api.groq.com/v1", "unknown"),
    ];
    for (url, verdict) in verdicts {
        let mut shortest = Duration::MAX;
        // The machine may be busy once.
        for _ in 0..3 {
            let begun = Instant::now();
            let (output, lines) = watched.run("curate", url, "egress = \"any\"");
            shortest = shortest.min(begun.elapsed());
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(77), "{url}: {said}");
            assert!(said.contains("error[licence]") && said.contains(verdict), "{said}");
            assert!(lines.is_empty(), "{url}: {lines:?}");
            let left: Vec<_> =
                std::fs::read_dir(watched.desk.path("out")).expect("a folder").flatten().collect();
            assert!(left.len() == 1 && left[0].file_name() == "licence.json", "{url}: {left:?}");
        }
        assert!(shortest < Duration::from_secs(1), "{url}: {shortest:?}");
    }
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

/// `0.0.0.0` is no loopback address, and this machine answers there.
#[test]
fn plain_http_to_another_machine_is_for_those_who_list_it() {
    let desk = Desk::new(4);
    let server = FakeTeacher::start(Options { key: Some("a-key-of-ours".to_owned()), ..Options::default() });
    let port = server.address().port();
    let url = format!("http://0.0.0.0:{port}/v1");
    let run = |verb: &str, teacher: &str, policy: &str| {
        drop(std::fs::remove_dir_all(desk.path("out")));
        desk.recipe_under("open.toml", &url, teacher, policy);
        let all = [verb, "open.toml", "--output", "out"];
        let args = if verb == "plan" { &all[..2] } else { &all[..] };
        shop::command(desk.dir.path(), args).env("KEY", "a-key-of-ours").output().expect("the binary runs")
    };
    let listed = format!("egress = \"listed\"\nlisted = [\"http://0.0.0.0:{port}\"]");
    let key = "api_key = \"${KEY}\"";
    let refused = [
        ("", "egress = \"local\"".to_owned(), "error[egress]"),
        ("", "egress = \"any\"".to_owned(), "error[egress]"),
        ("", listed.replace("http:", "https:"), "error[egress]"),
        ("", listed.replace(&port.to_string(), &(port ^ 1).to_string()), "error[egress]"),
        ("", listed.replace("0.0.0.0", "127.0.0.1"), "error[egress]"),
        (key, listed.clone(), "error[open-key]"),
    ];
    for (teacher, policy, code) in refused {
        for verb in ["plan", "teach"] {
            let output = run(verb, teacher, &policy);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(77), "{verb} {policy}: {said}");
            assert!(said.contains(code) && said.contains("unencrypted"), "{verb} {policy}: {said}");
            assert!(!desk.path("out/ledger.sqlite").exists());
        }
    }
    assert_eq!(server.stats().connections, 0);
    let words = "prompts and replies go unencrypted";
    let plan = run("plan", "", &listed);
    assert!(text(&plan.stdout).contains(words), "{}{}", text(&plan.stdout), text(&plan.stderr));
    let without = run("teach", "", &listed);
    let unauthorized = server.stats().unauthorized;
    assert!(unauthorized > 0, "it is asked, and without a key: {}", text(&without.stderr));
    desk.recipe_under("open.toml", "URL", key, &listed);
    let recipe = std::fs::read_to_string(desk.path("open.toml")).expect("a recipe");
    let endpoint = format!("base_url = \"{url}\", send_key_unencrypted = true");
    let recipe = recipe.replace("base_url = \"URL\"", &endpoint);
    std::fs::write(desk.path("open.toml"), recipe).expect("a recipe is written");
    let with = shop::command(desk.dir.path(), &["teach", "open.toml", "--output", "keyed"])
        .env("KEY", "a-key-of-ours")
        .output()
        .expect("the binary runs");
    assert!(
        with.status.success() && text(&with.stderr).matches(words).count() == 1,
        "{}",
        text(&with.stderr)
    );
    assert_eq!((server.stats().served, server.stats().unauthorized), (4, unauthorized));
}
