//! When a server wants to be asked again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest wait that a server may ask for and be believed.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The wait that `Retry-After` (seconds, or a date as HTTP writes it) or `retry-after-ms` asks for.
pub(crate) fn wait<'a>(header: impl Fn(&str) -> Option<&'a str>, now: SystemTime) -> Option<Duration> {
    let millis = header("retry-after-ms").and_then(|text| seconds(text).map(|s| s / 1000.0));
    let asked = header("retry-after").and_then(|text| seconds(text).or_else(|| until(text, now)));
    // Where both stand, the longer one is safe.
    let wait = millis
        .into_iter()
        .chain(asked)
        .fold(None, |most: Option<f64>, s| Some(most.map_or(s, |m| m.max(s))))?;
    Some(Duration::from_secs_f64(wait.min(WAIT_MAX.as_secs_f64())))
}

fn seconds(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|s: &f64| s.is_finite() && *s >= 0.0)
}

/// Seconds from now to a date such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7); 0 for the past.
fn until(text: &str, now: SystemTime) -> Option<f64> {
    let mut words = text.trim().split([' ', ':']);
    let mut next = || words.next();
    let _weekday = next()?;
    let day: i64 = next()?.parse().ok().filter(|d| (1..=31).contains(d))?;
    let month = next()?;
    let month = MONTHS.iter().position(|&m| m == month)? as i64 + 1;
    let year: i64 = next()?.parse().ok().filter(|y| (1970..=9999).contains(y))?;
    let mut clock = [0i64; 3];
    for (part, below) in clock.iter_mut().zip([24, 60, 61]) {
        *part = next()?.parse().ok().filter(|n| (0..below).contains(n))?;
    }
    (next() == Some("GMT")).then_some(())?;
    let at = days_from_civil(year, month, day) * 86_400 + clock[0] * 3600 + clock[1] * 60 + clock[2];
    let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
    Some((at as f64 - now).max(0.0))
}

/// Days since 1970-01-01 in the Gregorian calendar, by Howard Hinnant's method.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&str, &str)]) -> Option<Duration> {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        wait(|name| headers.iter().find(|(n, _)| *n == name).map(|(_, value)| *value), now)
    }

    #[test]
    fn every_way_to_ask_is_understood() {
        assert_eq!(of(&[("retry-after", "7")]), Some(Duration::from_secs(7)));
        assert_eq!(of(&[("retry-after", " 0.5 ")]), Some(Duration::from_millis(500)));
        assert_eq!(of(&[("retry-after-ms", "250")]), Some(Duration::from_millis(250)));
        assert_eq!(of(&[("retry-after-ms", "250"), ("retry-after", "1")]), Some(Duration::from_secs(1)));
        // The date of RFC 9110 is 784,111,777 seconds after 1970.
        assert_eq!(of(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")]), Some(Duration::from_secs(7)));
        assert_eq!(of(&[("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT")]), Some(Duration::ZERO));
        assert_eq!(of(&[("retry-after", "Thu, 29 Feb 2024 00:00:00 GMT")]), Some(WAIT_MAX));
        for bad in
            ["", "soon", "-1", "nan", "inf", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, 99 Nov 1994 08:49:37 GMT"]
        {
            assert_eq!(of(&[("retry-after", bad)]), None, "{bad}");
        }
        assert_eq!(of(&[("retry-after", "1e300")]), Some(WAIT_MAX));
    }
}
