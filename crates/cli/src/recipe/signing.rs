//! `[release]`: what signs a release, a key's file or a command that keeps the key.

use serde::Serialize;

use super::raw::RawRelease;
use super::resolve::{Checker, first_given};
use super::wire::secret;
use crate::failure::Result;

/// Words of a command at most.
const WORDS_MAX: usize = 64;
const TIMEOUT_S: f64 = 60.0;

/// What signs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Signing {
    File {
        /// The private key's file.
        key: String,
        /// The environment variable with its passphrase, `${NAME}`.
        #[serde(skip_serializing_if = "Option::is_none")]
        key_passphrase: Option<String>,
    },
    Command {
        /// Reads what is to be signed, writes the signature.
        sign_command: Vec<String>,
        /// The public key's file.
        public_key: String,
        /// Seconds that one signature may take.
        sign_timeout_s: f64,
    },
}

pub(super) fn signing(at: &Checker<'_>, raw: &mut RawRelease) -> Result<Option<Signing>> {
    let place = |name: &'static str| ["release", name];
    secret(at, &place("key_passphrase"), raw.key_passphrase.as_deref(), "KEY_PASSPHRASE")?;
    let of_command = first_given([
        ("public_key", raw.public_key.is_some()),
        ("sign_timeout_s", raw.sign_timeout_s.is_some()),
    ]);
    let idle = match (raw.key.is_some(), raw.sign_command.is_some()) {
        (true, true) => {
            return Err(at
                .bad(&place("sign_command"), "the release has a key and a command to sign it")
                .fix("keep one of `key` and `sign_command`"));
        }
        (has_key, false) => {
            of_command.or((raw.key_passphrase.is_some() && !has_key).then_some("key_passphrase"))
        }
        (false, true) => raw.key_passphrase.is_some().then_some("key_passphrase"),
    };
    if let Some(name) = idle {
        let of = if name == "key_passphrase" { "key" } else { "sign_command" };
        return Err(at
            .bad(&place(name), format!("`release.{name}` says something of a `{of}` that is not there"))
            .fix(format!("remove it, or add `{of}`")));
    }
    if let Some(key) = at.path(&place("key"), raw.key.take())? {
        return Ok(Some(Signing::File { key, key_passphrase: raw.key_passphrase.take() }));
    }
    let Some(sign_command) = raw.sign_command.take() else { return Ok(None) };
    if sign_command.first().is_none_or(String::is_empty) {
        return Err(at
            .bad(&place("sign_command"), "`release.sign_command` has nothing to run")
            .fix("write `sign_command = [\"./sign\"]`"));
    }
    at.count(&place("sign_command"), sign_command.len(), 1..=WORDS_MAX)?;
    for word in &sign_command {
        at.no_environment(&place("sign_command"), word)?;
    }
    let public_key = at.path(&place("public_key"), raw.public_key.take())?;
    let public_key = at.need(&place("public_key"), public_key, "name the file of the key's public half")?;
    let sign_timeout_s = raw.sign_timeout_s.unwrap_or(TIMEOUT_S);
    let sign_timeout_s = at.number(&place("sign_timeout_s"), sign_timeout_s, 0.1..=3600.0)?;
    Ok(Some(Signing::Command { sign_command, public_key, sign_timeout_s }))
}

#[cfg(test)]
mod tests {
    use super::super::{ROWS, load, loaded};

    #[test]
    fn what_signs_reads_back_as_itself() {
        for (keys, shown) in [
            ("key = \"a.key\"", "key = \"a.key\"\n"),
            ("key = \"a.key\"\nkey_passphrase = \"${PASS}\"", "key_passphrase = \"${PASS}\""),
            ("sign_command = [\"./sign\", \"-x\"]\npublic_key = \"a.pub\"", "sign_timeout_s = 60.0"),
        ] {
            let text = loaded(&format!("{ROWS}[release]\n{keys}\n"), &[]).to_toml();
            assert!(text.contains(shown), "{text}");
        }
    }

    #[test]
    fn what_cannot_sign_is_refused() {
        for (keys, said) in [
            ("key = \"a\"\nsign_command = [\"b\"]\npublic_key = \"c\"", "a key and a command"),
            ("key = \"a\"\nkey_passphrase = \"hunter2\"", "a secret does not belong in a recipe"),
            ("key_passphrase = \"${PASS}\"", "`release.key_passphrase` says something of a `key`"),
            ("key = \"a\"\npublic_key = \"b\"", "`release.public_key` says something of a `sign_command`"),
            ("sign_timeout_s = 5", "`release.sign_timeout_s` says something of a `sign_command`"),
            ("sign_command = []\npublic_key = \"b\"", "nothing to run"),
            ("sign_command = [\"b\"]", "name the file of the key's public half"),
            ("sign_command = [\"b\", \"${X}\"]\npublic_key = \"b\"", "only secrets do"),
            ("sign_command = [\"b\"]\npublic_key = \"b\"\nsign_timeout_s = 0", "sign_timeout_s"),
            ("key = \"${KEY}\"", "only secrets do"),
        ] {
            let failure = load(&format!("{ROWS}[release]\n{keys}\n"), &[]).expect_err(keys).to_string();
            assert!(failure.contains(said), "{keys}: {failure}");
            assert!(!failure.contains("hunter2"), "{failure}");
        }
    }
}
