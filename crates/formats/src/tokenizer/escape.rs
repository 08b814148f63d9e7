//! Keeps special tokens that a message spells out from becoming special tokens.

use std::ops::Range;

/// Opens and closes a placeholder: Unicode noncharacters, which no text has a use for.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

/// Text that must be encoded as ordinary text, kept out of the way of the template.
#[derive(Default)]
pub(super) struct Literals(Vec<String>);

/// A piece of rendered text.
#[derive(Debug, PartialEq)]
pub(super) enum Piece<'a> {
    Text(&'a str),
    Literal(&'a str),
}

impl Literals {
    /// Replaces each special token (longest first) and each placeholder mark by a placeholder.
    pub(super) fn hide(&mut self, text: &str, special: &[String]) -> String {
        let is_mark = |c: char| ('\u{FDD0}'..='\u{FDEF}').contains(&c);
        if !text.contains(is_mark) && !special.iter().any(|token| text.contains(token.as_str())) {
            return text.to_owned();
        }
        let mut hidden = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let token = special.iter().find(|token| !token.is_empty() && rest.starts_with(token.as_str()));
            let len = match token {
                Some(token) => token.len(),
                None if is_mark(first) => first.len_utf8(),
                None => {
                    hidden.push(first);
                    rest = &rest[first.len_utf8()..];
                    continue;
                }
            };
            hidden.push_str(&format!("{OPEN}{}{CLOSE}", self.0.len()));
            self.0.push(rest[..len].to_owned());
            rest = &rest[len..];
        }
        hidden
    }

    /// Splits rendered text at the placeholders; each piece with the bytes of `text` that it stands for.
    pub(super) fn split<'a>(&'a self, text: &'a str) -> Vec<(Piece<'a>, Range<usize>)> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some((before, placeholder)) = text[at..].split_once(OPEN) {
            let Some((literal, after)) = placeholder.split_once(CLOSE).and_then(|(index, after)| {
                let literal = index.parse::<usize>().ok().and_then(|index| self.0.get(index))?;
                Some((literal.as_str(), after))
            }) else {
                break;
            };
            let opens = at + before.len();
            if !before.is_empty() {
                pieces.push((Piece::Text(before), at..opens));
            }
            at = text.len() - after.len();
            pieces.push((Piece::Literal(literal), opens..at));
        }
        if at < text.len() {
            pieces.push((Piece::Text(&text[at..]), at..text.len()));
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_specials_come_back_as_literals() {
        let special = ["<|im_end|>".to_owned(), "<|im".to_owned()];
        let mut literals = Literals::default();
        assert_eq!(literals.hide("plain", &special), "plain");
        let hidden = literals.hide("a<|im_end|>\u{FDD0}0\u{FDD1}", &special);
        assert!(!hidden.contains("<|im"));
        let pieces = literals.split(&hidden);
        let places: Vec<&str> = pieces.iter().map(|(_, place)| &hidden[place.clone()]).collect();
        assert_eq!(places.concat(), hidden, "every byte has its piece");
        let pieces: Vec<Piece<'_>> = pieces.into_iter().map(|(piece, _)| piece).collect();
        let expected = [
            Piece::Text("a"),
            Piece::Literal("<|im_end|>"),
            Piece::Literal("\u{FDD0}"),
            Piece::Text("0"),
            Piece::Literal("\u{FDD1}"),
        ];
        assert_eq!(pieces, expected);
    }
}
