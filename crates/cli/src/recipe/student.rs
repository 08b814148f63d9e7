//! Keys of `[student]`: where its weights come from before training.

use serde::Serialize;
use stillroom_model::{ModelError, Width};

use super::raw::RawStudent;
use super::resolve::{Checker, SIZE_MAX, first_given};
use super::{Architecture, Shape, Student, Teacher};
use crate::failure::Result;

/// Texts that importance is taken from.
const CALIBRATION_EXAMPLES: usize = 64;
const CALIBRATION_EXAMPLES_MAX: usize = 1 << 16;

/// The layers and the width of another model, by default the teacher's, that matter most on training text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Pruned {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    /// All of them where none are named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) layers: Option<Vec<usize>>,
    /// Each of these three is as in the base where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    intermediate_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_key_value_heads: Option<usize>,
    pub(crate) calibration_examples: usize,
}

impl Pruned {
    /// How wide the student of a base of width `whole` is.
    pub(crate) fn width(&self, whole: Width) -> Width {
        Width {
            hidden_size: self.hidden_size.unwrap_or(whole.hidden_size),
            intermediate_size: self.intermediate_size.unwrap_or(whole.intermediate_size),
            num_key_value_heads: self.num_key_value_heads.unwrap_or(whole.num_key_value_heads),
        }
    }
}

/// The key that an error of pruning or of choosing layers is about.
pub(crate) fn key_of(error: &ModelError) -> [&'static str; 2] {
    [
        "student",
        match error {
            ModelError::Width { field, .. } => field,
            ModelError::NoSuchLayer { .. } | ModelError::NoLayers => "layers",
            _ => "kind",
        },
    ]
}

/// The model whose weights a student starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Base<'a> {
    /// None for the teacher.
    pub(crate) path: Option<&'a str>,
    /// As the recipe names it.
    pub(crate) model: Option<&'a str>,
}

impl Student {
    /// None for random weights.
    pub(crate) fn base(&self) -> Option<Base<'_>> {
        match self {
            Student::Nobody | Student::FromScratch(_) => None,
            Student::FromLayers { model, path, .. } | Student::Pruned(Pruned { model, path, .. }) => {
                Some(Base { path: path.as_deref(), model: model.as_deref() })
            }
            Student::Pretrained { model, path, .. } => {
                Some(Base { path: Some(path), model: model.as_deref() })
            }
        }
    }

    pub(crate) fn is_nobody(&self) -> bool {
        matches!(self, Student::Nobody)
    }

    pub(crate) fn is_pruned(&self) -> bool {
        matches!(self, Student::Pruned(_))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Scratch,
    Layers,
    Pruned,
    Pretrained,
}

const KINDS: [(&str, Kind); 4] = [
    ("from_scratch", Kind::Scratch),
    ("from_layers", Kind::Layers),
    ("pruned", Kind::Pruned),
    ("pretrained", Kind::Pretrained),
];

pub(super) fn student(
    at: &Checker<'_>,
    raw: Option<RawStudent>,
    teacher: Option<&Teacher>,
) -> Result<Student> {
    let raw = at.need(&["student"], raw, "add a table `[student]` with a `kind`")?;
    let kind = at.need(
        &["student", "kind"],
        raw.kind.clone(),
        "write `kind = \"from_scratch\"`, `\"from_layers\"`, `\"pruned\"` or `\"pretrained\"`",
    )?;
    let kind = at.choose(&["student", "kind"], &kind, &KINDS)?;
    let path = at.path(&["student", "path"], raw.path.clone())?;
    let adapter = at.path(&["student", "adapter"], raw.adapter.clone())?;
    if adapter.is_some() && kind != Kind::Pretrained {
        return Err(at
            .bad(&["student", "adapter"], "an adapter belongs to all layers of the model it was made for")
            .fix("write `kind = \"pretrained\"` with the `path` of that model, or remove `adapter`"));
    }
    if let Some(examples) = raw.calibration_examples.filter(|_| kind != Kind::Pruned) {
        let cause = format!("nothing is pruned that {examples} texts could say the importance of");
        return Err(at
            .bad(&["student", "calibration_examples"], cause)
            .fix("write `kind = \"pruned\"` with a size, or remove `calibration_examples`"));
    }
    if kind == Kind::Scratch {
        return Ok(Student::FromScratch(shape(at, raw, teacher)?));
    }
    no_shape(at, &raw, kind)?;
    if kind == Kind::Pretrained {
        let fix = "name a local directory or `.gguf` file";
        let path = at.need(&["student", "path"], path, fix)?;
        return Ok(Student::Pretrained { model: raw.model, path, adapter });
    }
    if path.is_none() && teacher.is_none_or(|t| t.path.is_none()) {
        let fix = match kind {
            Kind::Pruned => "name the model that is pruned",
            _ => "name the model whose layers the student takes",
        };
        return Err(at.missing(&["student", "path"], fix));
    }
    let fix = "name the layers to keep, for example `layers = [0, 1, 28, 29]`";
    let layers = match raw.layers.clone() {
        None if kind == Kind::Pruned => None,
        layers => Some(at.need(&["student", "layers"], layers, fix)?),
    };
    if layers.as_ref().is_some_and(|layers| layers.is_empty() || !layers.is_sorted_by(|a, b| a < b)) {
        return Err(at.bad(&["student", "layers"], "`student.layers` must ascend, without repeats").fix(fix));
    }
    match layers {
        Some(layers) if kind == Kind::Layers => Ok(Student::FromLayers { model: raw.model, path, layers }),
        layers => pruned(at, raw, path, layers).map(Student::Pruned),
    }
}

/// Keys of a shape that a kind of student does not take.
fn no_shape(at: &Checker<'_>, raw: &RawStudent, kind: Kind) -> Result<()> {
    let widths = [
        ("hidden_size", raw.hidden_size.is_some()),
        ("intermediate_size", raw.intermediate_size.is_some()),
        ("num_key_value_heads", raw.num_key_value_heads.is_some()),
    ];
    let others = [
        ("architecture", raw.architecture.is_some()),
        ("num_hidden_layers", raw.num_hidden_layers.is_some()),
        ("num_attention_heads", raw.num_attention_heads.is_some()),
        ("head_dim", raw.head_dim.is_some()),
        ("max_position_embeddings", raw.max_position_embeddings.is_some()),
        ("rope_theta", raw.rope_theta.is_some()),
        ("rms_norm_eps", raw.rms_norm_eps.is_some()),
        ("tie_word_embeddings", raw.tie_word_embeddings.is_some()),
        ("tokenizer", raw.tokenizer.is_some()),
    ];
    let refused = others.into_iter().chain(widths.into_iter().filter(|_| kind != Kind::Pruned));
    let Some(name) = first_given(refused) else { return Ok(()) };
    let cause = format!("the student's shape follows from the model that it starts from, not from `{name}`");
    let fix = match (kind, name) {
        (Kind::Pruned, "num_hidden_layers") => "name the layers to keep, as `layers = [0, 1, 3]`",
        (Kind::Pruned, "num_attention_heads") => {
            "write `num_key_value_heads`: each of those keeps the query heads that it serves"
        }
        (Kind::Pruned, _) => "remove the key; a pruned student has its base's",
        _ if widths.iter().any(|(width, _)| *width == name) => {
            "write `kind = \"pruned\"` to keep part of the width, `\"from_scratch\"` for random weights, or remove the key"
        }
        _ => "remove the shape keys, or write `kind = \"from_scratch\"`",
    };
    Err(at.bad(&["student", name], cause).fix(fix))
}

fn pruned(
    at: &Checker<'_>,
    raw: RawStudent,
    path: Option<String>,
    layers: Option<Vec<usize>>,
) -> Result<Pruned> {
    let key = |name: &'static str| ["student", name];
    let size = |name: &'static str, value: Option<usize>| {
        value.map(|value| at.count(&key(name), value, 1..=SIZE_MAX)).transpose()
    };
    let hidden_size = size("hidden_size", raw.hidden_size)?;
    let intermediate_size = size("intermediate_size", raw.intermediate_size)?;
    let num_key_value_heads = size("num_key_value_heads", raw.num_key_value_heads)?;
    if hidden_size.or(intermediate_size).or(num_key_value_heads).is_none() {
        return Err(at.bad(&["student"], "a pruned student keeps part of a width, and none is given").fix(
            "give `hidden_size`, `intermediate_size` or `num_key_value_heads`; layers alone are `kind = \"from_layers\"`",
        ));
    }
    let examples = raw.calibration_examples.unwrap_or(CALIBRATION_EXAMPLES);
    Ok(Pruned {
        model: raw.model,
        path,
        layers,
        hidden_size,
        intermediate_size,
        num_key_value_heads,
        calibration_examples: at.count(
            &key("calibration_examples"),
            examples,
            1..=CALIBRATION_EXAMPLES_MAX,
        )?,
    })
}

fn shape(at: &Checker<'_>, raw: RawStudent, teacher: Option<&Teacher>) -> Result<Shape> {
    let key = |name: &'static str| ["student", name];
    let size = |name: &'static str, value: Option<usize>| -> Result<usize> {
        let value = at.need(&key(name), value, "write a number")?;
        at.count(&key(name), value, 1..=SIZE_MAX)
    };
    let architecture = raw.architecture.as_deref().unwrap_or("llama");
    let families =
        [("llama", Architecture::Llama), ("qwen2", Architecture::Qwen2), ("qwen3", Architecture::Qwen3)];
    let architecture = at.choose(&key("architecture"), architecture, &families)?;
    if raw.layers.is_some() || raw.path.is_some() {
        return Err(at
            .bad(&["student"], "a student from scratch takes no layers of another model")
            .fix("remove `layers` and `path`, or write `kind = \"from_layers\"`"));
    }
    let hidden_size = size("hidden_size", raw.hidden_size)?;
    let heads = size("num_attention_heads", raw.num_attention_heads)?;
    let kv_heads = size("num_key_value_heads", raw.num_key_value_heads.or(Some(heads)))?;
    if heads % kv_heads != 0 {
        return Err(at
            .bad(
                &key("num_key_value_heads"),
                format!("{kv_heads} key/value heads cannot serve {heads} heads"),
            )
            .fix("choose a divisor of `num_attention_heads`"));
    }
    let head_dim = size("head_dim", raw.head_dim.or(Some(hidden_size / heads)))?;
    if head_dim % 2 != 0 || (raw.head_dim.is_none() && hidden_size % heads != 0) {
        return Err(at
            .bad(
                &key("num_attention_heads"),
                format!("{hidden_size} does not give {heads} heads of even width"),
            )
            .fix("choose sizes that divide, or set `head_dim` to an even number"));
    }
    let tokenizer = at.path(&key("tokenizer"), raw.tokenizer)?;
    if tokenizer.is_none() && teacher.is_none_or(|t| t.path.is_none()) {
        return Err(at.missing(&key("tokenizer"), "name a directory with `tokenizer.json`"));
    }
    Ok(Shape {
        architecture,
        hidden_size,
        num_hidden_layers: size("num_hidden_layers", raw.num_hidden_layers)?,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        intermediate_size: size("intermediate_size", raw.intermediate_size)?,
        max_position_embeddings: size("max_position_embeddings", raw.max_position_embeddings.or(Some(2048)))?,
        rope_theta: at.number(&key("rope_theta"), raw.rope_theta.unwrap_or(10_000.0), 1.0..=1e12)?,
        rms_norm_eps: at.number(&key("rms_norm_eps"), raw.rms_norm_eps.unwrap_or(1e-6), 1e-12..=1e-2)?,
        tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(true),
        tokenizer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{load, loaded};

    const PRUNED: &str = r#"
        [student]
        kind = "pruned"
        hidden_size = 128
        [teacher]
        kind = "local"
        path = "assets/teacher"
        model = "us:teacher"
        logits = { kind = "live" }
        [prompts]
        task = "word_problems"
        num_examples = 100
    "#;

    #[test]
    fn a_pruned_student_reads_back_as_itself_and_keeps_what_is_not_named() {
        let sets: [&[&str]; 3] = [
            &[],
            &["student.layers=[0, 3]", "student.calibration_examples=7", "student.num_key_value_heads=1"],
            &["student.path=base", "student.model=us/base", "student.intermediate_size=88"],
        ];
        let whole = Width { hidden_size: 256, intermediate_size: 704, num_key_value_heads: 2 };
        let expected = [(128, 704, 2), (128, 704, 1), (128, 88, 2)];
        for (set, (hidden_size, intermediate_size, num_key_value_heads)) in sets.into_iter().zip(expected) {
            let recipe = loaded(PRUNED, set);
            let Student::Pruned(pruned) = &recipe.student else { panic!("{:?}", recipe.student) };
            let width = Width { hidden_size, intermediate_size, num_key_value_heads };
            assert_eq!(pruned.width(whole), width, "{set:?}");
            let named = set[..].contains(&"student.path=base");
            let base = Base { path: named.then_some("base"), model: named.then_some("us/base") };
            assert_eq!(recipe.student.base(), Some(base));
        }
        let Student::Pruned(whole) = load(PRUNED, &[]).unwrap().student else { panic!("it is pruned") };
        assert_eq!((whole.calibration_examples, whole.layers), (64, None));
    }

    #[test]
    fn what_a_pruned_student_cannot_be_is_refused_with_its_key() {
        let scratch = PRUNED.replace("pruned", "from_scratch");
        let none = PRUNED.replace("hidden_size = 128", "layers = [0, 1]");
        let alone =
            PRUNED.replace("path = \"assets/teacher\"", "").replace("logits = { kind = \"live\" }", "");
        let cases: [(&str, &[&str], &str, &str); 14] = [
            (&none, &[], "keeps part of a width, and none is given", "kind = \"from_layers\""),
            (PRUNED, &["student.hidden_size=0"], "`student.hidden_size` is 0", "bounds"),
            (PRUNED, &["student.calibration_examples=0"], "`student.calibration_examples` is 0", "bounds"),
            (PRUNED, &["student.num_hidden_layers=2"], "not from `num_hidden_layers`", "layers = ["),
            (
                PRUNED,
                &["student.num_attention_heads=2"],
                "not from `num_attention_heads`",
                "num_key_value_heads",
            ),
            (PRUNED, &["student.tokenizer=x"], "not from `tokenizer`", "its base's"),
            (PRUNED, &["student.layers=[1, 1]"], "must ascend", "layers to keep"),
            (PRUNED, &["student.layers=[]"], "must ascend", "layers to keep"),
            (PRUNED, &["student.adapter=x"], "the model it was made for", "remove `adapter`"),
            (PRUNED, &["train.lora_r=4"], "learned something already", "pretrained"),
            (PRUNED, &["student.kind=prunned"], "cannot be `prunned`", "did you mean `pruned`?"),
            (PRUNED, &["student.kind=from_layers", "student.layers=[0]"], "not from `hidden_size`", "pruned"),
            (&scratch, &["student.calibration_examples=3"], "nothing is pruned", "kind = \"pruned\""),
            (
                &alone,
                &["teacher.kind=cache", "teacher.path=runs/x"],
                "`student.path` is missing",
                "model that is pruned",
            ),
        ];
        for (text, set, cause, fix) in cases {
            let shown = load(text, set).expect_err(cause).to_string();
            assert!(
                shown.contains(cause) && shown.contains(fix) && shown.contains("-->"),
                "{set:?}: {shown}"
            );
        }
    }
}
