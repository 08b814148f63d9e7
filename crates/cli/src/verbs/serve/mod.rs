//! `stillroom serve`: a model on this machine for clients of OpenAI's interface.

pub(super) mod answers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;
use stillroom_core::{Digest, Digester};
use stillroom_governance::keys::Signer;
use stillroom_serve::{Limits, Served, Server, Settings};
use stillroom_store::digest_file;

use crate::args::Serve;
use crate::failure::{Exit, Failure, Result};
use crate::flow::signing::passphrase_in;
use crate::models::Model;
use crate::{interrupt, models, terminal};

/// Least characters of an API key.
const KEY_CHARS_MIN: usize = 8;

pub(super) fn serve(args: &Serve) -> Result<ExitCode> {
    let keys = args.api_key_env.iter().map(|name| key_in(name)).collect::<Result<Vec<_>>>()?;
    let address = SocketAddr::new(args.host, args.port);
    if !address.ip().is_loopback() && keys.is_empty() {
        // Before anything is loaded.
        return Err(stillroom_serve::ServeError::Open { address }.into());
    }
    let signer = match &args.key {
        None => None,
        Some(path) => {
            let passphrase = args.key_passphrase_env.as_deref().map(passphrase_in).transpose()?;
            Some(Signer::open(path, passphrase.as_deref())?)
        }
    };
    let path = models::locate(&args.model)?;
    let weights = weights_of(&path, args.adapter.as_deref())?;
    let Model { decoder, tokenizer } =
        models::load_adapted(&args.model, args.adapter.as_deref(), models::device(&args.machine))?;
    let book = args.log.as_deref().map(|dir| answers::Book::open(dir, signer, !args.log_digests_only));
    let book = book.transpose()?;
    let sink = book.as_ref().map(answers::Book::sink);
    let model_name = args.served_model_name.clone().unwrap_or_else(|| name_of(&args.model));
    let settings = Settings {
        address,
        keys,
        model_name: model_name.clone(),
        weights,
        context: args.context,
        limits: Limits { in_flight_max: args.parallel, ..Limits::default() },
    };
    let server = Server::bind(settings, Served { decoder, tokenizer }, sink)?;
    let url = format!("http://{}", server.address());
    if args.json {
        let (context, fingerprint) = (server.context(), server.fingerprint());
        let said = json!({
            "address": server.address().to_string(), "base_url": format!("{url}/v1"), "model": model_name,
            "context": context, "weights_sha256": weights, "system_fingerprint": fingerprint,
        });
        terminal::print_line(&said.to_string())?;
    } else {
        terminal::print_line(&url)?;
        terminal::note(&format!(
            "`{model_name}`, context of {} tokens; clients take {url}/v1",
            server.context()
        ));
    }
    let stopper = server.stopper();
    interrupt::on_end(move || {
        terminal::note_below("ending: answers that are being written may end");
        stopper.stop();
    });
    let ran = server.run();
    // Whatever ended the server, what was answered is sealed.
    book.map_or(Ok(()), answers::Book::close)?;
    ran?;
    Ok(ExitCode::SUCCESS)
}

/// The digest of the API key in an environment variable.
fn key_in(name: &str) -> Result<Digest> {
    let refused = |cause: String| {
        Failure::new(Exit::Usage, cause)
            .at("--api-key-env")
            .fix(format!("set it before the command: `export {name}=…`"))
    };
    let key = std::env::var(name).map_err(|_| refused(format!("the environment has no `{name}`")))?;
    let key = key.trim();
    if key.len() < KEY_CHARS_MIN {
        return Err(refused(format!("`{name}` has less than {KEY_CHARS_MIN} characters")));
    }
    Ok(Digest::of(key.as_bytes()))
}

/// What a model is called where nobody says.
fn name_of(model: &str) -> String {
    let hub = model.strip_prefix("hf:").map(|name| name.split('@').next().unwrap_or(name).to_owned());
    let path = || {
        let path = std::path::absolute(model).unwrap_or_else(|_| PathBuf::from(model));
        let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
        name.map(|name| name.to_string_lossy().into_owned())
    };
    hub.or_else(path).unwrap_or_else(|| "model".to_owned())
}

/// The digest of a model's weights: that of their file, as a release's manifest has it; of several files, that of their
/// digests in the order of their names.
fn weights_of(model: &Path, adapter: Option<&str>) -> Result<Digest> {
    let mut files = weight_files(model)?;
    if let Some(adapter) = adapter {
        files.extend(weight_files(&models::locate(adapter)?)?);
    }
    let digests: Vec<Digest> = files.iter().map(|file| Ok(digest_file(file)?.0)).collect::<Result<_>>()?;
    if let [digest] = digests[..] {
        return Ok(digest);
    }
    let mut all = Digester::new();
    digests.iter().for_each(|digest| all.update(digest.as_bytes()));
    Ok(all.finish())
}

fn weight_files(model: &Path) -> Result<Vec<PathBuf>> {
    if model.is_file() {
        return Ok(vec![model.to_path_buf()]);
    }
    let folder = std::fs::read_dir(model).map_err(|e| Failure::io("read", model, &e))?;
    let mut files: Vec<PathBuf> = folder.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "safetensors"));
    files.sort();
    Ok(files)
}
