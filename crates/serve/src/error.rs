//! Why a server does not begin, or ends.

use std::net::SocketAddr;

use stillroom_core::ErrorKind;
use thiserror::Error;

#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    #[error("cannot listen at {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("{address} can be reached from other machines, and no API key is asked for")]
    Open { address: SocketAddr },
    #[error("the model's own thread could not be begun")]
    Thread { source: std::io::Error },
    #[error("the model's own thread has failed")]
    Engine,
}

impl ServeError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            ServeError::Listen { .. } => ErrorKind::Io,
            ServeError::Open { .. } => ErrorKind::Policy,
            ServeError::Thread { .. } | ServeError::Engine => ErrorKind::Failed,
        }
    }

    /// What the user can do about it.
    pub fn fix(&self) -> Option<String> {
        let text = match self {
            ServeError::Listen { .. } => "choose another `--port`; 0 takes a free one",
            ServeError::Open { .. } => "name the environment variable that has a key: `--api-key-env NAME`",
            ServeError::Thread { .. } => "see what limits this machine's threads and memory",
            ServeError::Engine => return None,
        };
        Some(text.to_owned())
    }
}
