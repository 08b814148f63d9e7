//! DSSE v1 envelopes: bytes, what they are, and signatures of both.
//!
//! ```json
//! {"payload": "…", "payloadType": "application/vnd.in-toto+json", "signatures": [{"keyid": "…", "sig": "…"}]}
//! ```
//!
//! Signed is `DSSEv1 SP LEN(type) SP type SP LEN(payload) SP payload`, lengths in decimal bytes, not the JSON around it.

use base64ct::{Base64, Base64Url, Encoding};
use serde::{Deserialize, Serialize};

use crate::error::{EnvelopeFault, GovernanceError, Result};
use crate::keys::{PublicKey, SIGNATURE_BYTES_MAX, Signer};

/// `payloadType` of in-toto statements.
pub const IN_TOTO: &str = "application/vnd.in-toto+json";
/// Largest envelope that is read.
pub const ENVELOPE_BYTES_MAX: usize = 96 << 20;
/// Largest payload.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// Longest `payloadType`.
pub const TYPE_BYTES_MAX: usize = 256;
/// Most signatures of one envelope.
pub const SIGNATURES_MAX: usize = 16;

type Fault<T> = std::result::Result<T, EnvelopeFault>;

/// A signed payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope {
    /// Base64.
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

/// One signature; `keyid` is a hint that nothing is decided by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeSignature {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keyid: Option<String>,
    /// Base64.
    sig: String,
}

impl Envelope {
    /// Signs `payload`, said to be of `payload_type`; `keyid` is the fingerprint of the key.
    pub fn sign(payload_type: &str, payload: &[u8], signer: &Signer) -> Result<Envelope> {
        Envelope::sign_as(payload_type, payload, signer, signer.public_key().fingerprint())
    }

    /// The same with a `keyid` that others prescribe.
    pub(crate) fn sign_as(
        payload_type: &str,
        payload: &[u8],
        signer: &Signer,
        keyid: String,
    ) -> Result<Envelope> {
        check_sizes(payload_type, payload.len())?;
        let sig = signer.sign(&pae(payload_type, payload))?;
        let signature = EnvelopeSignature { keyid: Some(keyid), sig: Base64::encode_string(&sig) };
        Ok(Envelope {
            payload: Base64::encode_string(payload),
            payload_type: payload_type.to_owned(),
            signatures: vec![signature],
        })
    }

    /// The payload, if one of the signatures is of it and its type, by this key.
    pub fn verify(&self, key: &PublicKey) -> Result<Vec<u8>> {
        Ok(self.opened(key)?)
    }

    /// The payload, whoever signed it.
    pub fn unverified_payload(&self) -> Result<Vec<u8>> {
        Ok(self.payload()?)
    }

    /// The bytes of its signature, where it has just one.
    pub(crate) fn signature(&self) -> Option<Vec<u8>> {
        match &self.signatures[..] {
            [signature] if signature.sig.len() <= 2 * SIGNATURE_BYTES_MAX => decoded(&signature.sig),
            _ => None,
        }
    }

    pub(crate) fn opened(&self, key: &PublicKey) -> Fault<Vec<u8>> {
        let payload = self.payload()?;
        if self.signatures.is_empty() || self.signatures.len() > SIGNATURES_MAX {
            let count = self.signatures.len();
            return Err(EnvelopeFault::SignatureCount { count, count_max: SIGNATURES_MAX });
        }
        let signed = pae(&self.payload_type, &payload);
        let by_key = |signature: &EnvelopeSignature| {
            signature.sig.len() <= 2 * SIGNATURE_BYTES_MAX
                && decoded(&signature.sig).is_some_and(|sig| key.verify(&signed, &sig))
        };
        match self.signatures.iter().any(by_key) {
            true => Ok(payload),
            false => Err(EnvelopeFault::NotSigned { fingerprint: key.fingerprint() }),
        }
    }

    pub(crate) fn payload(&self) -> Fault<Vec<u8>> {
        check_sizes(&self.payload_type, self.payload.len() / 4 * 3)?;
        decoded(&self.payload).ok_or(EnvelopeFault::NoBase64 { field: "payload" })
    }

    /// What the payload is said to be.
    pub fn payload_type(&self) -> &str {
        &self.payload_type
    }

    /// Reads an envelope that nobody vouches for.
    pub fn from_bytes(bytes: &[u8]) -> Result<Envelope> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(EnvelopeFault::TooLarge { bytes: bytes.len(), bytes_max: ENVELOPE_BYTES_MAX }.into());
        }
        let malformed = |error: serde_json::Error| EnvelopeFault::Malformed { cause: error.to_string() };
        Ok(serde_json::from_slice(bytes).map_err(malformed)?)
    }

    /// Its JSON in one line, with no line end.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let malformed = |error: serde_json::Error| EnvelopeFault::Malformed { cause: error.to_string() };
        Ok(serde_json::to_vec(self).map_err(malformed)?)
    }
}

/// The pre-authentication encoding: what is signed.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut signed = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    signed.extend_from_slice(payload);
    signed
}

fn check_sizes(payload_type: &str, payload: usize) -> Fault<()> {
    if payload > PAYLOAD_BYTES_MAX {
        return Err(EnvelopeFault::TooLarge { bytes: payload, bytes_max: PAYLOAD_BYTES_MAX });
    }
    if payload_type.len() > TYPE_BYTES_MAX {
        let bytes = payload_type.len();
        return Err(EnvelopeFault::TooLarge { bytes, bytes_max: TYPE_BYTES_MAX });
    }
    Ok(())
}

/// Base64 in either alphabet, as DSSE asks of verifiers.
fn decoded(text: &str) -> Option<Vec<u8>> {
    Base64::decode_vec(text).or_else(|_| Base64Url::decode_vec(text)).ok()
}

impl From<EnvelopeFault> for GovernanceError {
    fn from(fault: EnvelopeFault) -> GovernanceError {
        GovernanceError::Envelope(fault)
    }
}
