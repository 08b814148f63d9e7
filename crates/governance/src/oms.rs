//! Signatures of whole directories in the form of OpenSSF Model Signing (OMS) v1.0, method `key`.
//!
//! `model.sig` is a Sigstore bundle. In it is a DSSE envelope, and in that an in-toto statement with the SHA-256 of each
//! file of the directory:
//!
//! ```json
//! {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
//!  "verificationMaterial": {"publicKey": {"hint": "SHA-256 of the key's PEM"}, "tlogEntries": []},
//!  "dsseEnvelope": {"payload": "…", "payloadType": "application/vnd.in-toto+json", "signatures": [{"keyid": "", "sig": "…"}]}}
//! ```
//!
//! A timestamp of the signature's bytes may stand in `verificationMaterial.timestampVerificationData`, which is not signed
//! by it: it signs itself.
//!
//! What is read: keys on P-256 and P-384, SHA-256, whole files. What is not read is refused by name: certificates, Sigstore's own
//! signatures, shards, BLAKE digests, followed links.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};
use stillroom_core::Digest;
use stillroom_store::{atomic_write, safe_join};

use crate::dsse::{ENVELOPE_BYTES_MAX, Envelope, IN_TOTO};
use crate::error::{EnvelopeFault, GovernanceError, Result, SignatureFault};
use crate::keys::{PublicKey, Signer};
use crate::manifest::{STATEMENT_TYPE, SUBJECTS_MAX};
use crate::timestamp::Token;
use crate::verify::{Difference, Differs, FileKind, digest_all, digest_rest, is_below, list_files};

/// `predicateType` of the statement.
pub const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// The signature's name in the directory that it is of.
pub const SIGNATURE_FILE: &str = "model.sig";
/// `mediaType` of the bundle.
const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Timestamps of one signature at most.
const TIMESTAMPS_MAX: usize = 16;
/// What belongs to a repository around a model, and to no model: never covered.
pub(crate) const GIT_PATHS: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

type Fault<T> = std::result::Result<T, SignatureFault>;

/// Signs every file of `dir` but those in `ignore` (paths in it, with what is below them), the signature itself and what
/// belongs to git. Writes `dir/model.sig`.
pub fn sign(dir: &Path, ignore: &[&str], signer: &Signer) -> Result<PathBuf> {
    sign_digested(dir, ignore, signer, &BTreeMap::new())
}

/// Like [`sign`], with the digests of files in `known`, by their paths in `dir`, that were just taken: those are not read
/// again.
pub fn sign_digested(
    dir: &Path,
    ignore: &[&str],
    signer: &Signer,
    known: &BTreeMap<String, Digest>,
) -> Result<PathBuf> {
    let path = dir.join(SIGNATURE_FILE);
    let refused = |cause| GovernanceError::Signature { path: path.clone(), cause };
    let mut ignore_paths: Vec<String> = ignore.iter().map(|&name| name.to_owned()).collect();
    ignore_paths.push(SIGNATURE_FILE.to_owned());
    ignore_paths.extend(GIT_PATHS.map(str::to_owned));
    let mut names = Vec::new();
    for (name, kind) in list_files(dir, "")? {
        if is_ignored(&name, &ignore_paths) {
            continue;
        }
        if kind != FileKind::Regular || safe_join(dir, &name).is_err() {
            return Err(refused(SignatureFault::UnsafeName { name }));
        }
        names.push(name);
    }
    if names.is_empty() {
        return Err(refused(SignatureFault::Empty));
    }
    names.sort_unstable();
    let digests = digest_rest(dir, &names, known)?;
    let files = names.into_iter().zip(digests);
    let statement = Statement::of(&basename(dir)?, files.collect(), ignore_paths);
    let bundle = statement.sign(signer).map_err(|error| match error {
        GovernanceError::Envelope(fault) => refused(SignatureFault::Envelope(fault)),
        other => other,
    })?;
    atomic_write(&path, &bundle)?;
    Ok(path)
}

/// Holds the files of `dir` against `dir/model.sig`: what differs, is missing, or is there without being covered.
///
/// # Errors
/// Where there is no signature, it is not by `key`, or it is of a form that is not read here.
pub fn verify(dir: &Path, key: &PublicKey) -> Result<Vec<Difference>> {
    let path = dir.join(SIGNATURE_FILE);
    let refused = |cause| GovernanceError::Signature { path: path.clone(), cause };
    let bytes = read(&path)?.ok_or_else(|| refused(SignatureFault::Absent))?;
    let signed = Signed::from_bytes(&bytes, Some(key)).map_err(refused)?;
    let mut names = Vec::new();
    let mut differences = BTreeMap::new();
    for (name, kind) in list_files(dir, "")? {
        match kind {
            _ if is_ignored(&name, &signed.ignore_paths) || is_always_ignored(&name) => {}
            FileKind::Regular => names.push(name),
            FileKind::Irregular => drop(differences.insert(name, Differs::Irregular)),
        }
    }
    let digests = digest_all(dir, &names)?;
    let found = names.into_iter().zip(digests.into_iter().map(|(digest, _)| digest)).collect();
    for difference in signed.differences(&found) {
        differences.entry(difference.name).or_insert(difference.differs);
    }
    Ok(differences.into_iter().map(|(name, differs)| Difference { name, differs }).collect())
}

/// How a signature names the key that it claims to be by: the SHA-256 of the key's PEM. Nothing is checked by it.
pub fn claimed_key(bytes: &[u8]) -> Result<String> {
    let refused = |cause| GovernanceError::Signature { path: PathBuf::from(SIGNATURE_FILE), cause };
    if bytes.len() > ENVELOPE_BYTES_MAX {
        let cause = SignatureFault::TooLarge { bytes: bytes.len(), bytes_max: ENVELOPE_BYTES_MAX };
        return Err(refused(cause));
    }
    let malformed = |error: serde_json::Error| SignatureFault::Malformed { cause: error.to_string() };
    let bundle: Bundle = serde_json::from_slice(bytes).map_err(|error| refused(malformed(error)))?;
    bundle.check(None).map_err(refused)?;
    let hint = bundle.verification_material.public_key.and_then(|key| key.hint);
    Ok(hint.map_or("unnamed".to_owned(), |hint| short(&hint)))
}

/// The bytes of the signature of `dir`, which a timestamp is of, and the timestamps that stand beside it. None where it is not
/// signed.
pub fn timestamps(dir: &Path) -> Result<Option<(Vec<u8>, Vec<Token>)>> {
    let Some((path, bundle)) = read_bundle(dir)? else { return Ok(None) };
    let refused = |cause| GovernanceError::Signature { path: path.clone(), cause };
    let malformed = |cause: &str| refused(SignatureFault::Malformed { cause: cause.to_owned() });
    let signature =
        bundle.dsse_envelope.signature().ok_or_else(|| malformed("not one signature in base64"))?;
    let stamps = bundle.verification_material.timestamp_verification_data.unwrap_or_default();
    if stamps.rfc3161_timestamps.len() > TIMESTAMPS_MAX {
        return Err(malformed("too many timestamps"));
    }
    let token = |stamp: &SignedTimestamp| {
        let response = Base64::decode_vec(&stamp.signed_timestamp)
            .map_err(|_| malformed("a timestamp that is not base64"))?;
        Token::from_response(&response).map_err(|cause| refused(SignatureFault::Timestamp(cause)))
    };
    Ok(Some((signature, stamps.rfc3161_timestamps.iter().map(token).collect::<Result<_>>()?)))
}

/// Puts a timestamp of the signature of `dir` beside it.
pub fn add_timestamp(dir: &Path, token: &Token) -> Result<()> {
    let path = dir.join(SIGNATURE_FILE);
    let refused = |cause| GovernanceError::Signature { path: path.clone(), cause };
    let (_, mut bundle) = read_bundle(dir)?.ok_or_else(|| refused(SignatureFault::Absent))?;
    let stamps = bundle.verification_material.timestamp_verification_data.get_or_insert_default();
    stamps
        .rfc3161_timestamps
        .push(SignedTimestamp { signed_timestamp: Base64::encode_string(&token.to_response()) });
    let bytes = serde_json::to_vec(&bundle)
        .map_err(|error| refused(SignatureFault::Malformed { cause: error.to_string() }))?;
    Ok(atomic_write(&path, &bytes)?)
}

fn read_bundle(dir: &Path) -> Result<Option<(PathBuf, Bundle)>> {
    let path = dir.join(SIGNATURE_FILE);
    let Some(bytes) = read(&path)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(bundle) => Ok(Some((path, bundle))),
        Err(error) => {
            let cause = SignatureFault::Malformed { cause: error.to_string() };
            Err(GovernanceError::Signature { path, cause })
        }
    }
}

/// What a signature says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signed {
    /// Digests by path in the directory.
    pub(crate) files: BTreeMap<String, Digest>,
    ignore_paths: Vec<String>,
}

impl Signed {
    /// Reads a bundle. With a key, only what that key signed; without one, whatever is in it.
    pub(crate) fn from_bytes(bytes: &[u8], key: Option<&PublicKey>) -> Fault<Signed> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(SignatureFault::TooLarge { bytes: bytes.len(), bytes_max: ENVELOPE_BYTES_MAX });
        }
        let malformed = |error: serde_json::Error| SignatureFault::Malformed { cause: error.to_string() };
        let bundle: Bundle = serde_json::from_slice(bytes).map_err(malformed)?;
        bundle.check(key)?;
        let envelope = &bundle.dsse_envelope;
        let payload = match key {
            Some(key) => envelope.opened(key)?,
            None => envelope.payload()?,
        };
        expect("payloadType", envelope.payload_type(), IN_TOTO)?;
        let statement: Statement = serde_json::from_slice(&payload).map_err(malformed)?;
        statement.check()
    }

    /// What differs from the files that were found, by path in the directory.
    pub(crate) fn differences(&self, found: &BTreeMap<String, Digest>) -> Vec<Difference> {
        let mut differences = Vec::new();
        for (name, &expected) in &self.files {
            let differs = match found.get(name) {
                Some(&found) if found == expected => continue,
                Some(&found) => Differs::OtherThanSigned { expected, found },
                None => Differs::Missing,
            };
            differences.push(Difference { name: name.clone(), differs });
        }
        let unsigned = found.keys().filter(|name| !self.files.contains_key(*name));
        differences
            .extend(unsigned.map(|name| Difference { name: name.clone(), differs: Differs::Unsigned }));
        differences
    }
}

/// The bytes of a signature, with their number capped before they are read; none where there is no file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let io = |source| GovernanceError::Io { path: path.to_path_buf(), source };
    let refused = |cause| GovernanceError::Signature { path: path.to_path_buf(), cause };
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(io)?,
    };
    if !metadata.is_file() {
        return Err(refused(SignatureFault::NoFile));
    }
    let bytes = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    if bytes > ENVELOPE_BYTES_MAX {
        return Err(refused(SignatureFault::TooLarge { bytes, bytes_max: ENVELOPE_BYTES_MAX }));
    }
    fs::read(path).map_err(io).map(Some)
}

fn is_always_ignored(name: &str) -> bool {
    name == SIGNATURE_FILE || GIT_PATHS.iter().any(|path| is_below(name, path))
}

fn is_ignored(name: &str, ignore_paths: &[String]) -> bool {
    ignore_paths.iter().any(|path| is_below(name, path))
}

/// The directory's own name, however it was given.
fn basename(dir: &Path) -> Result<String> {
    let whole =
        dir.canonicalize().map_err(|source| GovernanceError::Io { path: dir.to_path_buf(), source })?;
    Ok(whole.file_name().map_or("model".to_owned(), |name| name.to_string_lossy().into_owned()))
}

fn expect(field: &'static str, found: &str, expected: &str) -> Fault<()> {
    match found == expected {
        true => Ok(()),
        false => Err(SignatureFault::UnknownType { field, found: found.chars().take(200).collect() }),
    }
}

/// A Sigstore bundle. Unknown fields are refused: nothing in it but the payload is signed, and so nothing in it may be
/// changed unnoticed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Material {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<KeyIdentifier>,
    #[serde(default)]
    tlog_entries: Vec<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timestamp_verification_data: Option<Timestamps>,
    #[serde(default, skip_serializing)]
    certificate: Option<serde_json::Value>,
    #[serde(default, skip_serializing, rename = "x509CertificateChain")]
    chain: Option<serde_json::Value>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Timestamps {
    #[serde(default)]
    rfc3161_timestamps: Vec<SignedTimestamp>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SignedTimestamp {
    /// Base64 of a `TimeStampResp`.
    signed_timestamp: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyIdentifier {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// What stood for `hint` in earlier bundles, with other fields.
    #[serde(default, skip_serializing)]
    raw_bytes: Option<serde_json::Value>,
}

impl Bundle {
    fn check(&self, key: Option<&PublicKey>) -> Fault<()> {
        expect("mediaType", &self.media_type, MEDIA_TYPE)?;
        let material = &self.verification_material;
        let Some(identifier) = &material.public_key else {
            let what = match material.certificate.is_some() || material.chain.is_some() {
                true => "a certificate; only keys are known here",
                false => "nothing: `verificationMaterial` has no key",
            };
            return Err(SignatureFault::Unsupported { what: what.to_owned() });
        };
        match (&identifier.hint, &identifier.raw_bytes) {
            (None, None) => Err(SignatureFault::Malformed { cause: "the public key has no hint".to_owned() }),
            (Some(hint), _) if key.is_some_and(|key| *hint != key_hint(key)) => {
                Err(SignatureFault::OtherKey { hint: hint.chars().take(64).collect() })
            }
            _ => Ok(()),
        }
    }
}

/// How bundles name a key: the SHA-256 of its PEM, not of its DER.
fn key_hint(key: &PublicKey) -> String {
    Digest::of(key.to_pem().as_bytes()).to_string()
}

/// What is signed. Unknown fields are let through, as in-toto asks: the signer vouches for them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    statement_type: String,
    subject: Vec<Root>,
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Debug, Serialize, Deserialize)]
struct Root {
    name: String,
    digest: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Predicate {
    resources: Vec<Resource>,
    serialization: Serialization,
}

#[derive(Debug, Serialize, Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
    allow_symlinks: bool,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

impl Statement {
    fn of(name: &str, files: Vec<(String, Digest)>, ignore_paths: Vec<String>) -> Statement {
        let root = root_digest(files.iter().map(|(_, digest)| *digest));
        let resource = |(name, digest): (String, Digest)| Resource {
            name,
            algorithm: "sha256".to_owned(),
            digest: digest.to_string(),
        };
        Statement {
            statement_type: STATEMENT_TYPE.to_owned(),
            subject: vec![Root {
                name: name.to_owned(),
                digest: BTreeMap::from([("sha256".to_owned(), root.to_string())]),
            }],
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                resources: files.into_iter().map(resource).collect(),
                serialization: Serialization {
                    method: "files".to_owned(),
                    hash_type: "sha256".to_owned(),
                    allow_symlinks: false,
                    ignore_paths,
                },
            },
        }
    }

    /// The bundle's bytes: one line without an end, so that no byte of it is idle.
    fn sign(&self, signer: &Signer) -> Result<Vec<u8>> {
        let malformed = |error: serde_json::Error| {
            GovernanceError::from(EnvelopeFault::Malformed { cause: error.to_string() })
        };
        let payload = serde_json::to_vec(self).map_err(malformed)?;
        let hint = Some(key_hint(signer.public_key()));
        let bundle = Bundle {
            media_type: MEDIA_TYPE.to_owned(),
            verification_material: Material {
                public_key: Some(KeyIdentifier { hint, raw_bytes: None }),
                tlog_entries: Vec::new(),
                timestamp_verification_data: None,
                certificate: None,
                chain: None,
            },
            dsse_envelope: Envelope::sign_as(IN_TOTO, &payload, signer, String::new())?,
        };
        serde_json::to_vec(&bundle).map_err(malformed)
    }

    fn check(self) -> Fault<Signed> {
        expect("_type", &self.statement_type, STATEMENT_TYPE)?;
        expect("predicateType", &self.predicate_type, PREDICATE_TYPE)?;
        let Predicate { resources, serialization } = self.predicate;
        let unsupported = |what: String| SignatureFault::Unsupported { what };
        if serialization.method != "files" {
            return Err(unsupported(format!("files by the method `{}`", short(&serialization.method))));
        }
        if serialization.allow_symlinks {
            return Err(unsupported("what links lead to".to_owned()));
        }
        if resources.is_empty() {
            return Err(SignatureFault::Empty);
        }
        if resources.len() > SUBJECTS_MAX {
            return Err(SignatureFault::TooMany { count: resources.len(), count_max: SUBJECTS_MAX });
        }
        let mut files = BTreeMap::new();
        // In the order of the list: others sort by the parts of a path.
        let mut digests = Vec::with_capacity(resources.len());
        for resource in resources {
            if resource.algorithm != "sha256" {
                return Err(unsupported(format!("digests by `{}`", short(&resource.algorithm))));
            }
            let name = resource.name;
            let malformed =
                || SignatureFault::Malformed { cause: format!("`{}` has no SHA-256", short(&name)) };
            let digest = Digest::try_from(resource.digest).map_err(|_| malformed())?;
            digests.push(digest);
            if safe_join(Path::new("model"), &name).is_err() {
                return Err(SignatureFault::UnsafeName { name: short(&name) });
            }
            if files.insert(name.clone(), digest).is_some() {
                return Err(SignatureFault::Twice { name: short(&name) });
            }
        }
        let [root] = &self.subject[..] else {
            return Err(SignatureFault::Malformed {
                cause: format!("{} subjects, not one", self.subject.len()),
            });
        };
        if root.digest.get("sha256") != Some(&root_digest(digests.into_iter()).to_string()) {
            return Err(SignatureFault::Root);
        }
        Ok(Signed { files, ignore_paths: serialization.ignore_paths })
    }
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

/// SHA-256 of the files' digests, as bytes, one after the other.
fn root_digest(digests: impl Iterator<Item = Digest>) -> Digest {
    let bytes: Vec<u8> = digests.flat_map(|digest| *digest.as_bytes()).collect();
    Digest::of(&bytes)
}
