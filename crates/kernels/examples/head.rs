//! The head on numbers from files: time, memory and gradients, for `oracles/head.py` to hold beside PyTorch.
//!
//!     cargo run --release -p stillroom-kernels --example head -- FOLDER ce|kl ROWS VOCABULARY WIDTH
//!
//! FOLDER has `hidden`, `weight`, `teacher_hidden`, `teacher_weight` (f32) and `labels` (u32), all little-endian; it gets
//! `dhidden.ours` and `dweight.ours`, the gradients of the loss's mean over rows.

#![expect(clippy::print_stdout, reason = "an example's result")]

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Instant;

use stillroom_kernels::{DenseTargets, Device, Divergence, HeadLosses, HeadTargets, HeadTerms, Term, Weight};

type Failure = Box<dyn Error>;

fn words(path: &Path) -> Result<Vec<[u8; 4]>, Failure> {
    let bytes = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(bytes.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]).collect())
}

/// Kilobytes of `/proc/self/status`, as bytes; 0 where there is none.
fn of_process(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(key));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).map_or(0, |kb| 1024 * kb)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, loss, sizes @ ..] = arguments.as_slice() else {
        return Err("usage: head FOLDER ce|kl ROWS VOCABULARY WIDTH".into());
    };
    let sizes: Vec<usize> = sizes.iter().map(|n| n.parse()).collect::<Result<_, _>>()?;
    let [rows, vocab, width] = sizes[..] else { return Err("three sizes are wanted".into()) };
    let folder = Path::new(folder);
    let dev = Device::cpu(std::thread::available_parallelism()?.get());
    let read = |name: &str| -> Result<_, Failure> {
        let numbers: Vec<f32> = words(&folder.join(name))?.into_iter().map(f32::from_le_bytes).collect();
        Ok(dev.upload(&numbers))
    };
    let (hidden, w) = (read("hidden")?, read("weight")?);
    let labels: Vec<u32> = words(&folder.join("labels"))?.into_iter().map(u32::from_le_bytes).collect();
    let teacher = if loss == "kl" { Some((read("teacher_hidden")?, read("teacher_weight")?)) } else { None };
    let targets = match &teacher {
        Some((hidden, w)) => {
            let head = Weight::Plain { w, n_out: vocab, n_in: width };
            let dense = Some(DenseTargets { hidden, first_row: 0, head });
            HeadTargets { dense, ..HeadTargets::default() }
        }
        None => HeadTargets { hard_labels: Some(&labels), ..HeadTargets::default() },
    };
    let term = Term { divergence: Divergence::ForwardKl, weight: 1.0, temperature: 1.0 };
    let divergences = if teacher.is_some() { &[term][..] } else { &[] };
    let hard_label = if teacher.is_some() { 0.0 } else { 1.0 };
    let terms = HeadTerms { hard_label, divergences, scale: 1.0 / rows as f32 };
    let (mut dh, mut dw) = (dev.zeros(hidden.len()), dev.zeros(w.len()));
    // Zeros take memory when they are first written.
    dev.add_assign(&mut dh, &hidden);
    dev.add_assign(&mut dw, &w);
    let before = of_process("VmRSS:");
    let mut losses = HeadLosses::default();
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        dev.fill_zero(&mut dw);
        losses.clear();
        let began = Instant::now();
        dev.divergence_head(&mut dh, &mut dw, &hidden, &w, rows, &targets, &terms, &mut losses);
        best = best.min(began.elapsed().as_secs_f64());
    }
    let peak = of_process("VmHWM:").saturating_sub(before);
    for (name, buf) in [("dhidden.ours", &dh), ("dweight.ours", &dw)] {
        let bytes: Vec<u8> = dev.download(buf).iter().flat_map(|v| v.to_le_bytes()).collect();
        fs::write(folder.join(name), bytes)?;
    }
    let per_row = if teacher.is_some() { losses.divergence(0) } else { &losses.hard_label };
    let mean = per_row.iter().map(|&l| f64::from(l)).sum::<f64>() / rows as f64;
    println!("{{\"loss\": {mean}, \"seconds\": {best}, \"bytes\": {peak}}}");
    Ok(())
}
