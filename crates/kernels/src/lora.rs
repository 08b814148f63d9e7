//! Products of low rank beside a frozen weight: y += scale·(dropout(x)·aᵀ)·bᵀ, forward and backward.
//!
//! Several weights are fused into one, so what they adapt is a range of columns of wide rows. Shapes: n
//! rows, r rank, x \[n, in\], a \[r, in\], b \[out, r\], t \[n, r\].

use crate::device::{Buf, Device};
use crate::gemm;
use crate::panels::{Left, Right};
use crate::rows::for_row_pieces;

/// `len` columns from `first` on of rows of `stride` numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    pub stride: usize,
    pub first: usize,
    pub len: usize,
}

/// Which numbers of some rows are dropped. It is a function of the key, the row's number and the column
/// alone: neither of the rows around it nor of how often it was asked.
#[derive(Clone, Copy)]
pub struct Dropout<'a> {
    /// From 0 to below 1.
    pub probability: f32,
    pub key: u64,
    /// The number of row 0.
    pub first_row: u64,
    /// Where rows were picked: what each was numbered before, `first_row` not counted.
    pub rows: Option<&'a [u32]>,
}

impl Dropout<'_> {
    /// Calls `f(number, factor)` along row `row`: the factor is 0 with the probability, else 1/(1 − it).
    /// Two columns take the halves of one 64-bit number of SplitMix64 (Steele, Lea, Flood 2014).
    fn each<'n>(&self, row: usize, numbers: impl Iterator<Item = &'n mut f32>, f: impl Fn(&mut f32, f32)) {
        let number = self.first_row + self.rows.map_or(row as u64, |rows| u64::from(rows[row]));
        let state = mix(self.key ^ mix(number.wrapping_add(GOLDEN)));
        let threshold = (f64::from(self.probability) * (1u64 << 32) as f64) as u64;
        let kept = 1.0 / (1.0 - self.probability);
        let mut bits = 0;
        for (column, number) in numbers.enumerate() {
            if column % 2 == 0 {
                bits = mix(state.wrapping_add((column as u64 / 2 + 1).wrapping_mul(GOLDEN)));
            }
            f(number, if bits & 0xffff_ffff < threshold { 0.0 } else { kept });
            bits >>= 32;
        }
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Device {
    /// y = dropout(x), n rows of `width` numbers.
    pub fn dropout_forward(&self, y: &mut Buf, x: &Buf, dropout: &Dropout<'_>, n_rows: usize, width: usize) {
        for_row_pieces(&self.pool, &mut y.data[..n_rows * width], width, &|first, piece| {
            piece.copy_from_slice(&x.data[first * width..][..piece.len()]);
            for (i, row) in piece.chunks_exact_mut(width).enumerate() {
                dropout.each(first + i, row.iter_mut(), |y, factor| *y *= factor);
            }
        });
    }

    /// dx += the gradient through [`Device::dropout_forward`]. `dy` is turned into it in place.
    pub fn dropout_backward(
        &self,
        dx: &mut Buf,
        dy: &mut Buf,
        dropout: &Dropout<'_>,
        n_rows: usize,
        width: usize,
    ) {
        for_row_pieces(&self.pool, &mut dy.data[..n_rows * width], width, &|first, piece| {
            for (i, row) in piece.chunks_exact_mut(width).enumerate() {
                dropout.each(first + i, row.iter_mut(), |dy, factor| *dy *= factor);
            }
        });
        self.add_assign(dx, dy);
    }

    /// t = scale·x·aᵀ.
    pub fn low_rank_down(
        &self,
        t: &mut Buf,
        x: &Buf,
        a: &Buf,
        scale: f32,
        (n, r, n_in): (usize, usize, usize),
    ) {
        let (t, right) = (&mut t.data[..n * r], Right::Transposed { data: &a.data, stride: n_in });
        let left = Left::rows(&x.data[..n * n_in], n_in);
        gemm::multiply(&self.pool, t, r, left, right, (n, r, n_in), false);
        t.iter_mut().for_each(|t| *t *= scale);
    }

    /// y\[:, columns\] += t·bᵀ.
    pub fn low_rank_up(&self, y: &mut Buf, columns: Columns, t: &Buf, b: &Buf, n: usize, r: usize) {
        let Columns { stride, first, len } = columns;
        let (left, right) = (Left::rows(&t.data[..n * r], r), Right::Transposed { data: &b.data, stride: r });
        gemm::multiply(&self.pool, &mut y.data[first..n * stride], stride, left, right, (n, len, r), true);
    }

    /// Backward of [`Device::low_rank_up`], with the scale of [`Device::low_rank_down`] taken back: db +=
    /// dy\[:, columns\]ᵀ·t, and dt, overwritten, is scale·dy\[:, columns\]·b.
    pub fn low_rank_up_backward(
        &self,
        dt: &mut Buf,
        db: &mut Buf,
        dy: &Buf,
        columns: Columns,
        t: &Buf,
        b: &Buf,
        scale: f32,
        (n, r): (usize, usize),
    ) {
        let Columns { stride, first, len } = columns;
        let dy = &dy.data[first..n * stride];
        let (by_column, t) = (Left::transposed(dy, stride), Right::Rows { data: &t.data, stride: r });
        gemm::multiply(&self.pool, &mut db.data, r, by_column, t, (len, r, n), true);
        let (dt, b) = (&mut dt.data[..n * r], Right::Rows { data: &b.data, stride: r });
        gemm::multiply(&self.pool, dt, r, Left::rows(dy, stride), b, (n, r, len), false);
        dt.iter_mut().for_each(|dt| *dt *= scale);
    }

    /// dx\[n, in\] += dt·a, the input gradient of [`Device::low_rank_down`] with its scale in `dt`.
    pub fn low_rank_down_backward(
        &self,
        dx: &mut Buf,
        dt: &Buf,
        a: &Buf,
        (n, r, n_in): (usize, usize, usize),
    ) {
        let (left, right) = (Left::rows(&dt.data[..n * r], r), Right::Rows { data: &a.data, stride: n_in });
        gemm::multiply(&self.pool, &mut dx.data, n_in, left, right, (n, n_in, r), true);
    }

    /// Rows `first_row..` of w \[·, in\] += scale·b·a: what [`Device::low_rank_up`] adds to products, for good.
    pub fn low_rank_merge(
        &self,
        w: &mut Buf,
        first_row: usize,
        b: &Buf,
        a: &Buf,
        scale: f32,
        (out, r, n_in): (usize, usize, usize),
    ) {
        let mut delta = vec![0.0; out * n_in];
        let (left, right) = (Left::rows(&b.data, r), Right::Rows { data: &a.data, stride: n_in });
        gemm::multiply(&self.pool, &mut delta, n_in, left, right, (out, n_in, r), false);
        let w = &mut w.data[first_row * n_in..][..out * n_in];
        w.iter_mut().zip(delta).for_each(|(w, delta)| *w += scale * delta);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(device: &Device, rows: usize, width: usize, dropout: &Dropout<'_>) -> Vec<f32> {
        let x = device.upload(&vec![1.0; rows * width]);
        let mut y = device.zeros(rows * width);
        device.dropout_forward(&mut y, &x, dropout, rows, width);
        device.download(&y)
    }

    #[test]
    fn a_share_of_the_numbers_is_dropped_and_the_mean_stays() {
        let dropout = Dropout { probability: 0.3, key: 5, first_row: 0, rows: None };
        let y = dropped(&Device::cpu(2), 1000, 101, &dropout);
        let n = y.len() as f64;
        let zeros = y.iter().filter(|&&v| v == 0.0).count() as f64;
        assert!((zeros / n - 0.3).abs() < 4.0 * (0.21 / n).sqrt(), "{zeros} of {n}");
        assert!(y.iter().all(|&v| v == 0.0 || v == 1.0 / 0.7));
        // Columns and rows are independent: neighbours are both dropped in 9 % of the cases.
        for distance in [1, 2, 101] {
            let both = y.iter().zip(&y[distance..]).filter(|(a, b)| **a == 0.0 && **b == 0.0).count() as f64;
            assert!((both / n - 0.09).abs() < 5.0 * (0.09 * 0.91 / n).sqrt(), "{distance}: {both}");
        }
        let other = dropped(&Device::cpu(1), 1000, 101, &Dropout { key: 6, ..dropout });
        assert_ne!(y, other);
    }

    #[test]
    fn a_row_is_dropped_alike_wherever_it_stands() {
        let all = Dropout { probability: 0.5, key: 9, first_row: 40, rows: None };
        let whole = dropped(&Device::cpu(3), 60, 17, &all);
        let part = dropped(&Device::cpu(1), 20, 17, &Dropout { first_row: 70, ..all });
        assert_eq!(part, whole[30 * 17..50 * 17]);
        let picked = dropped(&Device::cpu(1), 2, 17, &Dropout { rows: Some(&[3, 59]), ..all });
        assert_eq!(picked, [&whole[3 * 17..4 * 17], &whole[59 * 17..]].concat());
    }

    #[test]
    fn columns_around_are_not_touched_and_the_products_are_those_of_plain_loops() {
        let (n, r, n_in, columns) = (7, 3, 5, Columns { stride: 11, first: 2, len: 6 });
        let numbers = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7 + seed * 13) % 17) as f32 / 8.0 - 1.0).collect()
        };
        let device = Device::cpu(2);
        let (x, a, b) = (numbers(n * n_in, 1), numbers(r * n_in, 2), numbers(6 * r, 3));
        let (dy, y0) = (numbers(n * 11, 4), numbers(n * 11, 5));
        let up = |v: &[f32]| device.upload(v);
        let (mut t, mut y) = (device.zeros(n * r), up(&y0));
        device.low_rank_down(&mut t, &up(&x), &up(&a), 0.5, (n, r, n_in));
        device.low_rank_up(&mut y, columns, &t, &up(&b), n, r);
        let (t, y) = (device.download(&t), device.download(&y));
        for i in 0..n {
            for j in 0..11 {
                let inside = (2..8).contains(&j);
                let product = |j: usize| (0..r).map(|k| t[i * r + k] * b[j * r + k]).sum::<f32>();
                let added = if inside { product(j - 2) } else { 0.0 };
                assert!((y[i * 11 + j] - y0[i * 11 + j] - added).abs() < 1e-5);
            }
            for k in 0..r {
                let sum: f32 = (0..n_in).map(|c| x[i * n_in + c] * a[k * n_in + c]).sum();
                assert!((t[i * r + k] - 0.5 * sum).abs() < 1e-5);
            }
        }
        let (mut dt, mut db, mut dx) = (device.zeros(n * r), device.zeros(6 * r), up(&x));
        device.low_rank_up_backward(&mut dt, &mut db, &up(&dy), columns, &up(&t), &up(&b), 0.5, (n, r));
        device.low_rank_down_backward(&mut dx, &dt, &up(&a), (n, r, n_in));
        let (dt, db, dx) = (device.download(&dt), device.download(&db), device.download(&dx));
        for k in 0..r {
            for j in 0..6 {
                let sum: f32 = (0..n).map(|i| dy[i * 11 + 2 + j] * t[i * r + k]).sum();
                assert!((db[j * r + k] - sum).abs() < 1e-5);
            }
            for i in 0..n {
                let sum: f32 = (0..6).map(|j| dy[i * 11 + 2 + j] * b[j * r + k]).sum();
                assert!((dt[i * r + k] - 0.5 * sum).abs() < 1e-5);
            }
        }
        for i in 0..n {
            for c in 0..n_in {
                let sum: f32 = (0..r).map(|k| dt[i * r + k] * a[k * n_in + c]).sum();
                assert!((dx[i * n_in + c] - x[i * n_in + c] - sum).abs() < 1e-5);
            }
        }
        let mut w = up(&numbers(8 * n_in, 6));
        let before = device.download(&w);
        device.low_rank_merge(&mut w, 1, &up(&b), &up(&a), 0.5, (6, r, n_in));
        for (i, w) in device.download(&w).iter().enumerate() {
            let (row, c) = (i / n_in, i % n_in);
            let product = |row: usize| (0..r).map(|k| b[row * r + k] * a[k * n_in + c]).sum::<f32>();
            let added = if (1..7).contains(&row) { 0.5 * product(row - 1) } else { 0.0 };
            assert!((w - before[i] - added).abs() < 1e-5);
        }
    }
}
