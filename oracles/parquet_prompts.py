#!/usr/bin/env python3
"""Data sets as the Hugging Face hub has them, written by pyarrow, beside the same rows as JSON lines.

Writes  crates/corpus/tests/golden/hub/
Run     VENV/bin/python oracles/parquet_prompts.py
        VENV needs only pyarrow (26).

  chat/data/{train-0000[01]-of-00002,test-00000-of-00001}.parquet   messages as lists of structs, nulls in them, two row groups
  math/{train,test}-00000-of-00001.parquet                         question and answer, numbers as ids, another column
  *.jsonl, rows.jsonl.zst, rows.jsonl.gz                           the same rows; of the last, two files behind one another
"""
import gzip
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/corpus/tests/golden/hub"
TURN = pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())])
CHAT = pa.schema([("id", pa.string()), ("messages", pa.list_(TURN)), ("licence", pa.string())])
MATH = pa.schema([("id", pa.int64()), ("question", pa.large_string()), ("answer", pa.string()), ("embedding", pa.list_(pa.float32()))])


def chat(i):
    turns = [{"role": "user", "content": f"Wie heißt Nummer {i}?", "name": "anna" if i % 3 == 0 else None}]
    if i % 2:
        turns.append({"role": "assistant", "content": f"„{i}“\n", "name": None})
    return {"id": f"chat-{i}", "messages": turns, "licence": "MIT" if i % 2 else None}


def math(i):
    return {"id": i, "question": f"What is {i} + {i}?", "answer": f"{i} + {i} = <<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}", "embedding": [0.5] * 4}


def without_nulls(value):
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def write(path, rows, schema, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, **options)


def main():
    chats, sums = [chat(i) for i in range(12)], [math(i) for i in range(8)]
    write(OUT / "chat/data/train-00000-of-00002.parquet", chats[:5], CHAT, row_group_size=2)
    write(OUT / "chat/data/train-00001-of-00002.parquet", chats[5:9], CHAT, compression="zstd")
    write(OUT / "chat/data/test-00000-of-00001.parquet", chats[9:], CHAT, use_dictionary=False, data_page_version="2.0")
    write(OUT / "math/train-00000-of-00001.parquet", sums[:6], MATH)
    write(OUT / "math/test-00000-of-00001.parquet", sums[6:], MATH, compression="none")
    for name, rows in [("chat", chats), ("math", sums)]:
        lines = "".join(json.dumps(without_nulls(row), ensure_ascii=False) + "\n" for row in rows)
        (OUT / f"{name}.jsonl").write_text(lines)
    packed = pa.Codec("zstd").compress((OUT / "chat.jsonl").read_bytes(), asbytes=True)
    (OUT / "rows.jsonl.zst").write_bytes(packed)
    lines = (OUT / "chat.jsonl").read_bytes()
    cut = lines.index(b"\n", len(lines) // 2) - 3
    halves = [gzip.compress(half, mtime=0) for half in (lines[:cut], lines[cut:])]
    (OUT / "rows.jsonl.gz").write_bytes(b"".join(halves))
    print(sum(p.stat().st_size for p in OUT.rglob("*") if p.is_file()), "bytes")


if __name__ == "__main__":
    main()
