//! One module per verb.

mod bench;
mod convert;
mod curate;
mod diff;
mod doctor;
mod generate;
mod key;
mod licence;
mod new;
mod open;
mod plan;
mod pull;
mod run;
mod score;
mod serve;
mod verify;
mod verify_log;

use std::process::ExitCode;

use crate::args::Verb;
use crate::failure::Result;
use crate::flow::Until;

pub(crate) fn dispatch(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::New(args) => new::new(&args),
        Verb::Run(args) => run::run(&args),
        Verb::Plan(args) => plan::plan(&args),
        Verb::Doctor(args) => doctor::doctor(&args),
        Verb::Pull(args) => pull::pull(&args),
        Verb::Teach(args) => run::stage(&args, Until::Teach),
        Verb::Curate(args) => curate::curate(&args),
        Verb::Train(args) => run::stage(&args, Until::Train),
        Verb::Evaluate(args) => run::stage(&args, Until::Evaluate),
        Verb::Release(args) => run::stage(&args, Until::Release),
        Verb::Generate(args) => generate::generate(&args),
        Verb::Score(args) => score::score(&args),
        Verb::Serve(args) => serve::serve(&args),
        Verb::Convert(args) => convert::convert(&args),
        Verb::Diff(args) => diff::diff(&args),
        Verb::Open(args) => open::open(&args),
        Verb::Verify(args) => verify::verify(&args),
        Verb::Key(verb) => key::key(&verb),
        Verb::Bench(work) => bench::bench(&work),
        Verb::Licence(verb) => licence::licence(&verb),
    }
}
