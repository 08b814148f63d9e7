//! Which of a few given continuations a decoder prefers: verdicts that cannot be anything else.

use stillroom_kernels::log_sum_exp;

use crate::decoder::Decoder;

impl Decoder {
    /// For each prompt, the probability of each continuation among `choices`: exp(log p(choice | prompt)) over the sum
    /// of those of all choices, which is what sampling gives that can only write one of them.
    ///
    /// Choices are sequences of token ids of which none is the beginning of another. The cost is that of reading each
    /// prompt once where they are single tokens, else once for each choice.
    ///
    /// # Panics
    /// Where a prompt or a choice is empty, a choice is given twice or begins another, or an id is outside the
    /// vocabulary ([`Decoder::check_ids`]).
    pub fn choose(&self, prompts: &[&[u32]], choices: &[&[u32]]) -> Vec<Vec<f64>> {
        assert!(prompts.iter().chain(choices).all(|ids| !ids.is_empty()), "prompts and choices have tokens");
        for (i, choice) in choices.iter().enumerate() {
            let begins = choices.iter().enumerate().any(|(k, other)| k != i && other.starts_with(choice));
            assert!(!begins, "choice {i} begins another");
        }
        let logprobs = match choices.iter().all(|choice| choice.len() == 1) {
            true => self.single_tokens(prompts, choices),
            false => self.sequences(prompts, choices),
        };
        logprobs.iter().map(|logprobs| normalised(logprobs)).collect()
    }

    fn single_tokens(&self, prompts: &[&[u32]], choices: &[&[u32]]) -> Vec<Vec<f64>> {
        let last: Vec<Vec<u32>> = prompts.iter().map(|prompt| vec![prompt.len() as u32 - 1]).collect();
        let rows = self.read_rows(prompts, &last, |_, _, logits| {
            let lse = f64::from(log_sum_exp(logits));
            choices.iter().map(|choice| f64::from(logits[choice[0] as usize]) - lse).collect::<Vec<_>>()
        });
        rows.into_iter().map(|mut rows| rows.swap_remove(0)).collect()
    }

    fn sequences(&self, prompts: &[&[u32]], choices: &[&[u32]]) -> Vec<Vec<f64>> {
        let of_prompt = |prompt: &&[u32]| {
            let texts: Vec<Vec<u32>> = choices.iter().map(|choice| [*prompt, *choice].concat()).collect();
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            let scored = self.token_logprobs(&texts);
            let of_choice = |row: &Vec<f32>| row[prompt.len() - 1..].iter().map(|&l| f64::from(l)).sum();
            scored.iter().map(of_choice).collect()
        };
        prompts.iter().map(of_prompt).collect()
    }
}

fn normalised(logprobs: &[f64]) -> Vec<f64> {
    let top = logprobs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logprobs.iter().map(|l| (l - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}
