//! The language that a text is written in, guessed from its letters.

use whatlang::Lang;

/// Bytes of letters below which nobody should guess.
const LETTERS_BYTES_MIN: usize = 60;
/// Read of a long text.
const READ_BYTES_MAX: usize = 8192;

/// ISO 639-3 code of the text's language, by trigrams and scripts; `None` where the text has too few letters (sixty bytes) or
/// two languages are about as likely. Fenced code is not read.
pub fn language(text: &str) -> Option<&'static str> {
    let prose = prose(text);
    let letters: usize = prose.chars().filter(|c| c.is_alphabetic()).map(char::len_utf8).sum();
    if letters < LETTERS_BYTES_MIN {
        return None;
    }
    whatlang::detect(&prose).filter(whatlang::Info::is_reliable).map(|found| found.lang().code())
}

/// Codes that [`language`] may return.
pub fn codes() -> impl Iterator<Item = &'static str> {
    Lang::all().iter().map(Lang::code)
}

fn prose(text: &str) -> String {
    let (mut prose, mut in_code) = (String::new(), false);
    for line in text.lines() {
        if prose.len() > READ_BYTES_MAX {
            break;
        }
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            prose.extend(line.chars().take(READ_BYTES_MAX));
            prose.push('\n');
        }
    }
    prose
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_enough_texts_have_a_language() {
        let english = "She eats three of them for breakfast every morning and sells the remainder at the market for two dollars each.";
        let german = "Sie verkauft den Rest jeden Tag auf dem Bauernmarkt, und zwar für zwei Dollar je frisches Entenei.";
        assert_eq!(language(english), Some("eng"));
        assert_eq!(language(german), Some("deu"));
        assert_eq!(language("她每天早餐吃三个鸭蛋，用四个给朋友做松饼，其余的在市场上卖掉。"), Some("cmn"));
        assert_eq!(language("Because."), None);
        assert_eq!(language(&"1 + 2 = 3\n".repeat(40)), None);
        assert_eq!(language(&format!("```\n{german}\n```\n{english}")), Some("eng"));
        assert!(codes().any(|code| code == "fra") && codes().count() > 60);
    }
}
