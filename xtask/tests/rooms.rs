//! The workspace has the rooms that ARCHITECTURE.md draws, and no door that it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Which of the workspace's crates each one may import.
const ROOMS: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("kernels", &[]),
    ("formats", &["core"]),
    ("model", &["core", "kernels", "formats"]),
    ("store", &["core", "formats"]),
    ("net", &["core"]),
    ("teacher", &["core", "formats", "model", "store", "net"]),
    ("corpus", &["core", "formats", "store"]),
    ("distill", &["core", "model", "corpus", "formats", "store"]),
    ("evaluate", &["core", "model", "corpus", "formats", "store"]),
    ("governance", &["core", "formats", "store"]),
    ("serve", &["core", "formats", "model"]),
];

/// The crates of the workspace and the crates of the workspace that each one imports.
fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let name = |value: &serde_json::Value| value["name"].as_str().expect("a name").to_owned();
    let packages = metadata["packages"].as_array().expect("packages");
    let here: BTreeSet<String> = packages.iter().map(name).collect();
    let imports = |package: &serde_json::Value| {
        let dependencies = package["dependencies"].as_array().expect("dependencies");
        // What only tests use is no door: `kind` is null for what is built into the crate.
        let built_in = dependencies.iter().filter(|dependency| dependency["kind"].is_null());
        built_in.map(name).filter(|d| here.contains(d)).collect()
    };
    packages.iter().map(|package| (name(package), imports(package))).collect()
}

#[test]
fn every_crate_imports_only_what_its_room_allows() {
    let edges = edges();
    let allowed: BTreeMap<String, BTreeSet<String>> = ROOMS
        .iter()
        .map(|(room, doors)| {
            (format!("stillroom-{room}"), doors.iter().map(|door| format!("stillroom-{door}")).collect())
        })
        .collect();
    for (name, imports) in &edges {
        match (name.as_str(), allowed.get(name)) {
            ("stillroom" | "xtask", _) => {}
            (_, Some(doors)) => {
                let more: Vec<_> = imports.difference(doors).collect();
                assert!(more.is_empty(), "{name} may not import {more:?}");
            }
            (_, None) => panic!("{name} has no room in ARCHITECTURE.md"),
        }
    }
    let missing = allowed.keys().find(|room| !edges.contains_key(*room));
    assert_eq!(missing, None, "a room is missing from the workspace");
    let statistics = BTreeSet::from(["stillroom-core".to_owned()]);
    assert_eq!(edges["xtask"], statistics, "chores import the statistics and nothing else");
}

#[test]
fn unsafe_code_stands_in_the_kernels_only() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let uses = text.lines().any(|l| l.contains("unsafe {") || l.contains("unsafe fn"));
                let shown = path.display().to_string();
                assert!(!uses || ALLOWED.iter().any(|a| shown.contains(a)), "unsafe code in {shown}");
            }
        }
    }
}

#[test]
fn only_the_gate_mints_leave_to_use_the_network() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let mut folders = vec![root];
    let mut minters = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                // Tests of the client make their own leave for their own servers.
                if !path.ends_with("net/tests") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
                if code.into_iter().any(|l| l.contains("::mint") || l.contains("fn mint")) {
                    let parts: Vec<_> = path.components().rev().take(3).map(|c| c.as_os_str()).collect();
                    minters.insert(
                        parts.iter().rev().map(|p| p.to_string_lossy()).collect::<Vec<_>>().join("/"),
                    );
                }
            }
        }
    }
    let expected = ["core/src/cleared.rs", "governance/src/egress.rs"].map(str::to_owned);
    assert_eq!(minters, BTreeSet::from(expected));
}

/// The kernels, and the one function that maps model files into memory.
const ALLOWED: &[&str] = &["crates/kernels/", "formats/src/files.rs"];
