//! Keys and values of sequences that are being decoded, and attention to them.

use crate::device::{AttentionShape, Segment};
use crate::panels::PANEL;
use crate::pool::{Pool, Shards};
use crate::rows::softmax_row;
use crate::scratch::with_scratch;
use crate::thin::{self, Numbers};

/// Keys and values of sequences that are being decoded, one slot per sequence, for one layer.
///
/// Keys lie in panels of 16 positions, \[slot, kv head, position / 16, head_dim, 16\], so that a
/// score is the same chain over head_dim as in [`crate::Device::attention_forward`]; values in rows,
/// \[slot, kv head, position, head_dim rounded up to 16\].
pub struct KvCache {
    places: Places,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Where heads are.
#[derive(Clone, Copy)]
struct Places {
    shape: AttentionShape,
    /// Positions of a slot, a multiple of 16.
    capacity: usize,
}

impl Places {
    fn value_stride(self) -> usize {
        self.shape.head_dim.next_multiple_of(PANEL)
    }

    /// Numbers of one head of one slot among keys, and among values.
    fn head_lens(self) -> (usize, usize) {
        (self.capacity * self.shape.head_dim, self.capacity * self.value_stride())
    }

    /// Stores k and v head `kv` of a row of qkv as those of `position`.
    fn put(self, keys: &mut [f32], values: &mut [f32], qkv: &[f32], kv: usize, position: usize) {
        assert!(position < self.capacity, "position {position} beyond the cache's {}", self.capacity);
        let AttentionShape { n_q_heads, n_kv_heads, head_dim: d } = self.shape;
        let key = &qkv[(n_q_heads + kv) * d..][..d];
        let panel = &mut keys[position / PANEL * PANEL * d + position % PANEL..];
        panel.iter_mut().step_by(PANEL).zip(key).for_each(|(slot, v)| *slot = *v);
        let value = &qkv[(n_q_heads + n_kv_heads + kv) * d..][..d];
        values[position * self.value_stride()..][..d].copy_from_slice(value);
    }
}

impl KvCache {
    /// Room for `n_slots` sequences of up to `capacity` positions.
    pub(crate) fn new(shape: AttentionShape, n_slots: usize, capacity: usize) -> KvCache {
        let places = Places { shape, capacity: capacity.next_multiple_of(PANEL) };
        let (keys, values) = places.head_lens();
        let heads = n_slots * shape.n_kv_heads;
        // Small pages: a slot that is hardly used takes hardly any memory.
        KvCache { places, keys: vec![0.0; heads * keys], values: vec![0.0; heads * values] }
    }

    /// Bytes of a cache whose every position is in use.
    pub fn n_bytes_of(shape: AttentionShape, n_slots: usize, capacity: usize) -> usize {
        let places = Places { shape, capacity: capacity.next_multiple_of(PANEL) };
        let (keys, values) = places.head_lens();
        size_of::<f32>() * n_slots * shape.n_kv_heads * (keys + values)
    }

    /// Stores the k and v heads of rows `segment` at positions `0..` of `slot`.
    pub(crate) fn store(&mut self, qkv: &[f32], slot: usize, segment: Segment) {
        let (keys, values) = self.places.head_lens();
        let Places { shape, .. } = self.places;
        for kv in 0..shape.n_kv_heads {
            let head = slot * shape.n_kv_heads + kv;
            let (keys, values) =
                (&mut self.keys[head * keys..][..keys], &mut self.values[head * values..][..values]);
            let rows = qkv.chunks_exact(shape.qkv_width()).skip(segment.start).take(segment.len);
            rows.enumerate().for_each(|(position, row)| self.places.put(keys, values, row, kv, position));
        }
    }

    /// One new row per sequence; see [`crate::Device::attention_decode`].
    pub(crate) fn decode(
        &mut self,
        pool: &Pool,
        out: &mut [f32],
        qkv: &[f32],
        slots: &[u32],
        positions: &[u32],
    ) {
        let places = self.places;
        let AttentionShape { n_q_heads, n_kv_heads, head_dim: d } = places.shape;
        let group = n_q_heads / n_kv_heads;
        assert!(all_differ(slots), "two rows in one slot");
        let (out, keys, values) =
            (Shards::new(out), Shards::new(&mut self.keys), Shards::new(&mut self.values));
        pool.run(slots.len() * n_kv_heads, &|task| {
            let (r, kv) = (task / n_kv_heads, task % n_kv_heads);
            let head = slots[r] as usize * n_kv_heads + kv;
            let (keys_len, values_len) = places.head_lens();
            // SAFETY: a head of a slot belongs to one task, and so does a row's group of query heads.
            let (keys, values, out) = unsafe {
                (
                    keys.piece(head * keys_len, keys_len),
                    values.piece(head * values_len, values_len),
                    out.piece((r * n_q_heads + kv * group) * d, group * d),
                )
            };
            let row = &qkv[r * places.shape.qkv_width()..][..places.shape.qkv_width()];
            places.put(keys, values, row, kv, positions[r] as usize);
            attend(out, &row[kv * group * d..][..group * d], keys, values, positions[r] as usize + 1, places);
        });
    }
}

fn all_differ(slots: &[u32]) -> bool {
    slots.is_sorted_by(|a, b| a < b) || (1..slots.len()).all(|i| !slots[..i].contains(&slots[i]))
}

/// softmax(q·kᵀ/√d)·v of a group of queries over the first `n` positions of a head.
fn attend(out: &mut [f32], queries: &[f32], keys: &[f32], values: &[f32], n: usize, places: Places) {
    let d = places.shape.head_dim;
    let (group, row) = (queries.len() / d, n.next_multiple_of(PANEL));
    with_scratch([group * row, group], |[scores, sums]| {
        let keys = Numbers { data: keys, panel_stride: PANEL * d, k_stride: PANEL, n };
        thin::multiply_serial(scores, row, (queries, d), &keys, (group, d));
        for (s, sum) in scores.chunks_exact_mut(row).zip(sums.iter_mut()) {
            *sum = softmax_row(&mut s[..n], places.shape.scale()).1;
        }
        let values = Numbers { data: values, panel_stride: PANEL, k_stride: places.value_stride(), n: d };
        thin::multiply_serial(out, d, (scores, row), &values, (group, n));
        for (o, sum) in out.chunks_exact_mut(d).zip(sums.iter()) {
            o.iter_mut().for_each(|o| *o /= sum);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::all_differ;

    #[test]
    fn slots_that_are_named_twice_are_seen_in_any_order() {
        assert!(all_differ(&[]) && all_differ(&[3]) && all_differ(&[0, 4, 9]) && all_differ(&[4, 0, 9]));
        assert!(!all_differ(&[4, 4]) && !all_differ(&[4, 0, 4]) && !all_differ(&[0, 3, 3, 5]));
    }
}
