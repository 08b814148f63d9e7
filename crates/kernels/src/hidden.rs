//! How alike the directions of two hidden states are.

use crate::device::{Buf, Device};
use crate::rows::for_row_pieces;

impl Device {
    /// Adds 1 − cos(x\[r\], y\[r\]) of each row of `width` numbers, times `share`, to `losses[r]`, and its gradient by x,
    /// times `scale`, to dx\[r\].
    ///
    /// ∂(1 − cos)/∂x = (cos·x/‖x‖ − y/‖y‖)/‖x‖. A row of zeros on either side has a cosine of 0 and no gradient. The
    /// loss is that of `torch.nn.functional.cosine_embedding_loss` for alike pairs.
    pub fn cosine_distance(
        &self,
        dx: &mut Buf,
        (x, y): (&Buf, &Buf),
        width: usize,
        losses: &mut [f32],
        share: f32,
        scale: f32,
    ) {
        assert!(dx.len() == x.len() && x.len() == y.len(), "one shape on all sides");
        assert_eq!(losses.len() * width, x.len(), "one loss for each row");
        let row = |data: &[f32], r: usize| -> std::ops::Range<usize> {
            let at = r * width;
            assert!(at + width <= data.len(), "row within the buffer");
            at..at + width
        };
        for_row_pieces(&self.pool, &mut dx.data, width, &|first, piece| {
            for (i, dx) in piece.chunks_exact_mut(width).enumerate() {
                let at = row(&x.data, first + i);
                add_cosine_gradient(dx, &x.data[at.clone()], &y.data[at], scale);
            }
        });
        for_row_pieces(&self.pool, losses, 1, &|first, piece| {
            for (i, loss) in piece.iter_mut().enumerate() {
                let at = row(&x.data, first + i);
                *loss += share * (1.0 - Angle::between(&x.data[at.clone()], &y.data[at]).cosine) as f32;
            }
        });
    }

    /// x\[rows\[r\]\] += y\[r\], rows of `width` numbers.
    pub fn scatter_add_rows(&self, x: &mut Buf, y: &Buf, rows: &[u32], width: usize) {
        for (y, &r) in y.data.chunks_exact(width).zip(rows) {
            x.data[r as usize * width..][..width].iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
    }
}

/// Sums in f64, in order.
struct Angle {
    cosine: f64,
    /// 1/‖x‖ and 1/‖y‖; 0 where one of the two is all zeros.
    inverse: [f64; 2],
}

impl Angle {
    fn between(x: &[f32], y: &[f32]) -> Angle {
        let (mut xy, mut xx, mut yy) = (0.0f64, 0.0f64, 0.0f64);
        for (&x, &y) in x.iter().zip(y) {
            let (x, y) = (f64::from(x), f64::from(y));
            xy += x * y;
            xx += x * x;
            yy += y * y;
        }
        if xx == 0.0 || yy == 0.0 {
            return Angle { cosine: 0.0, inverse: [0.0; 2] };
        }
        let inverse = [1.0 / xx.sqrt(), 1.0 / yy.sqrt()];
        Angle { cosine: xy * inverse[0] * inverse[1], inverse }
    }
}

fn add_cosine_gradient(dx: &mut [f32], x: &[f32], y: &[f32], scale: f32) {
    let Angle { cosine, inverse } = Angle::between(x, y);
    let of_x = (f64::from(scale) * cosine * inverse[0] * inverse[0]) as f32;
    let of_y = (f64::from(scale) * inverse[0] * inverse[1]) as f32;
    for ((dx, x), y) in dx.iter_mut().zip(x).zip(y) {
        *dx += of_x * x - of_y * y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(x: &[f32], y: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
        let device = Device::cpu(2);
        let (x, y) = (device.upload(x), device.upload(y));
        let (mut dx, mut losses) = (device.zeros(x.len()), vec![0.0; x.len() / width]);
        device.cosine_distance(&mut dx, (&x, &y), width, &mut losses, 1.0, 1.0);
        (losses, device.download(&dx))
    }

    #[test]
    fn directions_count_and_lengths_do_not() {
        let (losses, dx) = run(&[3.0, 4.0, 1.0, 0.0, 0.0, 0.0], &[6.0, 8.0, 0.0, 2.0, 1.0, 1.0], 2);
        assert!(losses[0].abs() < 1e-7 && dx[..2].iter().all(|d| d.abs() < 1e-7));
        assert_eq!((losses[1], &dx[2..4]), (1.0, &[0.0, -1.0][..]));
        assert_eq!((losses[2], &dx[4..]), (1.0, &[0.0, 0.0][..]), "zeros have no direction");
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let x: Vec<f32> = (0..10).map(|i| ((i * i) as f32 * 0.37).sin() + 0.2).collect();
        let y: Vec<f32> = (0..10).map(|i| ((i * i) as f32 * 0.11).cos()).collect();
        let (_, dx) = run(&x, &y, 5);
        for i in 0..10 {
            let moved = |h: f32| {
                let mut x = x.clone();
                x[i] += h;
                run(&x, &y, 5).0.iter().map(|&l| f64::from(l)).sum::<f64>()
            };
            let quotient = (moved(0.01) - moved(-0.01)) / 0.02;
            assert!((quotient - f64::from(dx[i])).abs() < 1e-4, "{i}: {quotient} against {}", dx[i]);
        }
    }

    #[test]
    fn rows_are_added_where_they_belong() {
        let device = Device::cpu(1);
        let (mut x, y) = (device.upload(&[1.0; 6]), device.upload(&[1.0, 2.0, 3.0, 4.0]));
        device.scatter_add_rows(&mut x, &y, &[2, 0], 2);
        assert_eq!(device.download(&x), [4.0, 5.0, 1.0, 1.0, 2.0, 3.0]);
    }
}
