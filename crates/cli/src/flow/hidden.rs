//! The layers whose hidden states a student follows, once both models are known.

use stillroom_distill::{AlignedLayers, LossWeight};

use super::start::student_shape;
use super::teacher_files;
use crate::failure::{Exit, Failure, Result};
use crate::recipe::{HIDDEN_ALIGNMENT, Recipe, Source};

/// What the student's hidden states follow. A teacher that they cannot follow is refused.
pub(crate) fn aligned_layers(recipe: &Recipe, source: &Source) -> Result<Option<AlignedLayers>> {
    let Some(alignment) = &recipe.train.hidden_alignment else { return Ok(None) };
    let teacher = teacher_files(recipe, source)?;
    let (student, tokenizer) = student_shape(recipe, source)?;
    let refuse = |cause: String, code, fix| {
        Err(Failure::new(Exit::BadRecipe, cause).code(code).at(source.place(&HIDDEN_ALIGNMENT)).fix(fix))
    };
    if teacher.tokenizer.is_some_and(|its| its.digest() != tokenizer.digest()) {
        let cause =
            "hidden states are compared token by token, but teacher and student have different tokenizers";
        let fix = "give the student the teacher's tokenizer, or remove `hidden_alignment`";
        return refuse(cause.to_owned(), "wrong-vocabulary", fix);
    }
    let aligned = alignment.between(teacher.config.num_hidden_layers, student.num_hidden_layers);
    let Err(refused) = aligned.check_models(&teacher.config, &student) else { return Ok(Some(aligned)) };
    match teacher.config.hidden_size == student.hidden_size {
        true => refuse(refused.to_string(), "wrong-layers", "name layers that both models have"),
        false => {
            let fix = "take a student of the teacher's width, for example with `kind = \"from_layers\"`, or remove \
                       `hidden_alignment`";
            refuse(refused.to_string(), "wrong-width", fix)
        }
    }
}

/// What is aligned, for the report.
pub(super) fn in_words(aligned: Option<&AlignedLayers>) -> String {
    let Some(AlignedLayers { layers, weight }) = aligned else { return String::new() };
    let weight = match weight {
        LossWeight::Constant(1.0) => String::new(),
        LossWeight::Constant(weight) => format!("{weight} × "),
        LossWeight::Linear { from, to } => format!("({from} → {to}) × "),
    };
    let pairs: Vec<String> = layers.iter().map(|p| format!("{} → {}", p.teacher, p.student)).collect();
    format!("; beside it {weight}(1 − cos) of hidden states, layers teacher → student: {}", pairs.join(", "))
}

#[cfg(test)]
mod tests {
    use stillroom_model::LayerPair;

    use super::*;

    #[test]
    fn a_report_says_which_layers_were_aligned() {
        let layers = vec![LayerPair { teacher: 1, student: 0 }, LayerPair { teacher: 5, student: 2 }];
        let aligned = AlignedLayers { layers, weight: LossWeight::Constant(0.5) };
        let expected = "; beside it 0.5 × (1 − cos) of hidden states, layers teacher → student: 1 → 0, 5 → 2";
        assert_eq!(in_words(Some(&aligned)), expected);
        assert_eq!(in_words(None), "");
    }
}
