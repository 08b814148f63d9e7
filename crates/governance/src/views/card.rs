//! The model card: front matter that hubs read, then what a person wants to know.

use std::fmt::Write as _;

use super::names::number;
use super::openness::openness;
use crate::decision::NOT_ADVICE;
use crate::identity::ID_BYTES_MAX;
use crate::record::{
    Counts, DataFacts, Figure, Licences, ModelFacts, ModelResult, PairedResult, ProvenanceRecord, Start,
    TrainingFacts,
};
use crate::text::{code, markdown, prose, yaml};

/// Characters of a digest that a table shows.
const DIGEST_CHARS: usize = 16;
/// Characters of a licence's name in the front matter.
const NAME_CHARS_MAX: usize = 200;

pub(super) fn card(record: &ProvenanceRecord) -> String {
    let mut card = front_matter(record);
    let _ = writeln!(card, "# {}\n", markdown(&record.release.name));
    if record.release.trial {
        card.push_str("**A trial: cut short on purpose. Nothing here is a result.**\n\n");
    }
    how_it_was_made(&mut card, record);
    evaluation(&mut card, record);
    data(&mut card, record);
    licence(&mut card, record);
    card.push_str("## Limits\n\n");
    for limit in limits(record) {
        let _ = writeln!(card, "- {}", prose(&limit));
    }
    costs(&mut card, record);
    open_level(&mut card, record);
    files(&mut card, record);
    card
}

/// Hubs read a model of `base_model` as one whose weights this one inherits, so only such models stand there.
fn front_matter(record: &ProvenanceRecord) -> String {
    let mut front = String::from("---\n");
    let licence = &record.release.card;
    let lines = [
        ("license", Some(&licence.license)),
        ("license_name", licence.license_name.as_ref()),
        ("license_link", licence.license_link.as_ref()),
    ];
    for (key, value) in lines {
        front.extend(value.map(|value| {
            format!("{key}: {}\n", yaml(&value.chars().take(NAME_CHARS_MAX).collect::<String>()))
        }));
    }
    let named: Vec<&ModelFacts> = record.student.ancestors.iter().filter(|model| has_name(model)).collect();
    match named.as_slice() {
        [] => {}
        [one] => {
            let _ = writeln!(front, "base_model: {}", yaml(&one.id));
        }
        several => {
            front.push_str("base_model:\n");
            for model in several {
                let _ = writeln!(front, "- {}", yaml(&model.id));
            }
        }
    }
    if !named.is_empty() {
        front.push_str("base_model_relation: finetune\n");
    }
    front.push_str(
        "library_name: transformers\npipeline_tag: text-generation\ntags:\n- distillation\n---\n\n",
    );
    front
}

/// Whether a model has a name that others can look up: no path of a machine, and nothing that only looks like one.
fn has_name(model: &ModelFacts) -> bool {
    let is_word = yaml(&model.id) == model.id && !model.id.contains(' ');
    !model.id_is_path && model.id.len() <= ID_BYTES_MAX && is_word
}

fn how_it_was_made(card: &mut String, record: &ProvenanceRecord) {
    let recipe = code(&record.recipe.name);
    let start = start_in_words(record);
    if record.teachers.is_empty() {
        let _ = writeln!(card, "Trained from {start} by the recipe {recipe}.\n");
    } else {
        let _ = writeln!(card, "Distilled from {} by the recipe {recipe}.\n", teachers_in_words(record));
    }
    card.push_str("## How it was made\n\n");
    let student = &record.student;
    let parameters = student.parameters.map_or(String::new(), |n| format!(" of {n} parameters"));
    let _ = writeln!(
        card,
        "- Student: a decoder ({}){parameters} that began as {start}.",
        code(&student.architecture)
    );
    let _ = writeln!(
        card,
        "- Trained: {}; loss: {}.",
        markdown(&record.recipe.trained),
        code(&record.recipe.loss)
    );
    training(card, record);
    let seeds: Vec<String> =
        record.recipe.seeds.iter().map(|(name, seed)| format!("{} {seed}", markdown(name))).collect();
    let _ = writeln!(
        card,
        "- Seeds: {}. The same recipe, inputs, program and kind of machine give the same weights.",
        seeds.join(", ")
    );
    let _ = writeln!(
        card,
        "- Program: {} {}; begun {}, finished {}.\n",
        markdown(&record.program.name),
        markdown(&record.program.version),
        markdown(&record.time.started),
        markdown(&record.time.finished)
    );
    if record.models().next().is_some() {
        card.push_str("| model | role | how it was reached | licence declared | licence concluded | digest |\n|---|---|---|---|---|---|\n");
    }
    for model in record.models() {
        model_row(card, record, model);
    }
    if record.models().next().is_some() {
        card.push('\n');
    }
    if record.student.start == Start::Random && !record.teachers.is_empty() {
        card.push_str(
            "None of the weights are a teacher's: the student learned from what they wrote and thought.\n\n",
        );
    }
}

fn training(card: &mut String, record: &ProvenanceRecord) {
    let Some(training) = &record.training else { return };
    let TrainingFacts { steps, examples, supervised_tokens, .. } = training;
    let chosen =
        training.chosen_step.map_or(String::new(), |step| format!(" The weights are those of step {step}."));
    let _ = writeln!(
        card,
        "- Training: {steps} steps on {examples} examples, {supervised_tokens} supervised tokens; loss {} at first, {} at \
         the end, {} on rows that were held back.{chosen}",
        figure(&training.first_loss),
        figure(&training.last_loss),
        figure(&training.validation_loss),
    );
}

fn model_row(card: &mut String, record: &ProvenanceRecord, model: &ModelFacts) {
    let mut roles: Vec<&str> = model.roles.iter().map(|role| role.as_str()).collect();
    if record.student.ancestors.iter().any(|ancestor| ancestor.id == model.id) && !roles.contains(&"ancestor")
    {
        roles.push("ancestor");
    }
    let digest = model
        .tree_sha256
        .map_or("not at hand".to_owned(), |digest| code(&digest.to_string()[..DIGEST_CHARS]));
    let _ = writeln!(
        card,
        "| {} | {} | {} | {} | {} | {digest} |",
        code(&model.id),
        roles.join(", "),
        markdown(&model.route.describe()),
        declared(&model.licence),
        concluded(&model.licence),
    );
}

fn declared(licence: &Licences) -> String {
    match &licence.declared {
        Some(declared) => format!("{} ({})", code(declared), markdown(&licence.declared_in)),
        None => "not known".to_owned(),
    }
}

fn concluded(licence: &Licences) -> String {
    licence.concluded.as_deref().map_or("not known".to_owned(), code)
}

fn start_in_words(record: &ProvenanceRecord) -> String {
    let ancestors: Vec<String> = record.student.ancestors.iter().map(|ancestor| code(&ancestor.id)).collect();
    match record.student.start {
        Start::Random => "random weights".to_owned(),
        start => format!("{} ({})", start.describe(), ancestors.join(", ")),
    }
}

/// Of several teachers, each with its share.
fn teachers_in_words(record: &ProvenanceRecord) -> String {
    match record.teachers.as_slice() {
        [one] => code(&one.id),
        several => {
            let with_share =
                |model: &ModelFacts| format!("{} ({:.1} %)", code(&model.id), 100.0 * model.share);
            format!("a mixture of {}", several.iter().map(with_share).collect::<Vec<_>>().join(", "))
        }
    }
}

fn evaluation(card: &mut String, record: &ProvenanceRecord) {
    let evaluation = &record.evaluation;
    let _ = writeln!(
        card,
        "## Evaluation\n\n{} held-out examples of {}. {}\n",
        evaluation.heldout_examples,
        code(&evaluation.task),
        prose(&evaluation.description)
    );
    let _ = writeln!(card, "Losses are of {}.\n", markdown(&evaluation.heldout_text));
    card.push_str("| model | parameters | accuracy (95 % interval) | nats per token | KL to the teacher |\n|---|---|---|---|---|\n");
    for model in &evaluation.models {
        let _ = writeln!(
            card,
            "| {} | {} | {} | {} | {} |",
            markdown(&model.label),
            model.parameters.map_or("–".to_owned(), |n| n.to_string()),
            share(&model.accuracy),
            figure(&model.nll_nats_per_token),
            figure(&model.kl_to_teacher),
        );
    }
    reasons(card, &evaluation.models);
    if evaluation.differences.is_empty() {
        card.push('\n');
        return;
    }
    card.push_str("\nThe student minus each other model, on the same items:\n\n| other model | metric | difference (95 % interval) | claim | items | method |\n|---|---|---|---|---|---|\n");
    for difference in &evaluation.differences {
        paired_row(card, difference, &evaluation.models);
    }
    card.push('\n');
}

fn paired_row(card: &mut String, paired: &PairedResult, models: &[ModelResult]) {
    let other = models.iter().find(|model| model.contender == paired.other);
    let [low, high] = paired.ci95;
    let claim = if paired.claim == "no_claim" { "no claim" } else { &paired.claim };
    let _ = writeln!(
        card,
        "| {} | {} | {} ({} to {}) | {} | {} | {} |",
        markdown(other.map_or(&paired.other, |other| &other.label)),
        code(&paired.metric),
        number(paired.difference),
        number(low),
        number(high),
        markdown(claim),
        paired.items,
        markdown(&paired.method),
    );
}

/// Why figures of the student are missing.
fn reasons(card: &mut String, models: &[ModelResult]) {
    let Some(student) = models.iter().find(|model| model.contender == "student") else { return };
    let figures = [
        ("accuracy", &student.accuracy),
        ("loss", &student.nll_nats_per_token),
        ("KL to the teacher", &student.kl_to_teacher),
    ];
    for (name, figure) in figures {
        if let (None, Some(reason)) = (figure.value, &figure.reason) {
            let _ = writeln!(card, "\nThe student's {name} was not measured: {}.", markdown(reason));
        }
    }
}

fn share(figure: &Figure) -> String {
    match (figure.value, figure.ci95) {
        (Some(value), Some([low, high])) => {
            format!("{:.1} % ({:.1} to {:.1})", 100.0 * value, 100.0 * low, 100.0 * high)
        }
        (Some(value), None) => format!("{:.1} %", 100.0 * value),
        (None, _) => "–".to_owned(),
    }
}

fn figure(figure: &Figure) -> String {
    figure.value.map_or("–".to_owned(), |value| format!("{value:.4}"))
}

fn data(card: &mut String, record: &ProvenanceRecord) {
    card.push_str("## Data\n\n");
    if record.data.is_empty() {
        card.push_str("No data set is on record.\n\n");
    }
    for data in &record.data {
        data_item(card, data);
    }
    if let Some(file) = record.files.iter().find(|file| file.path.ends_with("croissant.json")) {
        let _ = writeln!(
            card,
            "The traces are described for catalogues in [{}]({}).\n",
            code(&file.path),
            file.path
        );
    }
}

fn data_item(card: &mut String, data: &DataFacts) {
    let _ = writeln!(card, "### {}\n\n{}\n", code(&data.id), prose(&data.about));
    if !data.made_by.is_empty() {
        let writers: Vec<String> = data.made_by.iter().map(|id| code(id)).collect();
        let _ = writeln!(card, "- Written by {}.", writers.join(", "));
    }
    let _ = writeln!(card, "- Rows: {}.", rows(&data.counts));
    if !data.counts.dropped.is_empty() {
        let dropped = data.counts.dropped.iter().map(|(reason, n)| format!("{} {n}", markdown(reason)));
        let _ = writeln!(card, "- Left out: {}.", dropped.collect::<Vec<_>>().join(", "));
    }
    let _ = writeln!(
        card,
        "- Licence declared: {}; concluded: {}.",
        declared(&data.licence),
        concluded(&data.licence)
    );
    let _ = writeln!(card, "- Personal data and secrets: {}.", markdown(&data.personal_data));
    let _ = writeln!(card, "- Egress: {}.\n", markdown(&data.egress));
}

pub(super) fn rows(counts: &Counts) -> String {
    let said = [
        (counts.asked, "asked"),
        (counts.answered, "answered"),
        (counts.kept, "to train on"),
        (counts.validation, "for validation"),
        (counts.held_out, "held out"),
    ];
    let said: Vec<String> = said.into_iter().filter_map(|(n, what)| Some(format!("{} {what}", n?))).collect();
    if said.is_empty() { "not counted".to_owned() } else { said.join(", ") }
}

fn licence(card: &mut String, record: &ProvenanceRecord) {
    let gate = &record.gate;
    card.push_str("## Licences\n\n");
    for line in &gate.notices {
        let _ = writeln!(card, "**{}**\n", markdown(line));
    }
    let own = record
        .release
        .licence
        .as_deref()
        .map_or("Nobody has said under what licence these weights are.".to_owned(), |licence| {
            format!("These weights: {}.", code(licence))
        });
    let _ = writeln!(card, "{own}\n\nLicence verdict on the way it was made: {}.\n", gate.verdict.as_str());
    if let Some(reason) = &gate.override_reason {
        let _ = writeln!(
            card,
            "**OVERRIDDEN: the licence gate said `{}`; it was opened with the reason: {}**\n",
            gate.verdict.as_str(),
            markdown(reason)
        );
    }
    for rule in &gate.rules {
        let licence =
            if rule.licence.is_empty() { "licence not known".to_owned() } else { code(&rule.licence) };
        let clause = if rule.clause.is_empty() {
            String::new()
        } else {
            format!(", clause {}", markdown(&rule.clause))
        };
        let _ = writeln!(card, "- {} ({licence}{clause}): {}", code(&rule.release), prose(&rule.says));
    }
    for name in &gate.accepted {
        let _ = writeln!(card, "- accepted: {}", code(name));
    }
    obligations(card, record);
}

fn obligations(card: &mut String, record: &ProvenanceRecord) {
    let gate = &record.gate;
    if !gate.obligations.is_empty() {
        card.push_str("\nWhat these licences ask for:\n\n");
    }
    for obligation in &gate.obligations {
        let _ = writeln!(card, "- {}: {}", code(&obligation.name), prose(&obligation.means));
        if let Some(done) = &obligation.carried_out {
            let _ = writeln!(card, "  - carried out: {}", prose(done));
        }
        if let Some(left) = &obligation.yours_to_do {
            let _ = writeln!(card, "  - yours to do: {}", prose(left));
        }
    }
    let papers = record.files.iter().any(|file| file.path == "NOTICE");
    let papers = if papers { "`NOTICE` and `licences/` belong to this release. " } else { "" };
    let _ = writeln!(card, "\n{papers}{NOT_ADVICE}\n");
}

/// What the record cannot say, for whoever relies on it.
pub(super) fn limits(record: &ProvenanceRecord) -> Vec<String> {
    let evaluation = &record.evaluation;
    let mut limits = Vec::new();
    if record.release.trial {
        limits.push("It was cut short on purpose; none of its figures is a result.".to_owned());
    }
    limits.push(format!(
        "It was measured on {} held-out examples of {} and on nothing else: not for safety, bias, other tasks or other languages.",
        evaluation.heldout_examples, evaluation.task
    ));
    if !evaluation.checks_passed {
        limits.push(
            "The run's own checks failed: a tensor did not change, or the held-out loss did not fall."
                .to_owned(),
        );
    }
    if evaluation.models.iter().any(|model| model.contender == "student" && model.accuracy.value.is_none()) {
        limits.push("Nothing judged whether its replies are right.".to_owned());
    }
    if !record.teachers.is_empty() {
        limits.push("It may repeat what its teachers get wrong.".to_owned());
    }
    let unseen = record.models().filter(|model| model.tree_sha256.is_none()).map(|model| model.id.as_str());
    let unseen: Vec<&str> = unseen.collect();
    if !unseen.is_empty() {
        limits.push(format!(
            "Nobody here has the bytes of {}: what answered under that name is its host's word.",
            unseen.join(", ")
        ));
    }
    limits.push(
        "The record holds what this program was given and did. It cannot show what went into the teachers or into given data before that."
            .to_owned(),
    );
    limits
}

fn costs(card: &mut String, record: &ProvenanceRecord) {
    let costs = &record.costs;
    let said = |figure: &Figure, unit: &str| match (figure.value, &figure.reason) {
        (Some(value), _) => format!("{} {unit}", number(value)),
        (None, Some(reason)) => format!("not measured ({})", markdown(reason)),
        (None, None) => "not measured".to_owned(),
    };
    let _ = writeln!(
        card,
        "\n## What it took\n\n- Time: {}.\n- Paid to teachers: {}.\n- Energy: {}.\n",
        said(&costs.wall_s, "s"),
        said(&costs.teacher_usd, "US dollars"),
        said(&costs.energy_j, "J"),
    );
}

fn open_level(card: &mut String, record: &ProvenanceRecord) {
    let openness = openness(record);
    let _ = writeln!(
        card,
        "## How open it is\n\nOpen weights are not an open process. By the Model Openness Framework this release is in {}.\n\n| component | carried | where, or why not |\n|---|---|---|",
        openness.level.describe()
    );
    for component in &openness.components {
        let (carried, why) = match &component.found {
            Ok(place) => ("yes", place),
            Err(reason) => ("no", reason),
        };
        let _ = writeln!(card, "| {} | {carried} | {} |", component.name, prose(why));
    }
}

fn files(card: &mut String, record: &ProvenanceRecord) {
    if record.files.iter().any(|file| file.path.starts_with("adapter/")) {
        card.push_str(
            "\nThese weights have their LoRA adapter merged. `adapter/` has it alone, as PEFT reads it:\n\
             `PeftModel.from_pretrained(base, \"adapter\")`. `base` is what its `adapter_config.json` names.\n",
        );
    }
    card.push_str(
        "\n## Provenance\n\nAll of this, and the documents in `provenance/`, come from `provenance/record.json`. \
         `provenance/manifest.json` lists the SHA-256 of everything it was made from; `stillroom verify` checks it.\n",
    );
}
