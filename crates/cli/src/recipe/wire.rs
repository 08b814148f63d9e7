//! Keys of `[teacher]` for a teacher behind endpoints: where, how patiently, and for how much.

use serde::Serialize;
use serde_json::{Map, Value};

use super::raw::{RawEndpoint, RawPrice, RawTeacher};
use super::resolve::{Checker, first_given};
use super::{Batch, Logits, TeacherKind, batch};
use crate::failure::Result;

const ENDPOINTS: [&str; 2] = ["teacher", "endpoints"];
const ENDPOINTS_MAX: usize = 64;
/// Requests on their way at once, over all endpoints.
pub(super) const IN_FLIGHT: usize = 8;
const IN_FLIGHT_MAX: usize = 1024;
const SECONDS: std::ops::RangeInclusive<f64> = 0.01..=86_400.0;
const MONEY: std::ops::RangeInclusive<f64> = 0.0..=1e9;
const RATES: std::ops::RangeInclusive<f64> = 1e-3..=1e12;
/// Alternatives to a token that an interface gives at most.
const TOP_LOGPROBS_MAX: usize = 1000;

/// A teacher behind endpoints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Wire {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) endpoints: Vec<Endpoint>,
    /// The run whose ledger answers in place of the endpoints.
    #[serde(rename = "path", skip_serializing_if = "Option::is_none")]
    pub(crate) replay: Option<String>,
    /// The name of an environment variable, `${NAME}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api_key: Option<String>,
    /// What is sent as `model` in place of the ID that the gate sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) served_model_name: Option<String>,
    pub(crate) api: Api,
    /// The template file by which conversations become texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chat_template: Option<String>,
    pub(crate) stream: bool,
    pub(crate) send_seed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_logprobs: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) return_token_ids: bool,
    /// Further fields of every request.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub(crate) extra_body: Map<String, Value>,
    pub(crate) connect_timeout_s: f64,
    pub(crate) first_token_timeout_s: f64,
    pub(crate) stall_timeout_s: f64,
    pub(crate) max_attempts: u32,
    /// After which a request is sent to another endpoint as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hedge_after_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) budget_usd: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) budget_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) budget_s: Option<f64>,
    pub(crate) price: Price,
    /// Of a teacher that is asked by the file.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) batch: Option<Batch>,
}

impl Wire {
    /// What is paid: the price, less what a batch saves.
    pub(crate) fn paid(&self) -> Price {
        let share = 1.0 - self.batch.as_ref().map_or(0.0, |batch| batch.batch_discount);
        Price {
            input_usd_per_mtok: self.price.input_usd_per_mtok * share,
            output_usd_per_mtok: self.price.output_usd_per_mtok * share,
            cached_input_usd_per_mtok: self.price.cached_input_usd_per_mtok.map(|usd| usd * share),
        }
    }

    /// Those that are asked: none where a ledger answers in their place.
    pub(crate) fn asked(&self) -> &[Endpoint] {
        if self.replay.is_none() { &self.endpoints } else { &[] }
    }

    /// The environment variable with an endpoint's key, `${NAME}`.
    pub(crate) fn key_of<'a>(&'a self, endpoint: &'a Endpoint) -> Option<&'a str> {
        endpoint.api_key.as_deref().or(self.api_key.as_deref())
    }

    /// Whether somebody carries files of requests and of results.
    pub(crate) fn is_by_hand(&self) -> bool {
        self.batch.is_some() && self.endpoints.is_empty()
    }
}

/// Which of OpenAI's interfaces is asked for text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Api {
    /// Of conversations: the server has their template.
    Chat,
    /// Of texts that are continued.
    Completions,
}

/// One address that answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Endpoint {
    pub(crate) base_url: String,
    pub(crate) weight: f64,
    pub(crate) max_in_flight: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) requests_per_minute: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tokens_per_minute: Option<f64>,
    /// In place of the teacher's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api_key: Option<String>,
    /// Whether a key goes to this endpoint by plain `http`, too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) send_key_unencrypted: bool,
    /// Who runs it, for the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
    /// Whose law it is under, for the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) jurisdiction: Option<String>,
}

/// US dollars per million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Price {
    pub(crate) input_usd_per_mtok: f64,
    pub(crate) output_usd_per_mtok: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cached_input_usd_per_mtok: Option<f64>,
}

/// What the keys say, where the kind has endpoints; other kinds have none of them.
pub(super) fn wire(at: &Checker<'_>, kind: TeacherKind, raw: &mut RawTeacher) -> Result<Option<Wire>> {
    secret(at, &["teacher", "api_key"], raw.api_key.as_deref(), "TEACHER_KEY")?;
    let batch = batch::batch(at, kind, raw)?;
    if !matches!(kind, TeacherKind::Openai | TeacherKind::Cache | TeacherKind::Batch) {
        return no_keys(at, raw).map(|()| None);
    }
    let replayed = kind == TeacherKind::Cache;
    let replay = match raw.path.take() {
        Some(path) if replayed => at.path(&["teacher", "path"], Some(path))?,
        None if replayed => {
            return Err(at.missing(&["teacher", "path"], "name the directory of the run that is replayed"));
        }
        other => {
            raw.path = other;
            None
        }
    };
    if raw.path.is_some() {
        return Err(at
            .bad(&["teacher", "path"], "a teacher behind endpoints has no weights here")
            .fix("remove `path`, or write `kind = \"local\"`"));
    }
    let key = |name: &'static str| ["teacher", name];
    let seconds = |name: &'static str, given: Option<f64>, default: f64| {
        at.number(&key(name), given.unwrap_or(default), SECONDS)
    };
    let patience = stillroom_teacher::Patience::default();
    let in_flight =
        at.count(&key("max_in_flight"), raw.max_in_flight.unwrap_or(IN_FLIGHT), 1..=IN_FLIGHT_MAX)?;
    let top_logprobs = raw.top_logprobs.map(|n| at.count(&key("top_logprobs"), n, 0..=TOP_LOGPROBS_MAX));
    let attempts = raw.max_attempts.unwrap_or(patience.max_attempts as usize);
    let (api, chat_template) = api(at, raw)?;
    let endpoints = match (replayed || batch.is_some(), raw.endpoints.take()) {
        (true, None) => Vec::new(),
        (_, given) => endpoints(at, given, in_flight)?,
    };
    Ok(Some(Wire {
        api,
        chat_template,
        hedge_after_s: hedge_after_s(at, kind, raw.hedge_after_s, endpoints.len())?,
        endpoints,
        replay,
        api_key: raw.api_key.clone(),
        served_model_name: raw.served_model_name.clone(),
        stream: raw.stream.unwrap_or(batch.is_none()),
        send_seed: raw.send_seed.unwrap_or(true),
        top_logprobs: top_logprobs.transpose()?.map(|n| n as u32),
        return_token_ids: raw.return_token_ids.unwrap_or(false),
        extra_body: extra_body(at, raw.extra_body.take())?,
        connect_timeout_s: seconds("connect_timeout_s", raw.connect_timeout_s, patience.connect_timeout_s)?,
        first_token_timeout_s: seconds(
            "first_token_timeout_s",
            raw.first_token_timeout_s,
            // Whoever says how long silence may be and nothing of the first token means both.
            raw.stall_timeout_s.unwrap_or(patience.first_token_timeout_s),
        )?,
        stall_timeout_s: seconds("stall_timeout_s", raw.stall_timeout_s, patience.stall_timeout_s)?,
        max_attempts: at.count(&key("max_attempts"), attempts, 1..=1000)? as u32,
        budget_usd: raw.budget_usd.map(|usd| at.number(&key("budget_usd"), usd, MONEY)).transpose()?,
        budget_tokens: raw.budget_tokens,
        budget_s: raw.budget_s.map(|s| at.number(&key("budget_s"), s, 0.0..=1e9)).transpose()?,
        price: price(at, raw.price.take())?,
        batch,
    }))
}

/// A teacher on this machine is not asked over any wire.
fn no_keys(at: &Checker<'_>, raw: &RawTeacher) -> Result<()> {
    let given = [
        ("endpoints", raw.endpoints.is_some()),
        ("api_key", raw.api_key.is_some()),
        ("served_model_name", raw.served_model_name.is_some()),
        ("api", raw.api.is_some()),
        ("chat_template", raw.chat_template.is_some()),
        ("stream", raw.stream.is_some()),
        ("send_seed", raw.send_seed.is_some()),
        ("top_logprobs", raw.top_logprobs.is_some()),
        ("return_token_ids", raw.return_token_ids.is_some()),
        ("extra_body", raw.extra_body.is_some()),
        ("connect_timeout_s", raw.connect_timeout_s.is_some()),
        ("first_token_timeout_s", raw.first_token_timeout_s.is_some()),
        ("stall_timeout_s", raw.stall_timeout_s.is_some()),
        ("max_attempts", raw.max_attempts.is_some()),
        ("hedge_after_s", raw.hedge_after_s.is_some()),
        ("budget_usd", raw.budget_usd.is_some()),
        ("budget_tokens", raw.budget_tokens.is_some()),
        ("budget_s", raw.budget_s.is_some()),
        ("price", raw.price.is_some()),
    ];
    match first_given(given) {
        None => Ok(()),
        Some(name) => Err(at
            .bad(&["teacher", name], format!("`teacher.{name}` is for a teacher behind endpoints"))
            .fix("write `kind = \"openai\"` without `path`, or remove the key")),
    }
}

fn endpoints(at: &Checker<'_>, raw: Option<Vec<RawEndpoint>>, in_flight: usize) -> Result<Vec<Endpoint>> {
    let fix = "write `endpoints = [{ base_url = \"http://127.0.0.1:8080/v1\" }]`";
    let raw = at.need(&ENDPOINTS, raw.filter(|all| !all.is_empty()), fix)?;
    if raw.len() > ENDPOINTS_MAX {
        let cause = format!("{} endpoints, of at most {ENDPOINTS_MAX}", raw.len());
        return Err(at.bad(&ENDPOINTS, cause).fix("keep fewer, or put a load balancer before them"));
    }
    let mut all = Vec::with_capacity(raw.len());
    for raw in raw {
        let base_url = at.need(&ENDPOINTS, raw.base_url, "give each endpoint a `base_url`")?;
        at.no_environment(&ENDPOINTS, &base_url)?;
        secret(at, &ENDPOINTS, raw.api_key.as_deref(), "TEACHER_KEY")?;
        let rate = |rate: Option<f64>| rate.map(|rate| at.number(&ENDPOINTS, rate, RATES)).transpose();
        all.push(Endpoint {
            base_url: base_url.trim_end_matches('/').to_owned(),
            weight: at.number(&ENDPOINTS, raw.weight.unwrap_or(1.0), 1e-6..=1e6)?,
            max_in_flight: at.count(&ENDPOINTS, raw.max_in_flight.unwrap_or(in_flight), 1..=IN_FLIGHT_MAX)?,
            requests_per_minute: rate(raw.requests_per_minute)?,
            tokens_per_minute: rate(raw.tokens_per_minute)?,
            api_key: raw.api_key,
            send_key_unencrypted: raw.send_key_unencrypted.unwrap_or(false),
            owner: raw.owner,
            jurisdiction: raw.jurisdiction,
        });
    }
    let total = all.iter().map(|endpoint| endpoint.max_in_flight).sum::<usize>();
    at.count(&["teacher", "max_in_flight"], total, 1..=IN_FLIGHT_MAX)?;
    Ok(all)
}

/// After which a request goes to another endpoint as well; there has to be one.
fn hedge_after_s(
    at: &Checker<'_>,
    kind: TeacherKind,
    given: Option<f64>,
    n_endpoints: usize,
) -> Result<Option<f64>> {
    let key = ["teacher", "hedge_after_s"];
    let Some(seconds) = given else { return Ok(None) };
    let cause = match kind {
        TeacherKind::Batch => "requests in files are sent once",
        TeacherKind::Openai if n_endpoints < 2 => "there is no other endpoint that could be asked as well",
        _ => return at.number(&key, seconds, SECONDS).map(Some),
    };
    Err(at
        .bad(&key, cause)
        .fix("remove `hedge_after_s`, or write `kind = \"openai\"` and name a second endpoint"))
}

/// Which interface is asked, and by which template conversations become texts for it.
fn api(at: &Checker<'_>, raw: &mut RawTeacher) -> Result<(Api, Option<String>)> {
    let apis = [("chat", Api::Chat), ("completions", Api::Completions)];
    let api = at.choose(&["teacher", "api"], raw.api.as_deref().unwrap_or("chat"), &apis)?;
    let key = ["teacher", "chat_template"];
    let template = at.path(&key, raw.chat_template.take())?;
    if template.is_some() && api == Api::Chat {
        return Err(at
            .bad(&key, "a server that is asked by `api = \"chat\"` has a template of its own")
            .fix("write `api = \"completions\"`, or remove the key"));
    }
    Ok((api, template))
}

fn price(at: &Checker<'_>, raw: Option<RawPrice>) -> Result<Price> {
    let key = ["teacher", "price"];
    let Some(raw) = raw else { return Ok(Price::default()) };
    let usd = |usd: Option<f64>| at.number(&key, usd.unwrap_or(0.0), MONEY);
    Ok(Price {
        input_usd_per_mtok: usd(raw.input_usd_per_mtok)?,
        output_usd_per_mtok: usd(raw.output_usd_per_mtok)?,
        cached_input_usd_per_mtok: raw.cached_input_usd_per_mtok.map(|price| usd(Some(price))).transpose()?,
    })
}

/// JSON has neither `nan` nor `inf`, which TOML has.
fn extra_body(at: &Checker<'_>, given: Option<Map<String, Value>>) -> Result<Map<String, Value>> {
    fn is_whole(value: &Value) -> bool {
        match value {
            Value::Null => false,
            Value::Array(values) => values.iter().all(is_whole),
            Value::Object(fields) => fields.values().all(is_whole),
            Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        }
    }
    let fields = given.unwrap_or_default();
    match fields.values().all(is_whole) {
        true => Ok(fields),
        false => Err(at
            .bad(&["teacher", "extra_body"], "`teacher.extra_body` has a number that no request can carry")
            .fix("write a finite number")),
    }
}

/// A secret is the name of an environment variable, `example` for one, never the secret itself.
pub(super) fn secret(at: &Checker<'_>, keys: &[&str], text: Option<&str>, example: &str) -> Result<()> {
    if text.is_none_or(|text| variable_of(text).is_some()) {
        return Ok(());
    }
    Err(at.bad(keys, "a secret does not belong in a recipe").code("secret-in-recipe").fix(format!(
        "put it in the environment and write `{} = \"${{{example}}}\"`",
        keys.last().unwrap_or(&"")
    )))
}

/// The name in `${NAME}`.
pub(crate) fn variable_of(text: &str) -> Option<&str> {
    let name = text.strip_prefix("${")?.strip_suffix('}')?;
    (!name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).then_some(name)
}

/// What only weights on this machine can give is refused for endpoints.
pub(super) fn check_use(at: &Checker<'_>, wire: Option<&Wire>, logits: Option<Logits>) -> Result<()> {
    if wire.is_some() && logits.is_some() {
        return Err(at
            .bad(&["teacher", "logits"], "endpoints give text, not whole distributions")
            .fix("remove `logits` and train on `hard_labels`, or on the student's own text by `sampled_reverse_kl`; or take \
                  local weights: `kind = \"local\"` and `path`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::recipe::{ROWS, load, loaded};

    /// Such a number reached the recipe that is written out, which could not be.
    #[test]
    fn further_fields_of_requests_are_finite() {
        let recipe = ROWS
            .replace("kind = \"local\"", "kind = \"openai\"\nmodel = \"us:teacher\"")
            .replace("path = \"teacher\"", "endpoints = [{ base_url = \"http://127.0.0.1:9/v1\" }]")
            .replace("intermediate_size", "tokenizer = \"theirs\"\nintermediate_size");
        loaded(&recipe, &["teacher.extra_body={ a = [1.5, true], b = { c = \"x\" } }"]);
        for body in ["{ a = nan }", "{ a = [{ b = inf }] }"] {
            let set = format!("teacher.extra_body={body}");
            let shown = load(&recipe, &[&set]).expect_err(body).to_string();
            assert!(shown.contains("a number that no request can carry"), "{body}: {shown}");
        }
    }

    #[test]
    fn a_teacher_on_this_machine_has_no_keys_of_endpoints() {
        load(ROWS, &[]).unwrap_or_else(|e| panic!("{e}"));
        for set in [
            "endpoints=[{ base_url = \"http://127.0.0.1:9/v1\" }]",
            "api_key=${KEY}",
            "api=completions",
            "chat_template=a.jinja",
            "served_model_name=x",
            "stream=false",
            "send_seed=false",
            "top_logprobs=1",
            "return_token_ids=true",
            "extra_body={ x = 1 }",
            "connect_timeout_s=1",
            "first_token_timeout_s=1",
            "stall_timeout_s=1",
            "hedge_after_s=5",
            "max_attempts=3",
            "budget_usd=1",
            "budget_tokens=1",
            "budget_s=1",
            "price={ input_usd_per_mtok = 1 }",
        ] {
            let shown = load(ROWS, &[&format!("teacher.{set}")]).expect_err(set).to_string();
            assert!(shown.contains("is for a teacher behind endpoints"), "{set}: {shown}");
        }
    }
}
