//! Keys that sign: ECDSA on P-256 over SHA-256, in files or behind a program of the user's. A key on P-384, over SHA-384, is
//! only ever behind one; its public half is read like that of the others.
//!
//! A private key's file is PKCS#8 PEM, under a passphrase where one is given (PBES2: scrypt and AES-256-CBC, as
//! `openssl pkey` reads it). A public key's file is SPKI PEM. Signatures are DER. A key from a file signs as RFC 6979
//! has it, so that the same bytes always have the same signature.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use der::pem::{self, PemLabel};
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use p256::elliptic_curve::Generate as _;
use pkcs8::pkcs5::pbes2::Kdf;
use pkcs8::{
    DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, EncryptedPrivateKeyInfoRef,
    LineEnding, PrivateKeyInfoRef, SecretDocument,
};
use ring::signature::{ECDSA_P384_SHA384_ASN1, UnparsedPublicKey};
use stillroom_core::Digest;

use crate::error::{GovernanceError, KeyFault, Result};
use crate::timestamp::p384_point;

/// Largest file that is read as a key.
pub const KEY_BYTES_MAX: u64 = 64 << 10;
/// Largest signature that is looked at; one of P-384 in DER has at most 104 bytes.
pub const SIGNATURE_BYTES_MAX: usize = 112;
/// Most memory that a key file may ask for to turn its passphrase into a key.
const SCRYPT_BYTES_MAX: u64 = 256 << 20;
/// Most lanes of it.
const SCRYPT_LANES_MAX: u16 = 16;
/// Most rounds of PBKDF2 that a key file may ask for.
const PBKDF2_ROUNDS_MAX: u32 = 10_000_000;
/// Bits of a file's mode by which others than its owner can use it.
const OTHERS: u32 = 0o077;

/// What makes a signature of bytes: DER, ECDSA on P-256 over their SHA-256, or on P-384 over their SHA-384.
pub type External = Box<dyn Fn(&[u8]) -> Result<Vec<u8>> + Send + Sync>;

/// A key that others check signatures with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    key: Curve,
    pem: String,
    fingerprint: Digest,
}

/// The point that a public key is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Curve {
    P256(VerifyingKey),
    /// Uncompressed.
    P384(Vec<u8>),
}

impl PublicKey {
    /// Reads `path`, which has an SPKI PEM.
    pub fn open(path: &Path) -> Result<PublicKey> {
        let refused = |cause| GovernanceError::Key { path: path.to_path_buf(), cause };
        let (_, text) = read_pem(path)?;
        PublicKey::from_pem(&text).map_err(refused)
    }

    /// Of an SPKI PEM.
    pub fn from_pem(text: &str) -> std::result::Result<PublicKey, KeyFault> {
        if text.len() as u64 > KEY_BYTES_MAX {
            return Err(KeyFault::TooLarge { bytes: text.len() as u64, bytes_max: KEY_BYTES_MAX });
        }
        match label(text) {
            Some("PUBLIC KEY") => {}
            Some(label) if label.ends_with("PRIVATE KEY") => return Err(KeyFault::PrivateForPublic),
            _ => return Err(KeyFault::NoPem { wanted: "PUBLIC KEY" }),
        }
        if let Ok((_, der)) = pem::decode_vec(text.as_bytes())
            && let Some(point) = p384_point(&der)
        {
            let pem = pem::encode_string("PUBLIC KEY", LineEnding::LF, &der)
                .map_err(|error| KeyFault::Unusable { cause: error.to_string() })?;
            let (key, fingerprint) = (Curve::P384(point.to_vec()), Digest::of(&der));
            return Ok(PublicKey { key, pem, fingerprint });
        }
        let key = VerifyingKey::from_public_key_pem(text)
            .map_err(|error| KeyFault::Unusable { cause: error.to_string() })?;
        PublicKey::of(key)
    }

    fn of(key: VerifyingKey) -> std::result::Result<PublicKey, KeyFault> {
        let unusable = |error: pkcs8::spki::Error| KeyFault::Unusable { cause: error.to_string() };
        let der = key.to_public_key_der().map_err(unusable)?;
        let pem = key.to_public_key_pem(LineEnding::LF).map_err(unusable)?;
        Ok(PublicKey { key: Curve::P256(key), pem, fingerprint: Digest::of(der.as_bytes()) })
    }

    /// SPKI PEM, in one form whatever it was read from.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the DER SPKI, as hex.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.to_string()
    }

    /// Whether `signature` (DER) is one of `bytes` by this key.
    pub fn verify(&self, bytes: &[u8], signature: &[u8]) -> bool {
        if signature.len() > SIGNATURE_BYTES_MAX {
            return false;
        }
        match &self.key {
            Curve::P256(key) => {
                Signature::from_der(signature).is_ok_and(|found| key.verify(bytes, &found).is_ok())
            }
            Curve::P384(point) => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, point).verify(bytes, signature).is_ok()
            }
        }
    }
}

/// A key that signs.
pub struct Signer {
    public: PublicKey,
    secret: Secret,
}

enum Secret {
    File(Box<SigningKey>),
    External(External),
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("public", &self.public).finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads a private key's file. One that others than its owner can read is refused.
    pub fn open(path: &Path, passphrase: Option<&str>) -> Result<Signer> {
        let refused = |cause| GovernanceError::Key { path: path.to_path_buf(), cause };
        let (mode, text) = read_pem(path)?;
        if mode & OTHERS != 0 {
            return Err(refused(KeyFault::Exposed { mode: mode & 0o777 }));
        }
        let key = signing_key(&text, passphrase).map_err(refused)?;
        Signer::of(key).map_err(refused)
    }

    /// A key that a program of the user's keeps. What it returns is checked before it is believed.
    pub fn external(public: PublicKey, sign: External) -> Signer {
        Signer { public, secret: Secret::External(sign) }
    }

    /// Makes a new key: the private one at `path`, for its owner only, the public one beside it as `PATH.pub`.
    /// Overwrites neither.
    pub fn create(path: &Path, passphrase: Option<&str>) -> Result<Signer> {
        let refused = |cause| GovernanceError::Key { path: path.to_path_buf(), cause };
        let key = SigningKey::try_generate().map_err(|_| refused(KeyFault::NoRandomness))?;
        let unusable = |error: pkcs8::Error| refused(KeyFault::Unusable { cause: error.to_string() });
        let pem = match passphrase {
            Some("") => return Err(refused(KeyFault::EmptyPassphrase)),
            Some(passphrase) => key.to_pkcs8_encrypted_pem(passphrase, LineEnding::LF),
            None => key.to_pkcs8_pem(LineEnding::LF),
        }
        .map_err(unusable)?;
        let signer = Signer::of(key).map_err(refused)?;
        let public_path = public_path(path);
        if public_path.symlink_metadata().is_ok() {
            return Err(GovernanceError::Key { path: public_path, cause: KeyFault::Exists });
        }
        write_new(path, 0o600, pem.as_bytes())?;
        write_new(&public_path, 0o644, signer.public.to_pem().as_bytes())?;
        Ok(signer)
    }

    fn of(key: SigningKey) -> std::result::Result<Signer, KeyFault> {
        let public = PublicKey::of(*key.verifying_key())?;
        Ok(Signer { public, secret: Secret::File(Box::new(key)) })
    }

    /// The signature of `bytes` in DER. It verifies with [`Signer::public_key`].
    pub fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        match &self.secret {
            Secret::File(key) => {
                let signature: Signature = key.sign(bytes);
                Ok(signature.to_der().as_bytes().to_vec())
            }
            Secret::External(sign) => {
                let signature = sign(bytes)?;
                if !self.public.verify(bytes, &signature) {
                    return Err(GovernanceError::ForeignSignature { bytes: signature.len() });
                }
                Ok(signature)
            }
        }
    }

    /// Whether a program of the user's makes the signatures: perhaps with somebody's finger on a button.
    pub fn is_external(&self) -> bool {
        matches!(self.secret, Secret::External(_))
    }

    /// What others check its signatures with.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }
}

/// Where the public key of a private key's file lies.
pub fn public_path(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// The mode and text of a small regular file.
fn read_pem(path: &Path) -> Result<(u32, String)> {
    let io = |source| GovernanceError::Io { path: path.to_path_buf(), source };
    let refused = |cause| GovernanceError::Key { path: path.to_path_buf(), cause };
    // Before it is opened: opening a pipe waits for a writer.
    if !path.metadata().map_err(io)?.is_file() {
        return Err(refused(KeyFault::NoFile));
    }
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    let mut bytes = Vec::new();
    file.take(KEY_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > KEY_BYTES_MAX {
        return Err(refused(KeyFault::TooLarge { bytes: metadata.len(), bytes_max: KEY_BYTES_MAX }));
    }
    let text = String::from_utf8(bytes).map_err(|_| refused(KeyFault::NoPem { wanted: "key" }))?;
    Ok((metadata.permissions().mode(), text))
}

/// The label of a text's first PEM block.
fn label(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.trim_end().strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
}

fn signing_key(text: &str, passphrase: Option<&str>) -> std::result::Result<SigningKey, KeyFault> {
    let unusable = |error: pkcs8::Error| KeyFault::Unusable { cause: error.to_string() };
    match (label(text), passphrase) {
        (Some(PrivateKeyInfoRef::PEM_LABEL), None) => SigningKey::from_pkcs8_pem(text).map_err(unusable),
        (Some(PrivateKeyInfoRef::PEM_LABEL), Some(_)) => Err(KeyFault::NotEncrypted),
        (Some(EncryptedPrivateKeyInfoRef::PEM_LABEL), None) => Err(KeyFault::NeedsPassphrase),
        (Some(EncryptedPrivateKeyInfoRef::PEM_LABEL), Some(passphrase)) => decrypted(text, passphrase),
        (Some("EC PRIVATE KEY"), _) => Err(KeyFault::Sec1),
        (Some("PUBLIC KEY"), _) => Err(KeyFault::PublicForPrivate),
        _ => Err(KeyFault::NoPem { wanted: PrivateKeyInfoRef::PEM_LABEL }),
    }
}

fn decrypted(text: &str, passphrase: &str) -> std::result::Result<SigningKey, KeyFault> {
    let unusable = |cause: String| KeyFault::Unusable { cause };
    let (_, der) = SecretDocument::from_pem(text).map_err(|error| unusable(error.to_string()))?;
    let info = EncryptedPrivateKeyInfoRef::try_from(der.as_bytes()).map_err(|e| unusable(e.to_string()))?;
    let affordable = match info.encryption_algorithm.pbes2().map(|parameters| &parameters.kdf) {
        Some(Kdf::Scrypt(scrypt)) => {
            let memory = scrypt.cost_parameter.checked_mul(128 * u64::from(scrypt.block_size));
            memory.is_some_and(|bytes| bytes <= SCRYPT_BYTES_MAX)
                && scrypt.parallelization <= SCRYPT_LANES_MAX
        }
        Some(Kdf::Pbkdf2(pbkdf2)) => pbkdf2.iteration_count <= PBKDF2_ROUNDS_MAX,
        _ => return Err(unusable("encrypted in a way that is not PBES2 with scrypt or PBKDF2".to_owned())),
    };
    if !affordable {
        return Err(unusable("its passphrase asks for too much work".to_owned()));
    }
    // A wrong passphrase shows as bad padding or as bytes that are no key.
    let der = info.decrypt(passphrase).map_err(|_| KeyFault::WrongPassphrase)?;
    SigningKey::from_pkcs8_der(der.as_bytes()).map_err(|_| KeyFault::WrongPassphrase)
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let io = |source| GovernanceError::Io { path: path.to_path_buf(), source };
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(GovernanceError::Key { path: path.to_path_buf(), cause: KeyFault::Exists });
        }
        opened => opened.map_err(io)?,
    };
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io)
}
