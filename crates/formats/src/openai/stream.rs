//! Replies that come as a stream of events.

use super::fault::ReplyFault;
use super::gather::Gathering;
use super::reply::Reply;
use super::sse::EventReader;
use super::wire;

/// How much a reply may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Bytes of a whole body, or of a whole stream.
    pub bytes_max: usize,
    /// Bytes of text: answer, reasoning and calls together.
    pub text_bytes_max: usize,
}

impl Default for Caps {
    fn default() -> Caps {
        Caps { bytes_max: 64 << 20, text_bytes_max: 16 << 20 }
    }
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Chunks that carried text or calls: about the tokens so far.
    pub pieces: u64,
    /// `[DONE]` was seen. Nothing after it counts.
    pub ended: bool,
}

/// Reads a stream, in pieces of any size.
pub struct StreamReader {
    events: EventReader,
    gathering: Gathering,
    bytes: usize,
    caps: Caps,
    ended: bool,
}

impl StreamReader {
    pub fn new(caps: Caps) -> StreamReader {
        StreamReader {
            events: EventReader::new(caps.bytes_max),
            gathering: Gathering::new(caps),
            bytes: 0,
            caps,
            ended: false,
        }
    }

    /// Takes the next bytes. After an error the stream is of no more use.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Progress, ReplyFault> {
        self.bytes = self.bytes.saturating_add(bytes.len());
        ReplyFault::check_cap("the stream", self.bytes, self.caps.bytes_max)?;
        let (gathering, ended) = (&mut self.gathering, &mut self.ended);
        self.events.feed(bytes, |data| {
            let data = data.trim_ascii();
            if *ended || data.is_empty() {
                return Ok(());
            }
            if data == b"[DONE]" {
                *ended = true;
                return Ok(());
            }
            gathering.add(wire::read(data)?)
        })?;
        Ok(self.progress())
    }

    pub fn progress(&self) -> Progress {
        Progress { pieces: self.gathering.pieces(), ended: self.ended }
    }

    /// The reply, if its finish reason has come; `[DONE]` may be missing.
    pub fn finish(self) -> Result<Reply, ReplyFault> {
        match (self.ended, self.gathering.saw_choices()) {
            (true, false) => Err(ReplyFault::NoChoice),
            _ => self.gathering.finish(),
        }
    }
}
