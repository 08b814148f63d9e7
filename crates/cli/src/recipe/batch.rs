//! Keys of `[teacher]` for one that is asked by the file: sizes of files, what a batch saves, and how long is waited.

use serde::Serialize;

use super::TeacherKind;
use super::raw::RawTeacher;
use super::resolve::{Checker, first_given};
use crate::failure::Result;

/// What OpenAI takes in one file.
const REQUESTS_PER_FILE: usize = 50_000;
const BYTES_PER_FILE: usize = 200_000_000;
/// A job takes minutes at least.
const POLL_S: f64 = 60.0;
const SECONDS: std::ops::RangeInclusive<f64> = 0.01..=86_400.0;

/// How files are made, and what is done with them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Batch {
    pub(crate) max_requests_per_file: usize,
    pub(crate) max_bytes_per_file: usize,
    /// Share of `price` that a batch saves.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) batch_discount: f64,
    /// Between two looks at jobs.
    pub(crate) poll_s: f64,
    /// After which jobs are left to themselves; they are waited for without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) wait_s: Option<f64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over like this")]
fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

/// What the keys say, for a teacher that is asked by the file; others have none of them.
pub(super) fn batch(at: &Checker<'_>, kind: TeacherKind, raw: &RawTeacher) -> Result<Option<Batch>> {
    let key = |name: &'static str| ["teacher", name];
    if kind != TeacherKind::Batch {
        let given = [
            ("max_requests_per_file", raw.max_requests_per_file.is_some()),
            ("max_bytes_per_file", raw.max_bytes_per_file.is_some()),
            ("batch_discount", raw.batch_discount.is_some()),
            ("poll_s", raw.poll_s.is_some()),
            ("wait_s", raw.wait_s.is_some()),
        ];
        return match first_given(given) {
            None => Ok(None),
            Some(name) => Err(at
                .bad(&key(name), format!("`teacher.{name}` is for a teacher that is asked by the file"))
                .fix("write `kind = \"batch\"`, or remove the key")),
        };
    }
    if raw.endpoints.as_ref().is_some_and(|endpoints| endpoints.len() != 1) {
        return Err(at
            .bad(&key("endpoints"), "jobs go to one service")
            .fix("keep one endpoint, or remove `endpoints` to carry the files yourself"));
    }
    if raw.stream == Some(true) {
        return Err(at.bad(&key("stream"), "results in files are not streamed").fix("remove `stream`"));
    }
    let count =
        |name, given: Option<usize>, default, range| at.count(&key(name), given.unwrap_or(default), range);
    let seconds = |name: &'static str, s| at.number(&key(name), s, SECONDS);
    Ok(Some(Batch {
        max_requests_per_file: count(
            "max_requests_per_file",
            raw.max_requests_per_file,
            REQUESTS_PER_FILE,
            1..=10_000_000,
        )?,
        max_bytes_per_file: count(
            "max_bytes_per_file",
            raw.max_bytes_per_file,
            BYTES_PER_FILE,
            1_000..=1 << 40,
        )?,
        batch_discount: at.number(&key("batch_discount"), raw.batch_discount.unwrap_or(0.0), 0.0..=1.0)?,
        poll_s: seconds("poll_s", raw.poll_s.unwrap_or(POLL_S))?,
        wait_s: raw.wait_s.map(|s| at.number(&key("wait_s"), s, 0.0..=1e9)).transpose()?,
    }))
}

#[cfg(test)]
mod tests {
    use crate::recipe::loaded;

    const RECIPE: &str = r#"
[teacher]
kind = "batch"
model = "us:teacher"
price = { input_usd_per_mtok = 2.0, output_usd_per_mtok = 10.0, cached_input_usd_per_mtok = 1.0 }
KEYS
[prompts]
path = "p.jsonl"
"#;

    #[test]
    fn a_resolved_recipe_reads_back_and_says_what_is_paid() {
        for keys in
            ["", "endpoints = [{ base_url = \"https://a.example/v1\" }]\nwait_s = 5\nbatch_discount = 0.25"]
        {
            let recipe = loaded(&RECIPE.replace("KEYS", keys), &[]);
            let wire = recipe.teacher.unwrap().wire.unwrap();
            let batch = wire.batch.as_ref().unwrap();
            assert_eq!((batch.max_requests_per_file, batch.max_bytes_per_file), (50_000, 200_000_000));
            assert_eq!((wire.is_by_hand(), wire.stream), (keys.is_empty(), false));
            let share = if keys.is_empty() { 1.0 } else { 0.75 };
            let (paid, price) = (wire.paid(), wire.price);
            assert_eq!(paid.input_usd_per_mtok, price.input_usd_per_mtok * share);
            assert_eq!(paid.output_usd_per_mtok, price.output_usd_per_mtok * share);
            assert_eq!(paid.cached_input_usd_per_mtok, Some(share));
        }
    }
}
