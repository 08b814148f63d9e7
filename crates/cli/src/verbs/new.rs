//! `stillroom new`: a commented recipe from three answers.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use stillroom_core::Prompt;
use stillroom_corpus::Split;
use stillroom_corpus::prompts::{Choice, Files, Item, for_each};
use stillroom_governance::{Decision, Question, Subject, decide};

use crate::args::New;
use crate::failure::{Exit, Failure, Result};
use crate::{models, terminal};

const QUICKSTART_TEACHER: &str = "stillroom:quickstart-teacher";
const QUICKSTART_PATH: &str = "assets/quickstart-teacher";
const TASK: &str = "word_problems";
const FROM_SCRATCH: &str = "from-scratch";

pub(super) fn new(args: &New) -> Result<ExitCode> {
    let answers = Answers::of(args)?;
    let decision = decide(&answers.question()?);
    let text = recipe(&answers, &decision);
    if args.output == Path::new("-") {
        terminal::print(&text)?;
    } else {
        if args.output.exists() {
            return Err(Failure::new(Exit::Usage, format!("`{}` exists already", args.output.display()))
                .code("exists")
                .fix("name another file with `--output`"));
        }
        stillroom_store::atomic_write(&args.output, text.as_bytes())?;
        terminal::note(&format!("wrote {}", args.output.display()));
        terminal::note(&format!("licence: {}", decision.headline()));
        terminal::note(&format!("grading: {}", answers.grading.says()));
        terminal::note(&format!("next: stillroom plan {}", args.output.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// How replies will be judged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grading {
    Task,
    Numbers,
    /// Nothing to check against: models are compared with the teacher.
    Agreement,
}

impl Grading {
    fn says(self) -> &'static str {
        match self {
            Grading::Task => "by the task's own verifier",
            Grading::Numbers => "by the verifier `numeric_answer`: every prompt has a number as its answer",
            Grading::Agreement => {
                "no answers to check against: by agreement with the teacher (loss and divergence)"
            }
        }
    }
}

struct Answers {
    teacher_id: String,
    teacher_path: Option<String>,
    /// None for a student from scratch.
    student: Option<String>,
    prompts: String,
    is_text: bool,
    grading: Grading,
}

impl Answers {
    fn of(args: &New) -> Result<Answers> {
        let teacher = args.teacher.as_deref().unwrap_or(QUICKSTART_TEACHER);
        let (teacher_id, teacher_path) = place(teacher)?;
        let student = args.student.as_deref().filter(|student| *student != FROM_SCRATCH);
        let student =
            student.map(|student| place(student).map(|(id, path)| path.unwrap_or(id))).transpose()?;
        let prompts = args.prompts.as_deref().unwrap_or(TASK);
        let (is_text, grading) =
            if prompts == TASK { (false, Grading::Task) } else { look_at(Path::new(prompts))? };
        Ok(Answers { teacher_id, teacher_path, student, prompts: prompts.to_owned(), is_text, grading })
    }

    fn question(&self) -> Result<Question> {
        let subject = |id: &str, path: Option<&str>| match path.map(Path::new).filter(|path| path.exists()) {
            Some(path) => Subject::open_as(id, path),
            None => Ok(Subject::id(id)),
        };
        let teacher = subject(&self.teacher_id, self.teacher_path.as_deref())?;
        let student_base = self.student.as_deref().map(Subject::from_argument).transpose()?;
        Ok(Question { student_base, ..Question::about(teacher) })
    }
}

/// ID and, where the weights are on this machine, their path.
fn place(named: &str) -> Result<(String, Option<String>)> {
    if named == QUICKSTART_TEACHER {
        return Ok((named.to_owned(), Some(QUICKSTART_PATH.to_owned())));
    }
    if let Some(id) = named.strip_prefix("hf:") {
        return Ok((id.to_owned(), Some(models::locate(named)?.display().to_string())));
    }
    if Path::new(named).exists() {
        return Ok((named.to_owned(), Some(named.to_owned())));
    }
    let cached = models::locate(&format!("hf:{named}")).ok();
    Ok((named.to_owned(), cached.map(|path| path.display().to_string())))
}

/// What the data is, and whether every prompt has a number as its answer.
fn look_at(path: &Path) -> Result<(bool, Grading)> {
    if !path.exists() {
        return Err(Failure::new(Exit::Io, format!("there is no data at `{}`", path.display()))
            .code("no-data")
            .fix(format!("name a file, a folder or the task `{TASK}`")));
    }
    let has_number = |item: &Item| match item {
        Item::Prompt(Prompt { answer: Some(answer), .. }) => answer.chars().any(|c| c.is_ascii_digit()),
        _ => false,
    };
    let (mut n, mut is_text, mut numbers) = (0, false, true);
    for_each(&Files::of(path, &Choice::default())?, &mut |_, _, _| true, |split, item| -> Result<()> {
        if split == Split::Train {
            n += 1;
            is_text |= matches!(item, Item::Text { .. });
            numbers &= has_number(&item);
        }
        Ok(())
    })?;
    let numbers = numbers && !is_text && n > 0;
    Ok((is_text, if numbers { Grading::Numbers } else { Grading::Agreement }))
}

fn recipe(answers: &Answers, decision: &Decision) -> String {
    let mut text = String::from("# What a student shall learn, from whom, on what.\n#\n");
    let _ = writeln!(text, "# Licence verdict: {}", comment(&decision.headline()));
    for step in &decision.what_to_do {
        let _ = writeln!(text, "#   {}", comment(step));
    }
    text.push_str("# Egress: local; nothing leaves this machine.\n");
    let _ = writeln!(text, "# Grading: {}.\n", answers.grading.says());
    text.push_str("seed = 1\n\n[student]\n");
    text.push_str(&student_table(answers));
    text.push_str("\n[teacher]\nkind = \"local\"\n");
    match &answers.teacher_path {
        Some(path) => {
            let _ = writeln!(text, "path = {}", quoted(path));
        }
        None => {
            text.push_str("path = \"FOLDER_OR_GGUF\"    # where the teacher's weights are on this machine\n")
        }
    }
    let _ = writeln!(text, "model = {}    # what the licence gate sees", quoted(&answers.teacher_id));
    if !answers.is_text {
        text.push_str("samples_per_prompt = 1\nmax_tokens = 512\ntemperature = 0.7\n");
    }
    text.push_str(
        "# Token ids drawn from each of the teacher's distributions; `forward_kl` learns from them.\n",
    );
    text.push_str("logits = { kind = \"random_sampling\", draws = 50 }\n");
    text.push_str(&prompts_table(answers));
    text.push_str(TRAIN);
    let accepted: Vec<String> = decision.missing.iter().map(|name| quoted(name)).collect();
    text.push_str("\n[policy]\negress = \"local\"\naccept = []");
    if !accepted.is_empty() {
        let _ = write!(text, "    # if each is true: {}", accepted.join(", "));
    }
    text.push_str("\n\n[release]\ndtype = \"f32\"\ngguf = \"f32\"\n");
    text
}

fn student_table(answers: &Answers) -> String {
    match &answers.student {
        None => "# Random at the start; the teacher's tokenizer.\nkind = \"from_scratch\"\narchitecture = \"llama\"\n\
                 hidden_size = 96\nnum_hidden_layers = 4\nnum_attention_heads = 4\nnum_key_value_heads = 2\n\
                 intermediate_size = 256\nmax_position_embeddings = 1024\ntie_word_embeddings = true\n"
            .to_owned(),
        Some(path) => format!("kind = \"pretrained\"\npath = {}\n", quoted(path)),
    }
}

fn prompts_table(answers: &Answers) -> String {
    if answers.grading == Grading::Task {
        return format!("\n[prompts]\ntask = {}\nnum_examples = 4096\nnum_validation = 128\n", quoted(TASK));
    }
    let mut text = format!("\n[prompts]\npath = {}\n", quoted(&answers.prompts));
    if answers.is_text {
        text.push_str("kind = \"text\"    # texts are learned as they stand\n");
    }
    if answers.grading == Grading::Numbers {
        text.push_str("verifier = \"numeric_answer\"\n");
    }
    text.push_str("num_validation = 64\n");
    text
}

const TRAIN: &str = "
[train]
learning_rate = 2e-3
lr_scheduler_type = \"cosine\"
warmup_ratio = 0.05
num_train_epochs = 3
per_device_train_batch_size = 8     # packed rows of max_length tokens
max_length = 512
loss_functions = [
    { function = \"forward_kl\", weight = 1.0 },
    { function = \"hard_labels\", weight = 0.1 },
]

[evaluate]
num_examples = 500
";

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn comment(text: &str) -> String {
    terminal::one_line(text)
}
