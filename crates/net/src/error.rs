//! What can go wrong on the network.

use stillroom_core::{ErrorKind, OriginFault};

/// The longest piece of foreign text that an error shows.
const SHOWN_CHARS_MAX: usize = 200;

/// What the client was waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The name's numbers, the connection and its handshake.
    Connect,
    /// The first byte of the reply and its headers.
    FirstByte,
    /// The next byte of the reply.
    Body,
}

impl Phase {
    fn words(self) -> &'static str {
        match self {
            Phase::Connect => "no connection",
            Phase::FirstByte => "no reply",
            Phase::Body => "the reply stalled",
        }
    }
}

/// Errors of the client and of the hub's interface. Places are shown without their query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The gate's leave does not reach this far.
    #[error("`{place}` is not among the places that requests may go to")]
    NotCleared { place: String },
    /// A key that could be read on the way.
    #[error("the key for `{place}` would go there unencrypted")]
    OpenKey { place: String },
    /// An address that cannot be used.
    #[error("not an address to ask: {fault}")]
    BadAddress { fault: OriginFault },
    /// The path or query of an address is malformed.
    #[error("`{place}`: the path of the address is malformed")]
    BadPath { place: String },
    /// A header that cannot be sent.
    #[error("header `{name}` cannot be sent")]
    BadHeader { name: &'static str },
    /// A redirect to somewhere that the leave does not cover, or from `https` to `http`.
    #[error("`{from}` sends the request on to `{to}`, which is not followed")]
    Redirect { from: String, to: String },
    /// A chain of redirects without an end.
    #[error("`{place}`: more than {redirects_max} redirects")]
    Redirects { place: String, redirects_max: usize },
    /// A name without an address.
    #[error("`{place}`: the name is not known")]
    UnknownHost { place: String },
    /// No connection.
    #[error("`{place}`: no connection: {cause}")]
    Connect { place: String, cause: String },
    /// A certificate or a handshake that cannot be trusted.
    #[error("`{place}`: the secure connection failed: {cause}")]
    Tls { place: String, cause: String },
    /// Time is up.
    #[error("`{place}`: {} within {seconds} s", phase.words())]
    Timeout { place: String, phase: Phase, seconds: u64 },
    /// The connection ended before the reply did.
    #[error("`{place}`: the connection was cut")]
    Cut { place: String },
    /// Somebody gave the request up.
    #[error("`{place}`: the request was called off")]
    CalledOff { place: String },
    /// A status that is no success.
    #[error("`{place}` answers {status}{}", words_of(*status))]
    Status { place: String, status: u16, retry_after_s: Option<u64> },
    /// More bytes than allowed or announced.
    #[error("`{place}`: the reply is longer than {bytes_max} bytes")]
    TooLarge { place: String, bytes_max: u64 },
    /// A reply that does not keep to the protocol or to the hub's interface.
    #[error("`{place}`: {cause}")]
    BadReply { place: String, cause: String },
    /// A file name that would leave its folder, or clash with another.
    #[error("the repository has a file named `{name}`, which is not a plain path inside it")]
    UnsafeName { name: String },
    /// Not the name of a repository.
    #[error("`{name}` is not of the form `ORG/NAME`")]
    BadRepository { name: String },
    /// Not the name of a revision.
    #[error("`{name}` is not the name of a revision")]
    BadRevision { name: String },
}

fn words_of(status: u16) -> &'static str {
    match status {
        401 => " (not without a token, or there is no such thing)",
        403 => " (not with this token)",
        404 => " (there is no such thing)",
        429 => " (too many requests)",
        500..=599 => " (the server's own fault)",
        _ => "",
    }
}

impl NetError {
    pub(crate) fn bad_reply(place: &str, cause: impl Into<String>) -> NetError {
        NetError::BadReply { place: place.to_owned(), cause: cause.into() }
    }

    /// What kind of failure this is; it decides the exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            NetError::NotCleared { .. } | NetError::Redirect { .. } | NetError::OpenKey { .. } => {
                ErrorKind::Policy
            }
            NetError::UnknownHost { .. }
            | NetError::Connect { .. }
            | NetError::Timeout { .. }
            | NetError::Cut { .. }
            | NetError::CalledOff { .. } => ErrorKind::TryLater,
            NetError::Status { status, .. } => match status {
                401 | 403 | 451 => ErrorKind::Policy,
                408 | 425 | 429 | 500..=599 => ErrorKind::TryLater,
                404 | 410 => ErrorKind::Io,
                _ => ErrorKind::Failed,
            },
            NetError::Tls { .. } => ErrorKind::Failed,
            NetError::BadAddress { .. }
            | NetError::BadPath { .. }
            | NetError::BadHeader { .. }
            | NetError::BadRepository { .. }
            | NetError::BadRevision { .. } => ErrorKind::BadRecipe,
            NetError::Redirects { .. }
            | NetError::TooLarge { .. }
            | NetError::BadReply { .. }
            | NetError::UnsafeName { .. } => ErrorKind::BadData,
        }
    }

    /// What the user can do about it.
    pub fn fix(&self) -> Option<String> {
        let fix = match self {
            NetError::NotCleared { .. } | NetError::Redirect { .. } => {
                "ask at an address that answers itself, or list the other one too"
            }
            NetError::OpenKey { .. } => "ask there by `https`, or without a key",
            NetError::UnknownHost { .. } | NetError::Connect { .. } => {
                "check the connection and the address, then repeat the command"
            }
            NetError::Timeout { .. } | NetError::Cut { .. } | NetError::CalledOff { .. } => {
                "repeat the command; it continues where it stopped"
            }
            NetError::Tls { .. } => "check the address and this machine's clock",
            NetError::Status { status: 401 | 403, .. } => {
                "check the name; if the model is private or gated, accept its terms on the hub and set `HF_TOKEN`"
            }
            NetError::Status { status: 404 | 410, .. } => "check the name and the revision",
            NetError::Status {
                status: 408 | 425 | 429 | 500..=599, retry_after_s: Some(seconds), ..
            } => {
                return Some(format!("repeat the command in {seconds} s"));
            }
            NetError::Status { status: 408 | 425 | 429 | 500..=599, .. } => "repeat the command later",
            NetError::BadAddress { .. } => "write `https://HOST` or `http://127.0.0.1:PORT`",
            NetError::UnsafeName { .. } => "do not use this repository; tell its owner",
            NetError::BadRepository { .. } => {
                "write the name as the hub shows it, for example `Qwen/Qwen3-0.6B`"
            }
            NetError::BadRevision { .. } => "name a branch, a tag or a commit",
            NetError::TooLarge { .. } | NetError::BadReply { .. } | NetError::Redirects { .. } => {
                "check that the address is a model hub's"
            }
            NetError::Status { .. } | NetError::BadPath { .. } | NetError::BadHeader { .. } => return None,
        };
        Some(fix.to_owned())
    }

    /// How long the server asks to be left alone.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            NetError::Status { retry_after_s, .. } => *retry_after_s,
            _ => None,
        }
    }
}

/// Foreign text on one line, cut short.
pub(crate) fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_CHARS_MAX).collect()
}
