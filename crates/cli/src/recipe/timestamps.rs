//! `[release]`: who is asked for the time of the log's heads and of the release's signature.

use serde::Serialize;
use stillroom_net::Address;

use super::raw::RawRelease;
use super::resolve::{Checker, first_given};
use crate::failure::Result;

const TIMEOUT_S: f64 = 10.0;

/// A timestamp service (RFC 3161).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Timestamps {
    pub(crate) timestamp_url: String,
    /// The file with its certificate, or with that of the authority above it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timestamp_certificate: Option<String>,
    /// Whether a run stops where there is no time.
    pub(crate) timestamp_required: bool,
    /// Seconds that one answer may take.
    pub(crate) timestamp_timeout_s: f64,
}

pub(super) fn timestamps(at: &Checker<'_>, raw: &mut RawRelease) -> Result<Option<Timestamps>> {
    let place = |name: &'static str| ["release", name];
    let certificate = at.path(&place("timestamp_certificate"), raw.timestamp_certificate.take())?;
    let idle = first_given([
        ("timestamp_certificate", certificate.is_some()),
        ("timestamp_required", raw.timestamp_required.is_some()),
        ("timestamp_timeout_s", raw.timestamp_timeout_s.is_some()),
    ]);
    let Some(timestamp_url) = raw.timestamp_url.take() else {
        return match idle {
            None => Ok(None),
            Some(name) => Err(at
                .bad(
                    &place(name),
                    format!("`release.{name}` says something of a timestamp service that is not there"),
                )
                .fix("remove it, or add `timestamp_url`")),
        };
    };
    at.no_environment(&place("timestamp_url"), &timestamp_url)?;
    if let Err(error) = Address::parse_open(&timestamp_url) {
        return Err(at
            .bad(&place("timestamp_url"), error.to_string())
            .fix("write the address as its service gives it, for example `https://HOST/tsr`"));
    }
    let timeout_s = raw.timestamp_timeout_s.unwrap_or(TIMEOUT_S);
    Ok(Some(Timestamps {
        timestamp_url,
        timestamp_certificate: certificate,
        timestamp_required: raw.timestamp_required.unwrap_or(false),
        timestamp_timeout_s: at.number(&place("timestamp_timeout_s"), timeout_s, 0.1..=600.0)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::{ROWS, load, loaded};

    #[test]
    fn a_service_reads_back_as_itself() {
        let keys = "timestamp_url = \"http://tsa.example/tsr\"\ntimestamp_certificate = \"tsa.pem\"";
        let text = loaded(&format!("{ROWS}[release]\n{keys}\n"), &[]).to_toml();
        for line in keys.lines().chain(["timestamp_timeout_s = 10.0", "timestamp_required = false"]) {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!loaded(ROWS, &[]).to_toml().contains("timestamp"));
    }

    #[test]
    fn what_is_no_service_is_refused() {
        for (keys, said) in [
            ("timestamp_certificate = \"a.pem\"", "`release.timestamp_certificate` says something"),
            ("timestamp_required = true", "`release.timestamp_required` says something"),
            ("timestamp_url = \"ftp://a\"", "not an address to ask"),
            ("timestamp_url = \"https://me:secret@a/\"", "no user name or password"),
            ("timestamp_url = \"https://a/${KEY}\"", "only secrets do"),
            ("timestamp_url = \"https://a/\"\ntimestamp_timeout_s = 0", "timestamp_timeout_s"),
        ] {
            let failure = load(&format!("{ROWS}[release]\n{keys}\n"), &[]).expect_err(keys).to_string();
            assert!(failure.contains(said), "{keys}: {failure}");
        }
    }
}
