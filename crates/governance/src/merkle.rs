//! The Merkle tree of RFC 9162 (section 2.1; the same tree as RFC 6962's) over SHA-256.
//!
//! With D[n] = n leaves, k the largest power of two below n and ‖ for joined bytes:
//!
//! - MTH({}) = SHA-256(""), MTH({d}) = SHA-256(0x00 ‖ d), MTH(D[n]) = SHA-256(0x01 ‖ MTH(D[0:k]) ‖ MTH(D[k:n])).
//! - An inclusion proof of leaf m is the list of roots beside the way from it to the top, lowest first.
//! - A consistency proof from m to n shows that the tree of n leaves begins with that of m.
//!
//! The two prefixes keep a node from passing for a leaf. Functions here take leaf hashes, not leaves.

use stillroom_core::{Digest, Digester};

/// Hash of a leaf: SHA-256(0x00 ‖ `data`).
pub fn leaf_hash(data: &[u8]) -> Digest {
    prefixed(0x00, &[data])
}

fn node_hash(left: &Digest, right: &Digest) -> Digest {
    prefixed(0x01, &[left.as_bytes(), right.as_bytes()])
}

fn prefixed(prefix: u8, parts: &[&[u8]]) -> Digest {
    let mut digester = Digester::new();
    digester.update(&[prefix]);
    parts.iter().for_each(|part| digester.update(part));
    digester.finish()
}

/// A tree that grows, of which only the roots of its whole subtrees are kept: O(log n).
#[derive(Clone, Debug, Default)]
pub struct Frontier {
    size: u64,
    /// Roots of the subtrees that the ones in the binary digits of `size` stand for, largest first.
    roots: Vec<Digest>,
}

impl Frontier {
    /// Leaves so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds the hash of the next leaf.
    pub fn push(&mut self, leaf: Digest) {
        let mut root = leaf;
        // Each one at the end of `size` is a subtree as large as what has come together so far.
        for _ in 0..self.size.trailing_ones() {
            let left = self.roots.pop().unwrap_or_else(|| unreachable!("a root for each one in the size"));
            root = node_hash(&left, &root);
        }
        self.roots.push(root);
        self.size += 1;
    }

    /// MTH of the leaves so far.
    pub fn root(&self) -> Digest {
        let mut roots = self.roots.iter().rev();
        let Some(&last) = roots.next() else { return Digest::of(b"") };
        roots.fold(last, |right, left| node_hash(left, &right))
    }
}

impl Extend<Digest> for Frontier {
    fn extend<T: IntoIterator<Item = Digest>>(&mut self, leaves: T) {
        leaves.into_iter().for_each(|leaf| self.push(leaf));
    }
}

/// MTH of these leaf hashes.
pub fn root(leaves: &[Digest]) -> Digest {
    let mut frontier = Frontier::default();
    frontier.extend(leaves.iter().copied());
    frontier.root()
}

/// Leaves of the left subtree of a tree of `n` > 1: the largest power of two below `n`.
fn split(n: usize) -> usize {
    n.next_power_of_two() / 2
}

/// The proof that `leaves[index]` is in the tree of `leaves`.
///
/// # Panics
/// If there is no such leaf.
pub fn inclusion_proof(leaves: &[Digest], index: usize) -> Vec<Digest> {
    assert!(index < leaves.len(), "leaf {index} of {}", leaves.len());
    if leaves.len() == 1 {
        return Vec::new();
    }
    let (left, right) = leaves.split_at(split(leaves.len()));
    let (mut proof, beside) = match index.checked_sub(left.len()) {
        None => (inclusion_proof(left, index), root(right)),
        Some(index) => (inclusion_proof(right, index), root(left)),
    };
    proof.push(beside);
    proof
}

/// The proof that the tree of `leaves` begins with the first `old` of them.
///
/// # Panics
/// Unless 0 < `old` ≤ the number of leaves.
pub fn consistency_proof(leaves: &[Digest], old: usize) -> Vec<Digest> {
    assert!((1..=leaves.len()).contains(&old), "{old} of {} leaves", leaves.len());
    subproof(leaves, old, true)
}

/// RFC 9162's SUBPROOF; `known`: whoever checks has the old root, and it is this subtree's.
fn subproof(leaves: &[Digest], old: usize, known: bool) -> Vec<Digest> {
    if old == leaves.len() {
        return if known { Vec::new() } else { vec![root(leaves)] };
    }
    let (left, right) = leaves.split_at(split(leaves.len()));
    let (mut proof, beside) = match old.checked_sub(left.len()) {
        None | Some(0) => (subproof(left, old, known), root(right)),
        Some(old) => (subproof(right, old, false), root(left)),
    };
    proof.push(beside);
    proof
}

/// Whether `proof` shows that `leaf` is number `index` (from 0) of the `size` leaves under `root` (RFC 9162, 2.1.3.2).
pub fn is_included(leaf: &Digest, index: u64, size: u64, proof: &[Digest], root: &Digest) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for beside in proof {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            hash = node_hash(beside, &hash);
            // Levels at which this subtree stands alone have no neighbour.
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node_hash(&hash, beside);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && hash == *root
}

/// Whether `proof` shows that the tree of `new` leaves under `new_root` begins with that of `old` leaves under `old_root`
/// (RFC 9162, 2.1.4.2). Of an empty old tree and of equal sizes nothing is to be proved but the roots.
pub fn is_consistent(old: u64, old_root: &Digest, new: u64, new_root: &Digest, proof: &[Digest]) -> bool {
    if old == 0 || old == new {
        return proof.is_empty()
            && if old == 0 { *old_root == Digest::of(b"") } else { old_root == new_root };
    }
    if old > new {
        return false;
    }
    let mut path = proof.iter();
    let first = if old.is_power_of_two() { Some(old_root) } else { path.next() };
    let Some(&first) = first else { return false };
    let (mut at, mut last) = (old - 1, new - 1);
    while at & 1 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    let (mut of_old, mut of_new) = (first, first);
    for beside in path {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            (of_old, of_new) = (node_hash(beside, &of_old), node_hash(beside, &of_new));
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            of_new = node_hash(&of_new, beside);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && of_old == *old_root && of_new == *new_root
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(n: usize) -> Vec<Digest> {
        (0..n).map(|i| leaf_hash(&(i as u64).to_le_bytes())).collect()
    }

    /// The definition, word for word.
    fn mth(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => Digest::of(b""),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(split(leaves.len()));
                node_hash(&mth(left), &mth(right))
            }
        }
    }

    #[test]
    fn roots_are_those_of_the_certificate_transparency_vectors() {
        let inputs: [&[u8]; 8] = [
            b"",
            &[0x00],
            &[0x10],
            &[0x20, 0x21],
            &[0x30, 0x31],
            &[0x40, 0x41, 0x42, 0x43],
            &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
            &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
        ];
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let hashes: Vec<Digest> = inputs.iter().map(|input| leaf_hash(input)).collect();
        for (n, expected) in roots.into_iter().enumerate() {
            assert_eq!(root(&hashes[..n]).to_string(), expected, "{n} leaves");
        }
    }

    #[test]
    fn the_frontier_has_the_root_of_the_definition() {
        let all = leaves(130);
        let mut frontier = Frontier::default();
        for n in 0..=all.len() {
            assert_eq!((frontier.size(), frontier.root()), (n as u64, mth(&all[..n])));
            all.get(n).into_iter().for_each(|leaf| frontier.push(*leaf));
        }
    }

    #[test]
    fn every_leaf_of_every_tree_is_proved_and_no_other() {
        let all = leaves(66);
        for n in 1..=all.len() {
            let top = root(&all[..n]);
            for i in 0..n {
                let proof = inclusion_proof(&all[..n], i);
                let holds = |leaf: &Digest, i: usize, n: usize, proof: &[Digest], top: &Digest| {
                    is_included(leaf, i as u64, n as u64, proof, top)
                };
                assert!(holds(&all[i], i, n, &proof, &top), "{i} of {n}");
                assert!(!holds(&all[(i + 1) % all.len()], i, n, &proof, &top));
                assert!(!holds(&all[i], i, n, &proof, &root(&all[..n - 1])));
                assert!((0..n).all(|j| j == i || !holds(&all[i], j, n, &proof, &top)), "{i} of {n}");
                for cut in 0..proof.len() {
                    let mut other = proof.clone();
                    other.remove(cut);
                    assert!(!holds(&all[i], i, n, &other, &top));
                    other.insert(cut, all[0]);
                    assert_eq!(holds(&all[i], i, n, &other, &top), proof[cut] == all[0]);
                }
                assert!(!holds(&all[i], i, n, &[&proof[..], &[all[0]]].concat(), &top));
            }
        }
    }

    #[test]
    fn every_tree_is_proved_to_begin_with_each_before_it_and_with_no_other() {
        let all = leaves(66);
        for n in 1..=all.len() {
            let top = root(&all[..n]);
            assert!(is_consistent(0, &root(&[]), n as u64, &top, &[]));
            for m in 1..=n {
                let (before, proof) = (root(&all[..m]), consistency_proof(&all[..n], m));
                let holds = |m: usize, before: &Digest, n: usize, top: &Digest, proof: &[Digest]| {
                    is_consistent(m as u64, before, n as u64, top, proof)
                };
                assert!(holds(m, &before, n, &top, &proof), "{m} of {n}");
                let mut forged = all[..m].to_vec();
                forged[m / 2] = leaf_hash(b"another");
                assert!(!holds(m, &root(&forged), n, &top, &proof));
                assert!(!holds(m, &before, n, &leaf_hash(b"another"), &proof));
                assert!(!holds(m, &before, n, &top, &[&proof[..], &[all[0]]].concat()));
                if !proof.is_empty() {
                    assert!(!holds(m, &before, n, &top, &proof[1..]), "{m} of {n}");
                    assert!(!holds(n, &top, m, &before, &proof));
                }
            }
        }
    }
}
