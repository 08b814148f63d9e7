//! The token itself: CMS `SignedData` (RFC 5652) by one signer over a `TSTInfo` (RFC 3161).

use der::asn1::ObjectIdentifier;
use der::{DateTime, Tag};
use ring::digest::{self, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, UnparsedPublicKey,
    VerificationAlgorithm,
};

use super::asn1::{Element, Fields, around, in_place, oid};
use super::certificate::{Certificate, KeyKind};
use super::{CERTIFICATES_MAX, Fault};
use crate::error::TimestampFault;

const SIGNED_DATA: ObjectIdentifier = oid("1.2.840.113549.1.7.2");
const TST_INFO: ObjectIdentifier = oid("1.2.840.113549.1.9.16.1.4");
const CONTENT_TYPE: ObjectIdentifier = oid("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = oid("1.2.840.113549.1.9.4");
const SIGNING_CERTIFICATE: ObjectIdentifier = oid("1.2.840.113549.1.9.16.2.12");
const SIGNING_CERTIFICATE_V2: ObjectIdentifier = oid("1.2.840.113549.1.9.16.2.47");
pub(super) const RSA: ObjectIdentifier = oid("1.2.840.113549.1.1.1");

/// A digest that a token may be built on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    /// By an `AlgorithmIdentifier`, whose parameters are null or left out.
    fn of(algorithm: Element<'_>) -> Fault<Hash> {
        let (id, parameters) = algorithm_of(algorithm)?;
        if parameters.is_some_and(|parameters| parameters.tag != Tag::Null) {
            return Err(TimestampFault::Malformed { what: "algorithm" });
        }
        const KNOWN: [(ObjectIdentifier, Hash); 3] = [
            (oid("2.16.840.1.101.3.4.2.1"), Hash::Sha256),
            (oid("2.16.840.1.101.3.4.2.2"), Hash::Sha384),
            (oid("2.16.840.1.101.3.4.2.3"), Hash::Sha512),
        ];
        let known = KNOWN.iter().find(|(known, _)| *known == id).map(|(_, hash)| *hash);
        known.ok_or_else(|| unsupported("the digest algorithm", id))
    }

    fn digest(self, bytes: &[u8]) -> digest::Digest {
        let algorithm = match self {
            Hash::Sha256 => &SHA256,
            Hash::Sha384 => &SHA384,
            Hash::Sha512 => &SHA512,
        };
        digest::digest(algorithm, bytes)
    }
}

fn unsupported(what: &str, id: ObjectIdentifier) -> TimestampFault {
    TimestampFault::Unsupported { what: format!("{what} {id}") }
}

fn malformed(what: &'static str) -> TimestampFault {
    TimestampFault::Malformed { what }
}

/// The identifier and the parameters of an `AlgorithmIdentifier`.
pub(super) fn algorithm_of(element: Element<'_>) -> Fault<(ObjectIdentifier, Option<Element<'_>>)> {
    let mut fields = element.sequence()?;
    let id = fields.next(Tag::ObjectIdentifier)?.oid()?;
    match &fields.all()?[..] {
        [] => Ok((id, None)),
        [parameters] => Ok((id, Some(*parameters))),
        _ => Err(malformed("algorithm")),
    }
}

/// A token's parts.
pub(super) struct Signed<'a> {
    /// `TSTInfo` in DER.
    content: &'a [u8],
    /// The certificates in it, each in DER.
    pub(super) certificates: Vec<&'a [u8]>,
    signer: SignerInfo<'a>,
}

struct SignerInfo<'a> {
    /// Of its certificate: in DER, and the bytes of an integer.
    issuer: &'a [u8],
    serial: &'a [u8],
    hash: Hash,
    attributes: Element<'a>,
    algorithm: Element<'a>,
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    pub(super) fn of(token: &'a [u8]) -> Fault<Signed<'a>> {
        let mut content_info = Fields::of_sequence(token)?;
        let id = content_info.next(Tag::ObjectIdentifier)?.oid()?;
        if id != SIGNED_DATA {
            return Err(unsupported("the content type", id));
        }
        let mut explicit = content_info.next(around(0))?.fields()?;
        content_info.end()?;
        let mut data = explicit.next(Tag::Sequence)?.fields()?;
        explicit.end()?;
        let version = data.next(Tag::Integer)?.value;
        let hashes = data.next(Tag::Set)?.fields()?.all()?;
        let content = content_of(data.next(Tag::Sequence)?)?;
        if version != [3] {
            return Err(malformed("version of CMS"));
        }
        let certificates = match data.optional(around(0))? {
            Some(set) => set.fields()?.all()?,
            None => Vec::new(),
        };
        if certificates.len() > CERTIFICATES_MAX {
            return Err(malformed("number of certificates"));
        }
        data.optional(around(1))?;
        let signers = data.next(Tag::Set)?.fields()?.all()?;
        data.end()?;
        let [signer] = signers[..] else { return Err(malformed("number of signers")) };
        let signer = SignerInfo::of(signer)?;
        if !hashes.into_iter().any(|hash| Hash::of(hash) == Ok(signer.hash)) {
            return Err(malformed("list of digest algorithms"));
        }
        let is_certificate = |element: &&Element<'_>| element.tag == Tag::Sequence;
        let certificates = certificates.iter().filter(is_certificate).map(|element| element.raw).collect();
        Ok(Signed { content, certificates, signer })
    }

    pub(super) fn info(&self) -> Fault<Info<'a>> {
        Info::of(self.content)
    }

    /// The certificate by whose key this content was signed as a timestamp.
    pub(super) fn check_signature(&self) -> Fault<Certificate<'a>> {
        let attributes = Attributes::of(self.signer.attributes)?;
        if attributes.one(CONTENT_TYPE)?.map(Element::oid) != Some(Ok(TST_INFO)) {
            return Err(TimestampFault::NotSigned { what: "as a timestamp" });
        }
        let digest = attributes.one(MESSAGE_DIGEST)?.filter(|found| found.tag == Tag::OctetString);
        if digest.map(|found| found.value) != Some(self.signer.hash.digest(self.content).as_ref()) {
            return Err(TimestampFault::NotSigned { what: "with this content" });
        }
        let certificate = self.certificate()?;
        attributes.check_binding(certificate.raw)?;
        // The signature is of a set; here it stands under a tag of its own.
        let signed = [&[0x31], &self.signer.attributes.raw[1..]].concat();
        let algorithm = self.signer.verification(certificate.key.kind)?;
        UnparsedPublicKey::new(algorithm, certificate.key.bits)
            .verify(&signed, self.signer.signature)
            .map_err(|_| TimestampFault::NotSigned { what: "by the certificate in it" })?;
        Ok(certificate)
    }

    /// The certificate that the signer names.
    fn certificate(&self) -> Fault<Certificate<'a>> {
        let SignerInfo { issuer, serial, .. } = self.signer;
        let is_named =
            |certificate: &Certificate<'_>| certificate.issuer == issuer && certificate.serial == serial;
        // One that cannot be read is not the signer's.
        let mut read = self.certificates.iter().filter_map(|raw| Certificate::of(raw).ok());
        read.find(is_named).ok_or(TimestampFault::NoCertificate)
    }
}

/// What a `SEQUENCE` of a type and an octet string holds, if it is a `TSTInfo`.
fn content_of(element: Element<'_>) -> Fault<&[u8]> {
    let mut fields = element.fields()?;
    let id = fields.next(Tag::ObjectIdentifier)?.oid()?;
    if id != TST_INFO {
        return Err(unsupported("the content type", id));
    }
    let mut explicit = fields.next(around(0))?.fields()?;
    fields.end()?;
    let content = explicit.next(Tag::OctetString)?.value;
    explicit.end()?;
    Ok(content)
}

impl<'a> SignerInfo<'a> {
    fn of(element: Element<'a>) -> Fault<SignerInfo<'a>> {
        let mut fields = element.sequence()?;
        // Version 3 names its signer by a key, which no other program here reads in a timestamp either.
        if fields.next(Tag::Integer)?.value != [1] {
            return Err(TimestampFault::Unsupported { what: "a signer that is named by its key".to_owned() });
        }
        let mut id = fields.next(Tag::Sequence)?.sequence()?;
        let (issuer, serial) = (id.next(Tag::Sequence)?.raw, id.next(Tag::Integer)?.value);
        id.end()?;
        let hash = Hash::of(fields.next(Tag::Sequence)?)?;
        let attributes = fields.next(around(0))?;
        let algorithm = fields.next(Tag::Sequence)?;
        let signature = fields.next(Tag::OctetString)?.value;
        fields.optional(around(1))?;
        fields.end()?;
        Ok(SignerInfo { issuer, serial, hash, attributes, algorithm, signature })
    }

    /// How a signature by such a key is checked. An algorithm that names a digest names that of the signer.
    fn verification(&self, key: KeyKind) -> Fault<&'static dyn VerificationAlgorithm> {
        const WITH: [(ObjectIdentifier, bool, Option<Hash>); 6] = [
            (RSA, true, None),
            (oid("1.2.840.113549.1.1.11"), true, Some(Hash::Sha256)),
            (oid("1.2.840.113549.1.1.12"), true, Some(Hash::Sha384)),
            (oid("1.2.840.113549.1.1.13"), true, Some(Hash::Sha512)),
            (oid("1.2.840.10045.4.3.2"), false, Some(Hash::Sha256)),
            (oid("1.2.840.10045.4.3.3"), false, Some(Hash::Sha384)),
        ];
        let (id, parameters) = algorithm_of(self.algorithm)?;
        let fits = |(known, is_rsa, hash): &&(ObjectIdentifier, bool, Option<Hash>)| {
            let no_parameters = match parameters {
                None => true,
                Some(parameters) => *is_rsa && parameters.tag == Tag::Null,
            };
            *known == id && no_parameters && hash.is_none_or(|hash| hash == self.hash)
        };
        let Some((_, is_rsa, _)) = WITH.iter().find(fits) else {
            return Err(unsupported("the signature algorithm", id));
        };
        Ok(match (key, self.hash, is_rsa) {
            (KeyKind::Rsa, Hash::Sha256, true) => &RSA_PKCS1_2048_8192_SHA256,
            (KeyKind::Rsa, Hash::Sha384, true) => &RSA_PKCS1_2048_8192_SHA384,
            (KeyKind::Rsa, Hash::Sha512, true) => &RSA_PKCS1_2048_8192_SHA512,
            (KeyKind::P256, Hash::Sha256, false) => &ECDSA_P256_SHA256_ASN1,
            (KeyKind::P256, Hash::Sha384, false) => &ECDSA_P256_SHA384_ASN1,
            (KeyKind::P384, Hash::Sha256, false) => &ECDSA_P384_SHA256_ASN1,
            (KeyKind::P384, Hash::Sha384, false) => &ECDSA_P384_SHA384_ASN1,
            _ => return Err(unsupported("the signature algorithm", id)),
        })
    }
}

/// Signed attributes: each type once.
struct Attributes<'a>(Vec<(ObjectIdentifier, Vec<Element<'a>>)>);

impl<'a> Attributes<'a> {
    fn of(set: Element<'a>) -> Fault<Attributes<'a>> {
        let mut all: Vec<(ObjectIdentifier, Vec<Element<'a>>)> = Vec::new();
        for attribute in set.fields()?.all()? {
            let mut fields = attribute.sequence()?;
            let id = fields.next(Tag::ObjectIdentifier)?.oid()?;
            let values = fields.next(Tag::Set)?.fields()?.all()?;
            fields.end()?;
            if all.iter().any(|(known, _)| *known == id) {
                return Err(malformed("list of attributes"));
            }
            all.push((id, values));
        }
        Ok(Attributes(all))
    }

    /// The one value of an attribute, if it is there.
    fn one(&self, id: ObjectIdentifier) -> Fault<Option<Element<'a>>> {
        match self.0.iter().find(|(known, _)| *known == id).map(|(_, values)| &values[..]) {
            None => Ok(None),
            Some([value]) => Ok(Some(*value)),
            Some(_) => Err(malformed("attribute")),
        }
    }

    /// That what was signed names this very certificate: by its digest, so that its issuer's name has nothing to add. One
    /// of the two forms is enough, and SHA-1 is in the older, where only another certificate of the same digest could
    /// deceive.
    fn check_binding(&self, certificate: &[u8]) -> Fault<()> {
        let other = TimestampFault::NotSigned { what: "with the certificate in it" };
        let (older, newer) = (self.one(SIGNING_CERTIFICATE)?, self.one(SIGNING_CERTIFICATE_V2)?);
        if older.is_none() && newer.is_none() {
            return Err(other);
        }
        if let Some(older) = older {
            let hash = first_certificate_id(older)?.next(Tag::OctetString)?.value;
            if hash != digest::digest(&SHA1_FOR_LEGACY_USE_ONLY, certificate).as_ref() {
                return Err(other);
            }
        }
        if let Some(newer) = newer {
            let mut id = first_certificate_id(newer)?;
            let hash = id.optional(Tag::Sequence)?.map_or(Ok(Hash::Sha256), Hash::of)?;
            if id.next(Tag::OctetString)?.value != hash.digest(certificate).as_ref() {
                return Err(other);
            }
        }
        Ok(())
    }
}

/// The fields of the first `ESSCertID` or `ESSCertIDv2`, which is the signer's.
fn first_certificate_id(signing_certificate: Element<'_>) -> Fault<Fields<'_>> {
    let mut list = signing_certificate.sequence()?.next(Tag::Sequence)?.fields()?;
    list.next(Tag::Sequence)?.fields()
}

/// What is signed: `TSTInfo`.
pub(super) struct Info<'a> {
    hash: Hash,
    imprint: &'a [u8],
    pub(super) unix_us: u64,
    pub(super) accuracy_us: u64,
    /// The bytes of its integer.
    pub(super) nonce: Option<&'a [u8]>,
}

impl<'a> Info<'a> {
    fn of(der: &'a [u8]) -> Fault<Info<'a>> {
        let mut fields = Fields::of_sequence(der)?;
        if fields.next(Tag::Integer)?.value != [1] {
            return Err(malformed("version of a timestamp"));
        }
        fields.next(Tag::ObjectIdentifier)?;
        let mut imprint = fields.next(Tag::Sequence)?.fields()?;
        let hash = Hash::of(imprint.next(Tag::Sequence)?)?;
        let digest = imprint.next(Tag::OctetString)?.value;
        imprint.end()?;
        fields.next(Tag::Integer)?;
        let unix_us = time(fields.next(Tag::GeneralizedTime)?.value)?;
        let accuracy_us = fields.optional(Tag::Sequence)?.map_or(Ok(0), accuracy)?;
        fields.optional(Tag::Boolean)?;
        let nonce = fields.optional(Tag::Integer)?.map(|nonce| nonce.value);
        fields.optional(around(0))?;
        if let Some(extensions) = fields.optional(around(1))? {
            check_extensions(extensions)?;
        }
        fields.end()?;
        Ok(Info { hash, imprint: digest, unix_us, accuracy_us, nonce })
    }

    pub(super) fn check_imprint(&self, bytes: &[u8]) -> Fault<()> {
        match self.hash.digest(bytes).as_ref() == self.imprint {
            true => Ok(()),
            false => Err(TimestampFault::WrongImprint),
        }
    }
}

/// None of those that there might be is known here; one that must be is a reason to refuse.
fn check_extensions(extensions: Element<'_>) -> Fault<()> {
    for extension in extensions.fields()?.all()? {
        let mut fields = extension.sequence()?;
        let id = fields.next(Tag::ObjectIdentifier)?.oid()?;
        if fields.optional(Tag::Boolean)?.is_some() {
            return Err(unsupported("the extension", id));
        }
    }
    Ok(())
}

/// Microseconds since 1970 of `YYYYMMDDhhmmss[.f…]Z`.
fn time(text: &[u8]) -> Fault<u64> {
    let wrong = || malformed("time");
    let text = std::str::from_utf8(text).ok().and_then(|text| text.strip_suffix('Z')).ok_or_else(wrong)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() != 14 || fraction.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    let number =
        |from: usize, to: usize| whole[from..to].bytes().fold(0, |n, b| n * 10 + u16::from(b - b'0'));
    let two = |from: usize| number(from, from + 2) as u8;
    let date = DateTime::new(number(0, 4), two(4), two(6), two(8), two(10), two(12)).map_err(|_| wrong())?;
    let micros = fraction.bytes().chain(std::iter::repeat(b'0')).take(6);
    let micros = micros.fold(0, |n, byte| n * 10 + u64::from(byte - b'0'));
    Ok(date.unix_duration().as_secs() * 1_000_000 + micros)
}

fn accuracy(element: Element<'_>) -> Fault<u64> {
    let mut fields = element.fields()?;
    let seconds = fields.optional(Tag::Integer)?.map_or(Ok(0), Element::number)?;
    let millis = fields.optional(in_place(0))?.map_or(Ok(0), Element::number)?;
    let micros = fields.optional(in_place(1))?.map_or(Ok(0), Element::number)?;
    fields.end()?;
    Ok(seconds.saturating_mul(1_000_000).saturating_add(millis.saturating_mul(1_000)).saturating_add(micros))
}
