//! `stillroom pull`: a model from the hub into the hub's own cache, after the licence verdict.

mod cache;
mod select;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use stillroom_core::Reach;
use stillroom_governance::{
    Decision, Egress, GovernanceError, Question, Register, Subject, Use, Verdict, decide,
};
use stillroom_net::hub::{self, Hub, ListedFile, RemoteFile, Repository, RepositoryId};
use stillroom_net::{Client, ClientOptions, NetError, Secret};

use self::cache::{Fetched, Folder};
use self::select::Selection;
use crate::args::{Pull, Use as UseArg};
use crate::failure::{Exit, Failure, Result};
use crate::flow::gate::refusal;
use crate::terminal::{Progress, one_line};
use crate::{models, terminal};

/// Longest silence that `HF_HUB_DOWNLOAD_TIMEOUT` may ask for, in seconds.
const STALL_S_MAX: u64 = 3600;

impl From<NetError> for Failure {
    fn from(error: NetError) -> Failure {
        Failure::of(&error, error.kind(), error.fix())
    }
}

pub(super) fn pull(args: &Pull) -> Result<ExitCode> {
    let id = RepositoryId::parse(args.model.strip_prefix("hf:").unwrap_or(&args.model)).map_err(usage)?;
    hub::check_revision(&args.revision).map_err(usage)?;
    let selection = Selection::new(&args.include)?;
    Register::builtin().check_condition_names(&args.accept)?;
    let cache = models::hub_cache();
    let cached = models::snapshot(&cache.join(id.folder()), &args.revision);
    let subject = match &cached {
        Some(snapshot) => Subject::open_as(id.to_string(), snapshot)?,
        None => Subject::id(id.to_string()),
    };
    let decision = admit(args, &id, subject)?;
    let folder = Folder::new(&cache, &id);
    let pulled = if offline() {
        let Some(snapshot) = cached else { return Err(not_here(&id, &cache)) };
        Pulled { snapshot, commit: None, files: Vec::new(), decision }
    } else {
        Fetch { args, id: &id, folder: &folder, selection: &selection }.go(&decision)?
    };
    report(args, &id, &pulled)
}

fn usage(error: NetError) -> Failure {
    let failure = Failure::new(Exit::Usage, error.to_string());
    match error.fix() {
        Some(fix) => failure.fix(fix),
        None => failure,
    }
}

/// The licence verdict on what is known of the model so far; a refusal is the end of it.
fn admit(args: &Pull, id: &RepositoryId, subject: Subject) -> Result<Decision> {
    let question = Question {
        use_: match args.usage {
            UseArg::Outputs => Use::Outputs,
            UseArg::Weights => Use::Weights,
        },
        accepted: args.accept.clone(),
        override_reason: args.override_reason.clone(),
        ..Question::about(subject)
    };
    let decision = decide(&question);
    decision.enforce().map_err(|error| refused(args, id, &error, &decision))?;
    Ok(decision)
}

fn refused(args: &Pull, id: &RepositoryId, error: &GovernanceError, decision: &Decision) -> Failure {
    let failure = refusal(error, decision);
    if decision.verdict == Verdict::Conditional && decision.violated.is_empty() {
        let accepted = args.accept.iter().chain(&decision.missing);
        let flags: String = accepted.map(|name| format!(" --accept {name}")).collect();
        return failure.next(format!("stillroom pull {id}{flags}"));
    }
    failure
        .detail("nothing was fetched for this; `--override REASON` takes it all the same and says so")
        .next(format!("stillroom licence check --teacher {id}"))
}

/// `HF_HUB_OFFLINE`, as the hub's own tools read it.
fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str()))
}

fn not_here(id: &RepositoryId, cache: &Path) -> Failure {
    let cause = format!("`{id}` is not in the hub cache `{}`, and `HF_HUB_OFFLINE` is set", cache.display());
    Failure::new(Exit::Io, cause).code("offline").fix("unset `HF_HUB_OFFLINE`, or name a model that is there")
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// A hub that may be asked about what `decision` is about.
fn open_hub(id: &RepositoryId, decision: &Decision) -> Result<Hub> {
    let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| hub::ENDPOINT.to_owned());
    let place = |error: NetError| usage(error).at("HF_ENDPOINT");
    let reach: Reach = hub::reach(&endpoint).map_err(place)?;
    // Who types `pull` lists the hub, and with it the stores of its files.
    let cleared = decision.clear(&id.to_string(), &Egress::Listed(reach.clone()), reach)?;
    let mut options = ClientOptions::default();
    if let Some(seconds) = variable("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse::<u64>().ok()) {
        options.stall = Duration::from_secs(seconds.clamp(1, STALL_S_MAX));
    }
    let token = variable("HF_TOKEN").map(Secret::new);
    Hub::new(Client::new(cleared, options), &endpoint, token).map_err(place)
}

struct Pulled {
    snapshot: PathBuf,
    /// None where nothing was asked.
    commit: Option<String>,
    files: Vec<Fetched>,
    decision: Decision,
}

struct Fetch<'a> {
    args: &'a Pull,
    id: &'a RepositoryId,
    folder: &'a Folder,
    selection: &'a Selection,
}

impl Fetch<'_> {
    /// Small files first; they may change the verdict, and the weights wait for it.
    fn go(&self, first: &Decision) -> Result<Pulled> {
        let hub = open_hub(self.id, first)?;
        let mut progress = Progress::new(self.args.quiet);
        let repository = hub.repository(self.id, &self.args.revision)?;
        let mut files =
            self.fetch_all(&hub, &repository, &self.selection.small(&repository), &mut progress)?;
        let decision = self.folder.with_evidence(&files, |folder| {
            let mut subject = Subject::open_as(self.id.to_string(), folder)?;
            if let Some(found) = &mut subject.found {
                found.place = format!("hf:{}", self.id);
            }
            admit(self.args, self.id, subject)
        })?;
        let index = files.iter().find(|file| file.name == select::INDEX).map(|file| file.blob.clone());
        let weights = self.selection.weights(&repository, index.as_deref())?;
        files.extend(self.fetch_all(&hub, &repository, &weights, &mut progress)?);
        let snapshot = self.folder.commit(&repository, &self.args.revision, &files)?;
        Ok(Pulled { snapshot, commit: Some(repository.commit), files, decision })
    }

    fn fetch_all(
        &self,
        hub: &Hub,
        repository: &Repository,
        wanted: &[&ListedFile],
        progress: &mut Progress,
    ) -> Result<Vec<Fetched>> {
        let mut fetched = Vec::with_capacity(wanted.len());
        for file in wanted {
            let remote: RemoteFile = hub.describe(repository, file)?;
            self.selection.check_size(&remote)?;
            let resume = |failure: Failure| failure.next(format!("stillroom pull {}", self.id));
            let one = self.folder.fetch(hub, repository, &remote, progress).map_err(resume)?;
            if one.downloaded > 0 {
                progress.line(&format!("{} ({} bytes)", one_line(&one.name), one.bytes));
            }
            fetched.push(one);
        }
        Ok(fetched)
    }
}

fn report(args: &Pull, id: &RepositoryId, pulled: &Pulled) -> Result<ExitCode> {
    let Pulled { snapshot, commit, files, decision } = pulled;
    if args.json {
        let files: Vec<_> = files
            .iter()
            .map(|file| {
                json!({
                    "name": file.name,
                    "bytes": file.bytes,
                    "content": file.content.to_string(),
                    "downloaded_bytes": file.downloaded,
                })
            })
            .collect();
        terminal::print_json(&json!({
            "model": id.to_string(),
            "revision": args.revision,
            "commit": commit,
            "path": snapshot.display().to_string(),
            "files": files,
            "licence": decision,
        }))?;
    } else {
        if !args.quiet {
            terminal::note(&format!("licence: {}", decision.headline()));
            if let Some(reason) = &decision.override_reason {
                terminal::note(&format!("OVERRIDDEN by `--override`: {}", one_line(reason)));
            }
        }
        terminal::print_line(&terminal::harmless(&snapshot.display().to_string()))?;
    }
    Ok(ExitCode::SUCCESS)
}
