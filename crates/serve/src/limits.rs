//! How much of anything a client can have.

use std::time::Duration;

/// Caps and times of a server. Each has a default that serves one machine well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time; a further one is told to come back.
    pub connections_max: usize,
    /// Bytes of a request's line and headers.
    pub head_bytes_max: usize,
    /// Bytes of a request's body, and of all bodies that are held at a time. Read as JSON they take up to sixteen times that.
    pub body_bytes_max: usize,
    pub bodies_bytes_max: usize,
    /// Sequences that wait for a place; a request that would add to more of them is told to come back.
    pub waiting_max: usize,
    /// Sequences that are written at a time.
    pub in_flight_max: usize,
    /// How long a connection may wait for its next request.
    pub idle: Duration,
    /// How long the head of a request may take from its first byte on, and how long its body.
    pub head_time: Duration,
    pub body_time: Duration,
    /// How long a client may take to accept a reply, or a piece of a stream.
    pub write_time: Duration,
    /// How long answers that are being written may take when the server ends.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 256,
            head_bytes_max: 16 << 10,
            body_bytes_max: 4 << 20,
            bodies_bytes_max: 32 << 20,
            waiting_max: 128,
            in_flight_max: 16,
            idle: Duration::from_secs(60),
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(60),
            write_time: Duration::from_secs(30),
            drain_time: Duration::from_secs(30),
        }
    }
}
