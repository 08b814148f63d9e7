//! A result depends on its own document only: not on its neighbours, the batch, the number of
//! threads, or how many sequences are in flight. Bit for bit.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{bits, config, documents, lively, slices};
use stillroom_core::{CounterRng, FinishReason, SparseRow, Tail};
use stillroom_formats::Family;
use stillroom_model::{
    AdamW, Batch, Begin, Decoder, Divergence, Generation, GenerationRequest, HeadTerms, LiveTeacher,
    SamplingParams, Spacing, SparseBatch, Targets, Term, Token, TrainState, Writing,
};

const FAMILIES: [Family; 3] = [Family::Llama, Family::Qwen2, Family::Qwen3];

fn hidden(decoder: &Decoder, documents: &[&[u32]]) -> Vec<f32> {
    let batch = Batch::from_documents(documents);
    decoder.device().download(&decoder.hidden_states(&batch))
}

#[test]
fn a_document_alone_has_the_bits_it_has_in_ragged_batches_of_up_to_33() {
    for family in FAMILIES {
        let decoder = lively(config(family), 2, 1);
        let lengths: Vec<usize> = (0..33).map(|i| 1 + (i * 7 + 3) % 29).collect();
        let documents = documents(&lengths, 211, 2);
        let width = decoder.config().hidden_size;
        let alone: Vec<Vec<u32>> = documents.iter().map(|ids| bits(&hidden(&decoder, &[ids]))).collect();
        for n in 1..=33 {
            // Start elsewhere each time, so that rows fall on other places of the kernels' tiles.
            let order: Vec<usize> = (0..n).map(|i| (i + n) % 33).collect();
            let chosen: Vec<&[u32]> = order.iter().map(|&i| documents[i].as_slice()).collect();
            let together = bits(&hidden(&decoder, &chosen));
            let mut at = 0;
            for &i in &order {
                let len = documents[i].len() * width;
                assert_eq!(together[at..at + len], alone[i], "{family:?}: document {i} in a batch of {n}");
                at += len;
            }
        }
    }
}

#[test]
fn every_prefix_has_the_bits_of_the_whole() {
    let decoder = lively(config(Family::Qwen3), 1, 3);
    let ids = documents(&[67], 211, 4).remove(0);
    let whole = bits(&hidden(&decoder, &[&ids]));
    for n in 1..=ids.len() {
        let prefix = bits(&hidden(&decoder, &[&ids[..n]]));
        assert_eq!(prefix, whole[..prefix.len()], "first {n} tokens");
    }
}

#[test]
fn scores_and_targets_do_not_depend_on_the_other_documents() {
    let (teacher, student) = (lively(config(Family::Qwen3), 2, 5), lively(config(Family::Llama), 2, 6));
    // More tokens than one chunk holds, and documents with nothing to score.
    let lengths: Vec<usize> = (0..60).map(|i| [0, 1, 2, 40, 97][i % 5]).collect();
    let documents = documents(&lengths, 211, 7);
    let documents = slices(&documents);
    let keys: Vec<u64> = (0..60).map(|i| 1000 + i).collect();
    let wanted: Vec<Vec<u32>> =
        lengths.iter().map(|&n| (0..n as u32).filter(|p| p % 3 != 1).collect()).collect();

    let logprobs = teacher.token_logprobs(&documents);
    let sampled = teacher.sampled_targets(&documents, &wanted, 20, Spacing::Independent, 1.5, &keys, 9);
    let top = teacher.top_k_targets(&documents, &wanted, 8, 0.7);
    let kl = Decoder::kl_rows(&teacher, &student, &documents, &wanted);
    let of_each = Decoder::kl_rows_of_each(&teacher, &[&teacher, &student, &student], &documents, &wanted);
    assert!(of_each[1] == kl && of_each[2] == kl && of_each[0] != kl && of_each.len() == 3);
    for i in 0..documents.len() {
        assert_eq!(logprobs[i].len(), lengths[i].saturating_sub(1));
        assert_eq!(sampled[i].len(), wanted[i].len());
        let (one, want) = (&documents[i..=i], &wanted[i..=i]);
        assert_eq!(bits(&logprobs[i]), bits(&teacher.token_logprobs(one)[0]));
        assert_eq!(
            sampled[i],
            teacher.sampled_targets(one, want, 20, Spacing::Independent, 1.5, &keys[i..=i], 9)[0]
        );
        assert_eq!(top[i], teacher.top_k_targets(one, want, 8, 0.7)[0]);
        assert_eq!(bits(&kl[i]), bits(&Decoder::kl_rows(&teacher, &student, one, want)[0]));
        assert!(kl[i].iter().all(|&kl| kl > 0.0));
    }
}

#[test]
fn a_decoder_has_no_divergence_from_itself() {
    let decoder = lively(config(Family::Llama), 1, 8);
    let documents = documents(&[30], 211, 9);
    let wanted = [(0..30).collect::<Vec<u32>>()];
    let kl = Decoder::kl_rows(&decoder, &decoder, &slices(&documents), &wanted);
    assert!(kl[0].iter().all(|kl| kl.abs() < 1e-6), "{kl:?}");
}

/// Hard labels for most rows and a sparse target for each of them.
fn supervised(lengths: &[usize], seed: u64) -> (Batch, Targets<'static>) {
    let documents = documents(lengths, 211, seed);
    let batch = Batch::from_documents(&slices(&documents));
    let mut rng = CounterRng::new(&[seed, 1]);
    let rows: Vec<u32> = (0..batch.n_tokens() as u32).filter(|_| rng.uniform() < 0.7).collect();
    let mut sparse = SparseBatch::new(Tail::None);
    for _ in &rows {
        let first = rng.below(100) as u32;
        let ids = vec![first, first + 1 + rng.below(100) as u32];
        sparse.push(&SparseRow { ids, probs: vec![0.25, 0.75], teacher_entropy: 0.5 });
    }
    let hard_labels = rows.iter().map(|_| rng.below(211) as u32).collect();
    (batch, Targets { rows, hard_labels, sparse: Some(sparse), ..Targets::default() })
}

const OPT: AdamW =
    AdamW { learning_rate: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, max_grad_norm: 1.0 };

const TERMS: HeadTerms<'static> = HeadTerms {
    hard_label: 0.4,
    divergences: &[Term { divergence: Divergence::ForwardKl, weight: 0.6, temperature: 2.0 }],
    scale: 0.01,
};

fn train(family: Family, n_threads: usize, n_steps: u64) -> TrainState {
    let mut state = TrainState::new(lively(config(family), n_threads, 11));
    for step in 0..n_steps {
        one_step(&mut state, step);
    }
    state
}

fn one_step(state: &mut TrainState, step: u64) {
    for half in 0..2 {
        let lengths = [3 + step as usize, 150, 41, 1, 30 + 7 * half];
        let (batch, targets) = supervised(&lengths, 100 + 2 * step + half as u64);
        state.accumulate(&batch, &targets, &TERMS);
    }
    state.step(&OPT);
}

#[test]
fn one_and_two_and_three_threads_train_to_the_same_bits() {
    for family in FAMILIES {
        let one = train(family, 1, 3);
        for n_threads in [2, 3] {
            let other = train(family, n_threads, 3);
            assert_eq!(one.decoder().digest(), other.decoder().digest(), "{family:?}, {n_threads} threads");
        }
    }
}

#[test]
fn a_restored_state_goes_on_bit_for_bit() {
    let straight = train(Family::Qwen3, 1, 4);
    let before = train(Family::Qwen3, 1, 2);
    let moments = common::Tensors::of(before.optimiser_tensors());
    let n_steps = before.n_steps();
    let weights = common::Tensors::of(before.decoder().tensors());
    let device = before.decoder().device().clone();
    let decoder = Decoder::load(device, before.decoder().config().clone(), &weights).unwrap();
    assert_eq!(decoder.digest(), before.decoder().digest());

    let mut restored = TrainState::restore(decoder, n_steps, &moments).unwrap();
    (2..4).for_each(|step| one_step(&mut restored, step));
    assert_eq!(restored.n_steps(), 4);
    assert_eq!(restored.decoder().digest(), straight.decoder().digest());
    let all =
        |state: &TrainState| -> Vec<Vec<u32>> { state.optimiser_tensors().map(|t| bits(&t.data)).collect() };
    assert_eq!(all(&restored), all(&straight));
}

#[test]
fn masked_rows_change_nothing_and_a_batch_without_supervision_has_no_gradient() {
    let (batch, mut targets) = supervised(&[20, 9], 13);
    let mut state = TrainState::new(lively(config(Family::Llama), 1, 12));
    let losses = state.accumulate(&batch, &targets, &TERMS);
    assert_eq!(losses.hard_label.len(), targets.rows.len());
    // The same supervision with every row of the batch computed to the end.
    let n = batch.n_tokens() as u32;
    let all = Targets { rows: (0..n).collect(), hard_labels: vec![0; n as usize], ..Targets::default() };
    let whole = state.decoder().losses(&batch, &all, &[]);
    targets.sparse = None;
    targets.hard_labels.fill(0);
    let some = state.decoder().losses(&batch, &targets, &[]);
    let picked: Vec<f32> = targets.rows.iter().map(|&r| whole.hard_label[r as usize]).collect();
    assert_eq!(bits(&some.hard_label), bits(&picked));

    let mut state = TrainState::new(state.into_decoder());
    let losses = state.accumulate(&batch, &Targets::default(), &TERMS);
    assert!(losses.hard_label.is_empty());
    assert!(state.gradients().all(|g| g.data.iter().all(|&v| v == 0.0)));
}

fn requests(n: usize) -> Vec<GenerationRequest> {
    let lengths: Vec<usize> = (0..n).map(|i| 1 + (i * 11) % 37).collect();
    let prompts = documents(&lengths, 211, 21);
    let request = |(i, prompt_ids)| GenerationRequest { prompt_ids, key: i as u64 / 2, sample: i as u32 % 2 };
    prompts.into_iter().enumerate().map(request).collect()
}

fn generate(
    decoder: &Decoder,
    requests: &[GenerationRequest],
    sampling: &SamplingParams,
    in_flight: usize,
) -> Vec<Generation> {
    let mut done = BTreeMap::new();
    decoder
        .generate(requests, sampling, in_flight, &mut |i, generation| {
            assert!(done.insert(i, generation).is_none(), "request {i} finished twice");
        })
        .unwrap();
    assert_eq!(done.len(), requests.len());
    done.into_values().collect()
}

#[test]
fn generation_is_the_same_however_many_are_in_flight_and_on_any_number_of_threads() {
    for (family, temperature, top_p) in
        [(Family::Llama, 0.0, 1.0), (Family::Qwen2, 0.8, 1.0), (Family::Qwen3, 1.0, 0.9)]
    {
        let decoder = lively(config(family), 2, 22);
        let sampling =
            SamplingParams { max_tokens: 40, temperature, top_p, seed: 5, stop_token_ids: (0..8).collect() };
        let requests = requests(40);
        let together = generate(&decoder, &requests, &sampling, 33);
        for in_flight in [1, 2, 7, 1000] {
            assert_eq!(
                generate(&decoder, &requests, &sampling, in_flight),
                together,
                "{in_flight} in flight"
            );
        }
        let other_threads = generate(&lively(config(family), 1, 22), &requests, &sampling, 8);
        assert_eq!(other_threads, together);
        for (request, alone) in requests.iter().zip(&together) {
            assert_eq!(&generate(&decoder, std::slice::from_ref(request), &sampling, 1)[0], alone);
        }
        let stopped = together.iter().filter(|g| g.finish_reason == FinishReason::Stop).count();
        assert!((1..40).contains(&stopped), "{family:?}: {stopped} of 40 stopped, both ends must be tried");
        for generation in &together {
            let stop = generation.token_ids.iter().position(|&id| id < 8);
            let expected = stop.map_or(40, |at| at + 1);
            assert_eq!(generation.token_ids.len(), expected);
        }
    }
}

#[test]
fn greedy_tokens_are_the_most_probable_and_their_log_probabilities_are_those_of_scoring() {
    let decoder = lively(config(Family::Qwen3), 1, 23);
    let sampling =
        SamplingParams { max_tokens: 30, temperature: 0.0, top_p: 1.0, seed: 0, stop_token_ids: vec![] };
    let requests = requests(5);
    for (request, generation) in requests.iter().zip(generate(&decoder, &requests, &sampling, 5)) {
        let n = request.prompt_ids.len();
        let ids = [&request.prompt_ids[..], &generation.token_ids].concat();
        let scored = &decoder.token_logprobs(&[&ids])[0][n - 1..];
        let wanted = vec![(n as u32 - 1..ids.len() as u32 - 1).collect()];
        let best = &decoder.top_k_targets(&[&ids], &wanted, 1, 1.0)[0];
        for (t, &id) in generation.token_ids.iter().enumerate() {
            assert_eq!(best[t].ids, [id]);
            assert_eq!(scored[t].to_bits(), generation.logprobs[t].to_bits());
        }
    }
}

#[test]
fn recomputed_activations_give_the_same_bits() {
    for family in FAMILIES {
        let mut kept = TrainState::new(lively(config(family), 2, 14));
        let mut recomputed = TrainState::new(lively(config(family), 2, 14)).with_gradient_checkpointing(true);
        for step in 0..3 {
            // Some rows of each document are masked, so the last layer is narrowed.
            let (batch, targets) = supervised(&[61, 1, 40, 120], 200 + step);
            let losses = kept.accumulate(&batch, &targets, &TERMS);
            let again = recomputed.accumulate(&batch, &targets, &TERMS);
            assert_eq!(bits(&losses.hard_label), bits(&again.hard_label), "{family:?}");
            assert_eq!(bits(losses.divergence(0)), bits(again.divergence(0)), "{family:?}");
            for (a, b) in kept.gradients().zip(recomputed.gradients()) {
                assert_eq!(bits(&a.data), bits(&b.data), "{family:?}: {} in step {step}", a.name);
            }
            assert_eq!(kept.step(&OPT), recomputed.step(&OPT));
        }
        assert_eq!(kept.decoder().digest(), recomputed.decoder().digest(), "{family:?}");
    }
}

/// Losses and gradients of each group of documents after the other, with a teacher at hand.
fn with_live_teacher(groups: &[&[Vec<u32>]], n_threads: usize) -> ([Vec<u32>; 2], Vec<Vec<u32>>) {
    let teacher = lively(config(Family::Qwen3), n_threads, 15);
    let mut state = TrainState::new(lively(config(Family::Llama), n_threads, 14));
    let term = |divergence, temperature| Term { divergence, weight: 0.5, temperature };
    let jsd = Divergence::Jsd { teacher_weight: 0.5 };
    let terms = [term(Divergence::ForwardKl, 2.0), term(jsd, 1.0)];
    let terms = HeadTerms { divergences: &terms, ..TERMS };
    let mut found = [Vec::new(), Vec::new()];
    for documents in groups {
        let batch = Batch::from_documents(&slices(documents));
        let rows: Vec<u32> = (0..batch.n_tokens() as u32).filter(|r| r % 3 > 0).collect();
        let live = Some(LiveTeacher::alone(&teacher, None));
        let targets = Targets { hard_labels: vec![3; rows.len()], rows, live, ..Targets::default() };
        let held = state.decoder().losses(&batch, &targets, terms.divergences);
        let losses = state.accumulate(&batch, &targets, &terms);
        assert!(losses.captured_mass.iter().all(|&mass| mass == 1.0));
        for (i, found) in found.iter_mut().enumerate() {
            assert_eq!(bits(held.divergence(i)), bits(losses.divergence(i)));
            found.extend(bits(losses.divergence(i)));
        }
    }
    (found, state.gradients().map(|g| bits(&g.data)).collect())
}

#[test]
fn threads_change_no_bit_beside_a_live_teacher_nor_does_the_batch() {
    let documents = documents(&[90, 60, 120, 30], 211, 77);
    let one = with_live_teacher(&[&documents], 1);
    for n_threads in [2, 3] {
        assert_eq!(with_live_teacher(&[&documents], n_threads), one, "{n_threads} threads");
    }
    // 90 tokens are a multiple of 3, so the same rows are supervised.
    let split = with_live_teacher(&[&documents[..1], &documents[1..]], 2);
    assert_eq!(split.0, one.0, "losses of two batches");
}

#[test]
fn a_choice_has_the_probability_that_its_text_has_among_all_choices() {
    let decoder = lively(config(Family::Qwen3), 2, 71);
    let vocab = decoder.config().vocab_size as u32;
    let prompts = documents(&[9, 1, 30], vocab as usize, 72);
    let check = |choices: &[&[u32]]| {
        let found = decoder.choose(&slices(&prompts), choices);
        for (prompt, found) in prompts.iter().zip(&found) {
            let likelihood = |choice: &&[u32]| -> f64 {
                let text = [prompt, *choice].concat();
                let scored = decoder.token_logprobs(&[&text]);
                scored[0][prompt.len() - 1..].iter().map(|&l| f64::from(l)).sum::<f64>().exp()
            };
            let likelihoods: Vec<f64> = choices.iter().map(likelihood).collect();
            let sum: f64 = likelihoods.iter().sum();
            for (found, likelihood) in found.iter().zip(&likelihoods) {
                assert!((found - likelihood / sum).abs() < 1e-5, "{found} against {likelihood} of {sum}");
            }
        }
        found
    };
    let single = check(&[&[5], &[0], &[vocab - 1]]);
    check(&[&[5], &[0, 7], &[0, 8, 9]]);
    let alone = decoder.choose(&[&prompts[2]], &[&[5], &[0], &[vocab - 1]]);
    assert_eq!(single[2], alone[0], "other prompts change nothing");
    assert!(single.iter().all(|row| (row.iter().sum::<f64>() - 1.0).abs() < 1e-12));
}

#[test]
fn sequences_that_come_and_go_have_the_bits_that_they_have_alone() {
    let decoder = lively(config(Family::Qwen3), 2, 21);
    let prompts = documents(&[3, 40, 1, 17, 9, 28, 5, 2], 211, 22);
    let sampling = |i: usize| SamplingParams {
        max_tokens: 4 + 5 * i,
        temperature: [0.0, 1.0, 0.6][i % 3],
        top_p: if i.is_multiple_of(2) { 1.0 } else { 0.8 },
        seed: i as u64,
        stop_token_ids: vec![7],
    };
    let begin = |i: usize| Begin {
        ticket: i as u64,
        prompt_ids: &prompts[i],
        key: 3,
        sample: i as u32,
        sampling: Arc::new(sampling(i)),
        top: i % 4,
    };
    let mut tokens: BTreeMap<u64, Vec<Token>> = BTreeMap::new();
    let mut on_token =
        |ticket, token: Result<Token, _>| tokens.entry(ticket).or_default().push(token.unwrap());
    let mut writing = Writing::new(&decoder, 3, decoder.config().max_position_embeddings);
    let (mut next, mut steps) = (0, 0);
    while next < prompts.len() || !writing.is_idle() {
        if next < prompts.len() && writing.n_free() > 0 && steps % 3 == 0 {
            let waiting: Vec<_> = (next..prompts.len().min(next + 2)).map(begin).collect();
            next += writing.admit(&waiting, &mut on_token);
        }
        writing.decode(&mut on_token);
        steps += 1;
        if steps == 7 {
            writing.retain(|ticket| ticket != 1);
        }
    }
    for (i, prompt) in prompts.iter().enumerate() {
        let request = GenerationRequest { prompt_ids: prompt.clone(), key: 3, sample: i as u32 };
        let mut alone = None;
        decoder.generate(&[request], &sampling(i), 1, &mut |_, done| alone = Some(done)).unwrap();
        let (alone, found) = (alone.unwrap(), &tokens[&(i as u64)]);
        let ids: Vec<u32> = found.iter().map(|token| token.id).collect();
        let given_up = i == 1;
        assert_eq!(ids, alone.token_ids[..ids.len()], "{i}");
        assert_eq!(found.last().unwrap().done.is_none(), given_up);
        assert!(given_up || found.last().unwrap().done.as_ref() == Some(&alone));
        for (n, token) in found.iter().enumerate() {
            assert_eq!((token.logprob.to_bits(), token.top.len()), (alone.logprobs[n].to_bits(), i % 4));
            let best = token.top.first();
            assert!(best.is_none_or(|best| best.1 >= token.logprob), "{best:?}");
            assert!(i % 3 != 0 || best.is_none_or(|best| best.0 == token.id), "greedy takes the likeliest");
        }
        let text: Vec<u32> = prompt.iter().chain(&ids).copied().collect();
        let scored = decoder.scored_tokens(&text, 2);
        assert_eq!(scored.len(), text.len() - 1);
        for (token, scored) in found.iter().zip(&scored[prompt.len() - 1..]) {
            assert_eq!(scored.logprob.to_bits(), token.logprob.to_bits());
            assert_eq!(scored.rank == 1, scored.top[0].0 == token.id);
        }
    }
}
