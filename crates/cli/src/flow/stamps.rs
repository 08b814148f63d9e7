//! Timestamps (RFC 3161) of the log's heads as they are made, and of the release's signature: somebody else's word on when.
//!
//! ```text
//! log/stamps.jsonl   a line for each time that was asked for: {"head": …, "unix_s": …} with a "token", or with "not_stamped"
//! ```
//!
//! What is sent is a SHA-256 and a random number. A service that does not answer, or not as it should, costs a stamp and no
//! run, unless the recipe says that it is required.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use stillroom_core::{Digest, Reach};
use stillroom_governance::log::HeadLine;
use stillroom_governance::oms;
use stillroom_governance::timestamp::{
    QUERY_TYPE, Query, REPLY_TYPE, Stamp, TIMESTAMP_BYTES_MAX, Token, Trusted,
};
use stillroom_governance::{Decision, TimestampFault};
use stillroom_net::{Address, CallOff, Client, ClientOptions, NetError, Request};
use stillroom_store::{EventLog, EventReader};

use crate::failure::{Exit, Failure, Result};
use crate::flow::logbook::Moment;
use crate::flow::{Flow, gate, unix_s};
use crate::recipe::{Recipe, Source, Timestamps};
use crate::terminal;

pub(crate) const STAMPS: &str = "stamps.jsonl";
/// Lines that are read at most.
const LINES_MAX: usize = 1 << 20;
/// Passing heads are stamped no more often than this.
const EVERY: Duration = Duration::from_secs(60);
/// And so that asking takes no more than one part in so many of the time.
const SHARE: u32 = 20;

const SIGNATURE: &str = "the release's signature";

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    /// SHA-256 of the head's line, which is what its time is of.
    pub(super) head: Digest,
    /// When it was asked for, by the clock of the machine.
    pub(super) unix_s: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<Token>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) not_stamped: Option<String>,
}

/// All lines of a folder's file, in order; none where there is no such file.
pub(super) fn lines_in(folder: &Path) -> Result<Vec<Line>> {
    let path = folder.join(STAMPS);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let lines = EventReader::open(&path)?.take(LINES_MAX);
    Ok(lines.collect::<stillroom_store::Result<_>>()?)
}

/// Whoever is asked for the time.
struct Service {
    client: Client,
    address: Address,
    trusted: Option<Trusted>,
    timeout: Duration,
}

/// Stamps what it is given, and writes down what came of it.
pub(super) struct Stamper {
    service: Service,
    required: bool,
    file: EventLog,
    /// When it was last asked, and how long that took.
    asked: Option<(Instant, Duration)>,
    /// SHA-256 of the last head that has its time.
    stamped: Option<Digest>,
    fails: bool,
}

impl Stamper {
    /// For a recipe that has a service, after verdict and policy; `folder` has the log.
    pub(super) fn open(
        recipe: &Recipe,
        source: &Source,
        decision: &Decision,
        folder: &Path,
    ) -> Result<Option<Stamper>> {
        let Some(Timestamps { timestamp_url, timestamp_required, timestamp_timeout_s, .. }) =
            &recipe.release.timestamps
        else {
            return Ok(None);
        };
        let timeout = Duration::from_secs_f64(*timestamp_timeout_s);
        let limits =
            ClientOptions { connect: timeout, first_byte: timeout, stall: timeout, idle_connections: 1 };
        let cleared = decision.clear("log", &gate::policy(recipe, source)?, reach(recipe, source)?)?;
        let address = Address::parse_open(timestamp_url)
            .map_err(|error| Failure::from(error).at(source.place(&PLACE)))?;
        let service = Service {
            client: Client::new(cleared, limits),
            address,
            trusted: trusted(recipe, source)?,
            timeout,
        };
        let file = EventLog::open(&folder.join(STAMPS))?;
        let stamped = lines_in(folder)?.into_iter().rfind(|line| line.token.is_some()).map(|line| line.head);
        Ok(Some(Stamper { service, required: *timestamp_required, file, asked: None, stamped, fails: false }))
    }

    /// A head that has just been written, or that has no time yet.
    pub(super) fn stamp_head(&mut self, head: &HeadLine, moment: Moment) -> Result<()> {
        let digest = Digest::of(&head.line);
        if self.stamped == Some(digest) || moment == Moment::Passing && self.is_too_soon() {
            return Ok(());
        }
        let answer = self.ask(&head.line);
        let mut line = Line { head: digest, unix_s: unix_s(), token: None, not_stamped: None };
        match &answer {
            Ok(token) => line.token = Some(token.clone()),
            Err(fault) => line.not_stamped = Some(fault.kind().to_owned()),
        }
        self.file.append(&line)?;
        self.file.sync()?;
        match answer {
            Ok(_) => self.stamped = Some(digest),
            Err(fault) => self.missed(&fault, "a head of the log", moment)?,
        }
        Ok(())
    }

    /// The time of a release's signature, if it is given.
    pub(super) fn stamp_signature(&mut self, signature: &[u8]) -> Result<Option<Token>> {
        match self.ask(signature) {
            Ok(token) => Ok(Some(token)),
            Err(fault) => self.missed(&fault, SIGNATURE, Moment::Grave).map(|()| None),
        }
    }

    fn is_too_soon(&self) -> bool {
        self.asked.is_some_and(|(at, took)| at.elapsed() < EVERY.max(took * SHARE))
    }

    fn ask(&mut self, bytes: &[u8]) -> std::result::Result<Token, Missed> {
        let begun = Instant::now();
        let answer = self.service.ask(bytes);
        self.asked = Some((begun, begun.elapsed()));
        if answer.is_ok() {
            self.fails = false;
        }
        answer
    }

    /// Says it once until it goes well again, and of a signature in any case. Where a time is required, and not just in passing, the run stops.
    fn missed(&mut self, fault: &Missed, what: &str, moment: Moment) -> Result<()> {
        let cause = format!("{what} is not stamped: {fault}");
        if self.required && moment != Moment::Passing {
            return Err(Failure::new(fault.exit(), cause)
                .code("not-stamped")
                .fix("repeat the command when the service answers; or leave `timestamp_required` out"));
        }
        if !self.fails || what == SIGNATURE {
            terminal::note_below(&format!("warning[timestamp]: {cause}"));
        }
        self.fails = true;
        Ok(())
    }
}

/// Why there is no time.
enum Missed {
    Net(NetError),
    Answer { place: String, cause: TimestampFault },
    NoRandomness(getrandom::Error),
}

impl std::fmt::Display for Missed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Missed::Net(error) => write!(f, "{error}"),
            Missed::Answer { place, cause } => write!(f, "`{place}`: {cause}"),
            Missed::NoRandomness(error) => write!(f, "the system gives no random numbers: {error}"),
        }
    }
}

impl Missed {
    /// Without a place: what is in the log is published.
    fn kind(&self) -> &'static str {
        match self {
            Missed::Net(NetError::Status { .. }) => "the service refused",
            Missed::Net(NetError::TooLarge { .. }) => "the answer was too large",
            Missed::Net(_) => "no answer",
            Missed::Answer { cause: TimestampFault::NotGranted { .. }, .. } => "the service refused",
            Missed::Answer { .. } => "the answer does not count",
            Missed::NoRandomness(_) => "no question",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Missed::Net(error) => error.kind().into(),
            Missed::Answer { .. } => Exit::BadData,
            Missed::NoRandomness(_) => Exit::Failed,
        }
    }
}

impl Service {
    fn ask(&self, bytes: &[u8]) -> std::result::Result<Token, Missed> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(Missed::NoRandomness)?;
        let query = Query::new(bytes, random);
        let body = query.to_der();
        // Its limits are on each wait; this one is on all of them.
        let call_off = CallOff::default();
        let request = Request::post(self.address.clone(), QUERY_TYPE, &body)
            .header("accept", REPLY_TYPE)
            .called_off_by(Some(call_off.clone()));
        let answer = within(self.timeout, &call_off, || {
            self.client.send(&request)?.success()?.read_to_vec(TIMESTAMP_BYTES_MAX as u64)
        });
        let answer = answer.map_err(Missed::Net)?;
        let place = self.address.place();
        let answered = query.answered(&answer, bytes, self.trusted.as_ref());
        answered.map(|(token, _)| token).map_err(|cause| Missed::Answer { place, cause })
    }
}

/// Calls `work` off when it has taken this long.
fn within<T>(time: Duration, call_off: &CallOff, work: impl FnOnce() -> T) -> T {
    let (done, waits) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if waits.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                call_off.call_off();
            }
        });
        let result = work();
        drop(done);
        result
    })
}

const PLACE: [&str; 2] = ["release", "timestamp_url"];

fn reach(recipe: &Recipe, source: &Source) -> Result<Reach> {
    let urls = recipe.release.timestamps.iter().map(|timestamps| timestamps.timestamp_url.as_str());
    gate::reach(source, &PLACE, urls)
}

/// Whether the policy covers the service, and its certificate can be read.
pub(super) fn check(recipe: &Recipe, source: &Source) -> Result<()> {
    let asked = reach(recipe, source)?;
    if let Some(place) = gate::policy(recipe, source)?.refuses(&asked) {
        let fix = format!(
            "write `listed = [\"{place}\"]` and `egress = \"listed\"` under `[policy]`; it learns digests and when they \
             were made, and nothing else"
        );
        return Err(Failure::new(
            Exit::Policy,
            format!("`policy.egress` does not allow the timestamp service `{place}`"),
        )
        .code("egress")
        .at(source.place(&PLACE))
        .fix(fix));
    }
    trusted(recipe, source).map(drop)
}

fn trusted(recipe: &Recipe, source: &Source) -> Result<Option<Trusted>> {
    let named = recipe.release.timestamps.as_ref().and_then(|t| t.timestamp_certificate.as_deref());
    let open = |named: &str| {
        let at = |error| Failure::from(error).at(source.place(&["release", "timestamp_certificate"]));
        Trusted::open(&source.resolve_path(named)).map_err(at)
    };
    named.map(open).transpose()
}

impl Flow {
    /// The time of the release's signature, beside it.
    pub(super) fn stamp_release(&self) -> Result<()> {
        let release = self.run.release();
        let Some((book, (signature, _))) = self.logbook.as_ref().zip(oms::timestamps(&release)?) else {
            return Ok(());
        };
        match book.stamp_signature(&signature)? {
            Some(token) => Ok(oms::add_timestamp(&release, &token)?),
            None => Ok(()),
        }
    }
}

/// A head or a signature with its time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Stamped {
    /// Entries under the head; none of a signature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) records: Option<u64>,
    /// It existed no later than this: seconds since 1970-01-01 UTC, rounded up.
    pub(crate) unix_s: u64,
    /// By how much that may be wrong, by the service's own word.
    pub(crate) accuracy_s: f64,
    pub(crate) signer: String,
    /// SHA-256 of the signer's certificate.
    pub(crate) certificate: Digest,
}

/// What the timestamps of a run or a release were found to be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct CheckedStamps {
    /// Whether their signers lead to certificates that were given.
    pub(crate) signer_checked: bool,
    pub(crate) heads: Vec<Stamped>,
    /// Heads that a time was asked for in vain.
    pub(crate) not_stamped: usize,
    pub(crate) signature: Option<Stamped>,
}

impl CheckedStamps {
    pub(crate) fn is_empty(&self) -> bool {
        self.heads.is_empty() && self.signature.is_none()
    }
}

/// Checks the timestamps beside a log, and that they follow each other as its heads do. `signature` has that of the release,
/// which is later than all.
pub(super) fn check_stamps(
    folder: &Path,
    heads: &[HeadLine],
    signature: Option<&(Vec<u8>, Vec<Token>)>,
    trusted: Option<&Trusted>,
) -> Result<CheckedStamps> {
    let (times, not_stamped) = times_of(folder, heads, trusted)?;
    let mut of_signature = None;
    if let Some((bytes, tokens)) = signature {
        for token in tokens {
            let stamp = token.check(bytes, trusted).map_err(|fault| {
                wrong(folder, format!("the timestamp of the signature does not count: {fault}"))
            })?;
            of_signature.get_or_insert(stamp);
        }
    }
    let in_order: Vec<&Stamp> = times.values().chain(&of_signature).collect();
    if let Some(at) = first_too_early(&in_order) {
        let which = times.keys().nth(at).map_or("the signature".to_owned(), |head| format!("head {head}"));
        return Err(wrong(folder, format!("the timestamp of {which} is before that of a head before it")));
    }
    let stamped = |records, stamp: &Stamp| Stamped {
        records,
        unix_s: stamp.unix_us.div_ceil(1_000_000),
        accuracy_s: stamp.accuracy_us as f64 / 1e6,
        signer: stamp.signer.clone(),
        certificate: stamp.certificate,
    };
    Ok(CheckedStamps {
        signer_checked: trusted.is_some(),
        heads: times.iter().map(|(&at, stamp)| stamped(Some(heads[at].head.size), stamp)).collect(),
        not_stamped,
        signature: of_signature.as_ref().map(|stamp| stamped(None, stamp)),
    })
}

fn wrong(folder: &Path, cause: String) -> Failure {
    Failure::new(Exit::BadData, cause).code("timestamp").at(folder.display().to_string()).fix(
        "take log and signature from where the release came from, and the certificate from its timestamp service",
    )
}

/// The times of heads, by their places, and how many were asked for in vain. Each token is one of the head that it stands by.
fn times_of(
    folder: &Path,
    heads: &[HeadLine],
    trusted: Option<&Trusted>,
) -> Result<(BTreeMap<usize, Stamp>, usize)> {
    let places: BTreeMap<Digest, usize> =
        heads.iter().enumerate().map(|(at, head)| (Digest::of(&head.line), at)).collect();
    let (mut times, mut missed) = (BTreeMap::new(), BTreeSet::new());
    for (number, line) in lines_in(folder)?.into_iter().enumerate() {
        let Some(&at) = places.get(&line.head) else {
            return Err(wrong(folder, format!("timestamp {number} is of a head that is not in the log")));
        };
        let Some(token) = line.token else {
            missed.insert(at);
            continue;
        };
        let stamp = token.check(&heads[at].line, trusted).map_err(|fault| {
            wrong(folder, format!("timestamp {number}, of head {at}, does not count: {fault}"))
        })?;
        times.entry(at).or_insert(stamp);
    }
    let in_vain = missed.iter().filter(|at| !times.contains_key(at)).count();
    Ok((times, in_vain))
}

/// The first that was certainly made before one that stands before it.
fn first_too_early(stamps: &[&Stamp]) -> Option<usize> {
    let mut latest: Option<&Stamp> = None;
    for (at, &stamp) in stamps.iter().enumerate() {
        if latest.is_some_and(|latest| stamp.is_before(latest)) {
            return Some(at);
        }
        let surely = |stamp: &Stamp| stamp.unix_us.saturating_sub(stamp.accuracy_us);
        if latest.is_none_or(|latest| surely(latest) <= surely(stamp)) {
            latest = Some(stamp);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unix_us: u64, accuracy_us: u64) -> Stamp {
        Stamp { unix_us, accuracy_us, signer: String::new(), certificate: Digest::of(b"") }
    }

    #[test]
    fn times_that_go_back_by_more_than_they_may_be_wrong_are_found() {
        let found = |stamps: &[Stamp]| first_too_early(&stamps.iter().collect::<Vec<_>>());
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[at(5, 0), at(5, 0), at(6, 0)]), None);
        assert_eq!(found(&[at(5, 0), at(6, 0), at(5, 0)]), Some(2));
        assert_eq!(found(&[at(9, 1), at(7, 1)]), None);
        assert_eq!(found(&[at(10, 1), at(7, 1)]), Some(1));
        // One that is not sure of itself does not hide what the ones before it were sure of.
        assert_eq!(found(&[at(100, 0), at(90, 20), at(80, 1)]), Some(2));
    }

    #[test]
    fn work_is_called_off_when_its_time_is_up_and_not_before() {
        let call_off = CallOff::default();
        assert_eq!(within(Duration::from_secs(600), &call_off, || 3), 3);
        assert!(!call_off.is_called_off());
        within(Duration::from_millis(1), &call_off, || {
            while !call_off.is_called_off() {
                std::thread::yield_now();
            }
        });
    }
}
