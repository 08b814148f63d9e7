//! The licence gate: before anything is sent, spent or written.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use stillroom_core::{Cleared, Reach};
use stillroom_governance::{
    Decision, Declaration, Egress, GovernanceError, Question, REGISTER_BYTES_MAX, Register, Subject, Use,
    Verdict, decide_by, digest_of_weights,
};
use stillroom_store::{atomic_write, create_dir_durable};

use crate::failure::{Exit, Failure, Result};
use crate::flow::stamps;
use crate::recipe::{self, Base, PromptSource, Recipe, Source, Student, Wire};
use crate::terminal;

/// What the gate says about a recipe, by its register.
pub(crate) fn decision(recipe: &Recipe, source: &Source) -> Result<Decision> {
    let path = recipe.policy.register.as_deref().map(|path| source.resolve_path(path));
    let register =
        register(path.as_deref()).map_err(|failure| failure.at(source.place(&["policy", "register"])))?;
    register.check_condition_names(&recipe.policy.accept)?;
    let question = question(recipe, source)?;
    check_papers(recipe, source, &question)?;
    Ok(decide_by(&register, &question))
}

/// The register, with a table of the user's own beside it.
pub(crate) fn register(users: Option<&Path>) -> Result<Cow<'static, Register>> {
    let Some(path) = users else { return Ok(Cow::Borrowed(Register::builtin())) };
    let mut text = String::new();
    let file = File::open(path).map_err(|e| Failure::io("open", path, &e))?;
    let read = file.take(REGISTER_BYTES_MAX as u64 + 1).read_to_string(&mut text);
    read.map_err(|e| Failure::io("read", path, &e))?;
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let with_users = Register::builtin().with_users(&text, &name).map_err(|error| {
        Failure::new(Exit::BadData, format!("`{}`: {error}", path.display()))
            .code("register")
            .fix("it has the columns of `stillroom licence list --csv`; docs/licences.md explains them")
    })?;
    Ok(Cow::Owned(with_users))
}

/// What the gate is asked about a recipe.
fn question(recipe: &Recipe, source: &Source) -> Result<Question> {
    let mut teachers = Vec::new();
    if let Some(teacher) = &recipe.teacher {
        teachers.push(subject(recipe, source, &teacher.model, teacher.path.as_deref())?);
        for further in &teacher.ensemble {
            teachers.push(subject(recipe, source, &further.model, Some(&further.path))?);
        }
    }
    let student_base = match recipe.student.base() {
        None => None,
        Some(Base { path: None, .. }) => teachers.first().cloned(),
        Some(Base { path: Some(path), model }) => {
            Some(subject(recipe, source, model.unwrap_or(path), Some(path))?)
        }
    };
    let mut data = match &recipe.prompts.source {
        PromptSource::Task { .. } => vec![Subject::id("stillroom:procedural-tasks")],
        // Files of the user's own: who may use them is not for a register of models to say.
        PromptSource::Chat { .. } | PromptSource::Text { .. } => Vec::new(),
    };
    // What was learned from whom, no file of an adapter says: its owner does.
    if let Student::Pretrained { adapter: Some(path), .. } = &recipe.student {
        data.push(Subject::id(path));
    }
    let declared = recipe.policy.declare.iter().map(|(id, declared)| {
        let declaration = Declaration {
            owner: declared.owner.clone(),
            licence: declared.licence.clone(),
            digest: declared.digest,
        };
        (id.clone(), declaration)
    });
    Ok(Question {
        teachers,
        student_base,
        data,
        use_: Use::Outputs,
        endpoints: endpoints(recipe).map(str::to_owned).collect(),
        student_name: Some(recipe.release.name.clone()),
        declared: declared.collect(),
        accepted: recipe.policy.accept.clone(),
        override_reason: recipe.policy.override_reason.clone(),
    })
}

fn subject(recipe: &Recipe, source: &Source, id: &str, path: Option<&str>) -> Result<Subject> {
    let Some(path) = path.map(|path| source.resolve_path(path)).filter(|path| path.exists()) else {
        return by_papers(recipe, source, id);
    };
    let mut subject = Subject::open_as(id, &path)?;
    let digest_is_declared = recipe.policy.declare.get(id).is_some_and(|d| d.digest.is_some());
    if digest_is_declared {
        subject.digest = digest_of_weights(&path)?;
        if subject.digest.is_none() {
            let cause =
                format!("a digest is declared, and the weights in `{}` are not one file", path.display());
            return Err(source
                .bad(&["policy", "declare", id, "digest"], cause)
                .fix("remove the digest, or keep the weights in one `model.safetensors`"));
        }
    }
    Ok(subject)
}

/// Something that is not on this machine, by the papers that the recipe brings for it.
fn by_papers(recipe: &Recipe, source: &Source, id: &str) -> Result<Subject> {
    let Some(papers) = recipe.policy.licence_files.get(id) else { return Ok(Subject::id(id)) };
    with_papers(id, &source.resolve_path(papers))
        .map_err(|failure| failure.at(source.place(&["policy", "licence_files", id])))
}

/// What is asked about by name, with a directory of its licence files.
pub(crate) fn with_papers(id: &str, papers: &Path) -> Result<Subject> {
    let failed = |cause: String| {
        Failure::new(Exit::BadData, cause)
            .code("licence-files")
            .fix("name a directory with the model's LICENSE as its publisher has it, and its README.md and config.json")
    };
    if !papers.is_dir() {
        return Err(failed(format!("`{}`, the licence files of `{id}`, is no directory", papers.display())));
    }
    let subject = Subject::open_as(id, papers)?;
    if subject.found.as_ref().is_some_and(|found| found.files.is_empty()) {
        return Err(failed(format!("`{}` has no licence file of `{id}`", papers.display())));
    }
    Ok(subject)
}

/// Papers for a model that the recipe does not name are a slip of the pen, which must not pass as evidence.
fn check_papers(recipe: &Recipe, source: &Source, question: &Question) -> Result<()> {
    let asked = || question.teachers.iter().chain(&question.student_base).chain(&question.data);
    for id in recipe.policy.licence_files.keys() {
        if !asked().any(|subject| &subject.id == id) {
            let named: Vec<String> = asked().map(|subject| format!("`{}`", subject.id)).collect();
            return Err(source
                .bad(&["policy", "licence_files", id], format!("no model of this recipe is called `{id}`"))
                .fix(format!("the gate asks about {}", named.join(", "))));
        }
    }
    Ok(())
}

/// Decides on a recipe; a refusal writes `licence.json` and nothing else.
pub(crate) fn pass(recipe: &Recipe, source: &Source, output: &Path) -> Result<Decision> {
    let decision = decision(recipe, source)?;
    if let Err(refused) = decision.enforce() {
        create_dir_durable(output)?;
        let mut text = serde_json::to_vec_pretty(&decision).expect("a decision is plain data");
        text.push(b'\n');
        atomic_write(&output.join("licence.json"), &text)?;
        return Err(refusal(&refused, &decision).next(check_command(recipe)));
    }
    warn_of_override(&decision);
    Ok(decision)
}

/// An override is said on the terminal whatever else is silent.
pub(crate) fn warn_of_override(decision: &Decision) {
    if let Some(reason) = &decision.override_reason {
        terminal::note(&format!("warning[licence]: {}", decision.override_in_words(reason)));
    }
}

/// The rules that closed the gate, clause by clause.
pub(crate) fn refusal(error: &GovernanceError, decision: &Decision) -> Failure {
    let mut failure = Failure::of(error, error.kind(), error.fix()).code("licence");
    let closing = decision.rules.iter().filter(|rule| rule.verdict == decision.verdict);
    for rule in closing.filter(|rule| rule.verdict != Verdict::Allow) {
        let clause = if rule.clause.is_empty() { "no clause known" } else { &rule.clause };
        failure = failure.detail(format!("{} ({}): {}", rule.release, rule.licence, clause));
        if !rule.evidence.is_empty() {
            failure = failure.detail(format!("  evidence: {} ({})", rule.evidence, rule.grade.as_str()));
        }
    }
    failure
}

fn check_command(recipe: &Recipe) -> String {
    match &recipe.teacher {
        Some(teacher) => format!("stillroom licence check --teacher {}", teacher.model),
        None => "stillroom licence list".to_owned(),
    }
}

/// Addresses of the teacher, where it is behind some.
fn endpoints(recipe: &Recipe) -> impl Iterator<Item = &str> {
    recipe.wire().into_iter().flat_map(Wire::asked).map(|endpoint| endpoint.base_url.as_str())
}

/// Addresses are compared as origins (scheme, host, port), never as text: `https://api.x` does not let
/// `https://api.x.evil` through. Plain `http` to another machine is an address like others here: the policy refuses it
/// unless it is listed.
pub(super) fn reach<'a>(
    source: &Source,
    key: &[&str],
    addresses: impl Iterator<Item = &'a str>,
) -> Result<Reach> {
    Reach::of_open(addresses).map_err(|fault| {
        Failure::new(Exit::BadRecipe, fault.to_string())
            .code("bad-address")
            .at(source.place(key))
            .fix("write it as `https://HOST`, `http://127.0.0.1:PORT`, or `http://HOST:PORT` where the text may be read on the way")
    })
}

pub(super) fn policy(recipe: &Recipe, source: &Source) -> Result<Egress> {
    Ok(match recipe.policy.egress {
        recipe::Egress::Local => Egress::Local,
        recipe::Egress::Listed => {
            let listed = recipe.policy.listed.iter().map(String::as_str);
            Egress::Listed(reach(source, &["policy", "listed"], listed)?)
        }
        recipe::Egress::Any => Egress::Any,
    })
}

/// Whether `policy.egress` covers every address of the teacher, and that of the timestamp service.
pub(crate) fn egress(recipe: &Recipe, source: &Source) -> Result<()> {
    stamps::check(recipe, source)?;
    let asked = reach(source, &["teacher", "endpoints"], endpoints(recipe))?;
    let Some(url) = policy(recipe, source)?.refuses(&asked) else {
        unencrypted_keys(recipe, source)?;
        return data_class(recipe, source);
    };
    let failure = if asked.open_places().any(|open| open == url) {
        let cause = format!("text would go to `{url}` unencrypted, which only a list can allow");
        Failure::new(Exit::Policy, cause).fix(format!(
            "ask it by `https`; or write `listed = [\"{url}\"]` and `egress = \"listed\"` under `[policy]`, if whoever is on \
             the way may read and change prompts and replies"
        ))
    } else {
        Failure::new(Exit::Policy, format!("`policy.egress` does not allow `{url}`"))
            .fix("list the address in `policy.listed` with `egress = \"listed\"`, or use local weights")
    };
    Err(failure.code("egress").at(source.place(&["policy", "egress"])))
}

/// A key that is read on the way is everybody's: it goes by plain `http` only where the endpoint says so.
fn unencrypted_keys(recipe: &Recipe, source: &Source) -> Result<()> {
    let Some(wire) = recipe.wire() else { return Ok(()) };
    for endpoint in wire.asked().iter().filter(|endpoint| !endpoint.send_key_unencrypted) {
        let is_open = reach(source, &["teacher", "endpoints"], [endpoint.base_url.as_str()].into_iter())?
            .open_places()
            .next()
            .is_some();
        if is_open && wire.key_of(endpoint).is_some() {
            let cause = format!("the key for `{}` would go there unencrypted", endpoint.base_url);
            return Err(Failure::new(Exit::Policy, cause)
                .code("open-key")
                .at(source.place(&["teacher", "endpoints"]))
                .fix("remove its `api_key`, or ask it by `https`; or write `send_key_unencrypted = true` beside its `base_url`"));
        }
    }
    Ok(())
}

/// What whoever runs a recipe should know: where text goes unencrypted.
pub(crate) fn open_places_in_words(recipe: &Recipe) -> Option<String> {
    let places: Vec<String> = Reach::of_open(endpoints(recipe)).ok()?.open_places().collect();
    (!places.is_empty()).then(|| {
        let places = places.join("`, `");
        format!("prompts and replies go unencrypted, and can be read and changed on the way to `{places}`")
    })
}

/// Whether data of the prompts' class may go to every endpoint.
fn data_class(recipe: &Recipe, source: &Source) -> Result<()> {
    let wire = recipe.wire();
    let class = recipe.prompts.data_class.as_deref();
    if wire.is_some_and(Wire::is_by_hand)
        && let Some(cause) = recipe.policy.refuses_files(class)
    {
        let fix =
            "name the service in `endpoints`; or a class without `owners` and `jurisdictions` may be carried";
        return Err(Failure::new(Exit::Policy, cause)
            .code("data-class")
            .at(source.place(&["prompts", "data_class"]))
            .fix(fix));
    }
    for endpoint in wire.into_iter().flat_map(Wire::asked) {
        if let Some(cause) = recipe.policy.refuses(class, endpoint) {
            return Err(Failure::new(Exit::Policy, format!("`{}`: {cause}", endpoint.base_url))
                .code("data-class")
                .at(source.place(&["prompts", "data_class"]))
                .fix("name the endpoint's `owner` and `jurisdiction`, or list them under `[policy.data_classes.…]`"));
        }
    }
    Ok(())
}

/// Leave to ask the teacher's endpoints, after verdict and policy.
pub(super) fn clear(recipe: &Recipe, source: &Source, decision: &Decision) -> Result<Cleared> {
    let asked = reach(source, &["teacher", "endpoints"], endpoints(recipe))?;
    let subject = recipe.teacher.as_ref().map_or("", |teacher| teacher.model.as_str());
    Ok(decision.clear(subject, &policy(recipe, source)?, asked)?)
}
