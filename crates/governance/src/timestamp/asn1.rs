//! Reading DER field by field, each with the bytes that it was read from: what is signed is signed as it stands.

use der::asn1::{AnyRef, ObjectIdentifier};
use der::{Decode, Reader, SliceReader, Tag, TagNumber};

use super::Fault;
use crate::error::TimestampFault;

/// Characters of foreign text that are kept.
const TEXT_CHARS_MAX: usize = 200;

/// An object identifier, from its dotted form.
pub(super) const fn oid(dotted: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(dotted)
}

/// `[number]` around other fields.
pub(super) const fn around(number: u32) -> Tag {
    Tag::ContextSpecific { constructed: true, number: TagNumber(number) }
}

/// `[number]` in place of a field's own tag.
pub(super) const fn in_place(number: u32) -> Tag {
    Tag::ContextSpecific { constructed: false, number: TagNumber(number) }
}

fn malformed(_: der::Error) -> TimestampFault {
    TimestampFault::Malformed { what: "DER" }
}

/// One field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) tag: Tag,
    pub(super) value: &'a [u8],
    /// With tag and length.
    pub(super) raw: &'a [u8],
}

impl<'a> Element<'a> {
    /// What is in it.
    pub(super) fn fields(self) -> Fault<Fields<'a>> {
        Fields::of_bytes(self.value)
    }

    /// The same of a sequence, and of nothing else.
    pub(super) fn sequence(self) -> Fault<Fields<'a>> {
        match self.tag {
            Tag::Sequence => self.fields(),
            _ => Err(TimestampFault::Malformed { what: "DER" }),
        }
    }

    pub(super) fn oid(self) -> Fault<ObjectIdentifier> {
        ObjectIdentifier::from_der(self.raw).map_err(malformed)
    }

    /// Its text, on one line and not long.
    pub(super) fn text(self) -> String {
        let text = String::from_utf8_lossy(self.value);
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_CHARS_MAX).collect()
    }

    /// The texts in it, one behind the other.
    pub(super) fn texts(self) -> Fault<String> {
        let texts: Vec<String> = self.fields()?.all()?.into_iter().map(Element::text).collect();
        Ok(texts.join("; ").chars().take(TEXT_CHARS_MAX).collect())
    }

    /// A number that is not negative.
    pub(super) fn number(self) -> Fault<u64> {
        let too_large = TimestampFault::Malformed { what: "number" };
        match self.value {
            bytes if bytes.is_empty() || bytes[0] >= 0x80 || bytes.len() > 8 => Err(too_large),
            bytes => Ok(bytes.iter().fold(0, |n, &byte| n << 8 | u64::from(byte))),
        }
    }

    /// The bytes of a bit string without unused bits.
    pub(super) fn bits(self) -> Fault<&'a [u8]> {
        match self.value {
            [0, bytes @ ..] => Ok(bytes),
            _ => Err(TimestampFault::Malformed { what: "bit string" }),
        }
    }
}

/// Fields one behind the other.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    reader: SliceReader<'a>,
}

impl<'a> Fields<'a> {
    /// Those of a sequence that these bytes are, and nothing behind it.
    pub(super) fn of_sequence(der: &'a [u8]) -> Fault<Fields<'a>> {
        let mut whole = Fields::of_bytes(der)?;
        let sequence = whole.next(Tag::Sequence)?;
        whole.end()?;
        sequence.fields()
    }

    /// Those that these bytes are, one behind the other.
    pub(super) fn of_bytes(der: &'a [u8]) -> Fault<Fields<'a>> {
        Ok(Fields { reader: SliceReader::new(der).map_err(malformed)? })
    }

    /// The next field, which has this tag.
    pub(super) fn next(&mut self, tag: Tag) -> Fault<Element<'a>> {
        let element = self.any()?;
        if element.tag == tag { Ok(element) } else { Err(TimestampFault::Malformed { what: "DER" }) }
    }

    /// The next field, if it has this tag.
    pub(super) fn optional(&mut self, tag: Tag) -> Fault<Option<Element<'a>>> {
        let mut ahead = self.clone();
        match self.reader.is_finished() || ahead.any()?.tag != tag {
            true => Ok(None),
            false => self.any().map(Some),
        }
    }

    pub(super) fn any(&mut self) -> Fault<Element<'a>> {
        let raw = self.reader.tlv_bytes().map_err(malformed)?;
        let any = AnyRef::from_der(raw).map_err(malformed)?;
        Ok(Element { tag: any.header().tag(), value: any.value(), raw })
    }

    /// All that is left.
    pub(super) fn all(mut self) -> Fault<Vec<Element<'a>>> {
        let mut all = Vec::new();
        while !self.reader.is_finished() {
            all.push(self.any()?);
        }
        Ok(all)
    }

    pub(super) fn end(self) -> Fault<()> {
        self.reader.finish().map_err(malformed)
    }
}

/// A sequence of these bytes, which are no more than an answer may have.
pub(super) fn sequence(contents: &[u8]) -> Vec<u8> {
    let length = contents.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|&&byte| byte == 0).count()..];
    let mut out = vec![0x30];
    if contents.len() < 0x80 {
        out.push(contents.len() as u8);
    } else {
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
    out.extend_from_slice(contents);
    out
}
