"""Reads a `corpus/croissant.json` with MLCommons' own reader, and through it the traces.

    pip install mlcroissant pandas pyarrow
    python oracles/croissant.py RUN/corpus/croissant.json

Prints how many rows each record set has, and the first one. Exits with 1 where the reader finds an error.
"""

import sys

import mlcroissant

dataset = mlcroissant.Dataset(jsonld=sys.argv[1])
issues = dataset.metadata.ctx.issues
print(issues.report() or "no issues")
if issues.errors:
    sys.exit(1)
for record_set in dataset.metadata.record_sets:
    rows = list(dataset.records(record_set.uuid))
    print(record_set.uuid, len(rows), rows[:1])
