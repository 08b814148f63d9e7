//! Atomic commits of files and directories.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use stillroom_core::{Digest, Digester};

use crate::{Result, StoreError};

/// Names under construction begin with this.
pub(crate) const PARTIAL_PREFIX: &str = ".partial-";
/// How deep a directory that is committed may be nested.
const DEPTH_MAX: usize = 16;
/// Bytes asked of the operating system at once.
const PIECE_BYTES: usize = 1 << 20;

/// Whether a name says that its file or directory is under construction: ours begin with `.partial-`,
/// those of the format writers are `.NAME.PID.partial`.
fn is_partial(name: &str) -> bool {
    name.starts_with(PARTIAL_PREFIX) || (name.starts_with('.') && name.ends_with(".partial"))
}

/// Asks for leave to change something on disk; only tests ever refuse.
fn gate() -> io::Result<()> {
    #[cfg(test)]
    crate::faults::check()?;
    Ok(())
}

/// Writes `bytes` to `path`: temporary file beside it, fsync, rename, fsync of the directory.
///
/// Whoever looks sees the old file or the new one, also after a crash. The directory must exist.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> Result<()> {
    atomic_write_with(path, |file| {
        for piece in bytes.chunks(PIECE_BYTES) {
            gate()
                .and_then(|()| file.write_all(piece))
                .map_err(|e| StoreError::writing("write", path, bytes.len() as u64, e))?;
        }
        Ok(())
    })
}

/// Like [`atomic_write`], with the bytes written piece by piece by `fill`.
///
/// When `fill` fails nothing is left behind, and an older file stays as it was.
pub fn atomic_write_with<T, E: From<StoreError>>(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let partial = partial_name(path)?;
    let outcome = fill_and_rename(&partial, path, fill);
    if outcome.is_err() {
        let _ = remove_file(&partial);
    }
    outcome
}

fn fill_and_rename<T, E: From<StoreError>>(
    partial: &Path,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let file = gate()
        .and_then(|()| OpenOptions::new().write(true).create_new(true).open(partial))
        .map_err(|e| StoreError::writing("create", path, 0, e))?;
    let mut writer = Counted { inner: BufWriter::new(file), bytes: 0 };
    let value = fill(&mut writer)?;
    let bytes = writer.bytes;
    let failed = |e: io::Error| StoreError::writing("write", path, bytes, e);
    gate().and_then(|()| writer.inner.flush()).map_err(failed)?;
    gate().and_then(|()| writer.inner.get_ref().sync_all()).map_err(failed)?;
    drop(writer);
    rename(partial, path)?;
    sync_parent(path)?;
    Ok(value)
}

struct Counted {
    inner: BufWriter<File>,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Builds a directory under a temporary name with `build`, syncs every file and directory in it, and
/// renames it to `path`. The parent is created where it is missing.
///
/// A directory already there is replaced: it is moved aside first, so that a crash between the two
/// renames leaves no directory, never half of one.
pub fn atomic_dir<T, E: From<StoreError>>(
    path: &Path,
    build: impl FnOnce(&Path) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let parent = parent_of(path);
    create_dir_durable(&parent)?;
    let partial = partial_name(path)?;
    let outcome = build_and_rename(&partial, path, build);
    if outcome.is_err() {
        let _ = gate().and_then(|()| fs::remove_dir_all(&partial));
    }
    outcome
}

fn build_and_rename<T, E: From<StoreError>>(
    partial: &Path,
    path: &Path,
    build: impl FnOnce(&Path) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    gate().and_then(|()| fs::create_dir(partial)).map_err(|e| StoreError::writing("create", path, 0, e))?;
    let value = build(partial)?;
    sync_tree(partial, DEPTH_MAX)?;
    let old = partial_name(path)?;
    let replaces = path.symlink_metadata().is_ok();
    if replaces {
        rename(path, &old)?;
    }
    if let Err(error) = rename(partial, path) {
        if replaces {
            let _ = rename(&old, path);
        }
        return Err(error.into());
    }
    sync_parent(path)?;
    if replaces {
        // The new directory is in place; what cannot be removed now is swept by `remove_partials`.
        let _ = gate().and_then(|()| fs::remove_dir_all(&old));
    }
    Ok(value)
}

/// Creates `path` and its missing parents, each made durable in its own parent.
pub fn create_dir_durable(path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    create_dir_durable(&parent_of(path))?;
    match gate().and_then(|()| fs::create_dir(path)) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(StoreError::writing("create", path, 0, e)),
        Ok(()) => sync_parent(path),
    }
}

/// Removes a directory with all that is in it, under a temporary name, so that a crash never leaves
/// half of it under its own. Nothing there is no error.
pub fn remove_dir(path: &Path) -> Result<()> {
    let old = partial_name(path)?;
    match gate().and_then(|()| fs::rename(path, &old)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(StoreError::io("remove", path))?,
    }
    sync_parent(path)?;
    gate().and_then(|()| fs::remove_dir_all(&old)).map_err(StoreError::io("remove", &old))
}

/// Removes what crashed commits left in `dir` and in the directories below it: `.partial-…` and
/// `.….partial`. Only for the one who holds the directory's lock.
pub fn remove_partials(dir: &Path) -> Result<u64> {
    sweep(dir, DEPTH_MAX)
}

fn sweep(dir: &Path, depth: usize) -> Result<u64> {
    let mut removed = 0;
    for (path, is_dir) in entries(dir)? {
        let partial = path.file_name().is_some_and(|n| is_partial(&n.to_string_lossy()));
        let outcome = match (partial, is_dir) {
            (true, true) => gate().and_then(|()| fs::remove_dir_all(&path)),
            (true, false) => remove_file(&path),
            (false, true) if depth > 0 => {
                removed += sweep(&path, depth - 1)?;
                continue;
            }
            (false, _) => continue,
        };
        outcome.map_err(StoreError::io("remove", &path))?;
        removed += 1;
    }
    Ok(removed)
}

/// SHA-256 and length of a file.
pub fn digest_file(path: &Path) -> Result<(Digest, u64)> {
    let mut file = File::open(path).map_err(StoreError::io("open", path))?;
    let mut digester = Digester::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok((digester.finish(), bytes)),
            Ok(n) => {
                digester.update(&piece[..n]);
                bytes += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(StoreError::io("read", path)(e)),
        }
    }
}

/// Makes the entries of a directory durable.
pub fn sync_dir(path: &Path) -> Result<()> {
    if cfg!(unix) {
        gate().and_then(|()| File::open(path)?.sync_all()).map_err(StoreError::io("sync", path))?;
    }
    Ok(())
}

/// All regular files below `dir`, as (path relative to it with `/`, absolute path), in order of name.
/// Links are neither followed nor listed.
pub(crate) fn files_below(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    collect(dir, "", DEPTH_MAX, &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(dir: &Path, prefix: &str, depth: usize, found: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for (path, is_dir) in entries(dir)? {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if is_partial(&name) {
            continue;
        }
        let relative = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if !is_dir {
            found.push((relative, path));
        } else if depth == 0 {
            return Err(StoreError::Damaged { path, reason: "nested too deep".into() });
        } else {
            collect(&path, &relative, depth - 1, found)?;
        }
    }
    Ok(())
}

/// Regular files and directories of `dir` (not links), with whether each is a directory.
fn entries(dir: &Path) -> Result<Vec<(PathBuf, bool)>> {
    let failed = |e| StoreError::io("list", dir)(e);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() || kind.is_file() {
            found.push((entry.path(), kind.is_dir()));
        }
    }
    Ok(found)
}

fn sync_tree(dir: &Path, depth: usize) -> Result<()> {
    for (path, is_dir) in entries(dir)? {
        if !is_dir {
            gate()
                .and_then(|()| File::open(&path)?.sync_all())
                .map_err(|e| StoreError::writing("sync", &path, file_len(&path), e))?;
        } else if depth == 0 {
            return Err(StoreError::Damaged { path, reason: "nested too deep".into() });
        } else {
            sync_tree(&path, depth - 1)?;
        }
    }
    sync_dir(dir)
}

fn file_len(path: &Path) -> u64 {
    path.metadata().map_or(0, |m| m.len())
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    gate().and_then(|()| fs::rename(from, to)).map_err(|e| StoreError::writing("rename", to, 0, e))
}

fn remove_file(path: &Path) -> io::Result<()> {
    gate().and_then(|()| fs::remove_file(path))
}

fn sync_parent(path: &Path) -> Result<()> {
    sync_dir(&parent_of(path))
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// A fresh temporary name beside `path`.
fn partial_name(path: &Path) -> Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| StoreError::UnsafePath { name: path.to_string_lossy().into_owned() })?
        .to_string_lossy();
    let short: String = name.chars().filter(|c| c.is_ascii_alphanumeric()).take(40).collect();
    let unique = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(parent_of(path).join(format!("{PARTIAL_PREFIX}{}-{unique}-{short}", std::process::id())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::faults::{self, Fault};

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn build(dir: &Path, text: &str) -> Result<()> {
        fs::create_dir(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/b"), text).unwrap();
        fs::write(dir.join("a"), text).unwrap();
        Ok(())
    }

    fn dir_text(dir: &Path) -> Option<String> {
        if !dir.exists() {
            return None;
        }
        let text = fs::read_to_string(dir.join("a")).unwrap();
        assert_eq!(fs::read_to_string(dir.join("sub/b")).unwrap(), text);
        assert_eq!(names(dir), ["a", "sub"]);
        Some(text)
    }

    #[test]
    fn a_kill_at_any_operation_leaves_the_old_file_or_the_new() {
        let mut n = 0;
        loop {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().join("report.json");
            atomic_write(&path, b"old").unwrap();
            faults::arm(n, Fault::Kill);
            let outcome = atomic_write(&path, b"new and longer");
            let asked = faults::disarm();
            let text = fs::read(&path).unwrap();
            assert!(text == b"old" || text == b"new and longer");
            if outcome.is_ok() {
                assert_eq!((text.as_slice(), asked), (&b"new and longer"[..], n));
                assert!(n >= 5, "only {n} operations are guarded");
                return;
            }
            remove_partials(temp.path()).unwrap();
            assert_eq!(names(temp.path()), ["report.json"]);
            atomic_write(&path, b"again").unwrap();
            n += 1;
        }
    }

    #[test]
    fn a_kill_at_any_operation_leaves_a_whole_directory_or_none() {
        let mut seen_absent = false;
        for n in 0.. {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().join("step-000100");
            atomic_dir(&path, |dir| build(dir, "old")).unwrap();
            faults::arm(n, Fault::Kill);
            let outcome = atomic_dir(&path, |dir| build(dir, "new"));
            faults::disarm();
            let text = dir_text(&path);
            seen_absent |= text.is_none();
            if outcome.is_ok() {
                assert_eq!(text.as_deref(), Some("new"));
                assert!(n >= 8 && seen_absent);
                break;
            }
            remove_partials(temp.path()).unwrap();
            assert!(names(temp.path()).iter().all(|name| name == "step-000100"));
            atomic_dir(&path, |dir| build(dir, "again")).unwrap();
            assert_eq!(dir_text(&path).as_deref(), Some("again"));
        }
    }

    #[test]
    fn a_full_disk_names_path_and_bytes_and_leaves_nothing() {
        let bytes = vec![7u8; PIECE_BYTES + 5];
        for n in 0.. {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().join("model.safetensors");
            faults::arm(n, Fault::Error(io::ErrorKind::StorageFull));
            let outcome = atomic_write(&path, &bytes);
            faults::disarm();
            let Err(error) = outcome else { break };
            let StoreError::DiskFull { path: named, bytes: needed, .. } = &error else {
                // The rename is done before the directory is synced.
                assert!(matches!(error, StoreError::Io { .. }), "{error}");
                continue;
            };
            assert!(named.starts_with(temp.path()));
            if (1..=4).contains(&n) {
                assert_eq!((named, *needed), (&path, bytes.len() as u64), "operation {n}");
                assert_eq!(names(temp.path()), [""; 0]);
            }
            assert_eq!(error.kind(), stillroom_core::ErrorKind::Io);
        }
    }

    #[test]
    fn a_failed_build_leaves_the_older_directory() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("release");
        atomic_dir(&path, |dir| build(dir, "old")).unwrap();
        let failed: Result<()> = atomic_dir(&path, |dir| {
            build(dir, "half")?;
            Err(StoreError::UnsafePath { name: "x".into() })
        });
        assert!(failed.is_err());
        assert_eq!(dir_text(&path).as_deref(), Some("old"));
        assert_eq!(names(temp.path()), ["release"]);
    }

    #[test]
    fn a_directory_is_removed_whole() {
        for n in 0.. {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().join("step-000100");
            atomic_dir(&path, |dir| build(dir, "old")).unwrap();
            fs::write(temp.path().join(".model.safetensors.77.partial"), b"half").unwrap();
            faults::arm(n, Fault::Kill);
            let outcome = remove_dir(&path);
            faults::disarm();
            let _ = dir_text(&path);
            if outcome.is_ok() {
                assert!(!path.exists() && n == 3);
                break;
            }
            remove_partials(temp.path()).unwrap();
            assert!(names(temp.path()).len() <= 1);
        }
        remove_dir(Path::new("/nowhere/at/all")).unwrap();
    }

    #[test]
    fn an_error_at_any_operation_keeps_the_old_directory_or_has_the_new() {
        for n in 0.. {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().join("release");
            atomic_dir(&path, |dir| build(dir, "old")).unwrap();
            faults::arm(n, Fault::Error(io::ErrorKind::StorageFull));
            let outcome = atomic_dir(&path, |dir| build(dir, "new"));
            faults::disarm();
            assert!(dir_text(&path).is_some(), "operation {n}");
            if outcome.is_ok() {
                assert_eq!(dir_text(&path).as_deref(), Some("new"));
                break;
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_really_full_device_is_disk_full() {
        let error = OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .and_then(|mut f| f.write_all(b"x"))
            .map_err(|e| StoreError::writing("write", Path::new("/dev/full"), 1, e));
        if Path::new("/dev/full").exists() {
            assert!(matches!(error, Err(StoreError::DiskFull { bytes: 1, .. })));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_was_written_is_read_back(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().join("x");
            atomic_write(&path, &bytes).unwrap();
            prop_assert_eq!(&fs::read(&path).unwrap(), &bytes);
            prop_assert_eq!(digest_file(&path).unwrap(), (Digest::of(&bytes), bytes.len() as u64));
        }
    }
}
