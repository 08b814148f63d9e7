//! Keys and envelopes, held against the examples of RFC 6979 and of DSSE, and against the openssl program where there is one.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64ct::{Base64, Encoding};
use stillroom_core::Digest;
use stillroom_governance::dsse::{
    ENVELOPE_BYTES_MAX, Envelope, IN_TOTO, SIGNATURES_MAX, TYPE_BYTES_MAX, pae,
};
use stillroom_governance::keys::{PublicKey, Signer, public_path};
use stillroom_governance::{EnvelopeFault, GovernanceError, KeyFault};

/// A key's file with the text given, for its owner only.
fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    path
}

/// The PKCS#8 PEM of a private scalar: nothing but the scalar varies.
fn pem_of_scalar(scalar: [u8; 32]) -> String {
    let head = [
        0x30, 0x41, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
        0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x27, 0x30, 0x25, 0x02, 0x01, 0x01, 0x04,
        0x20,
    ];
    let der: Vec<u8> = head.into_iter().chain(scalar).collect();
    let text = pem_rfc_7468(&der);
    format!("-----BEGIN PRIVATE KEY-----\n{text}-----END PRIVATE KEY-----\n")
}

fn pem_rfc_7468(der: &[u8]) -> String {
    let text = Base64::encode_string(der);
    text.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect()
}

fn hex<const N: usize>(text: &str) -> [u8; N] {
    let byte = |i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex");
    std::array::from_fn(byte)
}

/// DER of two integers below 2^256.
fn der(r: [u8; 32], s: [u8; 32]) -> Vec<u8> {
    let integer = |n: [u8; 32]| {
        let first = n.iter().position(|&b| b != 0).expect("not zero");
        let pad = usize::from(n[first] >= 0x80);
        let mut out = vec![0x02, (32 - first + pad) as u8];
        out.extend(std::iter::repeat_n(0, pad).chain(n[first..].iter().copied()));
        out
    };
    let body: Vec<u8> = integer(r).into_iter().chain(integer(s)).collect();
    [&[0x30, body.len() as u8][..], &body].concat()
}

/// RFC 6979, A.2.5: P-256, SHA-256.
#[test]
fn signatures_are_those_of_rfc_6979() {
    let dir = tempfile::tempdir().expect("a directory");
    let scalar = hex("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721");
    let signer = Signer::open(&file(dir.path(), "key", &pem_of_scalar(scalar)), None).expect("a key");
    let examples = [
        (
            "sample",
            "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716",
            "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8",
        ),
        (
            "test",
            "F1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367",
            "019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083",
        ),
    ];
    for (message, r, s) in examples {
        assert_eq!(signer.sign(message.as_bytes()).expect("signed"), der(hex(r), hex(s)), "{message}");
    }
}

/// The example of DSSE's protocol: its key, its payload, its signature.
#[test]
fn an_envelope_has_the_signature_of_the_example_of_dsse() {
    let dir = tempfile::tempdir().expect("a directory");
    // In decimal 97358161215184420915383655311931858321456579547487070936769975997791359926199.
    let scalar = hex("d73ec437fd6346e3619c5ebfdfff0f6916804955ad32ac9ac492b0ede1f6ffb7");
    let signer = Signer::open(&file(dir.path(), "key", &pem_of_scalar(scalar)), None).expect("a key");
    let kind = "http://example.com/HelloWorld";
    assert_eq!(pae(kind, b"hello world"), b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    // The example has r and s one after the other; here and in bundles they stand in DER.
    let raw = "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA==";
    let raw = Base64::decode_vec(raw).expect("base64");
    let (r, s) = raw.split_at(32);
    let sig = Base64::encode_string(&der(r.try_into().expect("r"), s.try_into().expect("s")));
    let envelope = Envelope::sign(kind, b"hello world", &signer).expect("signed");
    let json = serde_json::to_value(&envelope).expect("JSON");
    let keyid = signer.public_key().fingerprint();
    let expected = serde_json::json!({
        "payload": "aGVsbG8gd29ybGQ=", "payloadType": kind, "signatures": [{"keyid": keyid, "sig": sig}],
    });
    assert_eq!(json, expected);
    // As others may write it: no key's name, or null, spaces, and the alphabet of URLs.
    for keyid in ["", r#""keyid":null, "#, r#""keyid":"", "#] {
        let text = format!(
            r#"{{"payload": "aGVsbG8gd29ybGQ=", "payloadType": "{kind}", "signatures": [{{{keyid}"sig": "{}"}}]}}"#,
            sig.replace('+', "-").replace('/', "_")
        );
        let envelope = Envelope::from_bytes(text.as_bytes()).expect("an envelope");
        assert_eq!(envelope.verify(signer.public_key()).expect("by this key"), b"hello world");
    }
}

#[test]
fn an_envelope_that_was_changed_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = Signer::create(&dir.path().join("key"), None).expect("a key");
    let other = Signer::create(&dir.path().join("other"), None).expect("a key");
    let envelope = Envelope::sign(IN_TOTO, b"{}", &signer).expect("signed");
    let fault = |envelope: &Envelope, key: &PublicKey| match envelope.verify(key) {
        Err(GovernanceError::Envelope(fault)) => fault,
        other => panic!("{other:?}"),
    };
    let not_signed = |fault| matches!(fault, EnvelopeFault::NotSigned { .. });
    assert!(not_signed(fault(&envelope, other.public_key())));
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = serde_json::to_value(&envelope).expect("JSON");
        change(&mut json);
        Envelope::from_bytes(json.to_string().as_bytes()).expect("an envelope")
    };
    let key = signer.public_key();
    assert!(not_signed(fault(&changed(&|json| json["payload"] = "e30K".into()), key)));
    assert!(not_signed(fault(&changed(&|json| json["payloadType"] = "text/plain".into()), key)));
    assert!(not_signed(fault(&changed(&|json| json["signatures"][0]["sig"] = "e30K".into()), key)));
    let no_base64 = changed(&|json| json["payload"] = "e3 0=".into());
    assert_eq!(fault(&no_base64, key), EnvelopeFault::NoBase64 { field: "payload" });
    let none = changed(&|json| json["signatures"] = serde_json::json!([]));
    assert_eq!(fault(&none, key), EnvelopeFault::SignatureCount { count: 0, count_max: SIGNATURES_MAX });
    let many = changed(&|json| {
        let one = json["signatures"][0].clone();
        json["signatures"] = vec![one; SIGNATURES_MAX + 1].into();
    });
    assert!(matches!(fault(&many, key), EnvelopeFault::SignatureCount { .. }));
    // One of several is enough, wherever it stands.
    let second = changed(&|json| {
        let one = json["signatures"][0].clone();
        json["signatures"] = serde_json::json!([{"sig": "e30="}, one]);
    });
    assert_eq!(second.verify(key).expect("by this key"), b"{}");

    let refused = |bytes: &[u8]| match Envelope::from_bytes(bytes) {
        Err(GovernanceError::Envelope(fault)) => fault,
        other => panic!("{other:?}"),
    };
    for text in ["", "[]", "{}", r#"{"payload":"","payloadType":"","signatures":[],"more":1}"#] {
        assert!(matches!(refused(text.as_bytes()), EnvelopeFault::Malformed { .. }), "{text}");
    }
    let too_large = vec![b' '; ENVELOPE_BYTES_MAX + 1];
    assert!(matches!(refused(&too_large), EnvelopeFault::TooLarge { .. }));
    let long = "x".repeat(TYPE_BYTES_MAX + 1);
    assert!(Envelope::sign(&long, b"", &signer).is_err(), "what would be refused is not written");
}

#[test]
fn a_new_key_is_for_its_owner_and_overwrites_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("key");
    let signer = Signer::create(&path, None).expect("a key");
    let mode = path.metadata().expect("its file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let read = Signer::open(&path, None).expect("the same key");
    assert_eq!(read.public_key(), signer.public_key());
    let public = PublicKey::open(&public_path(&path)).expect("its public key");
    assert_eq!(&public, signer.public_key());
    assert!(public.verify(b"bytes", &read.sign(b"bytes").expect("signed")));
    assert!(!public.verify(b"other bytes", &read.sign(b"bytes").expect("signed")));

    let before = std::fs::read(&path).expect("its bytes");
    assert_eq!(fault(Signer::create(&path, None)), KeyFault::Exists);
    std::fs::remove_file(public_path(&path)).expect("removed");
    assert_eq!(fault(Signer::create(&path, None)), KeyFault::Exists);
    assert_eq!(std::fs::read(&path).expect("its bytes"), before);
    assert!(!public_path(&path).exists(), "nothing half done");
    std::fs::write(dir.path().join("third.pub"), "mine").expect("written");
    assert_eq!(fault(Signer::create(&dir.path().join("third"), None)), KeyFault::Exists);
    assert!(!dir.path().join("third").exists(), "no key without its public half");
}

fn fault<T: std::fmt::Debug>(result: stillroom_governance::Result<T>) -> KeyFault {
    match result {
        Err(GovernanceError::Key { cause, .. }) => cause,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("key");
    Signer::create(&path, None).expect("a key");
    for mode in [0o640, 0o604, 0o620, 0o601, 0o777] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("its mode");
        assert_eq!(fault(Signer::open(&path, None)), KeyFault::Exposed { mode });
    }
    let error = Signer::open(&path, None).expect_err("exposed");
    assert_eq!(error.fix(), Some(format!("`chmod 600 {}`", path.display())));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).expect("its mode");
    Signer::open(&path, None).expect("its owner may be unable to write it");
}

#[test]
fn a_passphrase_is_needed_where_one_was_given() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("key");
    let signer = Signer::create(&path, Some("a long passphrase")).expect("a key");
    assert_eq!(fault(Signer::open(&path, None)), KeyFault::NeedsPassphrase);
    assert_eq!(fault(Signer::open(&path, Some("another"))), KeyFault::WrongPassphrase);
    assert_eq!(fault(Signer::open(&path, Some(""))), KeyFault::WrongPassphrase);
    let read = Signer::open(&path, Some("a long passphrase")).expect("the same key");
    assert_eq!(read.public_key(), signer.public_key());
    let plain = dir.path().join("plain");
    Signer::create(&plain, None).expect("a key");
    assert_eq!(fault(Signer::open(&plain, Some("a long passphrase"))), KeyFault::NotEncrypted);
    assert_eq!(fault(Signer::create(&dir.path().join("empty"), Some(""))), KeyFault::EmptyPassphrase);
}

/// A key's file says how much work its passphrase is to be.
#[test]
fn the_work_of_a_passphrase_is_bounded() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("key");
    Signer::create(&path, Some("long")).expect("a key");
    let text = std::fs::read_to_string(&path).expect("its text");
    let lines: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    let sealed = Base64::decode_vec(&lines).expect("base64");
    // N = 16384, r = 8, p = 1.
    let costs = [0x02, 0x02, 0x40, 0x00, 0x02, 0x01, 0x08, 0x02, 0x01, 0x01];
    let at = sealed.windows(costs.len()).position(|window| window == costs).expect("scrypt's costs");
    for (offset, byte) in [(9, 0x7f), (6, 0x7f)] {
        let mut costly = sealed.clone();
        costly[at + 2] = 0x70;
        costly[at + offset] = byte;
        let text = format!(
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\n{}-----END ENCRYPTED PRIVATE KEY-----\n",
            pem_rfc_7468(&costly)
        );
        let refused = fault(Signer::open(&file(dir.path(), "costly", &text), Some("long")));
        assert_eq!(refused, KeyFault::Unusable { cause: "its passphrase asks for too much work".to_owned() });
    }
}

#[test]
fn what_is_no_key_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("key");
    Signer::create(&path, None).expect("a key");
    let text = std::fs::read_to_string(&path).expect("its text");
    let opened = |text: &str| fault(Signer::open(&file(dir.path(), "other", text), None));
    assert_eq!(opened(""), KeyFault::NoPem { wanted: "PRIVATE KEY" });
    assert!(matches!(opened(&text[..text.len() / 2]), KeyFault::Unusable { .. }));
    assert!(matches!(opened(&text.replacen("M", "\u{e9}", 1)), KeyFault::Unusable { .. }));
    assert_eq!(opened("-----BEGIN EC PRIVATE KEY-----\n"), KeyFault::Sec1);
    assert!(matches!(opened(&pem_of_scalar([0; 32])), KeyFault::Unusable { .. }), "zero is no key");
    assert!(matches!(opened(&pem_of_scalar([0xff; 32])), KeyFault::Unusable { .. }), "beyond the order");
    let public = std::fs::read_to_string(public_path(&path)).expect("its text");
    assert_eq!(opened(&public), KeyFault::PublicForPrivate);
    assert_eq!(PublicKey::from_pem(&text).expect_err("private"), KeyFault::PrivateForPublic);
    assert!(matches!(PublicKey::from_pem("ssh-ed25519 AAAA").expect_err("no PEM"), KeyFault::NoPem { .. }));
    let ed25519 = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                   -----END PUBLIC KEY-----\n";
    assert!(matches!(PublicKey::from_pem(ed25519).expect_err("no P-256"), KeyFault::Unusable { .. }));
    assert!(matches!(opened(&"x".repeat(70_000)), KeyFault::TooLarge { .. }));
    assert_eq!(fault(Signer::open(dir.path(), None)), KeyFault::NoFile);
    let absent = Signer::open(&dir.path().join("absent"), None);
    assert!(matches!(absent, Err(GovernanceError::Io { .. })));
}

/// What a program outside returns is a signature by its key, or an error.
#[test]
fn a_signature_from_outside_is_checked() {
    let dir = tempfile::tempdir().expect("a directory");
    let key = Signer::create(&dir.path().join("key"), None).expect("a key");
    let public = key.public_key().clone();
    let outside = Signer::external(public.clone(), Box::new(move |bytes| key.sign(bytes)));
    let envelope = Envelope::sign(IN_TOTO, b"{}", &outside).expect("signed");
    envelope.verify(&public).expect("by its key");
    let other = Signer::create(&dir.path().join("other"), None).expect("a key");
    let wrong = Signer::external(public.clone(), Box::new(move |bytes| other.sign(bytes)));
    assert!(matches!(wrong.sign(b""), Err(GovernanceError::ForeignSignature { .. })));
    let noise = Signer::external(public, Box::new(|_| Ok(b"Signed.\n".to_vec())));
    assert!(matches!(noise.sign(b""), Err(GovernanceError::ForeignSignature { bytes: 8 })));
}

/// The openssl program reads our keys and checks our signatures, and we its own.
#[test]
fn openssl_agrees() {
    if Command::new("openssl").arg("version").output().is_err() {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("no openssl program here: nothing was compared");
        }
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let openssl = |line: &str| {
        let done = Command::new("openssl")
            .args(line.split(' '))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("openssl runs");
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    };
    let ours = Signer::create(&dir.path().join("plain"), None).expect("a key");
    let sealed = Signer::create(&dir.path().join("sealed"), Some("long")).expect("a key");
    let public =
        |bytes: Vec<u8>| PublicKey::from_pem(&String::from_utf8(bytes).expect("text")).expect("a key");
    assert_eq!(&public(openssl("pkey -in plain -pubout")), ours.public_key());
    assert_eq!(&public(openssl("pkey -in sealed -passin pass:long -pubout")), sealed.public_key());
    assert_eq!(openssl("pkey -in plain -pubout"), ours.public_key().to_pem().as_bytes());

    std::fs::write(dir.path().join("message"), "a message").expect("written");
    std::fs::write(dir.path().join("signature"), ours.sign(b"a message").expect("signed")).expect("written");
    openssl("dgst -sha256 -verify plain.pub -signature signature message");

    openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out theirs");
    openssl("pkcs8 -topk8 -in theirs -passout pass:long -v2 aes-256-cbc -iter 10000 -out theirs_pbkdf2");
    openssl("pkcs8 -topk8 -in theirs -passout pass:long -scrypt -out theirs_scrypt");
    let theirs = Signer::open(&dir.path().join("theirs"), None).expect("their key");
    for name in ["theirs_pbkdf2", "theirs_scrypt"] {
        let sealed = Signer::open(&dir.path().join(name), Some("long")).expect("their sealed key");
        assert_eq!(sealed.public_key(), theirs.public_key(), "{name}");
    }
    let signature = openssl("dgst -sha256 -sign theirs message");
    assert!(theirs.public_key().verify(b"a message", &signature));
    openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out larger");
    assert!(matches!(fault(Signer::open(&dir.path().join("larger"), None)), KeyFault::Unusable { .. }));
    let pem = openssl("pkey -in larger -pubout");
    let larger = public(pem.clone());
    assert_eq!(larger.to_pem().as_bytes(), pem);
    let der = openssl("pkey -in larger -pubout -outform DER");
    assert_eq!(larger.fingerprint(), Digest::of(&der).to_string());
    let signature = openssl("dgst -sha384 -sign larger message");
    assert!(larger.verify(b"a message", &signature) && !larger.verify(b"another", &signature));
    assert!(!larger.verify(b"a message", &openssl("dgst -sha256 -sign larger message")));
}
