#!/usr/bin/env python3
"""Golden pairs of near-duplicates and MinHash estimates, by datasketch.

Writes  crates/corpus/tests/golden/near_duplicates.json
Run     VENV/bin/python oracles/near_duplicates.py [OUT_FILE]
        VENV needs only datasketch (`pip install datasketch`); it takes seconds.

The texts are made up from a fixed seed: originals of made-up words, and copies with words exchanged, added or left out, so
that all similarities between 0 and 1 occur, many of them around 0.8. Written down are

  texts      each text once
  pairs      every pair with an exact Jaccard similarity of at least 0.5 over runs of three words, from Python's sets,
             with the estimate of datasketch.MinHash (128 permutations)
  lsh        the pairs that datasketch.MinHashLSH finds at 0.8 (not checked by the exact similarity)
  characters exact similarities of some of the pairs over runs of five characters

The hash functions differ from ours, so estimates are compared by their error, and found pairs with the exact ones.
"""
import json
import pathlib
import random
import re
import sys

from datasketch import MinHash, MinHashLSH

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/corpus/tests/golden/near_duplicates.json"
THRESHOLD, PERMUTATIONS = 0.8, 128
ORIGINALS, COPIES = 60, 5


def made_up_words(chance, n):
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    return ["".join(chance.choice(syllables) for _ in range(chance.randint(1, 3))) for _ in range(n)]


def edited(chance, words, vocabulary, edits):
    words = list(words)
    for _ in range(edits):
        place, kind = chance.randrange(len(words)), chance.randrange(3)
        if kind == 0:
            words[place] = chance.choice(vocabulary)
        elif kind == 1:
            words.insert(place, chance.choice(vocabulary))
        elif len(words) > 4:
            del words[place]
    return words


def sentence(chance, words):
    """Words as people write them, so that case and punctuation have to be overlooked."""
    text = " ".join(words)
    if chance.random() < 0.5:
        text = text.capitalize().replace(" ka", ", ka") + "."
    return text


def word_runs(text, n=3):
    words = re.findall(r"[^\W_]+", text.lower())
    return {" ".join(words[i:i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def character_runs(text, n=5):
    text = " ".join(text.lower().split())
    return {text[i:i + n] for i in range(max(1, len(text) - n + 1))} if text else set()


def jaccard(a, b):
    return len(a & b) / len(a | b)


def signature(runs):
    made = MinHash(num_perm=PERMUTATIONS, seed=1)
    made.update_batch([run.encode() for run in sorted(runs)])
    return made


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    chance = random.Random(20240807)
    vocabulary = made_up_words(chance, 900)
    texts = []
    for _ in range(ORIGINALS):
        original = [chance.choice(vocabulary) for _ in range(chance.randint(12, 48))]
        texts.append(sentence(chance, original))
        for _ in range(COPIES):
            texts.append(sentence(chance, edited(chance, original, vocabulary, chance.randint(0, 4))))
    chance.shuffle(texts)
    runs = [word_runs(text) for text in texts]
    signatures = [signature(r) for r in runs]
    pairs = []
    for j in range(len(texts)):
        for i in range(j):
            exact = jaccard(runs[i], runs[j])
            if exact >= 0.5:
                pairs.append([i, j, round(exact, 12), round(signatures[i].jaccard(signatures[j]), 12)])
    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    lsh = []
    for j, made in enumerate(signatures):
        lsh += [[int(i), j] for i in sorted(index.query(made), key=int)]
        index.insert(str(j), made)
    characters = [[i, j, round(jaccard(character_runs(texts[i]), character_runs(texts[j])), 12)] for i, j, _, _ in pairs[::10]]
    out.parent.mkdir(parents=True, exist_ok=True)
    golden = {"threshold": THRESHOLD, "permutations": PERMUTATIONS, "texts": texts, "pairs": pairs, "lsh": lsh,
              "characters": characters}
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in golden.items()]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    truth = {(i, j) for i, j, exact, _ in pairs if exact >= THRESHOLD}
    found = {tuple(pair) for pair in lsh}
    error = sum(abs(exact - estimate) for _, _, exact, estimate in pairs) / len(pairs)
    print(f"{len(texts)} texts, {len(pairs)} pairs, {len(truth)} at {THRESHOLD}; datasketch's LSH: recall "
          f"{len(truth & found) / len(truth):.3f}, precision {len(truth & found) / len(found):.3f}, error {error:.4f}")


if __name__ == "__main__":
    main()
