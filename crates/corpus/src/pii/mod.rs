//! Personal data and secrets that have a form: found, and taken out of a text.
//!
//! Each class is known by its form and, where the form has one, by its check digits; what has too weak a form (nine plain
//! digits) counts only beside a word that says what it is. Names, addresses and dates of birth have no form and are not
//! found. `docs/pii.md` says what each class covers and how well.
//!
//! A text is gone through once from left to right; every attempt at a place looks at a bounded number of bytes around it,
//! so time grows with the text's length and nothing else.

mod checks;
mod email;
mod ip;
mod money;
mod national;
mod phone;
mod place;
mod secrets;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stillroom_core::{Message, Prompt};

use national::Sure;

/// What a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Email,
    Phone,
    /// A payment card: a network's prefix, its length, Luhn's digit.
    Card,
    /// An account: its country's length, modulo 97.
    Iban,
    /// What a state numbers people by; see [`Finding::kind`] for which.
    NationalId,
    IpAddress,
    /// `user:password` of a URL.
    UrlCredentials,
    /// Keys and tokens of services, private keys, passwords that are assigned.
    Secret,
}

impl Class {
    pub const ALL: [Class; 8] = [
        Class::Email,
        Class::Phone,
        Class::Card,
        Class::Iban,
        Class::NationalId,
        Class::IpAddress,
        Class::UrlCredentials,
        Class::Secret,
    ];

    /// The name that recipes and reports use.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Email => "email",
            Class::Phone => "phone",
            Class::Card => "card",
            Class::Iban => "iban",
            Class::NationalId => "national_id",
            Class::IpAddress => "ip_address",
            Class::UrlCredentials => "url_credentials",
            Class::Secret => "secret",
        }
    }

    /// The class of that name.
    pub fn named(name: &str) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.as_str() == name)
    }

    /// What stands in a redacted text instead; never found again.
    pub fn placeholder(self) -> &'static str {
        match self {
            Class::Email => "[EMAIL]",
            Class::Phone => "[PHONE]",
            Class::Card => "[CARD]",
            Class::Iban => "[IBAN]",
            Class::NationalId => "[NATIONAL_ID]",
            Class::IpAddress => "[IP_ADDRESS]",
            Class::UrlCredentials => "[URL_CREDENTIALS]",
            Class::Secret => "[SECRET]",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One place in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub class: Class,
    /// Which form of the class it has, such as `us_ssn` or `github`.
    pub kind: &'static str,
    /// Bytes of the text, from one character's start to another's.
    pub range: Range<usize>,
}

/// Everything that is found in a text, from left to right; no two findings overlap.
pub fn find(text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let marks = email::marks(text);
    let mut marks = marks.into_iter().peekable();
    let mut at = 0;
    while at < text.len() {
        while marks.next_if(|mark| mark.range.start < at).is_some() {}
        let mark = marks.peek();
        let next = match mark {
            Some(mark) if mark.range.start == at => marks.next(),
            // What reaches into an address that starts later is a part of neither.
            _ => at_place(text, at).filter(|f| mark.is_none_or(|mark| f.range.end <= mark.range.start)),
        };
        match next {
            Some(finding) => {
                at = finding.range.end;
                found.push(finding);
            }
            None => at = place::next(text, at),
        }
    }
    found
}

/// What starts at this byte, the surest form first.
fn at_place(text: &str, at: usize) -> Option<Finding> {
    let byte = text.as_bytes()[at];
    let of = |class, found: Option<(&'static str, usize)>| {
        found.map(|(kind, end)| Finding { class, kind, range: at..end })
    };
    let secret = || secrets::at(text, at).map(|(kind, range)| Finding { class: Class::Secret, kind, range });
    let address = || of(Class::IpAddress, ip::at(text, at));
    let phone = || of(Class::Phone, phone::at(text, at));
    let national = |sure| of(Class::NationalId, national::at(text, at, sure));
    match byte {
        b'0'..=b'9' => secret()
            .or_else(address)
            .or_else(|| national(Sure::Surely))
            .or_else(|| of(Class::Card, money::card(text, at)))
            .or_else(|| of(Class::Phone, phone::said_at(text, at)))
            .or_else(|| national(Sure::Perhaps))
            .or_else(phone),
        b'a'..=b'z' | b'A'..=b'Z' => secret()
            .or_else(address)
            .or_else(|| of(Class::Iban, money::iban(text, at)))
            .or_else(|| national(Sure::Surely)),
        b'+' | b'(' => phone(),
        b':' => address(),
        b'-' => secret(),
        _ => None,
    }
}

/// The text with a placeholder for each finding of these classes. Nothing of these classes is found in what it returns.
pub fn redact(text: &str, classes: &[Class]) -> String {
    let mut text = Cow::Borrowed(text);
    // What stood beside a finding may be found once that is gone; each pass leaves less, and the second is rare.
    for _ in 0..PASSES_MAX {
        let found = find(&text);
        let mut found = found.into_iter().filter(|finding| classes.contains(&finding.class)).peekable();
        if found.peek().is_none() {
            break;
        }
        let mut redacted = String::with_capacity(text.len());
        let mut from = 0;
        for finding in found {
            redacted.push_str(&text[from..finding.range.start]);
            redacted.push_str(finding.class.placeholder());
            from = finding.range.end;
        }
        redacted.push_str(&text[from..]);
        text = Cow::Owned(redacted);
    }
    text.into_owned()
}

/// Most times that a text is gone through to take findings out.
const PASSES_MAX: usize = 8;

/// The first finding of these classes in what a prompt says to a model: the turn's number and the finding. Tools that are
/// offered and called are read as their JSON.
pub fn find_in_prompt(prompt: &Prompt, classes: &[Class]) -> Option<(usize, Finding)> {
    let wanted = |text: &str| find(text).into_iter().find(|finding| classes.contains(&finding.class));
    prompt.messages.iter().enumerate().find_map(|(turn, message)| {
        texts(message).into_iter().find_map(|text| wanted(&text)).map(|finding| (turn, finding))
    })
}

/// A message with placeholders for what is found of these classes in anything that [`find_in_prompt`] reads.
pub fn redact_message(message: Message, classes: &[Class]) -> Message {
    let json = |mut values: Vec<Value>| {
        values.iter_mut().for_each(|value| redact_json(value, classes));
        values
    };
    Message {
        content: redact(&message.content, classes),
        reasoning_content: message.reasoning_content.map(|text| redact(&text, classes)),
        tools: json(message.tools),
        tool_calls: json(message.tool_calls),
        ..message
    }
}

/// Redacts the text within JSON; serde reads it no deeper than 128 levels.
fn redact_json(value: &mut Value, classes: &[Class]) {
    match value {
        Value::String(text) => *text = redact(text, classes),
        Value::Array(items) => items.iter_mut().for_each(|item| redact_json(item, classes)),
        Value::Object(fields) => fields.values_mut().for_each(|field| redact_json(field, classes)),
        _ => {}
    }
}

/// All text of a message that a model reads.
fn texts(message: &Message) -> Vec<Cow<'_, str>> {
    let mut texts = vec![Cow::Borrowed(message.content.as_str())];
    texts.extend(message.reasoning_content.as_deref().map(Cow::Borrowed));
    texts.extend(message.tools.iter().chain(&message.tool_calls).map(|json| Cow::Owned(json.to_string())));
    texts
}

#[cfg(test)]
mod tests;
