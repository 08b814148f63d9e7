use std::time::{Duration, Instant};

use proptest::prelude::*;
use stillroom_core::Role;

use super::*;

fn found(text: &str) -> Vec<(&'static str, &str)> {
    find(text).into_iter().map(|f| (f.class.as_str(), &text[f.range])).collect()
}

/// The kind of the only finding, which is the whole of `value`, between other words.
fn kind_of(value: &str) -> Option<&'static str> {
    let text = format!("Here: {value}, and more.");
    let findings = find(&text);
    let whole = findings.len() == 1 && &text[findings[0].range.clone()] == value;
    whole.then(|| findings[0].kind)
}

#[test]
fn each_class_is_found_where_it_stands() {
    let text = "Mail me@example.com or <j.o'neil+x@mail.example.co.uk>, call (212) 555-0123 x42, pay 4111 1111 1111 1111 or \
                GB82 WEST 1234 5698 7654 32; SSN 536-22-8726, from 2001:db8::7:1 or 203.0.113.9, \
                postgres://root:hunter2@db/x.";
    let expected = [
        ("email", "me@example.com"),
        ("email", "neil+x@mail.example.co.uk"),
        ("phone", "(212) 555-0123 x42"),
        ("card", "4111 1111 1111 1111"),
        ("iban", "GB82 WEST 1234 5698 7654 32"),
        ("national_id", "536-22-8726"),
        ("ip_address", "2001:db8::7:1"),
        ("ip_address", "203.0.113.9"),
        ("url_credentials", "root:hunter2"),
    ];
    assert_eq!(found(text), expected);
    let redacted = redact(text, &[Class::Email, Class::UrlCredentials]);
    assert!(
        redacted.contains("<j.o'[EMAIL]>") && redacted.contains("postgres://[URL_CREDENTIALS]@db/x"),
        "{redacted}"
    );
    assert!(redacted.contains("4111 1111 1111 1111"), "only the classes asked for: {redacted}");
}

#[test]
fn line_ends_written_out_belong_to_no_finding() {
    let text = r#"{"text": "E-mail:\nann@example.com\nPhone:\n+41 44 668 18 00\n"}"#;
    assert_eq!(found(text), [("email", "ann@example.com"), ("phone", "+41 44 668 18 00")]);
}

#[test]
fn national_numbers_are_known_by_their_rules() {
    // Specimens that the authorities or their documentation publish, or worked out by hand from the rule.
    let known = [
        ("AB123456C", "uk_nino"),
        ("12345678Z", "es_dni"),
        ("X1234567L", "es_nie"),
        ("RSSMRA85T10A562S", "it_codice_fiscale"),
        ("65 170839 J 003", "de_rentenversicherung"),
        ("44051401359", "pl_pesel"),
        ("756.9217.0769.85", "ch_ahv"),
        ("811218-9876", "se_personnummer"),
        ("131052-308T", "fi_hetu"),
        ("85.07.30-033.28", "be_rijksregister"),
        ("11010519491231002X", "cn_resident"),
        ("529.982.247-25", "br_cpf"),
        ("1 90 01 75 123 456 55", "fr_nir"),
        ("2341 2341 2346", "in_aadhaar"),
    ];
    for (number, kind) in known {
        assert_eq!(kind_of(number), Some(kind), "{number}");
        // Another last digit breaks the rule, where there is one to break.
        let last = number.chars().last().expect("a number");
        let wrong = if last.is_ascii_digit() { (b'0' + (last as u8 - b'0' + 1) % 10) as char } else { 'Q' };
        let broken = format!("{}{wrong}", &number[..number.len() - 1]);
        assert!(kind_of(&broken).is_none_or(|other| other != kind), "{broken}");
    }
    let said = [
        ("tax ID 86 095 742 719", "de_steuer_id"),
        ("my BSN is 111222333", "nl_bsn"),
        ("NHS number 943 476 5919", "uk_nhs"),
        ("my SIN: 193 456 787", "ca_sin"),
        ("TFN 123 456 782", "au_tfn"),
        ("identity number 8001015009087", "za_id"),
        ("ЕГН 7523169263", "bg_egn"),
        ("PPS 1234567T", "ie_pps"),
        ("NIF 123456789", "pt_nif"),
        ("TC kimlik 10000000146", "tr_kimlik"),
        ("OIB 94577403194", "hr_oib"),
    ];
    for (text, kind) in said {
        let findings = find(text);
        assert_eq!(findings.first().map(|f| f.kind), Some(kind), "{text}");
        let number = &text[findings[0].range.clone()];
        let alone = find(number).iter().any(|f| f.kind == kind);
        assert!(!alone || kind == "za_id", "{number} says nothing by itself");
    }
}

#[test]
fn keys_and_tokens_are_known_by_their_prefixes() {
    // Put together here, so that nobody who looks for keys in this file finds one.
    let mixed = |n: usize| "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY".chars().cycle().take(n).collect::<String>();
    let hex = |n: usize| "0123456789abcdef".chars().cycle().take(n).collect::<String>();
    let capitals = |n: usize| mixed(n).to_uppercase();
    let tokens = [
        ("openai", format!("sk-proj-{}", mixed(64))),
        ("openai", format!("sk-{}", mixed(48))),
        ("anthropic", format!("sk-ant-api03-{}-{}AA", mixed(40), mixed(40))),
        ("aws", format!("AKIA{}", capitals(16))),
        ("github", format!("ghp_{}", mixed(36))),
        ("github", format!("github_pat_{}_{}", mixed(22), mixed(59))),
        ("gitlab", format!("glpat-{}", mixed(20))),
        ("slack", format!("xoxb-{}-{}-{}", "123456789012", "123456789012", mixed(24))),
        ("google", format!("AIza{}", mixed(35))),
        ("stripe", format!("sk_live_{}", mixed(24))),
        ("twilio", format!("SK{}", hex(32))),
        ("sendgrid", format!("SG.{}.{}", mixed(22), mixed(43))),
        ("hugging_face", format!("hf_{}", mixed(34))),
        ("npm", format!("npm_{}", mixed(36))),
        ("telegram", format!("110201543:{}", mixed(35))),
        ("jwt", format!("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.{}", mixed(43))),
    ];
    for (kind, token) in tokens {
        assert_eq!(kind_of(&token), Some(kind), "{token}");
    }
    let key = format!(
        "-----BEGIN RSA PRIVATE KEY-----\n{}\n{}\n-----END RSA PRIVATE KEY-----",
        mixed(64),
        mixed(20)
    );
    assert_eq!(kind_of(&key), Some("private_key"));
    let cut = format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{}", mixed(64));
    assert_eq!(found(&cut), [("secret", cut.as_str())]);
    for text in [
        format!("api_key = \"{}\"", mixed(24)),
        "DB_PASSWORD=correct7horse!".to_owned(),
        "{\"client_secret\": \"a1b2c3d4e5f6\"}".to_owned(),
        format!("Authorization: Bearer {}", mixed(30)),
    ] {
        assert_eq!(found(&text).first().map(|f| f.0), Some("secret"), "{text}");
        assert!(redact(&text, &[Class::Secret]).contains("[SECRET]"));
    }
}

#[test]
fn what_only_looks_like_it_is_left_alone() {
    let harmless = [
        "Pi is 3.14159265358979 and e is 2.718281828459045",
        "12:30:45 on 2024-01-31, or 31.01.2024 10:15",
        "1,234,567,890 people; 4 111 111 111 stars; 600 123 456 euros",
        "std::vec::Vec, a::b, 127.0.0.1, ::1, 0.0.0.0, version 1.2.3.4, v1.2.3.4",
        "550e8400-e29b-41d4-a716-446655440000",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "ISBN 978-3-16-148410-0, order 4111111111111112, 123456789, 1700000000",
        "@property and icon@2x.png, a@b, x @ y, git clone https://github.com/x/y",
        "https://user:$PASSWORD@host, https://user@host, http://host:8080/@x",
        "sk-learn-is-a-library-for-python, task-force, ask-me-anything-you-want-to-know",
        "password: see the manual, token = next_token(), secret: \"\"",
        "x^2 + 12345678 = 0; f(12) = 345; [1, 2, 3]; 10 20 30 40 50 60",
        "-----BEGIN PUBLIC KEY-----",
        "The answer is 5551234567.",
    ];
    for text in harmless {
        assert_eq!(found(text), [], "{text}");
    }
}

#[test]
fn all_that_a_model_reads_is_looked_at() {
    let mut prompt = Prompt {
        id: "1".into(),
        messages: vec![
            Message::new(Role::System, "Be kind."),
            Message::new(Role::User, "Write to me@example.com."),
        ],
        answer: None,
        target: None,
    };
    let (turn, finding) = find_in_prompt(&prompt, &Class::ALL).expect("an address");
    assert_eq!((turn, finding.class), (1, Class::Email));
    assert_eq!(find_in_prompt(&prompt, &[Class::Phone]), None);
    let redacted = redact_message(prompt.messages[1].clone(), &[Class::Email]);
    assert_eq!(redacted.content, "Write to [EMAIL].");
    prompt.messages[0].tools = vec![serde_json::json!({"function": {"description": "calls +49 30 901820"}})];
    assert_eq!(
        find_in_prompt(&prompt, &[Class::Phone]).map(|(turn, f)| (turn, f.class)),
        Some((0, Class::Phone))
    );
    let redacted = redact_message(prompt.messages[0].clone(), &Class::ALL);
    assert_eq!(redacted.tools[0]["function"]["description"], "calls [PHONE]");
}

#[test]
fn time_grows_with_the_text_alone() {
    let parts = [
        "a",
        "1",
        "@",
        "a@",
        "1 ",
        "1-",
        "+1",
        "(1)",
        "://",
        "://a:b",
        "eyJ",
        "eyJa.",
        "sk-",
        ":",
        "1:",
        "0.",
        "0 1 ",
        "-----BEGIN PRIVATE KEY-----",
        "password=",
        "key: ",
        "AB12 ",
        "[A",
        "\u{e9}@",
        "call 12 ",
        "\\n",
    ];
    for part in parts {
        let text = part.repeat((1 << 20) / part.len());
        let start = Instant::now();
        std::hint::black_box(find(&text));
        // A mebibyte takes well under a second; anything quadratic would take minutes.
        assert!(start.elapsed() < Duration::from_secs(10), "{part}: {:?}", start.elapsed());
    }
}

proptest! {
    #[test]
    fn what_is_redacted_is_not_found_again(
        text in "[ -~äß电话\n]{0,60}",
        parts in prop::collection::vec("(me@a\\.de|4111111111111111|\\+4930901820|call 5551234567|1\\.2\\.3\\.4|https://a:b@c\\.de|536-22-8726|[0-9]{1,4}|[-+@:/. ()]|\\[PHONE\\]|[a-z]{1,3}|\\\\n)", 0..12),
    ) {
        let text = format!("{text}{}", parts.concat());
        let findings = find(&text);
        prop_assert!(findings.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
        prop_assert!(findings.iter().all(|f| text.get(f.range.clone()).is_some_and(|t| !t.is_empty())));
        let redacted = redact(&text, &Class::ALL);
        prop_assert_eq!(found(&redacted), [], "{}", redacted);
        prop_assert_eq!(redact(&redacted, &Class::ALL), redacted);
    }
}
