//! Certificates: what of one is needed to check a signature by it, and whether it leads to one that is trusted.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use der::asn1::{GeneralizedTime, ObjectIdentifier, UtcTime};
use der::{Decode, Tag};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::ring as algorithms;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::asn1::{Element, Fields, around, oid};
use super::cms::{RSA, algorithm_of};
use super::{CERTIFICATES_MAX, Fault};
use crate::error::{GovernanceError, Result, TimestampFault};

/// Largest file of certificates that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// `id-kp-timeStamping`, as it is within a certificate and as it is written.
const TIME_STAMPING: [u8; 8] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x08];
const KEY_USAGE: ObjectIdentifier = oid("2.5.29.15");
const EXTENDED_KEY_USAGE: ObjectIdentifier = oid("2.5.29.37");
const BASIC_CONSTRAINTS: ObjectIdentifier = oid("2.5.29.19");
const COMMON_NAME: ObjectIdentifier = oid("2.5.4.3");
const EC_PUBLIC_KEY: ObjectIdentifier = oid("1.2.840.10045.2.1");
const SECP256R1: ObjectIdentifier = oid("1.2.840.10045.3.1.7");
const SECP384R1: ObjectIdentifier = oid("1.3.132.0.34");

/// How certificates may be signed.
static CHAIN_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
];

/// Certificates that somebody trusts with the time: of services, or of those who vouch for them.
#[derive(Clone, Debug)]
pub struct Trusted {
    certificates: Vec<CertificateDer<'static>>,
}

impl Trusted {
    /// Reads a file with PEM certificates.
    pub fn open(path: &Path) -> Result<Trusted> {
        let io = |source| GovernanceError::Io { path: path.to_path_buf(), source };
        let mut pem = Vec::new();
        File::open(path).map_err(io)?.take(FILE_BYTES_MAX).read_to_end(&mut pem).map_err(io)?;
        Trusted::from_pem(&pem)
            .map_err(|cause| GovernanceError::TimestampCertificate { path: path.to_path_buf(), cause })
    }

    /// Of PEM; blocks that are no certificates are passed over.
    pub fn from_pem(pem: &[u8]) -> Fault<Trusted> {
        let no_pem = || TimestampFault::NoPem;
        let mut certificates = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|_| no_pem())?;
            Certificate::of(&certificate)?;
            certificates.push(certificate);
        }
        match certificates.len() {
            0 => Err(no_pem()),
            1..=CERTIFICATES_MAX => Ok(Trusted { certificates }),
            _ => Err(TimestampFault::Malformed { what: "number of certificates" }),
        }
    }

    /// That `signer` is one of these, or leads to one by way of `others`, all valid at `unix_s`.
    pub(super) fn check(&self, signer: &Certificate<'_>, others: &[&[u8]], unix_s: u64) -> Fault<()> {
        let untrusted = |cause: String| TimestampFault::Untrusted { cause };
        if !signer.is_valid_at(unix_s) {
            return Err(untrusted("it was not valid at that time".to_owned()));
        }
        if self.certificates.iter().any(|certificate| certificate.as_ref() == signer.raw) {
            return Ok(());
        }
        let anchors: Vec<TrustAnchor<'_>> = self
            .certificates
            .iter()
            .filter(|der| Certificate::of(der).is_ok_and(|c| c.is_valid_at(unix_s) && c.may_vouch()))
            .filter_map(|der| anchor_from_trusted_cert(der).ok())
            .collect();
        let others: Vec<CertificateDer<'_>> = others.iter().map(|&der| CertificateDer::from(der)).collect();
        let signer = CertificateDer::from(signer.raw);
        let leads = || -> std::result::Result<(), webpki::Error> {
            EndEntityCert::try_from(&signer)?.verify_for_usage(
                CHAIN_ALGORITHMS,
                &anchors,
                &others,
                UnixTime::since_unix_epoch(Duration::from_secs(unix_s)),
                KeyUsage::required_if_present(&TIME_STAMPING),
                None,
                None,
            )?;
            Ok(())
        };
        leads().map_err(|error| match error {
            webpki::Error::UnknownIssuer => {
                untrusted("it does not lead to the certificate that is trusted".to_owned())
            }
            other => untrusted(format!("it does not lead to the certificate that is trusted ({other})")),
        })
    }
}

/// Of which kind a public key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyKind {
    Rsa,
    P256,
    P384,
}

pub(super) struct SubjectKey<'a> {
    pub(super) kind: KeyKind,
    pub(super) bits: &'a [u8],
}

/// One certificate, whose signature nobody has looked at.
pub(super) struct Certificate<'a> {
    pub(super) raw: &'a [u8],
    pub(super) serial: &'a [u8],
    /// In DER, as it stands.
    pub(super) issuer: &'a [u8],
    subject: Element<'a>,
    /// The first and the last second that it is valid in.
    valid: (u64, u64),
    pub(super) key: SubjectKey<'a>,
    /// None where it is of an old version that has none.
    extensions: Option<Vec<Extension<'a>>>,
}

struct Extension<'a> {
    id: ObjectIdentifier,
    critical: bool,
    value: &'a [u8],
}

impl<'a> Certificate<'a> {
    pub(super) fn of(der: &'a [u8]) -> Fault<Certificate<'a>> {
        let mut whole = Fields::of_sequence(der)?;
        let mut fields = whole.next(Tag::Sequence)?.fields()?;
        fields.optional(around(0))?;
        let serial = fields.next(Tag::Integer)?.value;
        fields.next(Tag::Sequence)?;
        let issuer = fields.next(Tag::Sequence)?.raw;
        let mut validity = fields.next(Tag::Sequence)?.fields()?;
        let valid = (unix_s(validity.any()?)?, unix_s(validity.any()?)?);
        let subject = fields.next(Tag::Sequence)?;
        let key = key_of(fields.next(Tag::Sequence)?)?;
        let extensions = fields.optional(around(3))?.map(extensions_of).transpose()?;
        fields.end()?;
        Ok(Certificate { raw: der, serial, issuer, subject, valid, key, extensions })
    }

    /// The subject's common name, as somebody wrote it.
    pub(super) fn name(&self) -> String {
        let common = |set: &Element<'a>| -> Fault<Option<String>> {
            let mut fields = set.fields()?.next(Tag::Sequence)?.fields()?;
            let id = fields.next(Tag::ObjectIdentifier)?.oid()?;
            Ok((id == COMMON_NAME).then_some(fields.any()?.text()))
        };
        let sets = self.subject.fields().and_then(Fields::all).unwrap_or_default();
        sets.iter().find_map(|set| common(set).ok().flatten()).unwrap_or_default()
    }

    /// That it is for timestamps and nothing else, and says so as something that nobody may pass over (RFC 3161, 2.3).
    pub(super) fn check_purpose(&self) -> Fault<()> {
        let wrong = |cause: &str| TimestampFault::Untrusted { cause: cause.to_owned() };
        let Some(usage) = self.extension(EXTENDED_KEY_USAGE) else {
            return Err(wrong("it is not for timestamps"));
        };
        match &Fields::of_sequence(usage.value)?.all()?[..] {
            [only] if only.tag == Tag::ObjectIdentifier && only.value == TIME_STAMPING => {}
            _ => return Err(wrong("it is not for timestamps alone")),
        }
        if !usage.critical {
            return Err(wrong("that it is for timestamps alone is not marked as critical"));
        }
        let signs = |bits: &Element<'_>| matches!(bits.value, [_, first, ..] if first & 0b1100_0000 != 0);
        if let Some(usage) = self.extension(KEY_USAGE)
            && !signs(&Fields::of_bytes(usage.value)?.next(Tag::BitString)?)
        {
            return Err(wrong("its key is not for signatures"));
        }
        Ok(())
    }

    fn is_valid_at(&self, unix_s: u64) -> bool {
        (self.valid.0..=self.valid.1).contains(&unix_s)
    }

    /// Whether it is one that signs others: of an old version, or by its own word.
    fn may_vouch(&self) -> bool {
        let is_authority = |extension: &Extension<'_>| {
            let mut fields = Fields::of_sequence(extension.value)?;
            Ok::<_, TimestampFault>(fields.optional(Tag::Boolean)?.is_some())
        };
        match self.extensions {
            None => true,
            Some(_) => self.extension(BASIC_CONSTRAINTS).is_some_and(|e| is_authority(e) == Ok(true)),
        }
    }

    fn extension(&self, id: ObjectIdentifier) -> Option<&Extension<'a>> {
        self.extensions.iter().flatten().find(|extension| extension.id == id)
    }
}

/// The point of a public key on P-384 (`SubjectPublicKeyInfo`), if this is one in its one usual form.
pub(crate) fn p384_point(spki: &[u8]) -> Option<&[u8]> {
    const POINT_BYTES: usize = 1 + 2 * 48;
    const UNCOMPRESSED: u8 = 4;
    let mut whole = Fields::of_bytes(spki).ok()?;
    let key = key_of(whole.next(Tag::Sequence).ok()?).ok()?;
    whole.end().ok()?;
    let fits = key.kind == KeyKind::P384 && key.bits.len() == POINT_BYTES && key.bits[0] == UNCOMPRESSED;
    fits.then_some(key.bits)
}

fn key_of(element: Element<'_>) -> Fault<SubjectKey<'_>> {
    let mut fields = element.fields()?;
    let (algorithm, parameters) = algorithm_of(fields.next(Tag::Sequence)?)?;
    let bits = fields.next(Tag::BitString)?.bits()?;
    fields.end()?;
    let curve = parameters.and_then(|parameters| parameters.oid().ok());
    let kind = match (algorithm, curve) {
        (RSA, _) => KeyKind::Rsa,
        (EC_PUBLIC_KEY, Some(SECP256R1)) => KeyKind::P256,
        (EC_PUBLIC_KEY, Some(SECP384R1)) => KeyKind::P384,
        _ => return Err(TimestampFault::Unsupported { what: format!("a key of the kind {algorithm}") }),
    };
    Ok(SubjectKey { kind, bits })
}

fn extensions_of(explicit: Element<'_>) -> Fault<Vec<Extension<'_>>> {
    let mut extensions: Vec<Extension<'_>> = Vec::new();
    for element in explicit.fields()?.next(Tag::Sequence)?.fields()?.all()? {
        let mut fields = element.sequence()?;
        let id = fields.next(Tag::ObjectIdentifier)?.oid()?;
        // False is what it is where it is left out, and in DER it is left out.
        let critical = fields.optional(Tag::Boolean)?.is_some();
        let value = fields.next(Tag::OctetString)?.value;
        if extensions.iter().any(|known| known.id == id) {
            return Err(TimestampFault::Malformed { what: "list of extensions" });
        }
        extensions.push(Extension { id, critical, value });
    }
    Ok(extensions)
}

/// Seconds since 1970, 0 before.
fn unix_s(element: Element<'_>) -> Fault<u64> {
    let wrong = |_| TimestampFault::Malformed { what: "time" };
    let duration = match element.tag {
        Tag::UtcTime => UtcTime::from_der(element.raw).map_err(wrong)?.to_unix_duration(),
        _ => GeneralizedTime::from_der(element.raw).map_err(wrong)?.to_unix_duration(),
    };
    Ok(duration.as_secs())
}
