//! Every fast kernel against its plain twin, at several thread counts and shapes.

mod common;

use common::{bits, close, numbers};
use proptest::prelude::*;
use stillroom_kernels::{
    AdamWStep, AttentionShape, Device, RopeScaling, RopeTable, Segment, Weight, reference,
};

/// Runs `f` on one, two and three threads; the bits must agree. Returns them.
fn on_threads(f: impl Fn(&Device) -> Vec<f32>) -> Vec<f32> {
    let one = f(&Device::cpu(1));
    for n_threads in [2, 3] {
        assert_eq!(bits(&f(&Device::cpu(n_threads))), bits(&one), "{n_threads} threads differ from one");
    }
    one
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn products_equal_their_plain_chains_bit_for_bit(n in 1usize..70, i in 1usize..600, o in 1usize..90, seed: u64) {
        let (x, w, b) = (numbers(seed, n * i), numbers(seed ^ 1, o * i), numbers(seed ^ 2, o));
        let dy = numbers(seed ^ 3, n * o);
        let mut y = vec![0.0; n * o];
        reference::linear_forward(&mut y, &x, &w, Some(&b), n, i, o);
        let fast = on_threads(|dev| {
            let mut y = dev.zeros(n * o);
            let packed = dev.pack(&dev.upload(&w), o, i);
            dev.linear_forward(&mut y, &dev.upload(&x), &packed, Some(&dev.upload(&b)), n);
            dev.download(&y)
        });
        prop_assert_eq!(bits(&fast), bits(&y));
        let fast = on_threads(|dev| {
            let mut y = dev.zeros(n * o);
            let w = dev.upload(&w);
            let plain = Weight::Plain { w: &w, n_out: o, n_in: i };
            dev.linear_forward(&mut y, &dev.upload(&x), plain, Some(&dev.upload(&b)), n);
            dev.download(&y)
        });
        prop_assert_eq!(bits(&fast), bits(&y));

        let mut dx = vec![0.0; n * i];
        reference::linear_backward_input(&mut dx, &dy, &w, n, i, o);
        let fast = on_threads(|dev| {
            let mut dx = dev.zeros(n * i);
            dev.linear_backward_input(&mut dx, &dev.upload(&dy), &dev.upload(&w), n, i, o);
            dev.download(&dx)
        });
        prop_assert_eq!(bits(&fast), bits(&dx));

        let mut dw = numbers(seed ^ 4, o * i);
        let start = dw.clone();
        reference::linear_backward_weight(&mut dw, &dy, &x, n, i, o);
        let fast = on_threads(|dev| {
            let mut dw = dev.upload(&start);
            dev.linear_backward_weight(&mut dw, &dev.upload(&dy), &dev.upload(&x), n, i, o);
            dev.download(&dw)
        });
        prop_assert_eq!(bits(&fast), bits(&dw));
    }

    #[test]
    fn a_row_of_a_product_does_not_depend_on_the_rows_around_it(n in 1usize..34, i in 1usize..300, o in 1usize..200, seed: u64) {
        let (x, w) = (numbers(seed, n * i), numbers(seed ^ 1, o * i));
        let dev = Device::cpu(2);
        let packed = dev.pack(&dev.upload(&w), o, i);
        let product = |x: &[f32]| {
            let mut y = dev.zeros(x.len() / i * o);
            dev.linear_forward(&mut y, &dev.upload(x), &packed, None, x.len() / i);
            dev.download(&y)
        };
        let together = product(&x);
        for (row, x) in x.chunks_exact(i).enumerate() {
            prop_assert_eq!(bits(&product(x)), bits(&together[row * o..(row + 1) * o]));
        }
    }

    #[test]
    fn norms_and_gates_match(n in 1usize..300, d in 1usize..70, seed: u64) {
        let (x, w, dy) = (numbers(seed, n * d), numbers(seed ^ 1, d), numbers(seed ^ 2, n * d));
        let mut y = vec![0.0; n * d];
        reference::rmsnorm_forward(&mut y, &x, &w, 1e-5, d);
        close(&on_threads(|dev| {
            let mut y = dev.zeros(n * d);
            dev.rmsnorm_forward(&mut y, &dev.upload(&x), &dev.upload(&w), 1e-5, n, d);
            dev.download(&y)
        }), &y, 1e-6);

        let (mut dx, mut dw) = (numbers(seed ^ 3, n * d), numbers(seed ^ 4, d));
        let (dx0, dw0) = (dx.clone(), dw.clone());
        reference::rmsnorm_backward(&mut dx, &mut dw, &dy, &x, &w, 1e-5, d);
        let fast = on_threads(|dev| {
            let (mut dx, mut dw) = (dev.upload(&dx0), dev.upload(&dw0));
            dev.rmsnorm_backward(&mut dx, &mut dw, &dev.upload(&dy), &dev.upload(&x), &dev.upload(&w), 1e-5, n, d);
            [dev.download(&dx), dev.download(&dw)].concat()
        });
        close(&fast, &[dx, dw].concat(), 3e-6);

        let (gu, dy) = (numbers(seed ^ 5, 2 * n * d), numbers(seed ^ 6, n * d));
        let (mut y, mut dgu) = (vec![0.0; n * d], vec![0.0; 2 * n * d]);
        reference::swiglu_forward(&mut y, &gu, d);
        reference::swiglu_backward(&mut dgu, &dy, &gu, d);
        let fast = on_threads(|dev| {
            let (mut y, mut dgu, gu) = (dev.zeros(n * d), dev.zeros(2 * n * d), dev.upload(&gu));
            dev.swiglu_forward(&mut y, &gu, n, d);
            dev.swiglu_backward(&mut dgu, &dev.upload(&dy), &gu, n, d);
            [dev.download(&y), dev.download(&dgu)].concat()
        });
        close(&fast, &[y, dgu].concat(), 1e-6);

        let mut db = numbers(seed ^ 7, d);
        let start = db.clone();
        reference::bias_backward(&mut db, &dy, n, d);
        close(&on_threads(|dev| {
            let mut db = dev.upload(&start);
            dev.bias_backward(&mut db, &dev.upload(&dy), n, d);
            dev.download(&db)
        }), &db, 3e-6);
    }

    #[test]
    fn embeddings_and_the_optimiser_match(n in 1usize..50, d in 1usize..150, seed: u64) {
        let (table, dy) = (numbers(seed, 7 * d), numbers(seed ^ 1, n * d));
        let ids: Vec<u32> = (0..n).map(|k| (k * k % 7) as u32).collect();
        let mut expected = table.clone();
        reference::embedding_backward(&mut expected, &dy, &ids, d);
        let fast = on_threads(|dev| {
            let mut dtable = dev.upload(&table);
            dev.embedding_backward(&mut dtable, &dev.upload(&dy), &ids, d);
            dev.download(&dtable)
        });
        prop_assert_eq!(bits(&fast), bits(&expected));

        let step = AdamWStep { step: 3, learning_rate: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, gradient_scale: 0.5 };
        let (p, g, m) = (numbers(seed ^ 2, n * d), numbers(seed ^ 3, n * d), numbers(seed ^ 4, n * d));
        let v: Vec<f32> = m.iter().map(|m| m * m).collect();
        let mut plain = (p.clone(), m.clone(), v.clone());
        reference::adamw(&mut plain.0, &g, &mut plain.1, &mut plain.2, &step);
        let fast = on_threads(|dev| {
            let (mut p, mut m, mut v) = (dev.upload(&p), dev.upload(&m), dev.upload(&v));
            let mut g = dev.upload(&g);
            dev.adamw(&mut p, &mut g, &mut m, &mut v, &step);
            assert!(dev.download(&g).iter().all(|&g| g == 0.0), "the gradient is used up");
            [dev.download(&p), dev.download(&m), dev.download(&v)].concat()
        });
        prop_assert_eq!(bits(&fast), bits(&[plain.0, plain.1, plain.2].concat()));
        let dev = Device::cpu(2);
        let exact: f64 = g.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        prop_assert!((dev.sum_of_squares(&dev.upload(&g)) / exact - 1.0).abs() < 1e-12);
    }

    #[test]
    fn attention_matches_forward_backward_and_decoding(
        lens in prop::collection::vec(1usize..80, 1..4), kv in 1usize..3, group in 1usize..4, half in 1usize..17, seed: u64,
    ) {
        let shape = AttentionShape { n_q_heads: kv * group, n_kv_heads: kv, head_dim: 2 * half };
        let mut start = 0;
        let segments: Vec<Segment> = lens.iter().map(|&len| { start += len; Segment { start: start - len, len } }).collect();
        let (n, width, heads) = (start, shape.qkv_width(), shape.n_q_heads * shape.head_dim);
        let (qkv, dout) = (numbers(seed, n * width), numbers(seed ^ 1, n * heads));
        let (mut out, mut lse) = (vec![0.0; n * heads], vec![0.0; n * shape.n_q_heads]);
        reference::attention_forward(&mut out, &mut lse, &qkv, shape, &segments);
        let mut dqkv = vec![9.0; n * width];
        reference::attention_backward(&mut dqkv, &dout, &out, &lse, &qkv, shape, &segments);
        let fast = on_threads(|dev| {
            let (mut out, mut lse, qkv) = (dev.zeros(n * heads), dev.zeros(n * shape.n_q_heads), dev.upload(&qkv));
            dev.attention_forward(&mut out, &mut lse, &qkv, shape, &segments);
            let mut dqkv = dev.zeros(n * width);
            dev.attention_backward(&mut dqkv, &dev.upload(&dout), &out, &lse, &qkv, shape, &segments);
            [dev.download(&out), dev.download(&lse), dev.download(&dqkv)].concat()
        });
        close(&fast, &[out, lse, dqkv].concat(), 5e-6);

        // The same sequences token by token, all at once, against the packed pass: equal bits.
        let dev = Device::cpu(2);
        let mut cache = dev.kv_cache(shape, segments.len(), 80);
        for position in 0..80usize {
            let live: Vec<usize> = (0..segments.len()).filter(|&s| position < segments[s].len).collect();
            if live.is_empty() { break; }
            let rows: Vec<f32> = live.iter().flat_map(|&s| qkv[(segments[s].start + position) * width..][..width].to_vec()).collect();
            let slots: Vec<u32> = live.iter().map(|&s| s as u32).collect();
            let mut o = dev.zeros(live.len() * heads);
            dev.attention_decode(&mut o, &dev.upload(&rows), &mut cache, &slots, &vec![position as u32; live.len()]);
            for (row, &s) in dev.download(&o).chunks_exact(heads).zip(&live) {
                let at = (segments[s].start + position) * heads;
                prop_assert_eq!(bits(row), bits(&fast[at..at + heads]));
            }
        }
    }

    #[test]
    fn rotations_and_head_norms_match(n in 1usize..40, kv in 1usize..3, group in 1usize..3, half in 1usize..17, seed: u64) {
        let shape = AttentionShape { n_q_heads: kv * group, n_kv_heads: kv, head_dim: 2 * half };
        let (width, rotated) = (shape.qkv_width(), shape.n_q_heads + shape.n_kv_heads);
        let table = RopeTable::new(shape.head_dim, 10_000.0, RopeScaling::None, 64);
        let positions: Vec<u32> = (0..n as u32).map(|p| p * 7 % 64).collect();
        let qkv = numbers(seed, n * width);
        let mut plain = qkv.clone();
        reference::rope(&mut plain, width, rotated, &table, &positions, 1.0);
        let fast = on_threads(|dev| {
            let mut x = dev.upload(&qkv);
            dev.rope_forward(&mut x, shape, &table, &positions);
            dev.download(&x)
        });
        prop_assert_eq!(bits(&fast), bits(&plain));
        let dev = Device::cpu(2);
        let mut back = dev.upload(&fast);
        dev.rope_backward(&mut back, shape, &table, &positions);
        close(&dev.download(&back), &qkv, 1e-6);

        let d = shape.head_dim;
        let (qn, kn) = (numbers(seed ^ 1, d), numbers(seed ^ 2, d));
        let (nq, nk) = (shape.n_q_heads * d, shape.n_kv_heads * d);
        let mut normed = qkv.clone();
        for (y, x) in normed.chunks_exact_mut(width).zip(qkv.chunks_exact(width)) {
            reference::rmsnorm_forward(&mut y[..nq], &x[..nq], &qn, 1e-6, d);
            reference::rmsnorm_forward(&mut y[nq..nq + nk], &x[nq..nq + nk], &kn, 1e-6, d);
        }
        close(&on_threads(|dev| {
            let mut y = dev.zeros(n * width);
            dev.qk_norm_forward(&mut y, &dev.upload(&qkv), &dev.upload(&qn), &dev.upload(&kn), 1e-6, shape);
            dev.download(&y)
        }), &normed, 1e-6);
        let upstream = numbers(seed ^ 3, n * width);
        let (mut dx, mut dqn, mut dkn) = (upstream.clone(), vec![0.0; d], vec![0.0; d]);
        for ((dx, dy), x) in dx.chunks_exact_mut(width).zip(upstream.chunks_exact(width)).zip(qkv.chunks_exact(width)) {
            dx[..nq + nk].fill(0.0);
            reference::rmsnorm_backward(&mut dx[..nq], &mut dqn, &dy[..nq], &x[..nq], &qn, 1e-6, d);
            reference::rmsnorm_backward(&mut dx[nq..nq + nk], &mut dkn, &dy[nq..nq + nk], &x[nq..nq + nk], &kn, 1e-6, d);
        }
        let fast = on_threads(|dev| {
            let (mut dx, mut a, mut b) = (dev.upload(&upstream), dev.zeros(d), dev.zeros(d));
            dev.qk_norm_backward(&mut dx, &mut a, &mut b, &dev.upload(&qkv), &dev.upload(&qn), &dev.upload(&kn), 1e-6, shape);
            [dev.download(&dx), dev.download(&a), dev.download(&b)].concat()
        });
        close(&fast, &[dx, dqn, dkn].concat(), 3e-6);
    }
}
