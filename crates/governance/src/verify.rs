//! Does a run directory, or a release on its own, still hold the bytes that its manifest names?

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use stillroom_core::Digest;
use stillroom_store::{digest_file, safe_join};

use crate::agreement::{self, Agreement};
use crate::error::{GovernanceError, ManifestFault, Result, SignatureFault};
use crate::keys::PublicKey;
use crate::manifest::{
    MANIFEST_PATH, Manifest, RELEASE, SIDECAR_PATH, SUBJECTS_MAX, is_about_itself, sidecar,
};
use crate::oms::{self, GIT_PATHS, SIGNATURE_FILE, Signed};

/// How deep directories may nest.
const DEPTH_MAX: usize = 32;
/// Threads that digest files.
const THREADS_MAX: usize = 8;

/// One thing that is not as the manifest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Path in the directory that was given.
    pub name: String,
    #[serde(flatten)]
    pub differs: Differs,
}

/// In what way it differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Differs {
    /// Other bytes.
    Changed { expected: Digest, found: Digest },
    /// Named, and not there.
    Missing,
    /// There, and not named.
    Extra,
    /// A link, a directory or a device where a file should be.
    Irregular,
    /// The file beside the manifest that holds its digest is no such file.
    Malformed,
    /// Other bytes than those that were signed.
    OtherThanSigned { expected: Digest, found: Digest },
    /// There, and not covered by the signature.
    Unsigned,
    /// The signature is none that counts.
    Signature { cause: String },
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name: String = self.name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        match &self.differs {
            Differs::Changed { expected, found } => {
                write!(f, "`{name}` differs: SHA-256 {found}, the manifest says {expected}")
            }
            Differs::Missing => write!(f, "`{name}` is missing"),
            Differs::Extra => write!(f, "`{name}` is not in the manifest"),
            Differs::Irregular => write!(f, "`{name}` is a link or no file at all"),
            Differs::Malformed => write!(f, "`{name}` does not hold the digest of the manifest"),
            Differs::OtherThanSigned { expected, found } => {
                write!(f, "`{name}` differs: SHA-256 {found}, the signature says {expected}")
            }
            Differs::Unsigned => write!(f, "`{name}` is not covered by the signature"),
            Differs::Signature { cause } => write!(f, "`{name}` does not count: {cause}"),
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Nothing differs, and the documents agree with the record.
    pub intact: bool,
    /// From the manifest and from what was signed: the manifest first, then by name.
    pub differences: Vec<Difference>,
    /// Files whose bytes were digested.
    pub checked: usize,
    /// Bytes that were digested.
    pub bytes: u64,
    /// Files of the run that a release on its own does not carry.
    pub out_of_reach: Vec<String>,
    /// What a repository may have put around a release on its own, and neither manifest nor signature is about.
    pub not_covered: Vec<String>,
    /// SHA-256 of the manifest itself.
    pub manifest: Digest,
    pub signature: SignatureReport,
    /// None where something differs: of such files nothing can be said.
    pub agreement: Option<Agreement>,
}

/// What is known of the release's signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SignatureReport {
    pub state: SignatureState,
    /// Fingerprint of the key that it was held against.
    pub key: Option<String>,
    /// Files that it covers.
    pub files: usize,
}

/// How far a signature can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SignatureState {
    /// There is none.
    None,
    /// There is one of these files, and nobody said by whose key it should be.
    Unchecked,
    /// It is by the key, and covers each file as it is.
    Valid,
    /// It is missing where a key was given, by another key, or not of these files.
    Invalid,
}

impl VerifyReport {
    /// The first thing that differs.
    pub fn first(&self) -> Option<&Difference> {
        self.differences.first()
    }
}

/// Checks every file of a run directory, or of a release directory on its own, against its manifest, the release against
/// its signature, and the documents against the record that they are derived from. Each file is digested once.
///
/// Without a key this finds accidents and careless changes: whoever can write the directory can also write a new manifest
/// and a new signature. With one, a release that is not signed by it is not intact.
pub fn verify(dir: &Path, key: Option<&PublicKey>) -> Result<VerifyReport> {
    let place = Place::of(dir)?;
    let (manifest, digest) = Manifest::read(&place.manifest)?;
    let mut differences = check_sidecar(dir, digest, &place)?;

    let mut expected = BTreeMap::new();
    let mut out_of_reach = Vec::new();
    for subject in &manifest.subject {
        match place.local(&subject.name) {
            Some(name) => drop(expected.insert(name, subject.digest.sha256)),
            None => out_of_reach.push(subject.name.clone()),
        }
    }
    let not_covered = if place.alone { around(dir, &expected)? } else { Vec::new() };
    let mut found: BTreeMap<String, Differs> =
        unnamed(dir, &manifest, place.alone, &expected, &not_covered)?.into_iter().collect();
    let mut readable = Vec::new();
    for name in expected.keys() {
        match kind_of(dir, name).map_err(|source| GovernanceError::Io { path: dir.join(name), source })? {
            Some(FileKind::Regular) => readable.push(name.clone()),
            Some(FileKind::Irregular) => drop(found.insert(name.clone(), Differs::Irregular)),
            None => drop(found.insert(name.clone(), Differs::Missing)),
        }
    }
    let digests = digest_all(dir, &readable)?;
    let bytes = digests.iter().map(|(_, bytes)| bytes).sum();
    let checked = readable.len();
    let digests: BTreeMap<String, Digest> =
        readable.into_iter().zip(digests.into_iter().map(|(digest, _)| digest)).collect();
    for (name, &digest) in &digests {
        if expected[name] != digest {
            found.insert(name.clone(), Differs::Changed { expected: expected[name], found: digest });
        }
    }
    let (signature, unsigned) = check_signature(dir, key, &place, digest, &digests)?;
    for difference in unsigned {
        // What the manifest says of a file goes first; of its own two files it says nothing.
        if !differences.iter().any(|known: &Difference| known.name == difference.name) {
            found.entry(difference.name).or_insert(difference.differs);
        }
    }
    differences.extend(found.into_iter().map(|(name, differs)| Difference { name, differs }));
    let agreement = match differences.is_empty() {
        true => Some(agreement::check(dir, &place, &manifest, key)?),
        false => None,
    };
    let intact = agreement.as_ref().is_some_and(|agreement| agreement.disagreements.is_empty());
    Ok(VerifyReport {
        intact,
        differences,
        checked,
        bytes,
        out_of_reach,
        not_covered,
        manifest: digest,
        signature,
        agreement,
    })
}

/// What belongs to a repository around a release, at its top: there, and in no manifest.
fn around(dir: &Path, expected: &BTreeMap<String, Digest>) -> Result<Vec<String>> {
    let mut around = Vec::new();
    for name in GIT_PATHS {
        let path = dir.join(name);
        match fs::symlink_metadata(&path) {
            Ok(_) if !expected.keys().any(|known| is_below(known, name)) => around.push(name.to_owned()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(GovernanceError::Io { path, source }),
        }
    }
    Ok(around)
}

/// Whether a path is another, or leads below it.
pub(crate) fn is_below(name: &str, path: &str) -> bool {
    name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Which directory was given.
pub(crate) struct Place {
    /// A release without its run.
    pub(crate) alone: bool,
    manifest: PathBuf,
}

impl Place {
    fn of(dir: &Path) -> Result<Place> {
        let of_release = MANIFEST_PATH.strip_prefix(RELEASE).unwrap_or(MANIFEST_PATH);
        let alone = dir.join(of_release).is_file();
        let manifest = dir.join(if alone { of_release } else { MANIFEST_PATH });
        if !manifest.is_file() {
            return Err(GovernanceError::NoManifest { path: dir.to_path_buf() });
        }
        Ok(Place { alone, manifest })
    }

    /// A path of the run, as it is in the directory; none where the directory does not have it.
    fn local(&self, name: &str) -> Option<String> {
        if self.alone { name.strip_prefix(RELEASE).map(str::to_owned) } else { Some(name.to_owned()) }
    }

    /// A path of the release, as it is in the directory.
    pub(crate) fn of_release(&self, name: &str) -> String {
        if self.alone { name.to_owned() } else { format!("{RELEASE}{name}") }
    }
}

/// Holds the signature against digests that were taken already, so that no large file is read twice.
fn check_signature(
    dir: &Path,
    key: Option<&PublicKey>,
    place: &Place,
    manifest: Digest,
    digests: &BTreeMap<String, Digest>,
) -> Result<(SignatureReport, Vec<Difference>)> {
    let mut report =
        SignatureReport { state: SignatureState::None, key: key.map(PublicKey::fingerprint), files: 0 };
    let own_name = place.of_release(SIGNATURE_FILE);
    let refused = |differs| vec![Difference { name: own_name.clone(), differs }];
    let signed = match oms::read(&dir.join(&own_name)) {
        Ok(Some(bytes)) => Signed::from_bytes(&bytes, key),
        Ok(None) if key.is_none() => return Ok((report, Vec::new())),
        Ok(None) => Err(SignatureFault::Absent),
        Err(GovernanceError::Signature { cause, .. }) => Err(cause),
        Err(other) => return Err(other),
    };
    let differences = match signed {
        Err(SignatureFault::Absent) => refused(Differs::Missing),
        Err(cause) => refused(Differs::Signature { cause: cause.to_string() }),
        Ok(signed) => {
            report.files = signed.files.len();
            let found = signable(dir, place, manifest, digests)?;
            let in_place = |difference: Difference| Difference {
                name: place.of_release(&difference.name),
                differs: difference.differs,
            };
            signed.differences(&found).into_iter().map(in_place).collect()
        }
    };
    report.state = match (differences.is_empty(), key) {
        (false, _) => SignatureState::Invalid,
        (true, None) => SignatureState::Unchecked,
        (true, Some(_)) => SignatureState::Valid,
    };
    Ok((report, differences))
}

/// The files of the release that a signature has to cover, by path in it.
fn signable(
    dir: &Path,
    place: &Place,
    manifest: Digest,
    digests: &BTreeMap<String, Digest>,
) -> Result<BTreeMap<String, Digest>> {
    let in_release = |(name, &digest): (&String, &Digest)| {
        let name = if place.alone { Some(name.as_str()) } else { name.strip_prefix(RELEASE) };
        name.map(|name| (name.to_owned(), digest))
    };
    let mut found: BTreeMap<String, Digest> = digests.iter().filter_map(in_release).collect();
    let in_release = |path: &str| path.strip_prefix(RELEASE).unwrap_or(path).to_owned();
    found.insert(in_release(MANIFEST_PATH), manifest);
    let sidecar = in_release(SIDECAR_PATH);
    let path = place.of_release(&sidecar);
    let io = |source| GovernanceError::Io { path: dir.join(&path), source };
    if kind_of(dir, &path).map_err(io)? == Some(FileKind::Regular) {
        found.insert(sidecar, digest_file(&dir.join(&path))?.0);
    }
    Ok(found)
}

/// The manifest against the digest beside it.
fn check_sidecar(dir: &Path, digest: Digest, place: &Place) -> Result<Vec<Difference>> {
    let names = (place.local(MANIFEST_PATH), place.local(SIDECAR_PATH));
    let (Some(own), Some(name)) = names else { return Ok(Vec::new()) };
    let path = dir.join(&name);
    let io = |source| GovernanceError::Io { path: path.clone(), source };
    let one = |name, differs| Ok(vec![Difference { name, differs }]);
    match kind_of(dir, &name).map_err(io)? {
        None => return one(name, Differs::Missing),
        Some(FileKind::Irregular) => return one(name, Differs::Irregular),
        Some(FileKind::Regular) => {}
    }
    let length = sidecar(digest).len() as u64;
    if fs::metadata(&path).map_err(io)?.len() != length {
        return one(name, Differs::Malformed);
    }
    let text = String::from_utf8(fs::read(&path).map_err(io)?).unwrap_or_default();
    let stated = text.get(..64).and_then(|hex| Digest::try_from(hex.to_owned()).ok());
    match stated {
        Some(expected) if text != sidecar(expected) => one(name, Differs::Malformed),
        Some(expected) if expected != digest => one(own, Differs::Changed { expected, found: digest }),
        Some(_) => Ok(Vec::new()),
        None => one(name, Differs::Malformed),
    }
}

/// Files in sealed directories that the manifest does not name.
fn unnamed(
    dir: &Path,
    manifest: &Manifest,
    alone: bool,
    expected: &BTreeMap<String, Digest>,
    not_covered: &[String],
) -> Result<Vec<(String, Differs)>> {
    let roots: BTreeSet<&str> = if alone {
        BTreeSet::from([""])
    } else {
        manifest.predicate.sealed.iter().map(String::as_str).collect()
    };
    let mut extra = Vec::new();
    for root in roots {
        for (name, kind) in list_files_but(dir, root, not_covered)? {
            let in_run = if alone { format!("{RELEASE}{name}") } else { name.clone() };
            if is_about_itself(&in_run) && kind == FileKind::Regular || expected.contains_key(&name) {
                continue;
            }
            extra.push((name, if kind == FileKind::Regular { Differs::Extra } else { Differs::Irregular }));
        }
    }
    Ok(extra)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Regular,
    Irregular,
}

/// What lies at a path; a link on the way to it makes it irregular.
fn kind_of(root: &Path, name: &str) -> io::Result<Option<FileKind>> {
    let Ok(path) = safe_join(root, name) else { return Ok(Some(FileKind::Irregular)) };
    let mut at = root.to_path_buf();
    let mut kind = None;
    for component in path.strip_prefix(root).unwrap_or(&path).components() {
        at.push(component);
        kind = match fs::symlink_metadata(&at) {
            Ok(metadata) if metadata.is_file() => Some(FileKind::Regular),
            Ok(metadata) if metadata.is_dir() => Some(FileKind::Irregular),
            Ok(_) => return Ok(Some(FileKind::Irregular)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
    }
    Ok(kind)
}

/// Every file below a directory, by its path from `root` with `/`, links not followed. An absent
/// directory has none.
pub(crate) fn list_files(root: &Path, dir: &str) -> Result<Vec<(String, FileKind)>> {
    list_files_but(root, dir, &[])
}

/// The same without these paths and what is below them, which is not looked at.
fn list_files_but(root: &Path, dir: &str, left_out: &[String]) -> Result<Vec<(String, FileKind)>> {
    let mut files = Vec::new();
    let top = if dir.is_empty() { root.to_path_buf() } else { root.join(dir) };
    match fs::symlink_metadata(&top) {
        Ok(metadata) if metadata.is_dir() || dir.is_empty() => walk(&top, dir, 0, left_out, &mut files)?,
        Ok(_) => files.push((dir.to_owned(), FileKind::Irregular)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(GovernanceError::Io { path: top, source }),
    }
    Ok(files)
}

fn walk(
    dir: &Path,
    name: &str,
    depth: usize,
    left_out: &[String],
    files: &mut Vec<(String, FileKind)>,
) -> Result<()> {
    let io = |source| GovernanceError::Io { path: dir.to_path_buf(), source };
    for entry in fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        let own = entry.file_name().to_string_lossy().into_owned();
        let name = if name.is_empty() { own } else { format!("{name}/{own}") };
        if left_out.contains(&name) {
            continue;
        }
        let kind = entry.file_type().map_err(io)?;
        if kind.is_dir() && depth < DEPTH_MAX {
            walk(&entry.path(), &name, depth + 1, left_out, files)?;
            continue;
        }
        // A name that is no UTF-8 can be in no manifest.
        let plain = kind.is_file() && entry.file_name().to_str().is_some();
        files.push((name, if plain { FileKind::Regular } else { FileKind::Irregular }));
        if files.len() > SUBJECTS_MAX {
            let cause = ManifestFault::TooManySubjects { count: files.len(), count_max: SUBJECTS_MAX };
            return Err(GovernanceError::Manifest { path: dir.to_path_buf(), cause });
        }
    }
    Ok(())
}

/// Digests of files, in the order of the names; those that are known already are not taken again.
pub(crate) fn digest_rest(
    root: &Path,
    names: &[String],
    known: &BTreeMap<String, Digest>,
) -> Result<Vec<Digest>> {
    let rest: Vec<String> = names.iter().filter(|name| !known.contains_key(*name)).cloned().collect();
    let taken: BTreeMap<&String, Digest> =
        rest.iter().zip(digest_all(root, &rest)?.into_iter().map(|(digest, _)| digest)).collect();
    Ok(names.iter().filter_map(|name| known.get(name).or_else(|| taken.get(name)).copied()).collect())
}

/// Digests and lengths of files, in the order of the names.
pub(crate) fn digest_all(root: &Path, names: &[String]) -> Result<Vec<(Digest, u64)>> {
    let threads =
        std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(names.len());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(i) else { return done };
            done.push((i, digest_file(&root.join(name))));
        }
    };
    let mut all = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for worker in workers {
            match worker.join() {
                Ok(done) => all.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, digest)| Ok(digest?)).collect()
}
