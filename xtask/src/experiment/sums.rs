//! Sums of two numbers of three digits, as prompts with worked targets, for experiments E5 and E6.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use stillroom_core::CounterRng;

/// Problems to learn from and to validate on, and held-out ones.
const TRAIN: usize = 3_064;
const HELD_OUT: usize = 500;
const SEED: u64 = 0x73_756d;

/// How a sum is written down.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Form {
    /// `1023`
    AnswerOnly,
    /// `3201`: the digit that is known first comes first.
    Reversed,
    /// `5+8=13,4+7+1=12,3+6+1=10:1023`
    Trace,
    /// Each problem in one of four ways: the answer only, a trace, a trace with the numbers exchanged, by places. Of
    /// problems that stand in no other form's data, since it is a teacher that learns them.
    Mixed,
}

/// Writes `train.jsonl` and `test.jsonl`, in which no problem stands twice.
pub(super) fn write(folder: &Path, form: Form) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    // All ordered pairs, in an order of their own.
    let mut all: Vec<u32> = (0..900 * 900).collect();
    CounterRng::new(&[SEED]).shuffle(&mut all);
    let (own, others) = all.split_at(TRAIN + HELD_OUT);
    let train = if form == Form::Mixed { &others[..TRAIN] } else { &own[..TRAIN] };
    for (file, problems) in [("train.jsonl", train), ("test.jsonl", &own[TRAIN..])] {
        let rows: String =
            problems.iter().enumerate().map(|(n, &i)| row(100 + i / 900, 100 + i % 900, form, n)).collect();
        let path = folder.join(file);
        fs::write(&path, rows).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// `n` is its place among the rows.
fn row(a: u32, b: u32, form: Form, n: usize) -> String {
    let reversed = |n: u32| n.to_string().chars().rev().collect::<String>();
    let worked = |trace: String| (format!("{trace}:{}", a + b), (a + b).to_string());
    let (completion, answer) = match form {
        Form::Mixed => match n % 4 {
            0 => ((a + b).to_string(), (a + b).to_string()),
            1 => worked(trace(a, b)),
            2 => worked(trace(b, a)),
            _ => worked(by_places(a, b)),
        },
        Form::AnswerOnly => ((a + b).to_string(), (a + b).to_string()),
        Form::Reversed => (reversed(a + b), reversed(a + b)),
        Form::Trace => worked(trace(a, b)),
    };
    let row = serde_json::json!({
        "id": format!("{a}+{b}"), "prompt": format!("{a}+{b}="), "completion": completion, "answer": answer,
    });
    row.to_string() + "\n"
}

/// Digit by digit, the last first, each sum with what was carried.
fn trace(mut a: u32, mut b: u32) -> String {
    let (mut text, mut carried) = (String::new(), 0);
    while a > 0 || b > 0 {
        let (x, y) = (a % 10, b % 10);
        let separator = if text.is_empty() { "" } else { "," };
        let carry = if carried > 0 { "+1" } else { "" };
        write!(text, "{separator}{x}+{y}{carry}={}", x + y + carried).expect("a string grows");
        carried = (x + y + carried) / 10;
        (a, b) = (a / 10, b / 10);
    }
    text
}

/// `300+600=900,40+70=110,5+8=13`
fn by_places(a: u32, b: u32) -> String {
    let sum = |place: u32| {
        let (x, y) = (a / place % 10 * place, b / place % 10 * place);
        format!("{x}+{y}={}", x + y)
    };
    [100, 10, 1].map(sum).join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_written_in_each_form() {
        let of = |form| serde_json::from_str::<serde_json::Value>(&row(345, 678, form, 0)).unwrap();
        assert_eq!(of(Form::AnswerOnly)["completion"], "1023");
        assert_eq!(
            (&of(Form::Reversed)["completion"], &of(Form::Reversed)["answer"]),
            (&"3201".into(), &"3201".into())
        );
        assert_eq!(of(Form::Trace)["completion"], "5+8=13,4+7+1=12,3+6+1=10:1023");
        assert_eq!(
            (&of(Form::Trace)["prompt"], &of(Form::Trace)["answer"]),
            (&"345+678=".into(), &"1023".into())
        );
        assert_eq!(trace(120, 203), "0+3=3,2+0=2,1+2=3");
        let mixed = [0, 1, 2, 3].map(|n| {
            let row = row(345, 678, Form::Mixed, n);
            serde_json::from_str::<serde_json::Value>(&row).unwrap()["completion"].clone()
        });
        let four = [
            "1023",
            "5+8=13,4+7+1=12,3+6+1=10:1023",
            "8+5=13,7+4+1=12,6+3+1=10:1023",
            "300+600=900,40+70=110,5+8=13:1023",
        ];
        assert_eq!(mixed, four);
    }
}
