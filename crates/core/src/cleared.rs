//! Leave to use the network: where a request may go, and the token without which no client exists.
//!
//! The one HTTP client is built from a [`Cleared`], and only the gate mints one: a licence verdict
//! that passes and an egress policy that covers every place of the [`Reach`]. Rust has no privacy
//! between two given crates, so [`Cleared::mint`] is public and a test of the workspace holds the
//! sources to it: no crate but `governance` names it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

/// Longest host name, in bytes (DNS).
const HOST_BYTES_MAX: usize = 253;

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// In the clear; see [`Origin::is_open`].
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// Scheme, host and port of an address: `https://huggingface.co`, `http://127.0.0.1:8080`.
///
/// `http` exists for this machine's own addresses only, unless somebody asks for more by
/// [`Origin::of_open_url`]: then [`Origin::is_open`] says that what is sent there can be read on the way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    scheme: Scheme,
    host: String,
    port: u16,
}

/// Why an address is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OriginFault {
    #[error("an address begins with `https://`, or with `http://` for this machine's own")]
    Scheme,
    #[error("an address holds no user name or password")]
    Credentials,
    #[error("the host of an address is a plain name or a number")]
    Host,
    #[error("the port of an address is a number from 1 to 65535")]
    Port,
    #[error("`http` to another machine can be read and changed on the way")]
    Clear,
}

impl Origin {
    /// The origin of an absolute address; its path and what follows are not looked at.
    ///
    /// ```
    /// use stillroom_core::Origin;
    /// assert_eq!(Origin::of_url("HTTPS://Example.ORG:443/v1").unwrap().to_string(), "https://example.org");
    /// assert!(Origin::of_url("http://example.org").is_err());
    /// ```
    pub fn of_url(url: &str) -> Result<Origin, OriginFault> {
        Origin::of_open_url(url)?.closed()
    }

    /// The same, and `http` to other machines is allowed: what is sent there can be read and changed on the way.
    pub fn of_open_url(url: &str) -> Result<Origin, OriginFault> {
        let (scheme, rest) = url.split_once("://").ok_or(OriginFault::Scheme)?;
        let authority = &rest[..rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len())];
        if authority.contains('@') {
            return Err(OriginFault::Credentials);
        }
        let after_host = authority.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match authority[after_host..].rfind(':') {
            Some(at) => {
                let (host, port) = authority.split_at(after_host + at);
                (host, Some(port[1..].parse::<u16>().map_err(|_| OriginFault::Port)?))
            }
            None => (authority, None),
        };
        Origin::of_parts(scheme, host, port)
    }

    /// From its parts, `http` to other machines among them; `port` is the scheme's own where there is none.
    pub fn of_parts(scheme: &str, host: &str, port: Option<u16>) -> Result<Origin, OriginFault> {
        let scheme = match scheme {
            s if s.eq_ignore_ascii_case("https") => Scheme::Https,
            s if s.eq_ignore_ascii_case("http") => Scheme::Http,
            _ => return Err(OriginFault::Scheme),
        };
        let host = plain_host(host).ok_or(OriginFault::Host)?;
        let port = port.unwrap_or(scheme.default_port());
        if port == 0 {
            return Err(OriginFault::Port);
        }
        Ok(Origin { scheme, host, port })
    }

    fn closed(self) -> Result<Origin, OriginFault> {
        if self.is_open() { Err(OriginFault::Clear) } else { Ok(self) }
    }

    /// Whether what is sent there can be read and changed on the way: by `http`, and to another machine.
    pub fn is_open(&self) -> bool {
        self.scheme == Scheme::Http && !self.is_loopback()
    }

    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Lower case; an IPv6 address stands in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is this machine: `localhost`, `127.0.0.0/8` or `[::1]`.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// A host in one spelling: lower case, no dot at the end.
fn plain_host(host: &str) -> Option<String> {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if let Some(inner) = host.strip_prefix('[') {
        let address: std::net::Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(format!("[{address}]"));
    }
    let plain = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    (host.len() <= HOST_BYTES_MAX && host.split('.').all(plain)).then_some(host)
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.host)?;
        if self.port == self.scheme.default_port() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// Places on the network: single origins, and all `https` hosts of a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    origins: BTreeSet<Origin>,
    domains: BTreeSet<String>,
}

impl Reach {
    /// From addresses, each `https://HOST[:PORT]` (what follows is not looked at),
    /// `http://LOOPBACK[:PORT]`, or `https://*.DOMAIN` for every host below a domain.
    pub fn of<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Result<Reach, OriginFault> {
        let reach = Reach::of_open(addresses)?;
        if reach.open_places().next().is_some() { Err(OriginFault::Clear) } else { Ok(reach) }
    }

    /// The same with `http://HOST[:PORT]` of other machines, each by itself: for what a person has written out.
    pub fn of_open<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Result<Reach, OriginFault> {
        let mut reach = Reach::default();
        for address in addresses {
            match address.strip_prefix("https://*.") {
                Some(domain) => {
                    let origin = Origin::of_url(&format!("https://{domain}"))?;
                    let has_dot = origin.host.contains('.') && origin.port == Scheme::Https.default_port();
                    if !has_dot || origin.host.parse::<IpAddr>().is_ok() {
                        return Err(OriginFault::Host);
                    }
                    reach.domains.insert(origin.host);
                }
                None => {
                    reach.origins.insert(Origin::of_open_url(address)?);
                }
            }
        }
        Ok(reach)
    }

    /// Whether a request may go to `origin`.
    pub fn permits(&self, origin: &Origin) -> bool {
        self.origins.contains(origin)
            || (origin.scheme == Scheme::Https
                && origin.port == Scheme::Https.default_port()
                && self.domains.iter().any(|domain| is_below(&origin.host, domain)))
    }

    /// The first place of `other` that is not in this reach.
    pub fn lacks(&self, other: &Reach) -> Option<String> {
        let origin = other.origins.iter().find(|origin| !self.permits(origin)).map(Origin::to_string);
        origin.or_else(|| {
            let covered =
                |domain: &str| self.domains.iter().any(|own| own == domain || is_below(domain, own));
            other.domains.iter().find(|domain| !covered(domain)).map(|domain| format!("https://*.{domain}"))
        })
    }

    /// The first place that is not this machine.
    pub fn beyond_loopback(&self) -> Option<String> {
        let origin = self.origins.iter().find(|origin| !origin.is_loopback()).map(Origin::to_string);
        origin.or_else(|| self.domains.iter().next().map(|domain| format!("https://*.{domain}")))
    }

    /// Places where what is sent can be read and changed on the way.
    pub fn open_places(&self) -> impl Iterator<Item = String> {
        self.origins.iter().filter(|origin| origin.is_open()).map(Origin::to_string)
    }

    /// Whether nothing can be reached.
    pub fn is_empty(&self) -> bool {
        self.origins.is_empty() && self.domains.is_empty()
    }
}

fn is_below(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|head| head.len() > 1 && head.ends_with('.'))
}

/// Proof that the gate has spoken: for what, and how far it reaches. Not `Clone`, not deserialisable.
#[derive(Debug)]
pub struct Cleared {
    subject: String,
    reach: Reach,
}

impl Cleared {
    /// For the gate alone: `stillroom_governance::Decision::clear` is the one caller, after a verdict
    /// that passes and an egress policy that covers `reach`. `xtask/tests/rooms.rs` refuses others.
    pub fn mint(subject: impl Into<String>, reach: Reach) -> Cleared {
        Cleared { subject: subject.into(), reach }
    }

    /// What the verdict was about.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Where requests may go.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn origins_have_one_spelling() {
        let same =
            ["https://a.example.org", "HTTPS://A.Example.Org:443/x?y#z", "https://a.example.org.\\@evil"];
        for url in same {
            assert_eq!(Origin::of_url(url).unwrap().to_string(), "https://a.example.org", "{url}");
        }
        assert_eq!(Origin::of_url("http://[::1]:80/").unwrap().to_string(), "http://[::1]");
        assert_eq!(Origin::of_url("http://localhost:8080").unwrap().port(), 8080);
    }

    #[test]
    fn addresses_that_hide_something_are_refused() {
        let cases = [
            ("http://example.org", OriginFault::Clear),
            ("http://127.0.0.1.example.org/", OriginFault::Clear),
            ("http://127.1/", OriginFault::Clear),
            ("http://10.0.0.1/", OriginFault::Clear),
            ("https://user:pw@example.org", OriginFault::Credentials),
            ("https://127.0.0.1@evil.example/", OriginFault::Credentials),
            ("file:///etc/passwd", OriginFault::Scheme),
            ("example.org", OriginFault::Scheme),
            ("https://", OriginFault::Host),
            ("https://a b/", OriginFault::Host),
            ("https://a%2fb/", OriginFault::Host),
            ("https://[::1/", OriginFault::Host),
            ("https://ex\u{e4}mple.org/", OriginFault::Host),
            ("https://example.org:0/", OriginFault::Port),
            ("https://example.org:99999/", OriginFault::Port),
            ("https://example.org:/", OriginFault::Port),
        ];
        for (url, fault) in cases {
            assert_eq!(Origin::of_url(url), Err(fault), "{url}");
        }
    }

    /// Nobody gets an open place by chance: it takes the one reader that says so, and the one spelling.
    #[test]
    fn http_to_another_machine_is_read_only_where_it_is_asked_for() {
        let open = "http://10.0.0.1:8000/v1";
        assert_eq!(Reach::of(["https://a.example", open]), Err(OriginFault::Clear));
        let reach = Reach::of_open(["https://a.example", "http://127.0.0.1:1", open]).unwrap();
        assert_eq!(reach.open_places().collect::<Vec<_>>(), ["http://10.0.0.1:8000"]);
        let permits = |url: &str| reach.permits(&Origin::of_open_url(url).unwrap());
        assert!(permits("http://10.0.0.1:8000/x") && permits("https://a.example"));
        for other in ["http://10.0.0.1", "https://10.0.0.1:8000", "http://10.0.0.2:8000", "http://a.example"]
        {
            assert!(!permits(other), "{other}");
        }
        let wide = Reach::of_open(["https://*.a.example"]).unwrap();
        assert!(!wide.permits(&Origin::of_open_url("http://b.a.example").unwrap()));
        assert!(Reach::of_open(["http://*.a.example"]).is_err());
    }

    #[test]
    fn a_domain_covers_what_is_below_it_over_https_only() {
        let reach = Reach::of(["https://*.hf.example", "https://hub.example:8443/x"]).unwrap();
        let permits = |url: &str| Origin::of_url(url).is_ok_and(|origin| reach.permits(&origin));
        assert!(permits("https://cdn.hf.example/a") && permits("https://a.b.hf.example"));
        assert!(permits("https://hub.example:8443"));
        for other in [
            "https://hf.example",
            "https://evilhf.example",
            "https://cdn.hf.example.evil",
            "https://cdn.hf.example:444",
            "https://hub.example",
            "https://.hf.example",
        ] {
            assert!(!permits(other), "{other}");
        }
        for bad in ["https://*.com", "https://*.", "https://*.1.2.3.4", "https://*.a.b:444", "http://*.a.b"] {
            assert!(Reach::of([bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reach_names_what_it_lacks() {
        let wide = Reach::of(["https://*.hf.example", "http://127.0.0.1:1"]).unwrap();
        let inside = ["http://127.0.0.1:1/v1", "https://a.hf.example", "https://*.b.hf.example"];
        assert_eq!(wide.lacks(&Reach::of(inside).unwrap()), None);
        let more = Reach::of(["http://127.0.0.1:2"]).unwrap();
        assert_eq!(wide.lacks(&more).as_deref(), Some("http://127.0.0.1:2"));
        let more = Reach::of(["https://*.hf.example.org"]).unwrap();
        assert_eq!(wide.lacks(&more).as_deref(), Some("https://*.hf.example.org"));
    }

    proptest! {
        #[test]
        fn reading_an_address_never_panics_and_is_stable(url in "(https?://)?[\\[\\]:.@/\\\\a-c0-9\u{e4}]{0,24}") {
            if let Ok(origin) = Origin::of_url(&url) {
                prop_assert_eq!(Origin::of_url(&origin.to_string()), Ok(origin.clone()));
                prop_assert!(origin.scheme() == Scheme::Https || origin.is_loopback());
            }
        }
    }
}
