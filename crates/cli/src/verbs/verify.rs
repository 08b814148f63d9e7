//! `stillroom verify`: does a run or release still hold what its manifest names, do its documents agree, who signed it, and
//! does its training come out again?

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use stillroom_evaluate::Contender;
use stillroom_governance::keys::PublicKey;
use stillroom_governance::timestamp::Trusted;
use stillroom_governance::{
    Agreement, AgreementState, Checked, PROGRAM_VERSION, SignatureState, VerifyReport,
};

use crate::args::Verify;
use crate::failure::{Exit, Failure, Result};
use crate::flow::logbook::{self, CheckedLog, Shown};
use crate::flow::replay::{Replay, Replayed, again};
use crate::flow::stamps::{CheckedStamps, Stamped};
use crate::flow::weights::{self, ReleasedWeights};
use crate::flow::{rfc3339, unix_s};
use crate::terminal;
use crate::verbs::serve::answers;
use crate::verbs::verify_log::in_log;

pub(super) fn verify(args: &Verify) -> Result<ExitCode> {
    let key = args.public_key.as_deref().map(PublicKey::open).transpose()?;
    if answers::is_log(&args.directory) {
        return answers::verify(args, key.as_ref());
    }
    if logbook::is_unreleased(&args.directory) && args.replay.is_none() {
        return log_alone(args, key.as_ref());
    }
    let found = Found::of(args, key.as_ref())?;
    if args.json {
        terminal::print_json(&found.to_json())?;
    }
    if let Some(failure) = difference(args, &found.report) {
        return Err(failure);
    }
    if !args.json {
        found.papers().iter().try_for_each(|line| terminal::print_line(&terminal::harmless(line)))?;
    }
    for (failure, line) in [found.weights(args), found.training(args)] {
        if let Some(failure) = failure {
            return Err(failure);
        }
        line.iter().filter(|_| !args.json).try_for_each(|line| terminal::print_line(line))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A run that has no release (yet), of which there is the log to check: `teach` alone, say, for an owner who keeps evidence of
/// what a model answered.
fn log_alone(args: &Verify, key: Option<&PublicKey>) -> Result<ExitCode> {
    let log = logbook::check(&args.directory, key)?;
    key.map_or(Ok(()), |key| logbook::check_signer(&args.directory, key))?;
    args.opening.as_deref().map_or(Ok(()), |path| check_opening(&args.directory, path))?;
    let times = times(args)?;
    if args.json {
        let finding = json!({ "released": false, "log": log, "timestamps": times });
        terminal::print_json(&finding)?;
        return Ok(ExitCode::SUCCESS);
    }
    terminal::print_line(
        "Not released: there is no manifest to hold files against, and the log alone was checked.",
    )?;
    let heads = log.as_ref().map_or(0, |log| log.heads);
    let lines = log.iter().map(logged).chain(times.iter().map(|times| stamped(times, heads)));
    lines.into_iter().try_for_each(|line| terminal::print_line(&terminal::harmless(&line)))?;
    if args.opening.is_some() {
        terminal::print_line("The opened entry is in this log.")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// All that was found; of a directory that is not intact nothing but that.
struct Found {
    report: VerifyReport,
    log: Option<CheckedLog>,
    in_log: Option<Vec<String>>,
    times: Option<CheckedStamps>,
    replayed: Option<Replayed>,
    weights: Option<ReleasedWeights>,
}

impl Found {
    fn of(args: &Verify, key: Option<&PublicKey>) -> Result<Found> {
        let report = stillroom_governance::verify(&args.directory, key)?;
        let mut found = Found { report, log: None, in_log: None, times: None, replayed: None, weights: None };
        if !found.report.intact {
            return Ok(found);
        }
        found.log = logbook::check(&args.directory, key)?;
        if let Some(path) = &args.opening {
            check_opening(&args.directory, path)?;
        }
        found.in_log = in_log(&args.directory)?;
        found.times = times(args)?;
        found.replayed = replay(args)?;
        found.weights = match &found.replayed {
            Some(replayed) => replayed.weights.clone(),
            None => weights::check(&args.directory)?,
        };
        Ok(found)
    }

    fn to_json(&self) -> Value {
        let mut finding = json!(self.report);
        let more = [
            ("log", json!(self.log)),
            ("in_log", json!(self.in_log)),
            ("timestamps", json!(self.times)),
            ("replay", json!(self.replayed)),
            ("weights", json!(self.weights)),
        ];
        more.into_iter()
            .filter(|(_, found)| !found.is_null())
            .for_each(|(name, found)| finding[name] = found);
        finding
    }

    /// What there is to say of files, documents, log and times.
    fn papers(&self) -> Vec<String> {
        let mut lines = vec![intact(&self.report), signed(&self.report)];
        lines.extend(self.report.agreement.as_ref().map(agreed));
        lines.extend(self.log.as_ref().map(logged));
        let opened = |papers: &Vec<String>| {
            format!("The log, opened with its secret, has {} as they are.", papers.join(", "))
        };
        lines.extend(self.in_log.as_ref().map(opened));
        let heads = self.log.as_ref().map_or(0, |log| log.heads);
        lines.extend(self.times.as_ref().map(|times| stamped(times, heads)));
        lines
    }

    /// Whether the release is what was trained: why not, or what was found.
    fn weights(&self, args: &Verify) -> (Option<Failure>, Option<String>) {
        let Some(weights) = &self.weights else { return (None, None) };
        let failure = weights.difference.as_ref().map(|difference| {
            Failure::new(Exit::BadData, difference.clone())
                .code("not-the-trained-weights")
                .at(args.directory.display().to_string())
                .fix("these weights did not come from this training: run `stillroom release` again on an untouched run")
        });
        (failure, Some(chosen(weights)))
    }

    /// Whether the training came out again: why not, or what was done.
    fn training(&self, args: &Verify) -> (Option<Failure>, Option<String>) {
        let Some(replayed) = &self.replayed else { return (None, None) };
        let failure = replayed.difference.as_ref().map(|difference| {
            Failure::new(Exit::BadData, difference.clone())
                .code("not-replayed")
                .at(args.directory.display().to_string())
                .fix("these weights did not come from this data by this program, or on another class of machine")
        });
        (failure, Some(came_out(replayed)))
    }
}

fn replay(args: &Verify) -> Result<Option<Replayed>> {
    let Some(segments) = args.replay else { return Ok(None) };
    let asked = Replay {
        run: &args.directory,
        segments: segments.get(),
        seed: args.seed.unwrap_or_else(unix_s),
        recipe: args.recipe.as_deref(),
        machine: &args.machine,
        quiet: args.json,
    };
    again(&asked).map(Some)
}

fn intact(report: &VerifyReport) -> String {
    let mut text = format!("Intact: {} files, {} bytes.", report.checked, report.bytes);
    if !report.out_of_reach.is_empty() {
        let n = report.out_of_reach.len();
        text.push_str(&format!(" {n} files of the run are not in this directory."));
    }
    if !report.not_covered.is_empty() {
        let names: Vec<String> = report.not_covered.iter().map(|name| format!("`{name}`")).collect();
        text.push_str(&format!(" Not covered, as a repository has it around a model: {}.", names.join(", ")));
    }
    text
}

/// What is known of who made it.
fn signed(report: &VerifyReport) -> String {
    let files = report.signature.files;
    match (report.signature.state, &report.signature.key) {
        (SignatureState::Valid, Some(key)) => {
            format!("Signed by the key {key}: all {files} files of the release.")
        }
        (SignatureState::None, _) => {
            "Not signed: whoever can write these files can also write a manifest of them.".to_owned()
        }
        _ => format!(
            "Signed, {files} files of the release, but by whom was not checked: give the signer's key with `--public-key`."
        ),
    }
}

/// Whether the documents say what the record says.
fn agreed(agreement: &Agreement) -> String {
    let by = agreement.written_by.as_deref().map_or(String::new(), terminal::one_line);
    let whole = agreement.checked.iter().filter(|checked| checked.facts.is_none()).count();
    let fact = |checked: &Checked| Some(format!("`{}` ({} facts)", checked.document, checked.facts?));
    let facts: Vec<String> = agreement.checked.iter().filter_map(fact).collect();
    let facts = format!("with the record agree {}", facts.join(", "));
    match agreement.state {
        AgreementState::NoRecord => {
            "Documents: not checked, since there is no record to derive them from.".to_owned()
        }
        AgreementState::OtherRecordVersion => {
            "Documents: not checked, since the record is of a version that this program does not read."
                .to_owned()
        }
        AgreementState::OtherProgram => format!(
            "Documents: {whole} come out of the record byte for byte, and {} otherwise: {}. Stillroom {by} wrote this \
             release, and this is {PROGRAM_VERSION}; whether they were changed only that version can tell. Apart from \
             them, {facts}.",
            agreement.not_comparable.len(),
            agreement.not_comparable.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        ),
        AgreementState::Agrees | AgreementState::Disagrees => {
            format!("Documents: {whole} come out of the record byte for byte; {facts}.")
        }
    }
}

pub(super) fn check_opening(directory: &Path, path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|e| Failure::io("read", path, &e))?;
    let shown: Shown = serde_json::from_slice(&bytes).map_err(|e| {
        Failure::new(Exit::BadData, format!("this is no opened entry: {e}"))
            .code("not-opened")
            .at(path.display().to_string())
            .fix("`stillroom open RUN KIND NUMBER` writes one")
    })?;
    logbook::check_opening(directory, &shown)
}

pub(super) fn logged(log: &CheckedLog) -> String {
    let CheckedLog { records, heads, signed_heads, .. } = log;
    let time = |unix_s: Option<u64>| unix_s.map_or("never".to_owned(), rfc3339);
    format!(
        "Log: {records} entries under {heads} heads, {signed_heads} of them signed, made between {} and {} by the clock of that machine.",
        time(log.first_unix_s),
        time(log.last_unix_s)
    )
}

/// The timestamps; none where there are none and nobody asked.
fn times(args: &Verify) -> Result<Option<CheckedStamps>> {
    let trusted = args.timestamp_certificate.as_deref().map(Trusted::open).transpose()?;
    let found = logbook::check_times(&args.directory, trusted.as_ref())?;
    match (found.is_empty(), trusted) {
        (false, _) => Ok(Some(found)),
        (true, None) => Ok(Some(found).filter(|found| found.not_stamped > 0)),
        (true, Some(_)) => Err(Failure::new(Exit::BadData, "nothing here has a timestamp")
            .code("timestamp")
            .at(args.directory.display().to_string())
            .fix("leave `--timestamp-certificate` out; `timestamp_url` in a recipe asks for timestamps")),
    }
}

fn stamped(times: &CheckedStamps, heads: usize) -> String {
    let CheckedStamps { signer_checked, heads: stamped, not_stamped, signature } = times;
    if times.is_empty() {
        return format!(
            "Not stamped: the time of {not_stamped} of {heads} heads of the log was asked for in vain."
        );
    }
    let signature_too = if signature.is_some() { " and the signature" } else { "" };
    let mut text = format!("Stamped: {} of {heads} heads of the log{signature_too}", stamped.len());
    match stamped.first().or(signature.as_ref()).filter(|_| *signer_checked) {
        Some(first) => text.push_str(&format!(", by `{}` ({}).", first.signer, first.certificate)),
        None => text.push_str(
            ", but by whom was not checked: give the certificate of the timestamp service with `--timestamp-certificate`.",
        ),
    }
    let mut said = Vec::new();
    let mut say = |what: String, stamp: &Stamped| {
        let within =
            if stamp.accuracy_s > 0.0 { format!(" (within {} s)", stamp.accuracy_s) } else { String::new() };
        said.push(format!("{what} no later than {}{within}", rfc3339(stamp.unix_s)));
    };
    let named = |stamp: &Stamped| match stamp.records.unwrap_or_default() {
        1 => "the licence decision".to_owned(),
        records => format!("the first {records} entries"),
    };
    if let Some(first) = stamped.first() {
        say(named(first), first);
    }
    if let Some(last) = stamped.last().filter(|_| stamped.len() > 1) {
        say(named(last), last);
    }
    if let Some(signature) = signature {
        say("the signature".to_owned(), signature);
    }
    let whose = if *signer_checked { "In existence" } else { "By their own word in existence" };
    text.push_str(&format!(" {whose}: {}.", said.join("; ")));
    if *not_stamped > 0 {
        text.push_str(&format!(" The time of {not_stamped} further heads was asked for in vain."));
    }
    text
}

/// Whether the release is what was trained.
fn chosen(weights: &ReleasedWeights) -> String {
    let ReleasedWeights { step, tensors, unchecked, .. } = weights;
    let alike =
        format!("Weights: {tensors} released tensors are those of step {step}, which training chose.");
    match unchecked {
        None => alike,
        Some(what) if *tensors == 0 => format!("Weights: not compared with step {step}: {what}."),
        Some(what) => format!("{alike} Not compared: {what}."),
    }
}

fn came_out(replayed: &Replayed) -> String {
    let Replayed { segments, recorded, steps, seed, .. } = replayed;
    let mut by_model: BTreeMap<Contender, usize> = BTreeMap::new();
    segments.iter().for_each(|segment| *by_model.entry(segment.model).or_default() += 1);
    let models: Vec<String> = by_model.iter().map(|(model, n)| format!("{} {n}", model.key())).collect();
    let models = models.join(", ");
    format!(
        "Replayed: {} of {recorded} segments of all trainings ({models}), {steps} steps; every batch and checkpoint came out \
         bit for bit as recorded (seed {seed}).",
        segments.len()
    )
}

/// The first thing that is not as the manifest says, or else not as the record says.
fn difference(args: &Verify, report: &VerifyReport) -> Option<Failure> {
    let Some(first) = report.first() else {
        return report.agreement.as_ref().and_then(|a| disagreement(args, a));
    };
    let mut failure = Failure::new(Exit::BadData, first.to_string())
        .code("not-intact")
        .at(args.directory.display().to_string());
    if report.differences.len() > 1 {
        failure = failure.detail(format!("and {} more; `--json` lists all", report.differences.len() - 1));
    }
    Some(failure.fix("take the files from where they came, or run the recipe again"))
}

fn disagreement(args: &Verify, agreement: &Agreement) -> Option<Failure> {
    let first = agreement.disagreements.first()?;
    let mut failure = Failure::new(Exit::BadData, first.to_string())
        .code("disagrees")
        .at(args.directory.display().to_string())
        .detail("the files are those of the manifest: it was written for them as they are now");
    if agreement.disagreements.len() > 1 {
        let more = agreement.disagreements.len() - 1;
        failure = failure.detail(format!("and {more} more places; `--json` lists them"));
    }
    Some(
        failure
            .fix("take the release from where it came, or run `stillroom release` again where it was made"),
    )
}
