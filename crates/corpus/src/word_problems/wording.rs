//! The words of a problem: who, what, and one sentence per step.
//!
//! Placeholders: `{s}` the person as subject (name or pronoun), `{h}` he or she, `{o}` the person as
//! object, `{p}` his or her, `{F}` a friend, `{n}` the number, `{u}` the unit in the number that `{n}`
//! wants, `{us}` its plural. `{v…}` marks the cue: the one word that says what happens, which the
//! solution quotes. Every `{n}` and every cue follows a space, so that each is always one token.

use stillroom_core::CounterRng;

use super::{Chain, Operation};

/// Somebody whose pronouns the text needs.
struct Gender {
    names: &'static [&'static str],
    subject: &'static str,
    object: &'static str,
    possessive: &'static str,
}

const GENDERS: [Gender; 2] = [
    Gender {
        names: &[
            "Mia", "Anna", "Zoe", "Lucy", "Emma", "Nora", "Ida", "Rosa", "Lily", "Maya", "Sara", "Yuki",
            "Nina", "Ruby", "Amina", "Priya",
        ],
        subject: "she",
        object: "her",
        possessive: "her",
    },
    Gender {
        names: &[
            "Tom", "Ben", "Sam", "Leo", "Max", "Omar", "Noah", "Finn", "Hugo", "Ivan", "Jack", "Luis",
            "Owen", "Wei", "Raj", "Kofi",
        ],
        subject: "he",
        object: "him",
        possessive: "his",
    },
];

#[derive(Clone, Copy)]
struct Unit {
    singular: &'static str,
    plural: &'static str,
    food: bool,
}

const fn food(singular: &'static str, plural: &'static str) -> Unit {
    Unit { singular, plural, food: true }
}

const fn thing(singular: &'static str, plural: &'static str) -> Unit {
    Unit { singular, plural, food: false }
}

const UNITS: [Unit; 24] = [
    food("apple", "apples"),
    food("pear", "pears"),
    food("plum", "plums"),
    food("fig", "figs"),
    food("nut", "nuts"),
    food("lemon", "lemons"),
    food("bun", "buns"),
    food("cookie", "cookies"),
    thing("coin", "coins"),
    thing("stamp", "stamps"),
    thing("shell", "shells"),
    thing("marble", "marbles"),
    thing("button", "buttons"),
    thing("bead", "beads"),
    thing("pencil", "pencils"),
    thing("card", "cards"),
    thing("sticker", "stickers"),
    thing("book", "books"),
    thing("candle", "candles"),
    thing("stone", "stones"),
    thing("key", "keys"),
    thing("ticket", "tickets"),
    thing("pen", "pens"),
    thing("cup", "cups"),
];

/// The months that date the sentences of a problem, in order, from any of them on.
pub(super) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// What may stand before the month of a step.
const DATES: [&str; 3] = ["In ", "Then, in ", "Later, in "];

const OPENINGS: [&str; 8] = [
    "{s} had {n} {u}.",
    "{s} had {n} {u} at home.",
    "{s} had a bag with {n} {u} in it.",
    "{s} got {n} {u} as a gift.",
    "there was a box with {n} {u} for {s}.",
    "{s} found a box with {n} {u} at home.",
    "{s} had too many {us} and kept {n}.",
    "{s} put {n} {u} in a bag.",
];

// A cue says the same in every sentence that has it, so that what happens never depends on the words
// around it.

const ADDITIONS: [&str; 12] = [
    "{s} {vbought} {n} more {u}.",
    "{s} {vfound} {n} {u} at home.",
    "{F} {vgave} {o} {n} {u}.",
    "a friend {vbrought} {o} {n} more {u}.",
    "{s} {vwon} {n} {u} in a game.",
    "{p} mother {vadded} {n} {u}.",
    "{s} {vcollected} {n} more {u} on the way home.",
    "the post {vdelivered} {n} {u}.",
    "{F} had too many {us} and {voffered} {o} {n}.",
    "{s} {vreceived} {n} {u} from {F}.",
    "{s} {vmade} {n} more {u}.",
    "{s} {vearned} {n} {u} at the market.",
];

const SUBTRACTIONS: [&str; 12] = [
    "{s} {vhanded} {n} {u} to {F}.",
    "{s} {vlost} {n} {u} on the way home.",
    "{s} {vsold} {n} {u} at the market.",
    "{F} wanted some {us} and {vtook} {n}.",
    "{s} {vdropped} {n} of the {us}.",
    "{F} {vborrowed} {n} {u}.",
    "{s} {vleft} {n} {u} in a box at school.",
    "{s} {vsent} {n} {u} to a friend.",
    "a dog {vstole} {n} {u}.",
    "{s} {vhid} {n} {u} in a game.",
    "{p} mother {vremoved} {n} of the {us}.",
    "{s} {vspent} {n} {u} at school.",
];

const FOOD_SUBTRACTIONS: [&str; 2] = ["{s} {vate} {n} {u}.", "{s} {vate} {n} of the {us} at home."];

const DOUBLINGS: [&str; 8] = [
    "{s} {vdoubled} the {us}.",
    "{F} {vdoubled} the {us} that {h} had.",
    "{p} mother {vdoubled} the {us}.",
    "a friend {vdoubled} the {us} for {o}.",
    "{s} came home with {vtwice} as many {us}.",
    "there were {vtwice} as many {us} in the box.",
    "{s} had {vtwice} as many {us}.",
    "{s} counted {vtwice} as many {us}.",
];

const HALVINGS: [&str; 8] = [
    "{s} {vhalved} the {us} with {F}.",
    "{s} {vhalved} the {us}.",
    "{vhalf} of the {us} were no good.",
    "{F} came for {vhalf} of the {us}.",
    "{p} mother put {vhalf} of the {us} away.",
    "{s} was left with {vhalf} of the {us}.",
    "a friend asked for {vhalf} of the {us} and got them.",
    "{vhalf} of the {us} were gone.",
];

const QUESTIONS: [&str; 6] = [
    "How many {us} did {s} have in the end?",
    "How many {us} does {s} have now?",
    "In the end, how many {us} did {s} have?",
    "How many {us} were left in the end?",
    "And now, how many {us} does {s} have?",
    "What is the number of {us} now?",
];

/// How often a later sentence says "he" or "she" instead of the name.
const PRONOUN_SHARE: f64 = 0.7;

/// The people and things of one problem.
struct Scene {
    person: &'static Gender,
    name: &'static str,
    friends: &'static Gender,
    unit: Unit,
}

/// The text of a problem (an opening dated `first_month`, one sentence per step, each a month later,
/// and a question), and the cue of each step.
pub(super) fn tell(chain: &Chain, first_month: usize, rng: &mut CounterRng) -> (String, Vec<&'static str>) {
    let gender = rng.below(2) as usize;
    let person = &GENDERS[gender];
    // Friends have the other pronoun, so that "he" and "she" always mean the person.
    let scene = Scene {
        person,
        name: pick(person.names, rng),
        friends: &GENDERS[1 - gender],
        unit: pick(&UNITS, rng),
    };
    let mut text = format!("In {}, ", MONTHS[first_month]);
    text.push_str(&fill(pick(&OPENINGS, rng), &scene, Some(chain.start), false, rng));
    let mut cues = Vec::with_capacity(chain.steps.len());
    for (i, &step) in chain.steps.iter().enumerate() {
        let template = sentence(step, scene.unit.food, rng);
        cues.push(cue(template));
        text.push_str(&format!(" {}{}, ", pick(&DATES, rng), MONTHS[(first_month + 1 + i) % 12]));
        let pronoun = rng.uniform() < PRONOUN_SHARE;
        text.push_str(&fill(template, &scene, step.operand(), pronoun, rng));
    }
    text.push(' ');
    let pronoun = rng.uniform() < PRONOUN_SHARE;
    text.push_str(&fill(pick(&QUESTIONS, rng), &scene, None, pronoun, rng));
    (text, cues)
}

/// The operator of the steps that this word is the cue of.
pub(super) fn operator(word: &str) -> Option<&'static str> {
    let sentences: [(&[&'static str], &str); 5] = [
        (&ADDITIONS, "+"),
        (&SUBTRACTIONS, "-"),
        (&FOOD_SUBTRACTIONS, "-"),
        (&DOUBLINGS, "*"),
        (&HALVINGS, "/"),
    ];
    let has_cue = |templates: &[&'static str]| templates.iter().any(|template| cue(template) == word);
    sentences.into_iter().find(|(templates, _)| has_cue(templates)).map(|(_, operator)| operator)
}

/// The word of a template that says what happens.
fn cue(template: &'static str) -> &'static str {
    let marked = template.split_once("{v").and_then(|(_, rest)| rest.split_once('}'));
    marked.expect("the sentence of a step marks its cue").0
}

fn sentence(step: Operation, food: bool, rng: &mut CounterRng) -> &'static str {
    match step {
        Operation::Add(_) => pick(&ADDITIONS, rng),
        Operation::Subtract(_) => {
            let n_food = if food { FOOD_SUBTRACTIONS.len() } else { 0 };
            let i = rng.below((SUBTRACTIONS.len() + n_food) as u64) as usize;
            if i < SUBTRACTIONS.len() { SUBTRACTIONS[i] } else { FOOD_SUBTRACTIONS[i - SUBTRACTIONS.len()] }
        }
        Operation::Double => pick(&DOUBLINGS, rng),
        Operation::Halve => pick(&HALVINGS, rng),
    }
}

fn fill(template: &str, scene: &Scene, number: Option<u8>, pronoun: bool, rng: &mut CounterRng) -> String {
    let mut text = String::with_capacity(80);
    let mut parts = template.split('{');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (key, rest) = part.split_once('}').expect("a placeholder is closed");
        let person = scene.person;
        match key {
            "n" => text.push_str(&number.expect("a sentence with `{n}` has a number").to_string()),
            "u" if number == Some(1) => text.push_str(scene.unit.singular),
            "u" | "us" => text.push_str(scene.unit.plural),
            "s" => text.push_str(if pronoun { person.subject } else { scene.name }),
            "h" => text.push_str(person.subject),
            "o" => text.push_str(if pronoun { person.object } else { scene.name }),
            "p" => text.push_str(person.possessive),
            "F" => text.push_str(pick(scene.friends.names, rng)),
            _ => text.push_str(key.strip_prefix('v').expect("a known placeholder")),
        }
        text.push_str(rest);
    }
    text
}

fn pick<T: Copy>(items: &[T], rng: &mut CounterRng) -> T {
    items[rng.below(items.len() as u64) as usize]
}
