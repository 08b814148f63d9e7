//! Addresses: parsed once, compared and shown without what may be secret.

use std::fmt::Write as _;

use stillroom_core::{Origin, OriginFault, Scheme};
use ureq::http::Uri;

use crate::Result;
use crate::error::{NetError, shown};

/// Longest address, in bytes; signed addresses of file stores are long.
const ADDRESS_BYTES_MAX: usize = 16 << 10;

/// An absolute address that may be asked, as far as its form goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    origin: Origin,
    uri: Uri,
}

impl Address {
    /// Refuses other schemes, credentials, `http` to other machines, and what is not plain ASCII.
    pub fn parse(text: &str) -> Result<Address> {
        Address::of(text, Origin::of_url(text))
    }

    /// The same, and `http` to other machines is allowed. A client asks there only with leave for that very origin.
    pub fn parse_open(text: &str) -> Result<Address> {
        Address::of(text, Origin::of_open_url(text))
    }

    fn of(text: &str, origin: std::result::Result<Origin, OriginFault>) -> Result<Address> {
        let origin = origin.map_err(|fault| NetError::BadAddress { fault })?;
        let bad = || NetError::BadPath { place: origin.to_string() };
        let plain = text.len() <= ADDRESS_BYTES_MAX && text.bytes().all(|b| (0x21..0x7f).contains(&b));
        if !plain || text.contains('\\') {
            return Err(bad());
        }
        let text = text.split('#').next().unwrap_or(text);
        let uri: Uri = text.parse().map_err(|_| bad())?;
        // What is checked and what is asked must be one and the same: by the parts of what is asked.
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(bad()) };
        let same = Origin::of_parts(scheme, authority.host(), authority.port_u16());
        if authority.as_str().contains('@') || same.as_ref() != Ok(&origin) {
            return Err(bad());
        }
        Ok(Address { origin, uri })
    }

    /// An address whose path goes on from here; a query here is left out.
    pub fn below(&self, path: &str) -> Result<Address> {
        self.parse_as_this(&format!("{}{}/{path}", self.origin, self.uri.path().trim_end_matches('/')))
    }

    /// What was encrypted so far does not go on in the clear.
    fn parse_as_this(&self, text: &str) -> Result<Address> {
        if self.origin.is_open() { Address::parse_open(text) } else { Address::parse(text) }
    }

    /// Where a redirect from here leads.
    pub fn join(&self, location: &str) -> Result<Address> {
        let absolute = location.split(['/', '?', '#']).next().is_some_and(|head| head.contains(':'));
        if absolute {
            return self.parse_as_this(location);
        }
        if location.starts_with("//") {
            return self.parse_as_this(&format!("{}:{location}", self.origin.scheme().as_str()));
        }
        let path = self.uri.path();
        let joined = match location.chars().next() {
            Some('/') => format!("{}{location}", self.origin),
            Some('?') => format!("{}{path}{location}", self.origin),
            _ => format!("{}{}/{location}", self.origin, &path[..path.rfind('/').unwrap_or(0)]),
        };
        self.parse_as_this(&joined)
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub fn is_https(&self) -> bool {
        self.origin.scheme() == Scheme::Https
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Origin and path: a query may hold a signature.
    pub fn place(&self) -> String {
        shown(&format!("{}{}", self.origin, self.uri.path()))
    }
}

/// A piece of a path with everything but letters, digits, `-`, `_`, `.` and `~` percent-encoded.
pub fn encode_component(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a string cannot fail");
        }
    }
    out
}

/// A path whose pieces are encoded and whose `/` stay.
pub fn encode_path(path: &str) -> String {
    path.split('/').map(encode_component).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn redirects_resolve_against_where_they_came_from() {
        let base = Address::parse("https://hub.example/a/b?c=d").unwrap();
        let cases = [
            ("/x/y", "https://hub.example/x/y"),
            ("z", "https://hub.example/a/z"),
            ("?q", "https://hub.example/a/b?q"),
            ("//cdn.example/f", "https://cdn.example/f"),
            ("https://cdn.example/f?sig=1#part", "https://cdn.example/f?sig=1"),
            ("http://127.0.0.1:8/f", "http://127.0.0.1:8/f"),
        ];
        for (location, expected) in cases {
            assert_eq!(base.join(location).unwrap(), Address::parse(expected).unwrap(), "{location}");
        }
        for bad in [
            "http://hub.example/",
            "file:///etc/passwd",
            "https://u:p@hub.example/",
            "/a b",
            "/\\evil",
            "javascript:x",
        ] {
            assert!(base.join(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_open_address_stays_where_it_is_and_none_becomes_open() {
        assert!(Address::parse("http://vllm.lan:8000/v1").is_err());
        let open = Address::parse_open("http://vllm.lan:8000/v1/").unwrap();
        assert_eq!(
            open.below("chat/completions").unwrap().place(),
            "http://vllm.lan:8000/v1/chat/completions"
        );
        assert_eq!(open.join("/v2").unwrap().place(), "http://vllm.lan:8000/v2");
        for closed in ["https://vllm.lan/v1", "http://127.0.0.1:1/v1"] {
            let closed = Address::parse_open(closed).unwrap();
            assert!(closed.join("http://vllm.lan:8000/v2").is_err());
        }
        let long = format!("https://hub.example/{}", "a".repeat(400));
        let below = Address::parse(&long).unwrap().below("b").unwrap();
        assert!(below.uri().path().ends_with("aaa/b"), "no part of a path is lost");
    }

    #[test]
    fn a_place_has_no_query() {
        let address = Address::parse("https://hub.example/f?X-Signature=secret").unwrap();
        assert_eq!(address.place(), "https://hub.example/f");
    }

    #[test]
    fn names_are_encoded_piece_by_piece() {
        assert_eq!(encode_path("a b/c%2f.json"), "a%20b/c%252f.json");
        assert_eq!(encode_component("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(encode_component("é?#"), "%C3%A9%3F%23");
    }

    proptest! {
        #[test]
        fn joining_never_panics_nor_leaves_the_known_schemes(location in "\\PC{0,24}") {
            let base = Address::parse("https://hub.example/a/b").unwrap();
            if let Ok(next) = base.join(&location) {
                prop_assert!(next.is_https() || next.origin().is_loopback());
            }
        }

        #[test]
        fn an_encoded_path_is_an_address(path in "\\PC{0,24}") {
            let text = format!("https://hub.example/{}", encode_path(&path));
            prop_assert!(Address::parse(&text).is_ok());
        }
    }
}
