"""A llama.cpp model and context set up for speed; the binding itself is oracles/llamacpp.py.

Not a program. Flash attention and the type of the key-value cache are llama.cpp's own defaults (auto, f16), and
its CPU backend may repack weights; `use_extra_bufts` is that switch.
"""
import ctypes as C
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "oracles"))
import llamacpp  # noqa: E402

FLASH = {"auto": -1, "off": 0, "on": 1}
KV_TYPES = {"f32": llamacpp.GGML_TYPE_F32, "f16": llamacpp.GGML_TYPE_F16}


class Session(llamacpp.Llama):
    """One loaded GGUF with room for `sequences` sequences of `positions` tokens each."""

    def __init__(self, path, threads, sequences, positions, micro_batch, flash, kv, folder=None):
        self.folder = folder = pathlib.Path(folder or llamacpp.default_dir())
        self.messages = []
        self._log = llamacpp.LOG_CALLBACK(self._on_log)
        self.lib, ggml = self._open(folder)
        self.lib.llama_log_set(self._log, None)
        ggml.ggml_backend_load_all_from_path.argtypes = [C.c_char_p]
        ggml.ggml_backend_load_all_from_path(str(folder).encode())
        self.lib.llama_backend_init()
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), self.lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}:\n" + "".join(self.messages[-8:]))
        self.n_vocab = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
        self.ctx = self._context(threads, sequences, positions, micro_batch, FLASH[flash], KV_TYPES[kv])
        self.memory = self.lib.llama_get_memory(self.ctx)

    def _open(self, folder):
        names = [f"libggml.{llamacpp.RELEASE}.so", f"libllama.{llamacpp.RELEASE}.so"]
        if not all((folder / name).exists() for name in names):
            raise SystemExit(f"no llama.cpp in {folder}; bench/install-peers.sh puts it into VENV/llama.cpp")
        ggml = C.CDLL(str(folder / names[0]), mode=C.RTLD_GLOBAL)
        lib = C.CDLL(str(folder / names[1]))
        self._declare(lib)
        return lib, ggml

    def _context(self, threads, sequences, positions, micro_batch, flash, kv):
        cp = self.lib.llama_context_default_params()
        self._check_layout(cp)
        cp.n_ctx = cp.n_batch = sequences * positions
        cp.n_ubatch = micro_batch
        cp.n_seq_max = sequences
        cp.n_threads = cp.n_threads_batch = threads
        cp.flash_attn_type = flash
        cp.type_k = cp.type_v = kv
        ctx = self.lib.llama_init_from_model(self.model, cp)
        if not ctx:
            raise RuntimeError("llama.cpp made no context:\n" + "".join(self.messages[-8:]))
        return ctx

    def forget(self):
        self.lib.llama_memory_clear(self.memory, True)

    def batch(self, ids, start=0, all_outputs=False):
        """A batch of ids [sequences][n] at positions start..; logits of every row, or of each sequence's last."""
        n = sum(map(len, ids))
        batch = self.lib.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        rows = ((s, t) for s, row in enumerate(ids) for t in range(len(row)))
        for k, (s, t) in enumerate(rows):
            batch.token[k] = ids[s][t]
            batch.pos[k] = start + t
            batch.n_seq_id[k] = 1
            batch.seq_id[k][0] = s
            batch.logits[k] = all_outputs or t == len(ids[s]) - 1
        return batch

    def run(self, batch):
        status = self.lib.llama_decode(self.ctx, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode: {status}\n" + "".join(self.messages[-8:]))

    def logits(self, row):
        """f32 [V] of the batch's row, in llama.cpp's own memory until the next `run`; waits for it."""
        return np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.ctx, row), (self.n_vocab,))

    def facts(self):
        """What the log says of the backend and its buffers."""
        wanted = ("buffer size", "flash_attn", "load_backend", "CPU :", "KV (")
        lines = "".join(self.messages).replace(f"{self.folder}/", "").splitlines()
        return [line.strip() for line in lines if any(word in line for word in wanted)]
