//! `stillroom key`: keys that sign releases.

use std::process::ExitCode;

use serde_json::json;
use stillroom_governance::keys::{Signer, public_path};

use crate::args::{Key, KeyNew};
use crate::failure::Result;
use crate::flow::signing::passphrase_in;
use crate::terminal;

pub(super) fn key(verb: &Key) -> Result<ExitCode> {
    match verb {
        Key::New(args) => new(args),
    }
}

fn new(args: &KeyNew) -> Result<ExitCode> {
    let passphrase = args.passphrase_env.as_deref().map(passphrase_in).transpose()?;
    let signer = Signer::create(&args.file, passphrase.as_deref())?;
    let (private, public) = (args.file.display(), public_path(&args.file));
    let fingerprint = signer.public_key().fingerprint();
    if args.json {
        terminal::print_json(&json!({
            "key": args.file,
            "public_key": public,
            "fingerprint": fingerprint,
            "encrypted": passphrase.is_some(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let kept = if passphrase.is_some() { "under the passphrase" } else { "without a passphrase" };
    terminal::print(&format!(
        "{private}\tprivate key, {kept}: keep it to yourself\n\
         {}\tpublic key: give it to those who are to check what you sign\n\
         fingerprint\t{fingerprint}\n",
        public.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}
