//! The power is cut: whatever was not synced is gone, and the same command still ends with the same bytes.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::UNIX_EPOCH;

use stillroom_core::CounterRng;

use crate::bought::Interrupted;
use crate::desk::{Desk, retry_soon, size, tell};
use crate::fake::{FakeTeacher, Faults, Options};
use crate::shop::{self, text};

const PROMPTS: usize = 160;
const CUTS_PER_RUN: usize = 6;
/// Syncs of the end of a run, when everything is bought.
const LAST_SYNCS: u64 = 30;
const SIGKILL: i32 = 9;

/// What a cut leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    /// Names that were created, moved or removed, but no bytes.
    Names,
    /// Bytes of files whose names were synced.
    Bytes,
}

/// A folder on a disk that forgets.
struct Disk {
    library: PathBuf,
    root: PathBuf,
    shadow: PathBuf,
}

impl Disk {
    /// `None` where there is no C compiler.
    fn new(desk: &Desk) -> Option<Disk> {
        let library = desk.path("disk.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire/disk.c");
        let flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-pthread", "-o"];
        let Ok(compiled) = Command::new("cc").args(flags).args([&library, &source]).output() else {
            tell("SKIPPED: power cuts are not tested, there is no `cc`");
            return None;
        };
        assert!(compiled.status.success(), "{}", text(&compiled.stderr));
        let disk = Disk { library, root: desk.path("disk"), shadow: desk.path("shadow") };
        std::fs::create_dir(&disk.root).expect("a folder");
        disk.remember();
        Some(disk)
    }

    fn run(&self, desk: &Desk, args: &[&str], cut: &str) -> Output {
        let mut command = shop::command(desk.dir.path(), args);
        command.env("LD_PRELOAD", &self.library).env("DISK_CUT", cut);
        command.env("DISK_ROOT", &self.root).env("DISK_SHADOW", &self.shadow);
        command.output().expect("the binary runs")
    }

    /// Syncs of the last run that came to its end.
    fn syncs(&self) -> u64 {
        let text = std::fs::read_to_string(self.shadow.join("syncs")).expect("a count");
        text.parse().expect("a number")
    }

    /// Puts the folder back to what is durable.
    fn forget(&self, left: Left) {
        let mut live = BTreeMap::new();
        self.live_files(&self.root, &mut live);
        let back = self.root.with_extension("back");
        self.rebuild(&self.root, &name_of(&self.root), &back, left, &live);
        std::fs::remove_dir_all(&self.root).expect("the folder goes");
        std::fs::rename(back, &self.root).expect("the folder comes back");
        self.remember();
    }

    fn live_files(&self, folder: &Path, live: &mut BTreeMap<String, PathBuf>) {
        for path in children(folder) {
            if path.is_dir() {
                self.live_files(&path, live);
            }
            live.insert(name_of(&path), path);
        }
    }

    fn rebuild(&self, was: &Path, name: &str, back: &Path, left: Left, live: &BTreeMap<String, PathBuf>) {
        std::fs::create_dir(back).expect("a folder");
        let entries = match left {
            Left::Names if was.is_dir() => listing(was),
            _ => std::fs::read_to_string(self.shadow.join(name)).unwrap_or_default(),
        };
        for line in entries.lines() {
            let [kind, name, called] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let (was, back) = (was.join(called), back.join(called));
            if kind == "d" {
                self.rebuild(&was, name, &back, left, live);
                continue;
            }
            let bytes = match live.get(name).filter(|_| left == Left::Bytes) {
                Some(path) => std::fs::read(path).expect("a file"),
                // Named and never synced: it is there and empty.
                None => std::fs::read(self.shadow.join(name)).unwrap_or_default(),
            };
            std::fs::write(back, bytes).expect("a file comes back");
        }
    }

    /// Takes all that is there for durable.
    fn remember(&self) {
        drop(std::fs::remove_dir_all(&self.shadow));
        std::fs::create_dir(&self.shadow).expect("a folder");
        let mut live = BTreeMap::new();
        self.live_files(&self.root, &mut live);
        live.insert(name_of(&self.root), self.root.clone());
        for (name, path) in live {
            let image = self.shadow.join(name);
            if path.is_dir() {
                std::fs::write(image, listing(&path)).expect("names are kept");
            } else {
                std::fs::copy(path, image).expect("bytes are kept");
            }
        }
    }
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

/// As `disk.c` names files.
fn name_of(path: &Path) -> String {
    let meta = path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let born = meta.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    format!("{}.{}.{}", meta.ino(), born.as_secs(), born.subsec_nanos())
}

/// As `disk.c` lists them.
fn listing(folder: &Path) -> String {
    let line = |path: &PathBuf| {
        let kind = if path.is_dir() { 'd' } else { 'f' };
        let called = path.file_name().expect("a name").to_str().expect("plain names");
        format!("{kind} {} {called}\n", name_of(path))
    };
    children(folder).iter().map(line).collect()
}

#[test]
fn the_power_may_be_cut_at_any_moment() {
    let cuts = size("STILLROOM_WIRE_CUTS", 10);
    let desk = Desk::new(PROMPTS);
    let Some(disk) = Disk::new(&desk) else { return };
    let mut chance = CounterRng::new(&[6]);
    let mut syncs = 200;
    let cut = Interrupted { what: "cuts", below: "disk/", times: cuts, per_run_max: CUTS_PER_RUN };
    cut.check(&desk, server, |output, cuts_max| {
        let args = ["curate", "bad.toml", "--output", output];
        let times = cut_to_its_end(&desk, &disk, &args, &mut chance, syncs, cuts_max);
        syncs = disk.syncs().max(syncs);
        disk.forget(Left::Nothing);
        times
    });
}

fn server(seed: u64) -> FakeTeacher {
    let faults = Faults { stall: 0.0, huge: 0.0, ..Faults::usual() };
    FakeTeacher::start(retry_soon(Options { seed, faults, ..Options::default() }))
}

/// How often the power was cut before the run came to its end.
fn cut_to_its_end(
    desk: &Desk,
    disk: &Disk,
    args: &[&str],
    chance: &mut CounterRng,
    syncs: u64,
    cuts_max: usize,
) -> usize {
    for times in 0..cuts_max {
        let within = [LAST_SYNCS, syncs][chance.below(2) as usize];
        let number = 1 + chance.below(within);
        let when = ["a", "b"][chance.below(2) as usize];
        let left = [Left::Nothing, Left::Nothing, Left::Names, Left::Bytes][chance.below(4) as usize];
        let output = disk.run(desk, args, &format!("{number}{when}"));
        if output.status.success() {
            return times;
        }
        let said = text(&output.stderr);
        assert_eq!(output.status.signal(), Some(SIGKILL), "{}: {said}", output.status);
        disk.forget(left);
    }
    let output = disk.run(desk, args, "");
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    cuts_max
}
