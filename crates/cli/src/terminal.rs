//! What reaches the terminal: data on stdout, everything else on stderr, foreign text made harmless.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

/// `text` with every character that could steer a terminal written out as an escape.
///
/// Control characters (C0 except line feed and tab, DEL, C1) and the bidirectional overrides become `\u{…}`.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    if !text.chars().any(steers) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) {
            write!(out, "\\u{{{:x}}}", u32::from(c)).expect("writing to a string cannot fail");
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Like [`harmless`], on one line.
pub(crate) fn one_line(text: &str) -> String {
    harmless(text).replace(['\n', '\t'], " ")
}

fn steers(c: char) -> bool {
    let bidirectional =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    bidirectional || (c.is_control() && c != '\n' && c != '\t')
}

/// Writes data to stdout. A reader that has gone away is not an error of ours.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes a line to stdout.
pub(crate) fn print_line(text: &str) -> io::Result<()> {
    print(&format!("{text}\n"))
}

/// Pretty JSON and a line feed to stdout.
pub(crate) fn print_json(value: &impl serde::Serialize) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    print_line(&text)
}

/// Writes a line to stderr; a closed stderr is ignored.
pub(crate) fn note(text: &str) {
    // Nobody is left to tell when stderr is gone.
    drop(writeln!(io::stderr().lock(), "{}", harmless(text)));
}

/// Like [`note`], below what stands in the terminal's line.
pub(crate) fn note_below(text: &str) {
    let start = if io::stderr().is_terminal() { "\n" } else { "" };
    note(&format!("{start}{text}"));
}

/// Progress on stderr: a line per stage, and one line that is rewritten while a stage works.
///
/// Off a terminal the rewritten line is silent; `--quiet` silences all of it.
pub(crate) struct Progress {
    quiet: bool,
    rewrites: bool,
    pending: usize,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Progress {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Progress { quiet, rewrites: io::stderr().is_terminal() && !dumb && !quiet, pending: 0 }
    }

    /// A line that stays.
    pub(crate) fn line(&mut self, text: &str) {
        self.clear();
        if !self.quiet {
            note(text);
        }
    }

    /// A line that the next one replaces; only on a terminal.
    pub(crate) fn update(&mut self, text: &str) {
        if !self.rewrites {
            return;
        }
        let text = one_line(text);
        let width = text.chars().count();
        let blank = self.pending.saturating_sub(width);
        drop(write!(io::stderr().lock(), "\r{text}{:blank$}", ""));
        self.pending = width;
    }

    fn clear(&mut self) {
        if self.pending > 0 {
            drop(write!(io::stderr().lock(), "\r{:1$}\r", "", self.pending));
            self.pending = 0;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_that_steer_a_terminal_are_written_out() {
        assert_eq!(harmless("\u{1b}]8;;http://x\u{7}y"), "\\u{1b}]8;;http://x\\u{7}y");
        assert_eq!(harmless("a\u{9b}31mb\u{202e}c\r"), "a\\u{9b}31mb\\u{202e}c\\u{d}");
        assert_eq!(harmless("plain\ttext\nñ 水 🙂"), "plain\ttext\nñ 水 🙂");
        assert_eq!(one_line("a\nb\u{0}"), "a b\\u{0}");
    }
}
