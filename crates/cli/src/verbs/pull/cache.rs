//! One model's folder in the hub's cache, laid out as the hub's own tools expect it.
//!
//! ```text
//! models--ORG--NAME/blobs/CONTENT            a file's bytes, named by SHA-256 or git's blob name
//! models--ORG--NAME/blobs/CONTENT.incomplete what has arrived so far
//! models--ORG--NAME/snapshots/COMMIT/FILE    a link to its blob
//! models--ORG--NAME/refs/REVISION            the commit
//! .locks/models--ORG--NAME/CONTENT.lock
//! ```
//!
//! A blob gets its name when its digest has been verified and its bytes are durable; links and, last of
//! all, the ref follow when every file is there.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind as IoKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stillroom_core::ErrorKind;
use stillroom_net::hub::{Hub, RemoteFile, Repository, RepositoryId, is_commit};
use stillroom_net::{ContentHasher, ContentId, NetError};
use stillroom_store::{atomic_write, create_dir_durable, sync_dir};

use crate::failure::{Exit, Failure, Result};
use crate::terminal::{Progress, one_line};

/// Attempts in a row that bring no byte.
const ATTEMPTS_MAX: u32 = 4;
/// Attempts for one file, whatever they bring.
const ATTEMPTS_IN_ALL_MAX: u32 = 1000;
/// The wait after the first attempt that brought nothing; it doubles.
const BACKOFF: Duration = Duration::from_millis(250);
/// A wait that the server asks for and that is still waited for.
const RETRY_AFTER_S_MAX: u64 = 60;
const PIECE_BYTES: usize = 256 << 10;
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// A model's folder in the cache.
pub(super) struct Folder {
    root: PathBuf,
    locks: PathBuf,
}

/// A file that lies in the cache.
pub(super) struct Fetched {
    pub(super) name: String,
    pub(super) content: ContentId,
    pub(super) bytes: u64,
    /// Bytes that came over the network.
    pub(super) downloaded: u64,
    pub(super) blob: PathBuf,
}

impl Folder {
    pub(super) fn new(cache: &Path, id: &RepositoryId) -> Folder {
        Folder { root: cache.join(id.folder()), locks: cache.join(".locks").join(id.folder()) }
    }

    /// The file's verified bytes, from the cache or from the hub; an interrupted download continues.
    pub(super) fn fetch(
        &self,
        hub: &Hub,
        repository: &Repository,
        file: &RemoteFile,
        progress: &mut Progress,
    ) -> Result<Fetched> {
        let blobs = self.root.join("blobs");
        let blob = blobs.join(file.content.to_string());
        let fetched = |downloaded| Fetched {
            name: file.name.clone(),
            content: file.content,
            bytes: file.bytes,
            downloaded,
            blob: blob.clone(),
        };
        if is_there(&blob, file.bytes) {
            return Ok(fetched(0));
        }
        create_dir_durable(&blobs)?;
        let _lock = self.lock(file)?;
        if is_there(&blob, file.bytes) {
            return Ok(fetched(0));
        }
        let mut partial = Partial::open(blobs.join(format!("{}.incomplete", file.content)), file)?;
        let mut downloaded = partial.fill(hub, repository, file, progress)?;
        if partial.content() != file.content && partial.began_with > 0 {
            // What lay there from earlier may have been damaged; whole and anew, once.
            progress.line(&format!("{}: what had arrived earlier is damaged; again", one_line(&file.name)));
            partial.restart(file)?;
            downloaded = partial.fill(hub, repository, file, progress)?;
        }
        if partial.content() != file.content {
            let found = partial.content();
            partial.discard();
            return Err(Failure::new(Exit::BadData, format!("`{}` is not what the hub lists", file.name))
                .code("wrong-digest")
                .detail(format!("listed {}", file.content))
                .detail(format!("found  {found}"))
                .fix("repeat the command; if it stays so, do not use this repository"));
        }
        partial.settle(&blob)?;
        Ok(fetched(downloaded))
    }

    fn lock(&self, file: &RemoteFile) -> Result<File> {
        create_dir_durable(&self.locks)?;
        let path = self.locks.join(format!("{}.lock", file.content));
        let failed = |e: std::io::Error| Failure::io("lock", &path, &e);
        let lock = OpenOptions::new().create(true).write(true).truncate(false).open(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::new(Exit::TryLater, format!("another process is downloading `{}`", file.name))
                    .code("locked")
                    .fix("wait until it has finished, then repeat the command"))
            }
            Err(TryLockError::Error(e)) => Err(failed(e)),
        }
    }

    /// Calls `ask` with a folder that holds links to `files`, gone afterwards.
    pub(super) fn with_evidence<T>(
        &self,
        files: &[Fetched],
        ask: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<T> {
        create_dir_durable(&self.root)?;
        let folder = self.root.join(format!(".partial-evidence-{}", std::process::id()));
        drop(fs::remove_dir_all(&folder));
        fs::create_dir(&folder).map_err(|e| Failure::io("create", &folder, &e))?;
        let mut plain = files.iter().filter(|file| !file.name.contains('/'));
        let linked = plain.try_for_each(|file| link(&file.blob, &folder.join(&file.name)));
        let answer = linked.and_then(|()| ask(&folder));
        // What stays of it has a name that nobody reads.
        drop(fs::remove_dir_all(&folder));
        answer
    }

    /// Gives every file its name in the snapshot, then the revision its commit.
    pub(super) fn commit(
        &self,
        repository: &Repository,
        revision: &str,
        files: &[Fetched],
    ) -> Result<PathBuf> {
        let snapshot = self.root.join("snapshots").join(&repository.commit);
        create_dir_durable(&snapshot)?;
        for file in files {
            let mut folder = snapshot.clone();
            let mut parts: Vec<&str> = file.name.split('/').collect();
            let name = parts.pop().unwrap_or_default();
            let mut up = String::from("../../");
            for part in parts {
                folder.push(part);
                up.push_str("../");
                plain_folder(&folder)?;
            }
            let target = PathBuf::from(format!("{up}blobs/{}", file.content));
            place(&target, &folder.join(name))?;
            sync_dir(&folder)?;
        }
        if !is_commit(revision) {
            let path = stillroom_store::safe_join(&self.root.join("refs"), revision)?;
            create_dir_durable(path.parent().unwrap_or(&self.root))?;
            atomic_write(&path, repository.commit.as_bytes())?;
        }
        Ok(snapshot)
    }
}

/// Whether a blob of this length is there: it has its name, so it was verified.
fn is_there(blob: &Path, bytes: u64) -> bool {
    fs::symlink_metadata(blob).is_ok_and(|found| found.is_file() && found.len() == bytes)
}

/// A folder that is no link, made where it is missing.
fn plain_folder(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Failure::new(Exit::BadData, format!("`{}` is in the way of a folder", path.display()))
            .fix("move it away, then repeat the command")),
        Err(e) if e.kind() == IoKind::NotFound => {
            fs::create_dir(path).map_err(|e| Failure::io("create", path, &e))
        }
        Err(e) => Err(Failure::io("look at", path, &e)),
    }
}

/// Puts a link to `target` at `path`, in one step; whatever file stood there is replaced.
fn place(target: &Path, path: &Path) -> Result<()> {
    if fs::read_link(path).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let partial = path.with_file_name(format!(".partial-{}-{name}", std::process::id()));
    drop(fs::remove_file(&partial));
    let folder = path.parent().unwrap_or(path);
    link_to(target, folder, &partial)?;
    fs::rename(&partial, path).map_err(|e| {
        drop(fs::remove_file(&partial));
        Failure::io("write", path, &e)
    })
}

fn link(blob: &Path, path: &Path) -> Result<()> {
    let blob = fs::canonicalize(blob).map_err(|e| Failure::io("read", blob, &e))?;
    link_to(&blob, Path::new(""), path)
}

/// A link where the system has links for everybody, a copy elsewhere. `folder` is what a relative
/// `target` is relative to.
fn link_to(target: &Path, folder: &Path, path: &Path) -> Result<()> {
    #[cfg(unix)]
    let done = {
        let _ = folder;
        std::os::unix::fs::symlink(target, path)
    };
    #[cfg(not(unix))]
    let done = fs::copy(folder.join(target), path).map(|_| ());
    done.map_err(|e| Failure::io("write", path, &e))
}

/// A blob on its way: the bytes so far, on disk and in the hash.
struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
    hasher: ContentHasher,
    /// Bytes that lay there from earlier.
    began_with: u64,
}

/// Why an attempt ended.
enum Trouble {
    Net(NetError),
    Disk(Failure),
}

impl From<NetError> for Trouble {
    fn from(error: NetError) -> Trouble {
        Trouble::Net(error)
    }
}

impl Partial {
    /// Takes up what lies there from an earlier attempt; more than the file can have is dropped.
    fn open(path: PathBuf, of: &RemoteFile) -> Result<Partial> {
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            fs::remove_file(&path).map_err(|e| Failure::io("replace", &path, &e))?;
        }
        let failed = |e: std::io::Error| Failure::io("write", &path, &e);
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let mut hasher = ContentHasher::like(&of.content, of.bytes);
        let mut len = file.metadata().map_err(failed)?.len();
        if len > of.bytes {
            file.set_len(0).map_err(failed)?;
            len = 0;
        }
        let mut piece = vec![0; PIECE_BYTES];
        let mut rest = len;
        while rest > 0 {
            let n = file.read(&mut piece[..PIECE_BYTES.min(rest as usize)]).map_err(failed)?;
            if n == 0 {
                return Err(failed(IoKind::UnexpectedEof.into()));
            }
            hasher.update(&piece[..n]);
            rest -= n as u64;
        }
        Ok(Partial { path, file, len, hasher, began_with: len })
    }

    /// Drops everything that is there.
    fn restart(&mut self, of: &RemoteFile) -> Result<()> {
        let failed = |e: std::io::Error| Failure::io("write", &self.path, &e);
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map_err(failed)?;
        self.hasher = ContentHasher::like(&of.content, of.bytes);
        self.len = 0;
        self.began_with = 0;
        Ok(())
    }

    /// Downloads until the file has its length. Cuts and passing troubles are overcome by continuing,
    /// up to [`ATTEMPTS_MAX`] attempts in a row that bring nothing.
    fn fill(
        &mut self,
        hub: &Hub,
        repository: &Repository,
        of: &RemoteFile,
        progress: &mut Progress,
    ) -> Result<u64> {
        let mut downloaded = 0;
        let (mut idle, mut in_all) = (0, 0);
        while self.len < of.bytes {
            let before = downloaded;
            let error = match self.attempt(hub, repository, of, &mut downloaded, progress) {
                Ok(()) => continue,
                Err(Trouble::Disk(failure)) => return Err(failure),
                Err(Trouble::Net(error)) => error,
            };
            if downloaded > before {
                idle = 0;
            }
            idle += 1;
            in_all += 1;
            // `416`: what lies there is no beginning of the file as the hub has it.
            let restart = matches!(error, NetError::Status { status: 416, .. }) && self.len > 0;
            if restart {
                self.restart(of)?;
            } else if error.kind() != ErrorKind::TryLater {
                return Err(error.into());
            }
            let asked = error.retry_after_s().unwrap_or(0);
            if idle >= ATTEMPTS_MAX || in_all >= ATTEMPTS_IN_ALL_MAX || asked > RETRY_AFTER_S_MAX {
                return Err(error.into());
            }
            progress.line(&format!("{}: {error}; continuing", one_line(&of.name)));
            std::thread::sleep((BACKOFF * 2u32.pow(idle - 1)).max(Duration::from_secs(asked)));
        }
        Ok(downloaded)
    }

    fn attempt(
        &mut self,
        hub: &Hub,
        repository: &Repository,
        of: &RemoteFile,
        downloaded: &mut u64,
        progress: &mut Progress,
    ) -> std::result::Result<(), Trouble> {
        let mut download = hub.open(repository, of, self.len)?;
        if download.from != self.len {
            self.restart(of).map_err(Trouble::Disk)?;
        }
        let mut shown = Instant::now();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let n = download.response.read(&mut piece)?;
            if n == 0 {
                break;
            }
            if n as u64 > of.bytes - self.len {
                let place = download.response.place().to_owned();
                return Err(NetError::TooLarge { place, bytes_max: of.bytes }.into());
            }
            self.file
                .write_all(&piece[..n])
                .map_err(|e| Trouble::Disk(Failure::io("write", &self.path, &e)))?;
            self.hasher.update(&piece[..n]);
            self.len += n as u64;
            *downloaded += n as u64;
            if shown.elapsed() >= PROGRESS_EVERY {
                shown = Instant::now();
                let percent = 100.0 * self.len as f64 / of.bytes as f64;
                progress.update(&format!("{} {percent:.0} %", of.name));
            }
        }
        if self.len < of.bytes {
            return Err(NetError::Cut { place: download.response.place().to_owned() }.into());
        }
        Ok(())
    }

    fn content(&self) -> ContentId {
        self.hasher.clone().finish()
    }

    /// Makes the bytes durable and gives them their name.
    fn settle(self, blob: &Path) -> Result<()> {
        let failed = |e: std::io::Error| Failure::io("write", blob, &e);
        self.file.sync_all().map_err(failed)?;
        fs::rename(&self.path, blob).map_err(failed)?;
        Ok(sync_dir(blob.parent().unwrap_or(blob))?)
    }

    fn discard(self) {
        // It stays under a name that is not the file's, and the next attempt replaces it.
        drop(fs::remove_file(&self.path));
    }
}
