//! First-fit packing of documents into rows.

/// Puts documents, in the order given, into rows of `max_length` tokens: each into the first row that
/// still has room for it. Returns each row's documents, in the order in which they came.
///
/// No two rows could be merged, so at most one row is half full or less, and fewer than 1.7 times
/// the fewest possible rows are used (Dósa and Sgall 2013). O(n log n), by a tree over the rows' free
/// room.
///
/// # Panics
/// Where a document is longer than a row.
pub(crate) fn first_fit(
    lengths: impl ExactSizeIterator<Item = (u32, usize)>,
    max_length: usize,
) -> Vec<Vec<u32>> {
    let mut rows: Vec<Vec<u32>> = Vec::new();
    let mut room = RoomTree::new(lengths.len());
    for (document, length) in lengths {
        assert!(length <= max_length, "document {document} of {length} tokens in a row of {max_length}");
        let row = room.first_with(length).unwrap_or_else(|| {
            rows.push(Vec::new());
            room.set(rows.len() - 1, max_length + 1);
            rows.len() - 1
        });
        rows[row].push(document);
        room.take(row, length);
    }
    rows
}

/// Free room of each row, and the most of any row below each node. Room is kept as free tokens + 1,
/// so that 0 means a row that has not been opened.
struct RoomTree {
    n_leaves: usize,
    most: Vec<usize>,
}

impl RoomTree {
    fn new(n_rows: usize) -> RoomTree {
        let n_leaves = n_rows.next_power_of_two();
        RoomTree { n_leaves, most: vec![0; 2 * n_leaves] }
    }

    /// The first open row with room for `length` tokens.
    fn first_with(&self, length: usize) -> Option<usize> {
        if self.most[1] <= length {
            return None;
        }
        let mut node = 1;
        while node < self.n_leaves {
            node = if self.most[2 * node] > length { 2 * node } else { 2 * node + 1 };
        }
        Some(node - self.n_leaves)
    }

    fn take(&mut self, row: usize, length: usize) {
        self.set(row, self.most[self.n_leaves + row] - length);
    }

    fn set(&mut self, row: usize, room: usize) {
        let mut node = self.n_leaves + row;
        self.most[node] = room;
        while node > 1 {
            node /= 2;
            self.most[node] = self.most[2 * node].max(self.most[2 * node + 1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pack(lengths: &[usize], max_length: usize) -> Vec<Vec<u32>> {
        first_fit(lengths.iter().enumerate().map(|(i, &n)| (i as u32, n)), max_length)
    }

    /// The definition, row by row.
    fn plain(lengths: &[usize], max_length: usize) -> Vec<Vec<u32>> {
        let mut rows: Vec<(usize, Vec<u32>)> = Vec::new();
        for (i, &n) in lengths.iter().enumerate() {
            match rows.iter_mut().find(|(used, _)| used + n <= max_length) {
                Some((used, row)) => {
                    *used += n;
                    row.push(i as u32);
                }
                None => rows.push((n, vec![i as u32])),
            }
        }
        rows.into_iter().map(|(_, row)| row).collect()
    }

    #[test]
    fn documents_go_where_they_first_fit() {
        assert_eq!(pack(&[6, 5, 4, 5, 1], 10), [vec![0, 2], vec![1, 3], vec![4]]);
        assert_eq!(pack(&[], 10), Vec::<Vec<u32>>::new());
        assert_eq!(pack(&[10], 10), [vec![0]]);
    }

    proptest! {
        #[test]
        fn the_tree_finds_what_a_search_finds_and_little_is_wasted(
            lengths in proptest::collection::vec(1usize..=64, 0..200), extra in 0usize..64,
        ) {
            let max_length = 64 + extra;
            let rows = pack(&lengths, max_length);
            prop_assert_eq!(&rows, &plain(&lengths, max_length));
            let mut seen: Vec<u32> = rows.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert!(seen.iter().copied().eq(0..lengths.len() as u32));
            let used = |row: &Vec<u32>| row.iter().map(|&i| lengths[i as usize]).sum::<usize>();
            prop_assert!(rows.iter().all(|row| used(row) <= max_length));
            prop_assert!(rows.iter().filter(|row| 2 * used(row) <= max_length).count() <= 1);
        }
    }
}
