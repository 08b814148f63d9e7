//! A run directory and its lock.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::{EventLog, Result, StoreError, atomic_write, create_dir_durable, remove_partials, safe_join};

/// Name of the lock file.
const LOCK: &str = ".lock";

/// A run directory that this process alone may change.
///
/// ```text
/// recipe.toml  plan.json  licence.json  events.jsonl  stages/<name>.json
/// corpus/traces/*.parquet  corpus/logits/*.parquet  checkpoints/step-000100/
/// report.json  report.html  release/
/// ```
///
/// The lock is the operating system's own on the file `.lock` and ends with the process, however it
/// ends. The file stays; its text, the process id of the last holder, only serves messages.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Creates `root` where it is missing, locks it and clears away what crashed commits left.
    ///
    /// [`StoreError::Locked`] when another process (or another `RunDir` in this one) has it.
    pub fn open(root: &Path) -> Result<RunDir> {
        create_dir_durable(root)?;
        let lock = lock(root)?;
        remove_partials(root)?;
        Ok(RunDir { root: root.to_path_buf(), _lock: lock })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in the directory; `relative` must be plain, see [`safe_join`].
    pub fn path(&self, relative: &str) -> Result<PathBuf> {
        safe_join(&self.root, relative)
    }

    /// A directory in the run directory, created where it is missing.
    pub fn dir(&self, relative: &str) -> Result<PathBuf> {
        let path = self.path(relative)?;
        create_dir_durable(&path)?;
        Ok(path)
    }

    /// Writes a file atomically, creating its directory; see [`atomic_write`].
    pub fn write(&self, relative: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.path(relative)?;
        if let Some(parent) = path.parent() {
            create_dir_durable(parent)?;
        }
        atomic_write(&path, bytes)?;
        Ok(path)
    }

    /// `checkpoints/`, not yet created.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// `release/`, not yet created.
    pub fn release(&self) -> PathBuf {
        self.root.join("release")
    }

    /// Opens `events.jsonl` for appending.
    pub fn events(&self) -> Result<EventLog> {
        EventLog::open(&self.root.join("events.jsonl"))
    }
}

fn lock(root: &Path) -> Result<File> {
    let path = root.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = file.take(20).read_to_string(&mut text);
            return Err(StoreError::Locked { path: root.to_path_buf(), holder: text.trim().parse().ok() });
        }
        Err(TryLockError::Error(source)) => return Err(StoreError::io("lock", &path)(source)),
    }
    let text = format!("{}\n", std::process::id());
    file.set_len(0)
        .and_then(|()| file.write_all(text.as_bytes()))
        .map_err(|e| StoreError::writing("write", &path, text.len() as u64, e))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::atomic_dir;

    #[test]
    fn a_second_opener_is_told_who_holds_the_lock() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("runs/a");
        let held = RunDir::open(&root).unwrap();
        let refused = RunDir::open(&root).unwrap_err();
        assert!(matches!(refused, StoreError::Locked { holder: Some(pid), .. } if pid == std::process::id()));
        assert_eq!(refused.kind(), stillroom_core::ErrorKind::TryLater);
        drop(held);
        RunDir::open(&root).unwrap();
    }

    #[test]
    fn opening_clears_what_a_crash_left_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let run = RunDir::open(temp.path()).unwrap();
        run.write("corpus/a.txt", b"kept").unwrap();
        let stuck: std::result::Result<(), StoreError> =
            atomic_dir(&run.checkpoints().join("step-000001"), |dir| {
                std::fs::write(dir.join("x"), b"half").unwrap();
                std::fs::create_dir(run.path("corpus/.partial-1-1-y").unwrap()).unwrap();
                std::fs::write(run.path(".partial-1-2-z").unwrap(), b"half").unwrap();
                Ok(())
            });
        stuck.unwrap();
        drop(run);
        let run = RunDir::open(temp.path()).unwrap();
        assert!(run.path("corpus/a.txt").unwrap().exists());
        assert!(run.checkpoints().join("step-000001/x").exists());
        assert!(!run.path("corpus/.partial-1-1-y").unwrap().exists());
        assert!(!run.path(".partial-1-2-z").unwrap().exists());
        assert!(run.path("../x").is_err());
    }

    /// Not a test of its own: the process that `the_lock_ends_with_a_killed_process` kills.
    #[test]
    fn child_that_holds_a_lock() {
        let Some(root) = std::env::var_os("STILLROOM_STORE_TEST_LOCK") else { return };
        let run = RunDir::open(Path::new(&root)).unwrap();
        run.write("held", b"").unwrap();
        std::thread::park_timeout(Duration::from_secs(60));
    }

    #[test]
    fn the_lock_ends_with_a_killed_process() {
        let temp = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "run_dir::tests::child_that_holds_a_lock"])
            .env("STILLROOM_STORE_TEST_LOCK", temp.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while !temp.path().join("held").exists() {
            assert!(start.elapsed() < Duration::from_secs(30), "the child did not lock");
            std::thread::yield_now();
        }
        let held = RunDir::open(temp.path());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(held, Err(StoreError::Locked { holder: Some(pid), .. }) if pid == child.id()));
        RunDir::open(temp.path()).unwrap();
    }
}
