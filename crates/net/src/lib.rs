//! The one HTTP client, and the model hub's interface on it.
//!
//! [`Client::new`] takes a [`stillroom_core::Cleared`], which only the gate mints (a licence verdict
//! that passes and an egress policy that covers every place), so that nothing leaves the machine before
//! both have spoken. The token also says where requests may go; a redirect elsewhere is refused.
//!
//! Blocking, one thread per request. Addresses hold no credentials and errors show none: an address in
//! an error ends before its query. Roots of trust are those compiled in (Mozilla's, `webpki-roots`);
//! nothing is read from the environment, proxies included.

mod client;
mod content;
mod error;
pub mod hub;
mod retry_after;
mod silence;
mod url;

pub use client::{Client, ClientOptions, HEADER_BYTES_MAX, Method, REDIRECTS_MAX, Request, Response, Secret};
pub use content::{ContentHasher, ContentId};
pub use error::{NetError, Phase};
pub use silence::CallOff;
pub use url::{Address, encode_component, encode_path};

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, NetError>;
