//! The command line as typed: verbs and flags, nothing resolved yet.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(
    name = "stillroom",
    version,
    about = "Distil a strong language model into a small one that you can run, licence and vouch for.",
    after_help = "Start here:  stillroom run recipes/quickstart.toml",
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Write a commented recipe from three answers
    New(New),
    /// Run a recipe from the licence gate to the release; continue where it stopped
    Run(Run),
    /// Say what a run would take, before anything is sent or spent
    Plan(Plan),
    /// Check this machine and name each missing piece
    Doctor(Doctor),
    /// Fetch a model from the hub into the hub's cache, after the licence verdict
    Pull(Pull),
    /// Run a recipe up to the teacher's traces
    Teach(Stage),
    /// Run a recipe up to the curated training set
    Curate(Curate),
    /// Run a recipe up to the trained student and its controls
    Train(Stage),
    /// Run a recipe up to the report
    Evaluate(Stage),
    /// Run a recipe up to the release directory
    Release(Stage),
    /// Continue a text with a model
    Generate(Generate),
    /// Score a text: the log-probability of each token
    Score(Score),
    /// Serve a model to clients of OpenAI's interface, and keep a log of what it answered
    Serve(Serve),
    /// Convert between a Hugging Face directory and a GGUF file
    Convert(Convert),
    /// Check that a run or release is what its manifest says
    Verify(Verify),
    /// Say what changed between two releases
    Diff(Diff),
    /// Show one entry of a run's log, with the proof that it is in there, and no other
    Open(Open),
    /// Make a key that signs releases
    #[command(subcommand)]
    Key(Key),
    /// Time the engine on this machine, on random tokens
    #[command(subcommand)]
    Bench(Bench),
    /// Ask the licence register
    #[command(alias = "license", subcommand)]
    Licence(Licence),
}

impl Verb {
    /// Whether the same command takes up an interrupted one's work.
    pub(crate) fn continues(&self) -> bool {
        use Verb::{Curate, Evaluate, Release, Run, Teach, Train};
        matches!(self, Run(_) | Teach(_) | Curate(_) | Train(_) | Evaluate(_) | Release(_))
    }
}

/// A recipe and what changes it.
#[derive(Debug, Args)]
pub(crate) struct RecipeArgs {
    /// The recipe (TOML, or YAML by its ending)
    pub(crate) recipe: PathBuf,
    /// Change a key of the recipe for this run, for example `--set train.max_steps=200`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Let the recipe run its commands on this machine: the verifier's, and the one that signs
    #[arg(long)]
    pub(crate) allow_commands: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Machine {
    /// Threads to compute with (default: all)
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<std::num::NonZeroUsize>,
}

#[derive(Debug, Args)]
pub(crate) struct New {
    /// The teacher: a local path, a hub name or `service:model`
    #[arg(long, value_name = "ID")]
    pub(crate) teacher: Option<String>,
    /// The student to start from: a local path, a hub name or `from-scratch`
    #[arg(long, value_name = "ID")]
    pub(crate) student: Option<String>,
    /// The prompts: a file, a folder or the name of a task
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<String>,
    /// Where to write the recipe; `-` for stdout
    #[arg(long, value_name = "FILE", default_value = "recipe.toml")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// The run directory (default: runs/<recipe name>)
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Shrink the whole flow to about this long, for example `2m`; marked as a trial everywhere
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) trial: Option<Duration>,
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Print the final report as JSON on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Stage {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// The run directory (default: runs/<recipe name>)
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Print the stage's summary as JSON on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Curate {
    #[command(flatten)]
    pub(crate) stage: Stage,
    /// Say of each step how many traces it removed, and show a few of them
    #[arg(long)]
    pub(crate) explain: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Print the plan as JSON on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print the findings as JSON on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// The model's name on the hub
    #[arg(value_name = "ORG/NAME")]
    pub(crate) model: String,
    /// A branch, a tag or a commit
    #[arg(long, value_name = "REVISION", default_value = "main")]
    pub(crate) revision: String,
    /// Take weights whose names match instead of the safetensors files, for example `*Q4_K_M.gguf`
    #[arg(long, value_name = "PATTERN")]
    pub(crate) include: Vec<String>,
    /// What is to be taken from the model; the licence verdict depends on it
    #[arg(long = "use", value_name = "USE", default_value = "outputs")]
    pub(crate) usage: Use,
    /// Accept a condition that the verdict names
    #[arg(long, value_name = "CONDITION")]
    pub(crate) accept: Vec<String>,
    /// Fetch it against the verdict, for a reason that is shown
    #[arg(long = "override", value_name = "REASON")]
    pub(crate) override_reason: Option<String>,
    /// Print files and verdict as JSON on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// A Hugging Face directory, a `.gguf` file, or `hf:ORG/NAME` from the local hub cache
    pub(crate) model: String,
    /// An adapter as PEFT writes it, to be laid over the model
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<String>,
    /// The text to continue
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// Wrap the prompt in the model's chat template
    #[arg(long)]
    pub(crate) chat: bool,
    #[arg(long, value_name = "N", default_value = "128")]
    pub(crate) max_tokens: usize,
    /// 0 takes the likeliest token each time
    #[arg(long, value_name = "T", default_value = "0", value_parser = temperature)]
    pub(crate) temperature: f32,
    #[arg(long, value_name = "P", default_value = "1", value_parser = probability)]
    pub(crate) top_p: f32,
    #[arg(long, value_name = "S", default_value = "0")]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Print tokens and text as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Score {
    /// A Hugging Face directory, a `.gguf` file, or `hf:ORG/NAME` from the local hub cache
    pub(crate) model: String,
    /// An adapter as PEFT writes it, to be laid over the model
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<String>,
    /// The text; `-` for stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Print every token's log-probability as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Ctrl-C or SIGTERM lets answers that are being written end and takes no new ones; a second Ctrl-C ends at once."
)]
pub(crate) struct Serve {
    /// A Hugging Face directory, a `.gguf` file, or `hf:ORG/NAME` from the local hub cache
    pub(crate) model: String,
    /// An adapter as PEFT writes it, to be laid over the model
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<String>,
    /// The port to listen at; 0 takes a free one
    #[arg(long, value_name = "P", default_value = "8000")]
    pub(crate) port: u16,
    /// The address to listen at; one that other machines can reach needs an API key
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub(crate) host: std::net::IpAddr,
    /// An environment variable with an API key that requests must have; for several keys several times
    #[arg(long, value_name = "NAME")]
    pub(crate) api_key_env: Vec<String>,
    /// What requests call the model (default: its file's name)
    #[arg(long, value_name = "NAME")]
    pub(crate) served_model_name: Option<String>,
    /// Tokens of a prompt and its answer together (default: as many as the model can)
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) context: Option<usize>,
    /// Sequences that are written at a time; others wait
    #[arg(long, value_name = "N", default_value = "16", value_parser = count)]
    pub(crate) parallel: usize,
    /// Keep a log of the answers in this directory, which can show later what was answered and when
    #[arg(long, value_name = "DIR")]
    pub(crate) log: Option<PathBuf>,
    /// Keep digests of requests and answers in the log, not their texts
    #[arg(long, requires = "log")]
    pub(crate) log_digests_only: bool,
    /// The private key that signs the log's heads
    #[arg(long, value_name = "FILE", requires = "log")]
    pub(crate) key: Option<PathBuf>,
    /// The environment variable with the key's passphrase
    #[arg(long, value_name = "NAME", requires = "key")]
    pub(crate) key_passphrase_env: Option<String>,
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Print address and model as JSON, on the first line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreType {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
}

#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// A Hugging Face directory, a `.gguf` file, or `hf:ORG/NAME` from the local hub cache
    #[arg(value_name = "IN")]
    pub(crate) input: String,
    /// A path ending in `.gguf`, or the directory to write
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// An adapter as PEFT writes it, to be merged into the weights
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<String>,
    /// How weights are stored
    #[arg(long = "type", value_name = "TYPE", default_value = "f32")]
    pub(crate) store: StoreType,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// A run directory or a release directory
    pub(crate) directory: PathBuf,
    /// The public key that has to have signed it
    #[arg(long, value_name = "FILE")]
    pub(crate) public_key: Option<PathBuf>,
    /// The certificate of the timestamp service, or of the authority above it: when did all this exist at the latest?
    #[arg(long, value_name = "FILE")]
    pub(crate) timestamp_certificate: Option<PathBuf>,
    /// Do this many segments of the student's training again, drawn from all on record, and compare bit for bit
    #[arg(long, value_name = "K")]
    pub(crate) replay: Option<std::num::NonZeroUsize>,
    /// Which segments are drawn; the time says, if this does not
    #[arg(long, value_name = "S", requires = "replay")]
    pub(crate) seed: Option<u64>,
    /// The run's recipe, where it has been moved: what it names is looked for beside it
    #[arg(long, value_name = "FILE", requires = "replay")]
    pub(crate) recipe: Option<PathBuf>,
    /// Check that the entry in this file, as `stillroom open` writes it, is in the log
    #[arg(long, value_name = "FILE")]
    pub(crate) opening: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Print the finding as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 where nothing differs, 1 where something does. What the records say is compared;\n\
                        whether it is true of the files, `stillroom verify` says."
)]
pub(crate) struct Diff {
    /// A run directory, a release directory or a `record.json`
    pub(crate) a: PathBuf,
    /// The other one
    pub(crate) b: PathBuf,
    /// Print the differences as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Open {
    /// A run directory, or the `--log` of `stillroom serve`, with its `log/secret`
    pub(crate) run: PathBuf,
    /// What kind of entry
    #[arg(value_parser = ["decision", "stage", "call", "trace", "kept", "dropped", "batch", "checkpoint", "answer"])]
    pub(crate) kind: String,
    /// Its number, from 0 (calls, batches and checkpoints: as the run counts them); of a stage its name
    #[arg(default_value = "0")]
    pub(crate) entry: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a new key (ECDSA, P-256): FILE for you alone, FILE.pub for everybody
    New(KeyNew),
}

#[derive(Debug, Args)]
pub(crate) struct KeyNew {
    /// Where to write the private key; nothing is overwritten
    pub(crate) file: PathBuf,
    /// The environment variable with a passphrase to keep it under
    #[arg(long, value_name = "NAME")]
    pub(crate) passphrase_env: Option<String>,
    /// Print the key's names as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Optimiser steps: forward, backward, clipping and AdamW
    Train(BenchTrain),
    /// The log-probability of each token of given sequences
    Score(BenchScore),
    /// New tokens, one at a time for each sequence of a batch
    Decode(BenchDecode),
}

/// What every kind of work is timed on.
#[derive(Debug, Args)]
pub(crate) struct BenchSetting {
    /// A Hugging Face directory, a `.gguf` file, or `hf:ORG/NAME` from the local hub cache; without it,
    /// a random Llama of the sizes below
    #[arg(
        long,
        value_name = "MODEL",
        conflicts_with_all = ["hidden", "layers", "heads", "kv_heads", "ffn", "vocab", "tied"]
    )]
    pub(crate) model: Option<String>,
    /// Width
    #[arg(long, value_name = "N", default_value = "384", value_parser = count)]
    pub(crate) hidden: usize,
    #[arg(long, value_name = "N", default_value = "6", value_parser = count)]
    pub(crate) layers: usize,
    /// Query heads
    #[arg(long, value_name = "N", default_value = "6", value_parser = count)]
    pub(crate) heads: usize,
    /// Key and value heads (default: as many as query heads)
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) kv_heads: Option<usize>,
    /// Width of the feed-forward part
    #[arg(long, value_name = "N", default_value = "1024", value_parser = count)]
    pub(crate) ffn: usize,
    #[arg(long, value_name = "N", default_value = "8192", value_parser = count)]
    pub(crate) vocab: usize,
    /// The embedding is the head too
    #[arg(long)]
    pub(crate) tied: bool,
    /// Sequences that are computed together
    #[arg(long, value_name = "N", default_value = "8", value_parser = count)]
    pub(crate) batch: usize,
    /// Steps that are timed, after two that are not
    #[arg(long, value_name = "N", default_value = "8", value_parser = count)]
    pub(crate) steps: usize,
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Print the figures as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchLoss {
    Ce,
    #[value(name = "sparse_kd")]
    SparseKd,
}

#[derive(Debug, Args)]
pub(crate) struct BenchTrain {
    #[command(flatten)]
    pub(crate) setting: BenchSetting,
    /// Tokens of each sequence
    #[arg(long, value_name = "N", default_value = "256", value_parser = count)]
    pub(crate) sequence: usize,
    /// Cross-entropy on the text's own tokens, or KL from sparse teacher distributions
    #[arg(long, value_name = "LOSS", default_value = "ce")]
    pub(crate) loss: BenchLoss,
    /// Share of each sequence, from its front, that is prompt and not supervised
    #[arg(long, value_name = "FRACTION", default_value = "0", value_parser = below_one)]
    pub(crate) masked: f64,
    /// Teacher ids per position of `sparse_kd` (default: 50)
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) draws: Option<usize>,
    /// Compute activations a second time rather than keep them: less memory, more time
    #[arg(long)]
    pub(crate) gradient_checkpointing: bool,
    /// Train a LoRA adapter of this rank beside all linear maps of the layers, not the weights
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) lora_r: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchScore {
    #[command(flatten)]
    pub(crate) setting: BenchSetting,
    /// Tokens of each sequence
    #[arg(long, value_name = "N", default_value = "256", value_parser = count)]
    pub(crate) sequence: usize,
}

#[derive(Debug, Args)]
pub(crate) struct BenchDecode {
    #[command(flatten)]
    pub(crate) setting: BenchSetting,
    #[arg(long, value_name = "N", default_value = "16", value_parser = count)]
    pub(crate) prompt_tokens: usize,
    /// New tokens of each sequence that are timed; one more, which the prompt's own pass gives, is not
    #[arg(long, value_name = "N", default_value = "128", value_parser = count)]
    pub(crate) tokens: usize,
    /// Prompt and timed tokens together, instead of `--tokens`
    #[arg(long, value_name = "N", value_parser = count, conflicts_with = "tokens")]
    pub(crate) sequence: Option<usize>,
    /// 0 takes the likeliest token each time
    #[arg(long, value_name = "T", default_value = "0", value_parser = temperature)]
    pub(crate) temperature: f32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Licence {
    /// May this student learn from this teacher?
    Check(LicenceCheck),
    /// List the register
    List(LicenceList),
    /// Show what the register says about one release
    Show(LicenceShow),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Use {
    /// The student learns from what the teacher writes
    Outputs,
    /// The student starts from the teacher's weights
    Weights,
}

#[derive(Debug, Args)]
pub(crate) struct LicenceCheck {
    /// A hub name, `service:model`, or a local model directory; judges and rewriters are teachers too
    #[arg(long, value_name = "ID", required = true)]
    pub(crate) teacher: Vec<String>,
    /// The same, for the model that the student starts from
    #[arg(long, value_name = "ID")]
    pub(crate) student: Option<String>,
    /// What wrote the data: the same again
    #[arg(long, value_name = "ID")]
    pub(crate) data: Vec<String>,
    /// The name under which the student is to be released; some licences prescribe how it begins
    #[arg(long, value_name = "NAME")]
    pub(crate) student_name: Option<String>,
    /// What is taken from the teacher
    #[arg(long = "use", value_name = "USE", default_value = "outputs")]
    pub(crate) usage: Use,
    /// Accept a condition that the verdict names
    #[arg(long, value_name = "CONDITION")]
    pub(crate) accept: Vec<String>,
    /// A directory with the licence files of a model that is not on this machine; say it once for each
    #[arg(long, value_name = "ID=DIR", visible_alias = "license-files")]
    pub(crate) licence_files: Vec<String>,
    /// A table of your own beside the register, with the same columns
    #[arg(long, value_name = "FILE")]
    pub(crate) register: Option<PathBuf>,
    /// Print the verdict as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LicenceList {
    /// A table of your own beside the register, with the same columns
    #[arg(long, value_name = "FILE")]
    pub(crate) register: Option<PathBuf>,
    /// Print the register as CSV, the form of a table of your own
    #[arg(long, conflicts_with = "json")]
    pub(crate) csv: bool,
    /// Print the register as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LicenceShow {
    /// A hub name, `service:model`, or a local model directory
    pub(crate) id: String,
    /// A table of your own beside the register, with the same columns
    #[arg(long, value_name = "FILE")]
    pub(crate) register: Option<PathBuf>,
    /// Print the entries as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `90s`, `2m`, `1h`, or a plain number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    const SECONDS_MAX: f64 = 7.0 * 86_400.0;
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let scale = match unit {
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err("write a time such as `90s`, `2m` or `1h`".into()),
    };
    match number.trim().parse::<f64>().map(|n| n * scale) {
        Ok(seconds) if (1.0..=SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) => Err("the time must lie between 1 s and 7 days".into()),
        Err(_) => Err("write a time such as `90s`, `2m` or `1h`".into()),
    }
}

/// Sizes and counts of a benchmark.
fn count(text: &str) -> Result<usize, String> {
    const COUNT_MAX: usize = 1 << 22;
    match text.parse::<usize>() {
        Ok(n) if (1..=COUNT_MAX).contains(&n) => Ok(n),
        _ => Err(format!("write a whole number from 1 to {COUNT_MAX}")),
    }
}

fn below_one(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..1.0).contains(&share) => Ok(share),
        _ => Err("the share is a number from 0 to below 1".into()),
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(t) if (0.0..=100.0).contains(&t) => Ok(t),
        _ => Err("the temperature is a number from 0 to 100".into()),
    }
}

fn probability(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(p) if p > 0.0 && p <= 1.0 => Ok(p),
        _ => Err("top-p is a number above 0, at most 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_read_as_people_write_them() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5400)));
        for bad in ["", "m", "2 weeks", "-1s", "0", "1e9h", "nan"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
