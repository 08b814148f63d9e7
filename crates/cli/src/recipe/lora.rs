//! Keys of an adapter: `lora_r` and what goes with it, and `student.adapter`.

use serde::{Serialize, Serializer};
use stillroom_formats::{LoraConfig, LoraTarget, PeftAdapter};

use super::raw::{RawNames, RawTrain};
use super::resolve::{Checker, first_given};
use super::{Source, Student};
use crate::failure::{Exit, Failure, Result};

const R_MAX: usize = 1 << 14;
/// Below 1, as PEFT has it.
const DROPOUT_MAX: f64 = 0.999;
/// PEFT's word for all of a layer's linear maps.
const ALL_LINEAR: &str = "all-linear";

/// What is trained in place of the weights. `lora_r`, `lora_alpha`, `lora_dropout` and `lora_target_modules` are
/// axolotl's names, `use_rslora` is PEFT's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Lora {
    lora_r: usize,
    lora_alpha: f64,
    lora_dropout: f64,
    #[serde(serialize_with = "names")]
    lora_target_modules: Vec<LoraTarget>,
    use_rslora: bool,
}

fn names<S: Serializer>(targets: &[LoraTarget], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(targets.iter().map(|target| target.as_str()))
}

impl Lora {
    fn of(config: LoraConfig) -> Lora {
        let LoraConfig { r, alpha, dropout, target_modules, use_rslora } = config;
        Lora {
            lora_r: r,
            lora_alpha: alpha,
            lora_dropout: dropout,
            lora_target_modules: target_modules,
            use_rslora,
        }
    }

    pub(crate) fn config(&self) -> LoraConfig {
        LoraConfig {
            r: self.lora_r,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            target_modules: self.lora_target_modules.clone(),
            use_rslora: self.use_rslora,
        }
    }
}

/// What is adapted and how, if anything is.
pub(super) fn lora(at: &Checker<'_>, raw: &RawTrain, student: &Student) -> Result<Option<Lora>> {
    if let Student::Pretrained { adapter: Some(path), .. } = student {
        return continued(at, raw, path).map(Some);
    }
    let Some(r) = raw.lora_r else { return without_rank(at, raw).map(|()| None) };
    if !matches!(student, Student::Pretrained { .. }) {
        let cause = "a low-rank adapter is for a student whose weights have learned something already";
        let fix = "write `kind = \"pretrained\"` with the `path` of a model, or remove the keys of LoRA";
        return Err(at.bad(&["student", "kind"], cause).fix(fix));
    }
    let r = at.count(&key("lora_r"), r, 1..=R_MAX)?;
    let target_modules = match &raw.lora_target_modules {
        None => LoraTarget::ALL.to_vec(),
        Some(names) => targets(at, names)?,
    };
    Ok(Some(Lora {
        lora_r: r,
        lora_alpha: at.number(&key("lora_alpha"), raw.lora_alpha.unwrap_or(2.0 * r as f64), 1e-6..=1e9)?,
        lora_dropout: at.number(&key("lora_dropout"), raw.lora_dropout.unwrap_or(0.0), 0.0..=DROPOUT_MAX)?,
        lora_target_modules: target_modules,
        use_rslora: raw.use_rslora.unwrap_or(false),
    }))
}

fn key(name: &'static str) -> [&'static str; 2] {
    ["train", name]
}

/// The keys that say how an adapter is made, other than its rank.
fn given(raw: &RawTrain) -> Option<&'static str> {
    let given = [
        ("lora_alpha", raw.lora_alpha.is_some()),
        ("lora_dropout", raw.lora_dropout.is_some()),
        ("lora_target_modules", raw.lora_target_modules.is_some()),
        ("use_rslora", raw.use_rslora.is_some()),
    ];
    first_given(given)
}

fn without_rank(at: &Checker<'_>, raw: &RawTrain) -> Result<()> {
    let Some(name) = given(raw) else { return Ok(()) };
    let cause = format!("`train.{name}` without `train.lora_r`: all weights are trained");
    Err(at.bad(&key(name), cause).fix(format!("add `lora_r = 16`, or remove `{name}`")))
}

fn targets(at: &Checker<'_>, names: &RawNames) -> Result<Vec<LoraTarget>> {
    let key = key("lora_target_modules");
    let mut known: Vec<(&'static str, Option<LoraTarget>)> =
        LoraTarget::ALL.into_iter().map(|target| (target.as_str(), Some(target))).collect();
    known.push((ALL_LINEAR, None));
    let names: &[String] = match names {
        RawNames::One(name) => std::slice::from_ref(name),
        RawNames::Many(names) => names,
    };
    let mut found = Vec::new();
    for name in names {
        match at.choose(&key, name, &known)? {
            Some(target) => found.push(target),
            None => found.extend(LoraTarget::ALL),
        }
    }
    if found.is_empty() {
        return Err(at
            .bad(&key, "`train.lora_target_modules` names no module")
            .fix("write `lora_target_modules = \"all-linear\"`, or remove the key"));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The adapter that training goes on with; keys of the recipe may say the same, and nothing else.
fn continued(at: &Checker<'_>, raw: &RawTrain, path: &str) -> Result<Lora> {
    let lora = Lora::of(open(at.source, path)?.config);
    let targets = raw.lora_target_modules.as_ref().map(|names| targets(at, names)).transpose()?;
    let number = |n: f64| n.to_string();
    let listed = |targets: &[LoraTarget]| -> String {
        targets.iter().map(|target| target.as_str()).collect::<Vec<_>>().join(", ")
    };
    let said = [
        ("lora_r", raw.lora_r.map(|r| r.to_string()), lora.lora_r.to_string()),
        ("lora_alpha", raw.lora_alpha.map(number), number(lora.lora_alpha)),
        ("lora_dropout", raw.lora_dropout.map(number), number(lora.lora_dropout)),
        ("lora_target_modules", targets.as_deref().map(listed), listed(&lora.lora_target_modules)),
        ("use_rslora", raw.use_rslora.map(|on| on.to_string()), lora.use_rslora.to_string()),
    ];
    for (name, given, of_adapter) in said {
        if let Some(given) = given.filter(|given| *given != of_adapter) {
            let cause =
                format!("`train.{name}` is {given}, and the adapter in `{path}` was made with {of_adapter}");
            let fix = format!("remove `{name}`: an adapter that is trained on keeps its settings");
            return Err(at.bad(&key(name), cause).fix(fix));
        }
    }
    Ok(lora)
}

/// Opens the adapter that `student.adapter` names.
pub(crate) fn open(source: &Source, path: &str) -> Result<PeftAdapter> {
    let place = || source.place(&["student", "adapter"]);
    let found = source.resolve_path(path);
    if !found.exists() {
        return Err(Failure::new(Exit::Io, format!("the adapter is not at `{}`", found.display()))
            .code("no-model")
            .at(place())
            .fix("name a directory that PEFT or `stillroom run` wrote an adapter to"));
    }
    PeftAdapter::open(&found).map_err(|error| Failure::from(error).at(place()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::{load, loaded};

    const PRETRAINED: &str = "[student]\nkind = \"pretrained\"\npath = \"base\"\n[prompts]\ntask = \"word_problems\"\nnum_examples = 9\n";
    const SCRATCH: &str = "kind = \"from_scratch\"\nhidden_size = 16\nnum_hidden_layers = 1\nnum_attention_heads = 2\nintermediate_size = 32\ntokenizer = \"base\"";

    #[test]
    fn an_adapter_has_pefts_settings_and_reads_back_as_itself() {
        let text = PRETRAINED;
        let lora = |set: &[&str]| {
            let recipe = loaded(text, set);
            recipe.train.lora.map(|lora| lora.config())
        };
        assert_eq!(lora(&[]), None);
        let plain = lora(&["train.lora_r=8"]).expect("an adapter");
        assert_eq!((plain.r, plain.alpha, plain.dropout, plain.use_rslora), (8, 16.0, 0.0, false));
        assert_eq!(plain.target_modules, LoraTarget::ALL);
        let some = lora(&[
            "train.lora_r=4",
            "train.lora_alpha=6",
            "train.lora_dropout=0.1",
            "train.use_rslora=true",
            "train.lora_target_modules=[\"v_proj\", \"q_proj\", \"v_proj\"]",
        ]);
        let some = some.expect("an adapter");
        assert_eq!((some.r, some.alpha, some.dropout, some.use_rslora), (4, 6.0, 0.1, true));
        assert_eq!(some.target_modules, [LoraTarget::Q, LoraTarget::V]);
        let all = lora(&["train.lora_r=8", "train.lora_target_modules=all-linear"]).expect("an adapter");
        assert_eq!(all, plain);
    }

    #[test]
    fn keys_of_an_adapter_that_do_not_go_together_are_refused() {
        let refused = |text: &str, set: &[&str], cause: &str, fix: &str| {
            let shown = load(text, set).expect_err(cause).to_string();
            assert!(
                shown.contains(cause) && shown.contains(fix) && shown.contains("-->"),
                "{set:?}: {shown}"
            );
        };
        let text = PRETRAINED;
        refused(text, &["train.lora_alpha=16"], "`train.lora_alpha` without", "add `lora_r = 16`");
        refused(text, &["train.use_rslora=true"], "`train.use_rslora` without", "or remove `use_rslora`");
        refused(text, &["train.lora_r=0"], "`train.lora_r` is 0", "within these bounds");
        refused(text, &["train.lora_r=8", "train.lora_dropout=1"], "`train.lora_dropout` is 1", "bounds");
        refused(text, &["train.lora_r=8", "train.lora_alpha=-1"], "`train.lora_alpha` is -1", "bounds");
        let targets = |names: &str| format!("train.lora_target_modules={names}");
        let with = |names: &str, cause: &str, fix: &str| {
            refused(text, &["train.lora_r=8", &targets(names)], cause, fix);
        };
        with("[\"q_porj\"]", "cannot be `q_porj`", "did you mean `q_proj`?");
        with("all_linear", "cannot be `all_linear`", "did you mean `all-linear`?");
        with("[\"c_attn\"]", "cannot be `c_attn`", "it is one of `q_proj`");
        with("[]", "names no module", "all-linear");
        with("7", "it is `\"all-linear\"`, or a list of names", "fix: ");
        let scratch = text.replace("kind = \"pretrained\"\npath = \"base\"", SCRATCH);
        refused(&scratch, &["train.lora_r=8"], "learned something already", "pretrained");
        refused(&scratch, &["student.adapter=x"], "the model it was made for", "remove `adapter`");
        refused(text, &["student.adapter=nowhere"], "the adapter is not at `nowhere`", "PEFT");
    }

    #[test]
    fn an_adapter_that_is_trained_on_says_how_it_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let adapter = dir.path().display().to_string();
        let text = PRETRAINED;
        let set = format!("student.adapter={adapter}");
        let with = |more: &[&str]| load(text, &[&[set.as_str()], more].concat());
        let shown = with(&[]).unwrap_err().to_string();
        assert!(
            shown.contains("holds no LoRA adapter") && shown.contains("--> --set student.adapter"),
            "{shown}"
        );
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/lora/llama-qv-rslora");
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(golden.join(file), dir.path().join(file)).unwrap();
        }
        // Written out, its settings stand beside the adapter and agree with it.
        let recipe = loaded(text, &[&set]);
        let lora = recipe.train.lora.as_ref().expect("the adapter's settings").config();
        assert_eq!((lora.r, lora.alpha, lora.use_rslora), (8, 16.0, true));
        assert_eq!(lora.target_modules, [LoraTarget::Q, LoraTarget::V]);
        for (key, found) in [
            ("train.lora_r=4", "is 4, and the adapter"),
            ("train.use_rslora=false", "made with true"),
            ("train.lora_target_modules=all-linear", "made with q_proj, v_proj"),
        ] {
            let shown = with(&[key]).expect_err(key).to_string();
            assert!(shown.contains(found) && shown.contains("fix: remove `"), "{shown}");
        }
        let config = dir.path().join("adapter_config.json");
        let foreign =
            std::fs::read_to_string(&config).unwrap().replace("\"use_dora\": false", "\"use_dora\": true");
        assert!(foreign.contains("\"use_dora\": true"));
        std::fs::write(&config, foreign).unwrap();
        let shown = with(&[]).unwrap_err().to_string();
        assert!(shown.contains("use_dora") && shown.contains("merge the adapter"), "{shown}");
    }
}
