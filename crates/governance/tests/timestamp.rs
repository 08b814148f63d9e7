//! Timestamps that the openssl program made, with what rfc3161-client says of each: `oracles/timestamps.py` writes both.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::Value;
use stillroom_governance::TimestampFault;
use stillroom_governance::timestamp::{Query, Stamp, Token, Trusted};

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/timestamps").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn trusted(name: &str) -> Trusted {
    Trusted::from_pem(&golden(name)).expect("certificates")
}

fn stamped() -> Vec<u8> {
    golden("stamped")
}

fn expected() -> Vec<(String, Value)> {
    let text = golden("expected.json");
    let expected: serde_json::Map<String, Value> = serde_json::from_slice(&text).expect("JSON");
    expected.into_iter().collect()
}

fn check(response: &[u8], bytes: &[u8], trusted: Option<&Trusted>) -> Result<Stamp, TimestampFault> {
    Token::from_response(response)?.check(bytes, trusted)
}

#[test]
fn tokens_by_others_are_accepted_under_their_root_and_nowhere_else() {
    let (root, other) = (trusted("root.pem"), trusted("other.pem"));
    let good: Vec<_> = expected().into_iter().filter(|(name, _)| name.starts_with("good-")).collect();
    assert!(good.len() >= 7);
    for (name, says) in good {
        let response = golden(&format!("{name}.tsr"));
        let stamp = check(&response, &stamped(), Some(&root)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(says["openssl_accepts"], true, "{name}");
        // The client cannot read a signer that is named by its key.
        if name != "good-by-key-id" {
            assert_eq!(says["accepts"], true, "{name}");
            let time = says["unix_s"].as_u64().unwrap() * 1_000_000 + says["micros"].as_u64().unwrap();
            assert_eq!((time, &says["accuracy_us"]), (stamp.unix_us, &stamp.accuracy_us.into()), "{name}");
        }
        assert!(stamp.signer.ends_with(" service"), "{}", stamp.signer);
        assert_eq!(check(&response, &stamped(), None).as_ref(), Ok(&stamp), "{name}");
        let refused = check(&response, &stamped(), Some(&other)).unwrap_err();
        assert!(matches!(refused, TimestampFault::Untrusted { .. }), "{name}: {refused}");
        assert_eq!(
            check(&response, b"other bytes", Some(&root)),
            Err(TimestampFault::WrongImprint),
            "{name}"
        );
        let token = Token::from_response(&response).unwrap();
        let again = Token::from_response(&token.to_response()).unwrap();
        assert_eq!(again, token);
        let text = serde_json::to_string(&token).unwrap();
        assert_eq!(serde_json::from_str::<Token>(&text).unwrap(), token);
    }
}

#[test]
fn the_certificate_of_the_service_itself_can_be_trusted() {
    let service = trusted("p256.pem");
    assert!(check(&golden("good-p256-sha256.tsr"), &stamped(), Some(&service)).is_ok());
    assert!(check(&golden("good-rsa-sha256.tsr"), &stamped(), Some(&service)).is_err());
    // It vouches for itself, not for others that it signed.
    let below = check(&golden("bad-by-no-authority.tsr"), &stamped(), Some(&service));
    assert!(matches!(below, Err(TimestampFault::Untrusted { .. })), "{below:?}");
}

#[test]
fn what_nobody_should_accept_is_refused_for_what_is_wrong_with_it() {
    let root = trusted("root.pem");
    let says = [
        ("bad-by-key-id", "a signer that is named by its key is not known here"),
        ("bad-by-no-authority", "does not lead to the certificate that is trusted"),
        ("bad-content-type", "the content type 1.2.840.113549.1.7.1 is not known here"),
        ("bad-expired", "it was not valid at that time"),
        ("bad-garbage", "malformed DER"),
        ("bad-more-usages", "it is not for timestamps alone"),
        ("bad-no-binding", "not signed with the certificate in it"),
        ("bad-no-certificate", "the certificate of its signer is not in it"),
        ("bad-no-usage", "it is not for timestamps"),
        ("bad-not-critical", "is not marked as critical"),
        ("bad-not-yet", "it was not valid at that time"),
        ("bad-other-usage", "it is not for timestamps alone"),
        ("bad-self-signed", "does not lead to the certificate that is trusted"),
        ("bad-small-key", "not signed by the certificate in it"),
        ("refused", "the time was not granted"),
    ];
    let bad: Vec<_> = expected().into_iter().filter(|(name, _)| !name.starts_with("good-")).collect();
    assert_eq!(bad.len(), says.len());
    for ((name, _), (known, says)) in bad.iter().zip(says) {
        assert_eq!(name, known);
        let refused = check(&golden(&format!("{name}.tsr")), &stamped(), Some(&root)).expect_err(name);
        assert!(refused.to_string().contains(says), "{name}: {refused}");
    }
}

#[test]
fn a_query_is_what_openssl_asks_and_its_answer_repeats_its_number() {
    let asked = golden("query.tsq");
    let nonce = |query: &[u8]| -> [u8; 8] { query[query.len() - 11..query.len() - 3].try_into().unwrap() };
    let query = Query::new(&stamped(), nonce(&asked));
    assert_eq!(query.to_der(), asked);
    let answer = golden("good-p256-sha256.tsr");
    let root = trusted("root.pem");
    let (token, stamp) = query.answered(&answer, &stamped(), Some(&root)).unwrap();
    assert_eq!(token.check(&stamped(), Some(&root)), Ok(stamp));
    let other = Query::new(&stamped(), [0x42; 8]);
    assert_eq!(other.answered(&answer, &stamped(), Some(&root)), Err(TimestampFault::WrongNonce));
    let negative = Query::new(&stamped(), [0xff; 8]).to_der();
    assert_eq!(nonce(&negative)[0], 0x7f);
    assert_eq!(nonce(&Query::new(&stamped(), [0; 8]).to_der())[0], 0x40);
}

/// Where `needle` lies.
fn range_of(haystack: &[u8], needle: &[u8]) -> std::ops::Range<usize> {
    let at = haystack.windows(needle.len()).position(|window| window == needle).expect("it is in it");
    at..at + needle.len()
}

fn der_of(pem: &str) -> Vec<u8> {
    use base64ct::{Base64, Encoding};
    let text = String::from_utf8(golden(pem)).unwrap();
    let body: String = text.lines().filter(|line| !line.starts_with("---")).collect();
    Base64::decode_vec(&body).unwrap()
}

#[test]
fn no_byte_of_a_token_can_be_changed_but_those_of_a_certificate_that_nobody_needs() {
    let root = trusted("root.pem");
    let mut idle = 0;
    for name in ["good-rsa-sha256", "good-rsa-sha1-binding", "good-p256-sha256", "good-p384-chain"] {
        let response = golden(&format!("{name}.tsr"));
        let token = Token::from_response(&response).unwrap();
        let der = token.as_der();
        let stamp = token.check(&stamped(), Some(&root)).unwrap();
        // The root is in one of them, and is taken from the reader's own file.
        let needless = if name == "good-p384-chain" { range_of(der, &der_of("root.pem")) } else { 0..0 };
        for at in 0..der.len() {
            for with in [0x01, 0x80, 0xff] {
                let mut changed = der.to_vec();
                changed[at] ^= with;
                let found = Token::from_der(&changed).and_then(|token| token.check(&stamped(), Some(&root)));
                if let Ok(found) = found {
                    assert!(needless.contains(&at), "{name}: byte {at}");
                    assert_eq!(found, stamp);
                    idle += 1;
                }
            }
        }
        assert!(!needless.contains(&0));
        for length in 0..der.len() {
            assert!(Token::from_der(&der[..length]).is_err(), "{name}: {length} bytes");
        }
        let mut longer = der.to_vec();
        longer.push(0);
        assert!(Token::from_der(&longer).is_err());
    }
    assert!(idle > 0, "the needless certificate is not looked at");
}

#[test]
fn what_is_too_large_or_no_certificate_is_refused() {
    let large = Token::from_der(&vec![0x30; 1 << 20]);
    assert!(matches!(large, Err(TimestampFault::TooLarge { .. })));
    assert!(matches!(Token::from_response(&vec![0x30; 1 << 20]), Err(TimestampFault::TooLarge { .. })));
    for pem in [&b""[..], b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", b"\x00\x01"] {
        assert!(matches!(Trusted::from_pem(pem), Err(TimestampFault::NoPem)));
    }
    assert!(Trusted::from_pem(b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n").is_err());
    assert!(Trusted::from_pem(&golden("root.pem").repeat(17)).is_err());
    assert!(Trusted::from_pem(&[golden("other.pem"), golden("root.pem")].concat()).is_ok());
}

#[test]
fn times_are_in_order_unless_their_accuracies_cannot_tell() {
    let at = |unix_us, accuracy_us| Stamp {
        unix_us,
        accuracy_us,
        signer: String::new(),
        certificate: stillroom_core::Digest::of(b""),
    };
    assert!(at(10, 0).is_before(&at(11, 0)) && !at(11, 0).is_before(&at(10, 0)));
    assert!(!at(10, 0).is_before(&at(10, 0)) && !at(10, 1).is_before(&at(12, 1)));
    assert!(at(10, 1).is_before(&at(13, 1)));
    assert!(!at(u64::MAX, u64::MAX).is_before(&at(0, u64::MAX)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Token::from_der(&bytes).is_err());
        prop_assert!(Token::from_response(&bytes).is_err());
    }

    #[test]
    fn changed_tokens_never_panic(changes in proptest::collection::vec((0usize..2000, any::<u8>()), 1..8)) {
        let mut bytes = golden("good-p384-chain.tsr");
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(token) = Token::from_response(&bytes) {
            let root = trusted("root.pem");
            drop(token.check(&stamped(), Some(&root)));
        }
    }
}
