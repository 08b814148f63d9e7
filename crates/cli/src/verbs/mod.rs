//! One module per verb.

use std::process::ExitCode;

use crate::args::Verb;
use crate::failure::{Exit, Failure, Result};
use crate::recipe::Recipe;

pub(crate) fn dispatch(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Plan(args) => {
            let (recipe, _) = Recipe::load(&args.recipe.recipe, &args.recipe.overrides)?;
            crate::terminal::print(&recipe.to_toml()).map_err(|e| Failure::new(Exit::Io, e.to_string()))?;
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(Failure::new(Exit::Usage, "not wired")),
    }
}
