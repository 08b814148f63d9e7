//! What the fake teacher writes: a function of the request.

use serde_json::{Value, json};
use stillroom_core::Digest;

const WORDS: [&str; 32] = [
    "amber", "basin", "copper", "drift", "ember", "flask", "grain", "hollow", "iris", "juniper", "kettle",
    "lantern", "mash", "nectar", "oak", "pearl", "quartz", "river", "still", "thistle", "umber", "vapour",
    "willow", "xenon", "yarrow", "zinc", "barley", "cinder", "distil", "essence", "ferment", "grüßen",
];
const WORDS_MIN: u64 = 3;
const WORDS_RANGE: u64 = 12;

/// A reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Written {
    pub(crate) content: String,
    pub(crate) reasoning: Option<String>,
    /// Whether the reasoning stands between tags at the content's start, and not in a field.
    pub(crate) in_tags: bool,
    pub(crate) finish: String,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// A call of a tool: its name and its arguments.
    pub(crate) call: Option<(String, String)>,
}

/// Numbers that follow from a digest.
#[derive(Clone, Copy)]
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn of(digest: &Digest, salt: &str) -> Draw {
        let salted = Digest::of(format!("{digest} {salt}").as_bytes());
        Draw(u64::from_le_bytes(salted.as_bytes()[..8].try_into().expect("a digest has 32 bytes")))
    }

    /// The next number (SplitMix64).
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Names a request: all of its body but how it is to be sent.
pub(crate) fn request_digest(body: &Value) -> Digest {
    let mut asked = body.clone();
    if let Some(map) = asked.as_object_mut() {
        map.shift_remove("stream");
        map.shift_remove("stream_options");
    }
    Digest::of(asked.to_string().as_bytes())
}

/// The reply to a body, of either interface. `own` is its text if somebody else writes it.
pub(crate) fn written(body: &Value, reasons: bool, own: Option<String>) -> Written {
    let asked = match body.get("messages") {
        Some(messages) => messages.to_string(),
        None => body["prompt"].to_string(),
    };
    let mut draw = Draw::of(&request_digest(body), "words");
    let is_chat = body.get("messages").is_some();
    let name = Digest::of(asked.as_bytes()).to_string();
    let mut content = match own {
        Some(own) => own,
        None => format!("reply to {}: {}", &name[..8], some_words(&mut draw)),
    };
    let mut reasoning = (reasons && is_chat && draw.below(3) == 0).then(|| some_words(&mut draw));
    let in_tags = reasoning.is_some() && draw.below(2) == 0;
    let max_tokens = body.get("max_tokens").or(body.get("max_completion_tokens")).and_then(Value::as_u64);
    let (mut thought, mut said) = (reasoning.as_deref().map_or(0, count), count(&content));
    let mut finish = "stop";
    if let Some(max) = max_tokens.filter(|&max| max < thought + said) {
        finish = "length";
        if thought > max {
            reasoning = reasoning.map(|text| first_words(&text, max));
            (thought, said, content) = (max, 0, String::new());
        } else {
            said = max - thought;
            content = first_words(&content, said);
        }
    }
    if !is_chat && !content.is_empty() {
        // What continues a text begins with a space.
        content.insert(0, ' ');
    }
    let prompt_tokens = prompt_tokens(body);
    Written {
        content,
        reasoning,
        in_tags,
        finish: finish.to_owned(),
        prompt_tokens,
        completion_tokens: thought + said,
        call: None,
    }
}

/// Words of the prompt, and one for each turn.
pub(crate) fn prompt_tokens(body: &Value) -> u64 {
    let words = |text: &Value| text.as_str().map_or(0, count);
    match (body.get("messages").and_then(Value::as_array), &body["prompt"]) {
        (Some(turns), _) => turns.iter().map(|turn| 1 + words(&turn["content"])).sum(),
        (None, Value::Array(ids)) => ids.len() as u64,
        (None, prompt) => words(prompt),
    }
}

/// Text in tokens: each a word with the white space before it, and the last with what follows, too.
pub(crate) fn tokens(text: &str) -> Vec<&str> {
    let mut ends = Vec::new();
    let mut in_word = false;
    for (at, c) in text.trim_end().char_indices() {
        if c.is_whitespace() && in_word {
            ends.push(at);
        }
        in_word = !c.is_whitespace();
    }
    ends.push(text.len());
    let mut start = 0;
    let tokens = ends.into_iter().map(|end| &text[std::mem::replace(&mut start, end)..end]);
    tokens.filter(|token| !token.is_empty()).collect()
}

/// The id of a token: it has no vocabulary, only a hash.
pub(crate) fn token_id(token: &str) -> u32 {
    let digest = Digest::of(token.as_bytes());
    u32::from_le_bytes(digest.as_bytes()[..4].try_into().expect("a digest has 32 bytes")) % 50_000
}

/// A token's log-probability, and those of `n` tokens that could have stood there.
pub(crate) fn logprob(token: &str, n: u64) -> Value {
    let alternatives: Vec<Value> = (0..n)
        .map(|k| {
            let text =
                if k == 0 { token.to_owned() } else { format!(" {}", WORDS[k as usize % WORDS.len()]) };
            json!({"token": text, "logprob": -0.125 - k as f64, "bytes": text.as_bytes()})
        })
        .collect();
    json!({"token": token, "logprob": -0.125, "bytes": token.as_bytes(), "top_logprobs": alternatives})
}

fn some_words(draw: &mut Draw) -> String {
    let n = WORDS_MIN + draw.below(WORDS_RANGE);
    let words: Vec<&str> = (0..n).map(|_| WORDS[draw.below(WORDS.len() as u64) as usize]).collect();
    words.join(" ")
}

pub(crate) fn count(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}

fn first_words(text: &str, n: u64) -> String {
    text.split_whitespace().take(n as usize).collect::<Vec<_>>().join(" ")
}
