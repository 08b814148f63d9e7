//! Who signs a release: a key's file, or a command that keeps the key.

use std::time::Duration;

use stillroom_governance::keys::{PublicKey, Signer};
use stillroom_governance::{GovernanceError, Manifest, oms};

use crate::failure::{Exit, Failure, Result};
use crate::flow::Flow;
use crate::process::{self, End, bare, first_line, located};
use crate::recipe::{Recipe, Signing, Source, variable_of};

/// The signer of a recipe, if it has one; `consent` says whether its command may run. It is asked for at the start, so that no
/// run ends at a key that cannot be read.
pub(crate) fn signer(recipe: &Recipe, source: &Source, consent: bool) -> Result<Option<Signer>> {
    match &recipe.release.signing {
        None => Ok(None),
        Some(Signing::File { key, key_passphrase }) => {
            let name = key_passphrase.as_deref().and_then(variable_of);
            let at = |failure: Failure| failure.at(source.place(&["release", "key_passphrase"]));
            let passphrase = name.map(passphrase_in).transpose().map_err(at)?;
            let signer = Signer::open(&source.resolve_path(key), passphrase.as_deref())?;
            Ok(Some(signer))
        }
        Some(Signing::Command { sign_command, public_key, sign_timeout_s }) => {
            if !consent {
                let place = source.place(&["release", "sign_command"]);
                return Err(process::not_allowed(sign_command, place, "for each signature"));
            }
            let public = PublicKey::open(&source.resolve_path(public_key))?;
            let (program, words) = located(source, sign_command);
            let time = Duration::from_secs_f64(*sign_timeout_s);
            let sign = move |bytes: &[u8]| -> stillroom_governance::Result<Vec<u8>> {
                let failed = |cause: String| GovernanceError::SigningCommand { cause };
                let outcome = process::run(bare(&program, &words), bytes.to_vec(), time)
                    .map_err(|error| failed(format!("cannot be run: {error}")))?;
                match outcome.end {
                    End::Exited(status) if status.success() => Ok(outcome.stdout),
                    End::Exited(status) => Err(failed(match status.code() {
                        Some(code) => format!("failed with {code}: {}", first_line(&outcome.stderr)),
                        None => "was ended by a signal".to_owned(),
                    })),
                    End::TimedOut => Err(failed(format!("took longer than {} s", time.as_secs_f64()))),
                    End::Flooded => Err(failed("says too much".to_owned())),
                }
            };
            Ok(Some(Signer::external(public, Box::new(sign))))
        }
    }
}

/// The passphrase in an environment variable.
pub(crate) fn passphrase_in(variable: &str) -> Result<String> {
    let text = std::env::var(variable).ok().map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
    text.filter(|text| !text.is_empty()).ok_or_else(|| {
        Failure::new(Exit::BadRecipe, format!("the environment has no `{variable}`"))
            .code("no-passphrase")
            .fix(format!("set it before the command: `export {variable}=…`"))
    })
}

impl Flow {
    /// Signs all that is in the release, the manifest and the log too: so it is the last to be written. Of the other files
    /// the manifest, just made, has the digests.
    pub(super) fn sign_release(&mut self, manifest: &Manifest) -> Result<()> {
        let Some(signer) = &self.signer else { return Ok(()) };
        oms::sign_digested(&self.run.release(), &[], signer, &manifest.of_release())?;
        let fingerprint = signer.public_key().fingerprint();
        self.progress.line(&format!("release: signed by the key {fingerprint}"));
        self.stamp_release()
    }
}
