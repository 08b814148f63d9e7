//! Sums of two numbers of three digits, as prompts with worked targets, for experiment E5.

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
}

/// Writes `train.jsonl` and `test.jsonl`, in which no problem stands twice.
pub(super) fn write(folder: &Path, form: Form) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    // All ordered pairs, in an order of their own.
    let mut all: Vec<u32> = (0..900 * 900).collect();
    CounterRng::new(&[SEED]).shuffle(&mut all);
    for (file, problems) in [("train.jsonl", &all[..TRAIN]), ("test.jsonl", &all[TRAIN..TRAIN + HELD_OUT])] {
        let rows: String = problems.iter().map(|&i| row(100 + i / 900, 100 + i % 900, form)).collect();
        let path = folder.join(file);
        fs::write(&path, rows).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

fn row(a: u32, b: u32, form: Form) -> String {
    let reversed = |n: u32| n.to_string().chars().rev().collect::<String>();
    let (completion, answer) = match form {
        Form::AnswerOnly => ((a + b).to_string(), (a + b).to_string()),
        Form::Reversed => (reversed(a + b), reversed(a + b)),
        Form::Trace => (format!("{}:{}", trace(a, b), a + b), (a + b).to_string()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_written_in_each_form() {
        let of = |form| serde_json::from_str::<serde_json::Value>(&row(345, 678, form)).unwrap();
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
    }
}
