//! Reverse KL from the student's own tokens alone.

use std::ops::Range;

use stillroom_model::LabelLoss;

/// A token that the student has come to find likelier than this many times counts no more than this.
const RATIO_MAX: f32 = 5.0;

/// KL(q‖p) estimated from tokens y that q drew itself: −A with the advantage A = log p(y) − log q(y).
///
/// Per token the loss is w·(log q(y) − log p(y)), and may be negative; its mean over many tokens estimates
/// the reverse KL of their positions. The gradient is **not** that of this number, whose expectation is 0,
/// but w·(log q(y) − log p(y))·∇log q(y) with the factor in front held constant (REINFORCE, Williams 1992):
///
/// E_{y~q}\[(log q(y) − log p(y))·∇log q(y)\] = ∇KL(q‖p)
///
/// The prefix is held constant too: how a token changes what comes after it is not learned from.
///
/// w = min(q(y)/q₀(y), 5) makes up for tokens that an earlier student q₀ drew; it is 1, up to rounding, for
/// those just drawn. Where nothing is cut off, w·… has the expectation above under q₀.
///
/// Of the teacher only log p of the text's own tokens is needed.
#[derive(Debug)]
pub(crate) struct SampledReverseKl {
    /// log p(y) of each supervised row of the batch.
    pub(crate) teacher: Vec<f32>,
    /// log q₀(y): of the student that drew them.
    pub(crate) drawn: Vec<f32>,
}

impl LabelLoss for SampledReverseKl {
    fn evaluate(&self, rows: Range<usize>, logprobs: &[f32], losses: &mut [f32], slopes: &mut [f32]) {
        let given = self.teacher[rows.clone()].iter().zip(&self.drawn[rows]);
        for (((&own, (&teacher, &drawn)), loss), slope) in logprobs.iter().zip(given).zip(losses).zip(slopes)
        {
            let ratio = (own - drawn).exp().min(RATIO_MAX);
            *loss = ratio * (own - teacher);
            *slope = *loss;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_softmax(z: &[f64]) -> Vec<f64> {
        let sum: f64 = z.iter().map(|z| z.exp()).sum();
        z.iter().map(|z| z - sum.ln()).collect()
    }

    fn reverse_kl(q: &[f64], p: &[f64]) -> f64 {
        q.iter().zip(p).map(|(q, p)| q.exp() * (q - p)).sum()
    }

    /// Loss and slope of one token.
    fn token(own: f64, teacher: f64, drawn: f64) -> (f64, f64) {
        let loss = SampledReverseKl { teacher: vec![teacher as f32], drawn: vec![drawn as f32] };
        let (mut losses, mut slopes) = ([f32::NAN], [f32::NAN]);
        loss.evaluate(0..1, &[own as f32], &mut losses, &mut slopes);
        (losses[0].into(), slopes[0].into())
    }

    /// Σ over y of `weight(y)`·`slope(y)`·∂log q(y)/∂z.
    fn gradient(q: &[f64], weight: &[f64], slope: impl Fn(usize) -> f64) -> Vec<f64> {
        let dlogq = |y: usize, j: usize| f64::from(y == j) - q[j].exp();
        let of = |j| (0..q.len()).map(|y| weight[y].exp() * slope(y) * dlogq(y, j)).sum();
        (0..q.len()).map(of).collect()
    }

    const STUDENT: [f64; 5] = [0.5, -1.0, 2.0, 0.0, 0.3];
    const TEACHER: [f64; 5] = [1.0, 0.0, 1.5, -2.0, 0.7];

    #[test]
    fn over_all_tokens_it_is_the_reverse_kl_and_its_gradient() {
        let (q, p) = (log_softmax(&STUDENT), log_softmax(&TEACHER));
        let kl = reverse_kl(&q, &p);
        assert!((kl - 0.209_636_2).abs() < 1e-6);
        let value: f64 = (0..5).map(|y| q[y].exp() * token(q[y], p[y], q[y]).0).sum();
        assert!((value - kl).abs() < 1e-6, "{value} {kl}");
        let found = gradient(&q, &q, |y| token(q[y], p[y], q[y]).1);
        for (j, found) in found.iter().enumerate() {
            let exact = q[j].exp() * (q[j] - p[j] - kl);
            assert!((found - exact).abs() < 1e-6, "{found} {exact}");
        }
        // What it must not be: the slope of log q(y) − log p(y) is 1, and teaches nothing.
        let naive = gradient(&q, &q, |_| 1.0);
        assert!(naive.iter().all(|g| g.abs() < 1e-15), "{naive:?}");
    }

    #[test]
    fn tokens_of_an_earlier_student_give_the_same_expectation() {
        let (q, p) = (log_softmax(&STUDENT), log_softmax(&TEACHER));
        let drawn = log_softmax(&[0.7, -0.5, 1.4, 0.4, -0.2]);
        let kl = reverse_kl(&q, &p);
        let value: f64 = (0..5).map(|y| drawn[y].exp() * token(q[y], p[y], drawn[y]).0).sum();
        assert!((value - kl).abs() < 1e-6, "{value} {kl}");
        let found = gradient(&q, &drawn, |y| token(q[y], p[y], drawn[y]).1);
        for (j, found) in found.iter().enumerate() {
            let exact = q[j].exp() * (q[j] - p[j] - kl);
            assert!((found - exact).abs() < 1e-6, "{found} {exact}");
        }
        let (loss, slope) = token(-0.1, -1.1, -9.0);
        assert!((loss - 5.0).abs() < 1e-5 && loss == slope, "a ratio of e⁸·⁹ counts as 5");
    }

    /// A student that is a table: logits of the next of three tokens by prefix, for three tokens.
    struct Table(Vec<[f64; 3]>);

    /// Prefixes of 0, 1 and 2 tokens, in order.
    const PREFIXES: usize = 1 + 3 + 9;

    impl Table {
        fn of(f: impl Fn(usize, usize) -> f64) -> Table {
            Table((0..PREFIXES).map(|prefix| [0, 1, 2].map(|y| f(prefix, y))).collect())
        }

        fn logprobs(&self, prefix: usize) -> Vec<f64> {
            log_softmax(&self.0[prefix])
        }
    }

    /// The prefix before each token of a text.
    fn prefixes(text: [usize; 3]) -> [usize; 3] {
        [0, 1 + text[0], 4 + 3 * text[0] + text[1]]
    }

    fn texts() -> impl Iterator<Item = [usize; 3]> {
        (0..27).map(|i| [i / 9, i / 3 % 3, i % 3])
    }

    /// (log q, log p) of each token of a text.
    fn score(student: &Table, teacher: &Table, text: [usize; 3]) -> [(f64, f64); 3] {
        let at = prefixes(text);
        [0, 1, 2].map(|t| (student.logprobs(at[t])[text[t]], teacher.logprobs(at[t])[text[t]]))
    }

    /// Σ over texts of q(text)·Σ over t of `slope(t)`·∇log q(token t).
    fn sequence_gradient(
        student: &Table,
        teacher: &Table,
        slope: impl Fn(&[(f64, f64); 3], usize) -> f64,
    ) -> Vec<f64> {
        let mut gradient = vec![0.0; 3 * PREFIXES];
        for text in texts() {
            let (scores, at) = (score(student, teacher, text), prefixes(text));
            let probability = scores.iter().map(|(q, _)| q).sum::<f64>().exp();
            for t in 0..3 {
                let q = student.logprobs(at[t]);
                for j in 0..3 {
                    let dlogq = f64::from(j == text[t]) - q[j].exp();
                    gradient[3 * at[t] + j] += probability * slope(&scores, t) * dlogq;
                }
            }
        }
        gradient
    }

    #[test]
    fn per_token_it_is_not_the_gradient_of_the_whole_texts_reverse_kl() {
        let student = Table::of(|prefix, y| ((3 * prefix + y) as f64 * 1.7).sin());
        let teacher = Table::of(|prefix, y| ((3 * prefix + y) as f64 * 0.9).cos());
        let whole_kl = |student: &Table| -> f64 {
            let of_text = |text| {
                let (q, p): (Vec<f64>, Vec<f64>) = score(student, &teacher, text).into_iter().unzip();
                let (q, p): (f64, f64) = (q.iter().sum(), p.iter().sum());
                q.exp() * (q - p)
            };
            texts().map(of_text).sum()
        };
        // With everything that comes after a token, the estimator is the whole text's gradient …
        let to_go = |scores: &[(f64, f64); 3], t: usize| scores[t..].iter().map(|(q, p)| q - p).sum();
        let whole = sequence_gradient(&student, &teacher, to_go);
        for prefix in 0..PREFIXES {
            for j in 0..3 {
                let moved = |by: f64| {
                    let mut table = Table(student.0.clone());
                    table.0[prefix][j] += by;
                    whole_kl(&table)
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                let found = whole[3 * prefix + j];
                assert!((found - slope).abs() < 1e-9, "{prefix} {j}: {found} {slope}");
            }
        }
        // … and ours, which stops at the token, is not: it agrees for the last token only.
        let stopped = sequence_gradient(&student, &teacher, |scores, t| {
            let (q, p) = scores[t];
            token(q, p, q).1
        });
        let difference = |prefixes: Range<usize>| {
            let range = 3 * prefixes.start..3 * prefixes.end;
            let pairs = whole[range.clone()].iter().zip(&stopped[range]);
            pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        };
        assert!(difference(4..PREFIXES) < 1e-6);
        assert!(difference(0..1) > 0.01 && difference(1..4) > 0.01);
    }
}
