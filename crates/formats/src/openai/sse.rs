//! Server-sent events, as the HTML standard reads them.

use super::fault::ReplyFault;

/// Cuts bytes into events, however they were split on the way.
pub(super) struct EventReader {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a CR: an LF belongs to it.
    after_cr: bool,
    at_start: bool,
    /// Bytes before the line.
    offset: u64,
    event_bytes_max: usize,
}

const BOM: &[u8] = b"\xef\xbb\xbf";

impl EventReader {
    pub(super) fn new(event_bytes_max: usize) -> EventReader {
        EventReader {
            line: Vec::new(),
            data: Vec::new(),
            has_data: false,
            after_cr: false,
            at_start: true,
            offset: 0,
            event_bytes_max,
        }
    }

    /// Reads on; each event's data goes to `on_event`. An event without its blank line is none.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut on_event: impl FnMut(&[u8]) -> Result<(), ReplyFault>,
    ) -> Result<(), ReplyFault> {
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            if let Some(rest) = bytes.strip_prefix(b"\n") {
                self.offset += 1;
                bytes = rest;
            }
        }
        while let Some(end) = bytes.iter().position(|&b| b == b'\n' || b == b'\r') {
            self.extend(&bytes[..end])?;
            let mut width = 1;
            if bytes[end] == b'\r' {
                match bytes.get(end + 1) {
                    Some(b'\n') => width = 2,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            self.end_line(width, &mut on_event)?;
            bytes = &bytes[end + width..];
        }
        self.extend(bytes)
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), ReplyFault> {
        let event = self.line.len() + self.data.len() + bytes.len();
        ReplyFault::check_cap("an event", event, self.event_bytes_max)?;
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(
        &mut self,
        width: usize,
        on_event: &mut impl FnMut(&[u8]) -> Result<(), ReplyFault>,
    ) -> Result<(), ReplyFault> {
        let line = std::mem::take(&mut self.line);
        if let Err(error) = std::str::from_utf8(&line) {
            return Err(ReplyFault::NotUtf8 { offset: self.offset + error.valid_up_to() as u64 });
        }
        self.offset += (line.len() + width) as u64;
        let text =
            if std::mem::take(&mut self.at_start) { line.strip_prefix(BOM).unwrap_or(&line) } else { &line };
        if text.is_empty() {
            let data = std::mem::take(&mut self.data);
            if std::mem::take(&mut self.has_data) {
                on_event(&data)?;
            }
        } else {
            self.take_field(text);
        }
        // The buffer goes on.
        self.line = line;
        self.line.clear();
        Ok(())
    }

    /// Only `data` matters; a line that begins with a colon is a comment.
    fn take_field(&mut self, line: &[u8]) {
        let Some(rest) = line.strip_prefix(b"data") else { return };
        let value = match rest {
            [] => rest,
            [b':', b' ', value @ ..] | [b':', value @ ..] => value,
            _ => return,
        };
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let mut reader = EventReader::new(1000);
        let mut found = Vec::new();
        for piece in pieces {
            let taken = reader.feed(piece, |data| {
                found.push(String::from_utf8(data.to_vec()).expect("text"));
                Ok(())
            });
            taken.expect("events");
        }
        found
    }

    #[test]
    fn the_examples_of_the_standard_are_read() {
        assert_eq!(events(&[b"data: YHOO\ndata: +2\ndata: 10\n\n"]), ["YHOO\n+2\n10"]);
        let third =
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n";
        assert_eq!(events(&[third]), ["first event", "second event"], "the last one has no blank line");
        assert_eq!(events(&[b"data\n\ndata\ndata\n\ndata:"]), ["", "\n"]);
        assert_eq!(events(&[b"data:test\n\ndata: test\n\n"]), ["test", "test"]);
    }

    #[test]
    fn lines_end_in_three_ways_and_anywhere() {
        let whole =
            b"\xef\xbb\xbfdata: a\r\rdata: b\r\n\r\ndata: c\n\n: x\rdatax: no\n\nevent: e\ndata: d\n\n";
        assert_eq!(events(&[whole]), ["a", "b", "c", "d"]);
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(events(&bytes), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_byte_that_is_no_text_is_named() {
        let mut reader = EventReader::new(1000);
        let fault = reader.feed(b"data: a\r\n\r\ndata: \xff\n", |_| Ok(()));
        assert_eq!(fault, Err(ReplyFault::NotUtf8 { offset: 17 }));
    }

    #[test]
    fn an_event_is_capped() {
        let mut reader = EventReader::new(10);
        let fault = reader.feed(b"data: a\ndata: bcdefgh", |_| Ok(()));
        assert!(matches!(fault, Err(ReplyFault::TooLarge { what: "an event", .. })));
    }
}
