//! Timestamps (RFC 3161, with RFC 5816): somebody else's signed word that bytes existed at a time.
//!
//! A [`Query`] names bytes by their SHA-256 and nothing else. The answer holds a [`Token`]: CMS `SignedData` over a digest
//! and a time. [`Token::check`] asks all that makes it one of these bytes, by the certificate that it carries; with
//! [`Trusted`] certificates also that this one leads to one of them and may sign times.
//!
//! Idle bytes of a token, which nothing signs: certificates that lead nowhere, lists of revoked ones, attributes that are
//! not signed, and how its digest algorithms are listed. Nothing here is decided by them.
//!
//! Read: RSA (PKCS #1 v1.5, 2048 to 8192 bits) with SHA-256, SHA-384 or SHA-512, ECDSA on P-256 and P-384 with SHA-256 or
//! SHA-384; DER only. Nobody asks whether a certificate has been revoked.

mod asn1;
mod certificate;
mod cms;

pub use certificate::Trusted;
pub(crate) use certificate::p384_point;

use base64ct::{Base64, Encoding};
use der::Tag;
use serde::{Deserialize, Serialize};
use stillroom_core::Digest;

use self::asn1::Fields;
use crate::error::TimestampFault;

/// Largest answer that is read; those of known services have 2 to 8 KiB.
pub const TIMESTAMP_BYTES_MAX: usize = 64 << 10;
/// Media type of a query.
pub const QUERY_TYPE: &str = "application/timestamp-query";
/// Media type of its answer.
pub const REPLY_TYPE: &str = "application/timestamp-reply";
/// Certificates of a token, or of a file of trusted ones, at most.
pub const CERTIFICATES_MAX: usize = 16;

pub(crate) type Fault<T> = std::result::Result<T, TimestampFault>;

/// A question for a time: what is to be stamped, and a number that the answer has to repeat.
#[derive(Clone, Debug)]
pub struct Query {
    imprint: Digest,
    nonce: [u8; 8],
}

impl Query {
    /// For `bytes`, of which it holds the SHA-256; `random` makes it unlike any other.
    pub fn new(bytes: &[u8], random: [u8; 8]) -> Query {
        let mut nonce = random;
        // A positive integer whose first byte is needed: one form only, of one length.
        nonce[0] = nonce[0] & 0x7f | 0x40;
        Query { imprint: Digest::of(bytes), nonce }
    }

    /// `TimeStampReq`, which asks for the certificate as well.
    pub fn to_der(&self) -> Vec<u8> {
        const BEFORE_IMPRINT: [u8; 24] = [
            0x30, 0x43, 0x02, 0x01, 0x01, // version 1
            0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
            0x00, // SHA-256
            0x04, 0x20,
        ];
        let asks_for_certificate = [0x01, 0x01, 0xff];
        [&BEFORE_IMPRINT[..], self.imprint.as_bytes(), &[0x02, 0x08], &self.nonce, &asks_for_certificate]
            .concat()
    }

    /// The token in an answer (`TimeStampResp`), if it is one to this query. `bytes` are what was asked about.
    pub fn answered(
        &self,
        response: &[u8],
        bytes: &[u8],
        trusted: Option<&Trusted>,
    ) -> Fault<(Token, Stamp)> {
        let token = Token::from_response(response)?;
        let info = cms::Signed::of(&token.der)?.info()?;
        if info.nonce != Some(&self.nonce[..]) {
            return Err(TimestampFault::WrongNonce);
        }
        let stamp = token.check(bytes, trusted)?;
        Ok((token, stamp))
    }
}

/// A time-stamp token in DER, not checked yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Token {
    der: Vec<u8>,
}

impl Token {
    /// Of DER (`TimeStampToken`).
    pub fn from_der(der: &[u8]) -> Fault<Token> {
        check_size(der.len())?;
        cms::Signed::of(der)?;
        Ok(Token { der: der.to_vec() })
    }

    /// Of an answer (`TimeStampResp`): only where the time was granted as it was asked for.
    pub fn from_response(response: &[u8]) -> Fault<Token> {
        check_size(response.len())?;
        let mut answer = Fields::of_sequence(response)?;
        let mut status = answer.next(Tag::Sequence)?.fields()?;
        let granted = status.next(Tag::Integer)?.value == [0];
        if !granted {
            let words = status.optional(Tag::Sequence)?.map(|words| words.texts()).transpose()?;
            return Err(TimestampFault::NotGranted { words: words.unwrap_or_default() });
        }
        let token = answer.next(Tag::Sequence)?;
        answer.end()?;
        Token::from_der(token.raw)
    }

    pub fn as_der(&self) -> &[u8] {
        &self.der
    }

    /// An answer that grants this token and says nothing else.
    pub fn to_response(&self) -> Vec<u8> {
        let status = [0x30, 0x03, 0x02, 0x01, 0x00];
        asn1::sequence(&[&status[..], &self.der].concat())
    }

    /// What it says of `bytes`, if it says it of them and is signed by the certificate in it; with `trusted`, by one of these
    /// or one that leads to one of these and was good for it at that time.
    pub fn check(&self, bytes: &[u8], trusted: Option<&Trusted>) -> Fault<Stamp> {
        let signed = cms::Signed::of(&self.der)?;
        let info = signed.info()?;
        info.check_imprint(bytes)?;
        let signer = signed.check_signature()?;
        signer.check_purpose()?;
        let unix_us = info.unix_us;
        if let Some(trusted) = trusted {
            trusted.check(&signer, &signed.certificates, unix_us / 1_000_000)?;
        }
        Ok(Stamp {
            unix_us,
            accuracy_us: info.accuracy_us,
            signer: signer.name(),
            certificate: Digest::of(signer.raw),
        })
    }
}

fn check_size(bytes: usize) -> Fault<()> {
    match bytes <= TIMESTAMP_BYTES_MAX {
        true => Ok(()),
        false => Err(TimestampFault::TooLarge { bytes, bytes_max: TIMESTAMP_BYTES_MAX }),
    }
}

impl From<Token> for String {
    fn from(token: Token) -> String {
        Base64::encode_string(&token.der)
    }
}

impl TryFrom<String> for Token {
    type Error = TimestampFault;

    fn try_from(text: String) -> Fault<Token> {
        check_size(text.len() / 4 * 3)?;
        let der = Base64::decode_vec(&text).map_err(|_| TimestampFault::Malformed { what: "base64" })?;
        Token::from_der(&der)
    }
}

/// What a token says: its bytes existed no later than this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stamp {
    /// Microseconds since 1970-01-01 UTC.
    pub unix_us: u64,
    /// By how much that may be wrong, by its own word; 0 where it has none.
    pub accuracy_us: u64,
    /// The signer's name, from its certificate; empty where that has none.
    pub signer: String,
    /// SHA-256 of the signer's certificate.
    pub certificate: Digest,
}

impl Stamp {
    /// Whether this one was certainly made before `other`, whatever their accuracies leave open.
    pub fn is_before(&self, other: &Stamp) -> bool {
        self.unix_us.saturating_add(self.accuracy_us) < other.unix_us.saturating_sub(other.accuracy_us)
    }
}
