"""Golden blocks for crates/kernels/src/dequantise.rs and crates/formats/src/encode.rs.

    VENV/bin/python oracles/dequantise.py > crates/kernels/tests/golden/dequantise.json

Random bytes (with finite scales) decoded by the gguf package, llama.cpp's own reference in
Python; and random numbers encoded to q8_0 by it. Bytes are hexadecimal, decoded numbers the
hexadecimal of their little-endian f32.
"""
import json

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

BLOCKS = 2
# Offsets of the f16 scales in a block.
HALVES = {"F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2],
          "Q6_K": [208]}

rng = np.random.default_rng(20)
cases = []
for name in ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]:
    _, size = GGML_QUANT_SIZES[T[name]]
    blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    for block in blocks:
        for offset in HALVES.get(name, []):
            block[offset:offset + 2] = np.frombuffer(np.float16(rng.normal()).tobytes(), np.uint8)
        if name == "BF16":
            block[:] = np.frombuffer(np.float32(rng.normal()).tobytes(), np.uint8)[2:]
    numbers = dequantize(blocks.reshape(-1), T[name]).astype("<f4").reshape(-1)
    cases.append({"format": name, "bytes": blocks.tobytes().hex(), "numbers": numbers.tobytes().hex()})

numbers = (rng.normal(size=(3, 32)) * [[1.0], [1e-3], [0.0]]).astype("<f4")
numbers[0, 0] = 4.0  # 127 steps of 4/127: halves are rounded away from zero
encoded = quantize(numbers.reshape(-1), T.Q8_0)
q8_0 = {"numbers": numbers.tobytes().hex(), "bytes": encoded.tobytes().hex()}
print(json.dumps({"decode": cases, "encode_q8_0": q8_0}, indent=1))
