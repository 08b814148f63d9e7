//! The tree, held against two that others wrote: the probes of transparency-dev/merkle (`oracles/merkle.py`), and the
//! proofs of the crate `ct-merkle`, byte for byte.

use ct_merkle::mem_backed_tree::MemoryBackedTree;
use proptest::prelude::*;
use serde::Deserialize;
use sha2::Sha256;
use stillroom_core::Digest;
use stillroom_governance::merkle::{
    Frontier, consistency_proof, inclusion_proof, is_consistent, is_included, leaf_hash,
};

const PROBES: &str = include_str!("golden/merkle.jsonl");
/// Trees of every size up to this one.
const SIZE_MAX: usize = 130;

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Probe {
    Inclusion {
        name: String,
        holds: bool,
        index: u64,
        size: u64,
        leaf: Digest,
        root: Digest,
        proof: Vec<Digest>,
    },
    Consistency {
        name: String,
        holds: bool,
        old: u64,
        size: u64,
        old_root: Digest,
        root: Digest,
        proof: Vec<Digest>,
    },
}

#[test]
fn proofs_hold_where_those_of_transparency_dev_do_and_nowhere_else() {
    let mut counts = [0; 2];
    for line in PROBES.lines() {
        let (name, expected, found) = match serde_json::from_str(line).expect("a probe") {
            Probe::Inclusion { name, holds, index, size, leaf, root, proof } => {
                (name, holds, is_included(&leaf, index, size, &proof, &root))
            }
            Probe::Consistency { name, holds, old, size, old_root, root, proof } => {
                (name, holds, is_consistent(old, &old_root, size, &root, &proof))
            }
        };
        assert_eq!(found, expected, "{name}: {line}");
        counts[usize::from(expected)] += 1;
    }
    assert_eq!(counts, [132, 11], "probes that do not hold, and that do");
}

fn data(i: usize) -> Vec<u8> {
    // Leaves of every length up to a block and more, the empty one too.
    (0..i % 71).map(|byte| (byte * 7 + i) as u8).collect()
}

/// The same `n` leaves, as hashes and in the other implementation's tree.
fn trees(n: usize) -> (Vec<Digest>, MemoryBackedTree<Sha256, Vec<u8>>) {
    let mut others = MemoryBackedTree::new();
    (0..n).for_each(|i| others.push(data(i)));
    ((0..n).map(|i| leaf_hash(&data(i))).collect(), others)
}

fn root_of(leaves: &[Digest]) -> Digest {
    let mut frontier = Frontier::default();
    frontier.extend(leaves.iter().copied());
    frontier.root()
}

fn joined(proof: &[Digest]) -> Vec<u8> {
    proof.iter().flat_map(|beside| *beside.as_bytes()).collect()
}

#[test]
fn roots_and_proofs_of_every_small_tree_are_those_of_ct_merkle() {
    let mut others = MemoryBackedTree::<Sha256, Vec<u8>>::new();
    let (leaves, _) = trees(SIZE_MAX);
    for n in 0..=SIZE_MAX {
        let leaves = &leaves[..n];
        assert_eq!(root_of(leaves).as_bytes()[..], others.root().as_bytes()[..], "{n} leaves");
        for index in 0..n {
            let proof = inclusion_proof(leaves, index);
            assert_eq!(joined(&proof), others.prove_inclusion(index).as_bytes(), "{index} of {n}");
        }
        for old in 1..=n {
            let proof = consistency_proof(leaves, old);
            assert_eq!(joined(&proof), others.prove_consistency(n - old).as_bytes(), "{old} of {n}");
        }
        others.push(data(n));
    }
}

fn size_and_two_below() -> impl Strategy<Value = (usize, usize, usize)> {
    (1..5000usize).prop_flat_map(|n| (Just(n), 0..n, 1..=n))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn proofs_of_larger_trees_are_those_of_ct_merkle_and_hold(
        (n, index, old) in size_and_two_below(),
        flipped in any::<prop::sample::Index>(),
    ) {
        let (leaves, others) = trees(n);
        let root = root_of(&leaves);
        prop_assert_eq!(root.as_bytes().to_vec(), others.root().as_bytes().to_vec());

        let (size, at) = (n as u64, index as u64);
        let proof = inclusion_proof(&leaves, index);
        prop_assert_eq!(joined(&proof), others.prove_inclusion(index).as_bytes().to_vec());
        prop_assert!(is_included(&leaves[index], at, size, &proof, &root));
        prop_assert!(!is_included(&leaf_hash(b"another"), at, size, &proof, &root));
        if let Some(forged) = with_one_bit_flipped(&proof, &flipped) {
            prop_assert!(!is_included(&leaves[index], at, size, &forged, &root));
        }

        let before = root_of(&leaves[..old]);
        let proof = consistency_proof(&leaves, old);
        prop_assert_eq!(joined(&proof), others.prove_consistency(n - old).as_bytes().to_vec());
        prop_assert!(is_consistent(old as u64, &before, size, &root, &proof));
        let another = leaf_hash(b"another");
        prop_assert!(!is_consistent(old as u64, &another, size, &root, &proof));
        prop_assert!(!is_consistent(old as u64, &before, size, &another, &proof));
        if let Some(forged) = with_one_bit_flipped(&proof, &flipped) {
            prop_assert!(!is_consistent(old as u64, &before, size, &root, &forged));
        }
    }
}

/// None of a proof that has no hash.
fn with_one_bit_flipped(proof: &[Digest], which: &prop::sample::Index) -> Option<Vec<Digest>> {
    let mut forged = proof.to_vec();
    let bit = which.index((256 * proof.len()).max(1));
    let beside = forged.get_mut(bit / 256)?;
    let mut bytes = *beside.as_bytes();
    bytes[bit % 256 / 8] ^= 1 << (bit % 8);
    *beside = Digest::from_bytes(bytes);
    Some(forged)
}
