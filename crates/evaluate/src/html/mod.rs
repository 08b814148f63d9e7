//! `report.html`: one file, no script, no request to anywhere, charts drawn here.

mod charts;
mod curves;
mod markup;
mod own_text;
mod sections;

use std::fmt::Write as _;

use stillroom_core::Digest;

use crate::report::Report;
use markup::Markup;

const STYLE: &str = include_str!("style.css");

impl Report {
    /// The report as a self-contained page.
    ///
    /// Its content security policy allows its own style sheet, by digest, and nothing else.
    pub fn to_html(&self) -> String {
        let mut page = Markup::default();
        page.literal("<!doctype html>\n");
        page.nest("html", &[("lang", &"en")], |page| {
            page.nest("head", &[], |head| {
                let policy = content_security_policy();
                head.literal("<meta charset=\"utf-8\">\n");
                head.open_meta("http-equiv", "Content-Security-Policy", &policy);
                head.open_meta("name", "viewport", "width=device-width, initial-scale=1");
                head.open_meta("name", "color-scheme", "light dark");
                head.open_meta("name", "referrer", "no-referrer");
                head.element("title", &[], format_args!("{} · Stillroom report", self.recipe));
                head.nest("style", &[], |style| {
                    style.literal(STYLE);
                });
            });
            page.nest("body", &[], |body| sections::body(body, self));
        });
        page.into_string()
    }
}

impl Markup {
    fn open_meta(&mut self, kind: &'static str, name: &'static str, content: &str) {
        self.empty("meta", &[(kind, &name), ("content", &content)]).literal("\n");
    }
}

fn content_security_policy() -> String {
    let digest = base64(Digest::of(STYLE.as_bytes()).as_bytes());
    format!("default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'")
}

/// Base 64 with padding (RFC 4648 §4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let symbol = ALPHABET[(bits >> (18 - 6 * i) & 63) as usize] as char;
            let _ = out.write_char(if i <= chunk.len() { symbol } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_has_the_examples_of_its_rfc() {
        let shown = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(shown, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }
}
