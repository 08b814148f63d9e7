//! Tokens to text as they come, and where a text ends.

use stillroom_formats::Tokenizer;

/// What stands for bytes that are no text; at an end perhaps for ones that are to be completed.
const UNKNOWN: char = '\u{fffd}';

/// Turns tokens into text piece by piece. All pieces together are the text of all tokens.
pub(crate) struct Detokenizer<'t> {
    tokenizer: &'t Tokenizer,
    ids: Vec<u32>,
    /// From here on tokens are turned into text together: some write other text at a beginning than behind another.
    window: usize,
    /// Tokens whose text has been given.
    given: usize,
    text: String,
}

impl<'t> Detokenizer<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer) -> Detokenizer<'t> {
        Detokenizer { tokenizer, ids: Vec::new(), window: 0, given: 0, text: String::new() }
    }

    /// The text that is certain with this token and was not before.
    pub(crate) fn push(&mut self, id: u32) -> &str {
        self.ids.push(id);
        let now = self.tokenizer.decode_text(&self.ids[self.window..]);
        let before = self.tokenizer.decode_text(&self.ids[self.window..self.given]);
        let from = self.text.len();
        // Half a character is not shown: the next token may complete it.
        if let Some(new) = now.strip_prefix(&before).filter(|_| !now.ends_with(UNKNOWN)) {
            self.text.push_str(new);
            (self.window, self.given) = (self.given, self.ids.len());
        }
        &self.text[from..]
    }

    /// What was held back, where no token follows.
    pub(crate) fn finish(&mut self) -> &str {
        let whole = self.tokenizer.decode_text(&self.ids);
        let from = self.text.len();
        if let Some(rest) = whole.strip_prefix(&self.text) {
            self.text.push_str(rest);
        }
        &self.text[from..]
    }
}

/// Ends a text before the first of some strings in it, and holds back what may be the beginning of one.
pub(crate) struct Stops {
    stops: Vec<String>,
    held: String,
    has_stopped: bool,
}

impl Stops {
    pub(crate) fn new(stops: Vec<String>) -> Stops {
        Stops { stops, held: String::new(), has_stopped: false }
    }

    pub(crate) fn has_stopped(&self) -> bool {
        self.has_stopped
    }

    /// What of the text so far may be shown.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.has_stopped {
            return String::new();
        }
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.has_stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let kept = self.stops.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, rest)
    }

    /// What is held back, where nothing follows.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` with which `stop` begins.
fn begun(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    let is_begun = |n: &usize| text.as_bytes()[text.len() - n..] == stop.as_bytes()[..*n];
    (1..=longest).rev().filter(|&n| text.is_char_boundary(text.len() - n)).find(is_begun).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut all = Stops::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut shown: Vec<String> = pieces.iter().map(|piece| all.push(piece)).collect();
        shown.push(all.finish());
        (shown, all.has_stopped)
    }

    #[test]
    fn a_stop_is_found_across_pieces_and_what_may_begin_one_waits() {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(shown(&["END"], &["a", "bE", "N", "x"]), (owned(&["a", "b", "", "ENx", ""]), false));
        assert_eq!(shown(&["END"], &["a", "bE", "N", "Dx", "y"]), (owned(&["a", "b", "", "", "", ""]), true));
        assert_eq!(shown(&["END"], &["aE", "N"]), (owned(&["a", "", "EN"]), false));
        assert_eq!(shown(&["aab"], &["a", "a", "a", "b"]), (owned(&["", "", "a", "", ""]), true));
        assert_eq!(shown(&["bc", "b"], &["ab", "c"]), (owned(&["a", "", ""]), true));
        assert_eq!(shown(&[], &["a", "b"]), (owned(&["a", "b", ""]), false));
        assert_eq!(shown(&["é!"], &["caf\u{e9}", "!"]), (owned(&["caf", "", ""]), true));
    }
}
