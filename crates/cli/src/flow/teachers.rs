//! Several teachers of one run: loaded, digested, checked against each other, and mixed.

use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Value, json};
use stillroom_core::{CounterRng, Trace};
use stillroom_formats::ModelFiles;
use stillroom_model::{Ensemble, LiveTeacher, WeightedTeacher};

use super::teach::{Asked, Writer};
use super::{Flow, teacher_files};
use crate::failure::{Exit, Failure, Result};
use crate::models::{self, Model};
use crate::recipe::{ENSEMBLE, EnsembleTeacher, Recipe, Source};

/// What the choice of a trace's writer is drawn for.
const WRITER: u64 = 0x7772_6974_6572;

/// All teachers of a run, loaded.
pub(super) struct Teachers {
    pub(super) first: Rc<Model>,
    others: Vec<Rc<Model>>,
    /// What each has of the mixture, the first one first.
    shares: Vec<f64>,
}

impl Teachers {
    pub(super) fn others(&self) -> Vec<WeightedTeacher<'_>> {
        let others = self.others.iter().zip(&self.shares[1..]);
        others.map(|(model, &weight)| WeightedTeacher { decoder: &model.decoder, weight }).collect()
    }

    /// The mixture, with those that [`Teachers::others`] gave; one teacher as it is.
    pub(super) fn ensemble<'t>(&self, others: &'t [WeightedTeacher<'t>]) -> Option<Ensemble<'t>> {
        (!others.is_empty()).then(|| Ensemble { weight: self.shares[0], others })
    }

    pub(super) fn live<'t>(
        &'t self,
        others: &'t [WeightedTeacher<'t>],
        n_ids: Option<usize>,
    ) -> LiveTeacher<'t> {
        LiveTeacher::alone(&self.first.decoder, n_ids).mixed(self.ensemble(others))
    }

    fn all(&self) -> impl Iterator<Item = &Rc<Model>> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl Flow {
    fn further(&self) -> &[EnsembleTeacher] {
        self.recipe.teacher.as_ref().map_or(&[], |teacher| &teacher.ensemble)
    }

    /// Whether distributions are those of a mixture.
    pub(super) fn has_several_teachers(&self) -> bool {
        !self.further().is_empty()
    }

    /// All teachers, loaded where they are not yet.
    pub(super) fn teachers(&mut self) -> Result<Teachers> {
        let first = self.teacher()?;
        if self.others.is_empty() {
            for files in further_files(&self.recipe, &self.source)? {
                self.progress.update("loading further teachers …");
                self.others.push(Rc::new(models::load_files(files, Arc::clone(&self.device))?));
            }
        }
        let shares = self.recipe.teacher.as_ref().map_or(vec![1.0], |teacher| teacher.shares());
        Ok(Teachers { first, others: self.others.clone(), shares })
    }

    /// What the weights of all teachers and their shares are known by; of one teacher, the digest of its weights.
    pub(super) fn teachers_digest(&self) -> Result<Value> {
        let first = json!(self.teacher_digest()?);
        let Some(teacher) = self.recipe.teacher.as_ref().filter(|teacher| !teacher.ensemble.is_empty())
        else {
            return Ok(first);
        };
        let mut all = vec![first];
        for further in &teacher.ensemble {
            all.push(json!(self.input_digest(&self.source.resolve_path(&further.path))?));
        }
        Ok(json!([all, teacher.shares()]))
    }

    /// IDs of all teachers, for what is made of them together.
    pub(super) fn teachers_in_words(&self) -> String {
        self.recipe.teacher.as_ref().map(|teacher| teacher.in_words()).unwrap_or_default()
    }

    /// Each reply is written by one of the teachers, drawn by their shares from (seed, prompt, sample).
    pub(super) fn ask_each(&mut self, writer: &Writer, asked: &[Asked]) -> Result<Vec<Trace>> {
        let teachers = self.teachers()?;
        let models: Vec<String> =
            self.recipe.teacher.iter().flat_map(|teacher| teacher.models().map(str::to_owned)).collect();
        let whose: Vec<usize> = asked
            .iter()
            .map(|asked| writer_of(writer.seed, asked.key, asked.sample, &teachers.shares))
            .collect();
        let mut traces: Vec<Option<Trace>> = vec![None; asked.len()];
        for (i, (model, name)) in teachers.all().zip(models).enumerate() {
            let places: Vec<usize> = (0..asked.len()).filter(|&at| whose[at] == i).collect();
            if places.is_empty() {
                continue;
            }
            let own: Vec<Asked> = places.iter().map(|&at| asked[at].clone()).collect();
            let written = Writer { name, ..writer.clone() }.ask(model, &own)?;
            places.into_iter().zip(written).for_each(|(at, trace)| traces[at] = Some(trace));
        }
        Ok(traces.into_iter().flatten().collect())
    }
}

/// Which teacher writes sample `sample` of a prompt.
fn writer_of(seed: u64, key: u64, sample: u32, shares: &[f64]) -> usize {
    let drawn = CounterRng::new(&[seed, WRITER, key, u64::from(sample)]).uniform();
    let mut below = 0.0;
    let mut sums = shares.iter().map(|share| {
        below += share;
        below
    });
    sums.position(|below| drawn < below).unwrap_or(shares.len() - 1)
}

/// The files of the further teachers.
pub(super) fn further_files(recipe: &Recipe, source: &Source) -> Result<Vec<ModelFiles>> {
    let further = recipe.teacher.iter().flat_map(|teacher| &teacher.ensemble);
    let open = |teacher: &EnsembleTeacher| {
        let path = source.resolve_path(&teacher.path);
        if !path.exists() {
            let cause = format!("a further teacher is not at `{}`", path.display());
            return Err(Failure::new(Exit::Io, cause)
                .code("no-model")
                .at(source.place(&ENSEMBLE))
                .fix("check its path, or fetch the model first"));
        }
        ModelFiles::open(&path).map_err(Failure::from)
    };
    further.map(open).collect()
}

/// Refuses teachers that read in other tokens than the first one.
pub(crate) fn check_tokenizers(recipe: &Recipe, source: &Source) -> Result<()> {
    let further = further_files(recipe, source)?;
    if further.is_empty() {
        return Ok(());
    }
    let first = teacher_files(recipe, source)?.tokenizer.map(|tokenizer| tokenizer.digest());
    for files in further {
        if files.tokenizer.as_ref().map(|tokenizer| tokenizer.digest()) != first {
            let cause = format!("`{}` and the first teacher have different tokenizers", files.path.display());
            return Err(Failure::new(Exit::BadRecipe, cause)
                .code("wrong-vocabulary")
                .at(source.place(&ENSEMBLE))
                .fix("mix teachers that share a tokenizer: their distributions are over one vocabulary"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_teacher_writes_its_share_and_the_same_whenever_it_is_asked() {
        let shares = [0.5, 0.125, 0.375];
        let mut counts = [0; 3];
        for key in 0..4000 {
            for sample in 0..2 {
                let writer = writer_of(7, key, sample, &shares);
                assert_eq!(writer, writer_of(7, key, sample, &shares));
                counts[writer] += 1;
            }
        }
        for (count, share) in counts.iter().zip(shares) {
            // Four standard deviations of 8,000 draws.
            assert!((f64::from(*count) / 8000.0 - share).abs() < 0.023, "{counts:?}");
        }
    }
}
