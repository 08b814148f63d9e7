"""llama.cpp through ctypes: tokenize a text, log-probabilities of a prompt, greedy continuation.

Not a program; smollm2.py and check_export.py use it. The library is the prebuilt one of the npm
package @node-llama-cpp/linux-x64 3.22.1 (llama.cpp release v0.5.0), which install.sh unpacks into
VENV/llama.cpp; the variable LLAMACPP_DIR names another folder with the same build. The
structures below are those of that release; `_check_layout` refuses a library whose defaults do
not match them.
"""
import ctypes as C
import os
import pathlib
import sys

import numpy as np

RELEASE = "v0.5.0"
GGML_TYPE_F32, GGML_TYPE_F16 = 0, 1


class ModelParams(C.Structure):
    _fields_ = [
        ("devices", C.c_void_p),
        ("tensor_buft_overrides", C.c_void_p),
        ("n_gpu_layers", C.c_int32),
        ("split_mode", C.c_int32),
        ("load_mode", C.c_int32),
        ("lazy_mode", C.c_int32),
        ("main_gpu", C.c_int32),
        ("tensor_split", C.c_void_p),
        ("progress_callback", C.c_void_p),
        ("progress_callback_user_data", C.c_void_p),
        ("kv_overrides", C.c_void_p),
        ("vocab_only", C.c_bool),
        ("check_tensors", C.c_bool),
        ("use_extra_bufts", C.c_bool),
        ("no_host", C.c_bool),
        ("no_alloc", C.c_bool),
        ("load_mtp", C.c_bool),
    ]


class ContextParams(C.Structure):
    _fields_ = [
        ("n_ctx", C.c_uint32),
        ("n_batch", C.c_uint32),
        ("n_ubatch", C.c_uint32),
        ("n_seq_max", C.c_uint32),
        ("n_rs_seq", C.c_uint32),
        ("n_outputs_max", C.c_uint32),
        ("n_outputs_max_per_seq", C.c_uint32),
        ("n_threads", C.c_int32),
        ("n_threads_batch", C.c_int32),
        ("ctx_type", C.c_int32),
        ("rope_scaling_type", C.c_int32),
        ("pooling_type", C.c_int32),
        ("attention_type", C.c_int32),
        ("flash_attn_type", C.c_int32),
        ("rope_freq_base", C.c_float),
        ("rope_freq_scale", C.c_float),
        ("yarn_ext_factor", C.c_float),
        ("yarn_attn_factor", C.c_float),
        ("yarn_beta_fast", C.c_float),
        ("yarn_beta_slow", C.c_float),
        ("yarn_orig_ctx", C.c_uint32),
        ("defrag_thold", C.c_float),
        ("cb_eval", C.c_void_p),
        ("cb_eval_user_data", C.c_void_p),
        ("type_k", C.c_int32),
        ("type_v", C.c_int32),
        ("abort_callback", C.c_void_p),
        ("abort_callback_data", C.c_void_p),
        ("embeddings", C.c_bool),
        ("offload_kqv", C.c_bool),
        ("no_perf", C.c_bool),
        ("op_offload", C.c_bool),
        ("swa_full", C.c_bool),
        ("kv_unified", C.c_bool),
        ("samplers", C.c_void_p),
        ("n_samplers", C.c_size_t),
        ("ctx_other", C.c_void_p),
    ]


class Batch(C.Structure):
    _fields_ = [
        ("n_tokens", C.c_int32),
        ("token", C.POINTER(C.c_int32)),
        ("embd", C.POINTER(C.c_float)),
        ("pos", C.POINTER(C.c_int32)),
        ("n_seq_id", C.POINTER(C.c_int32)),
        ("seq_id", C.POINTER(C.POINTER(C.c_int32))),
        ("logits", C.POINTER(C.c_int8)),
    ]


LOG_CALLBACK = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)


def default_dir():
    return pathlib.Path(os.environ.get("LLAMACPP_DIR") or pathlib.Path(sys.prefix) / "llama.cpp")


class Llama:
    """One loaded GGUF. Attention in f32 (f32 KV cache, no flash attention), CPU."""

    def __init__(self, path, n_ctx=1024, threads=1, folder=None):
        folder = pathlib.Path(folder or default_dir())
        lib_path, ggml_path = folder / f"libllama.{RELEASE}.so", folder / f"libggml.{RELEASE}.so"
        if not lib_path.exists():
            raise FileNotFoundError(f"no {lib_path.name} in {folder}; see oracles/install.sh")
        ggml = C.CDLL(str(ggml_path), mode=C.RTLD_GLOBAL)
        self.lib = lib = C.CDLL(str(lib_path))
        self._declare(lib)
        self.messages = []
        self._log = LOG_CALLBACK(self._on_log)
        lib.llama_log_set(self._log, None)
        ggml.ggml_backend_load_all_from_path.argtypes = [C.c_char_p]
        ggml.ggml_backend_load_all_from_path(str(folder).encode())
        lib.llama_backend_init()

        mp = lib.llama_model_default_params()
        cp = lib.llama_context_default_params()
        self._check_layout(cp)
        mp.use_extra_bufts = False
        self.model = lib.llama_model_load_from_file(str(path).encode(), mp)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}:\n" + "".join(self.messages[-8:]))
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)

        cp.n_ctx = cp.n_batch = cp.n_ubatch = n_ctx
        cp.n_threads = cp.n_threads_batch = threads
        cp.type_k = cp.type_v = GGML_TYPE_F32
        cp.flash_attn_type = 0
        self.ctx = lib.llama_init_from_model(self.model, cp)
        if not self.ctx:
            raise RuntimeError("llama.cpp made no context:\n" + "".join(self.messages[-8:]))
        self.n_ctx = n_ctx

    def _on_log(self, _level, text, _data):
        self.messages.append(text.decode("utf-8", "replace"))

    @staticmethod
    def _declare(lib):
        def f(name, result, *args):
            fn = getattr(lib, name)
            fn.restype, fn.argtypes = result, list(args)

        p, i = C.c_void_p, C.c_int32
        f("llama_log_set", None, LOG_CALLBACK, p)
        f("llama_backend_init", None)
        f("llama_model_default_params", ModelParams)
        f("llama_context_default_params", ContextParams)
        f("llama_model_load_from_file", p, C.c_char_p, ModelParams)
        f("llama_init_from_model", p, p, ContextParams)
        f("llama_model_get_vocab", p, p)
        f("llama_vocab_n_tokens", i, p)
        f("llama_vocab_is_eog", C.c_bool, p, i)
        f("llama_vocab_get_add_bos", C.c_bool, p)
        f("llama_tokenize", i, p, C.c_char_p, i, C.POINTER(i), i, C.c_bool, C.c_bool)
        f("llama_detokenize", i, p, C.POINTER(i), i, C.c_char_p, i, C.c_bool, C.c_bool)
        f("llama_batch_init", Batch, i, i, i)
        f("llama_batch_free", None, Batch)
        f("llama_decode", i, p, Batch)
        f("llama_get_logits_ith", C.POINTER(C.c_float), p, i)
        f("llama_get_memory", p, p)
        f("llama_memory_clear", None, p, C.c_bool)
        f("llama_model_chat_template", C.c_char_p, p, C.c_char_p)

    @staticmethod
    def _check_layout(cp):
        got = (cp.n_ctx, cp.n_batch, cp.n_ubatch, cp.n_seq_max, cp.flash_attn_type, cp.type_k, cp.type_v, cp.n_samplers)
        want = (512, 2048, 512, 1, -1, GGML_TYPE_F16, GGML_TYPE_F16, 0)
        if got != want:
            raise RuntimeError(f"this libllama is not the release llamacpp.py was written for: defaults {got}")

    def tokenize(self, text, add_bos=False, parse_special=True):
        raw = text.encode("utf-8")
        room = len(raw) + 8
        out = (C.c_int32 * room)()
        n = self.lib.llama_tokenize(self.vocab, raw, len(raw), out, room, add_bos, parse_special)
        if n < 0:
            raise RuntimeError(f"llama_tokenize: {n}")
        return list(out[:n])

    def detokenize(self, ids, special=True):
        arr = (C.c_int32 * max(1, len(ids)))(*ids)
        buf = C.create_string_buffer(64 * len(ids) + 64)
        n = self.lib.llama_detokenize(self.vocab, arr, len(ids), buf, len(buf), False, special)
        if n < 0:
            raise RuntimeError(f"llama_detokenize: {n}")
        return buf.raw[:n]

    def chat_template(self):
        text = self.lib.llama_model_chat_template(self.model, None)
        return text.decode() if text else None

    def is_end(self, token):
        return bool(self.lib.llama_vocab_is_eog(self.vocab, token))

    def clear(self):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.ctx), True)

    def _decode(self, ids, start, all_logits):
        """Runs ids at positions start.. and returns f32 logits: [n, V], or [1, V] of the last."""
        if start + len(ids) > self.n_ctx:
            raise ValueError(f"{start + len(ids)} tokens do not fit the context of {self.n_ctx}")
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for k, token in enumerate(ids):
                batch.token[k] = token
                batch.pos[k] = start + k
                batch.n_seq_id[k] = 1
                batch.seq_id[k][0] = 0
                batch.logits[k] = 1 if all_logits or k == len(ids) - 1 else 0
            status = self.lib.llama_decode(self.ctx, batch)
            if status != 0:
                raise RuntimeError(f"llama_decode: {status}")
            rows = range(len(ids)) if all_logits else [len(ids) - 1]
            return np.stack(
                [np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.ctx, k), (self.n_vocab,)).copy() for k in rows]
            )
        finally:
            self.lib.llama_batch_free(batch)

    def logits(self, ids):
        """f32 [len(ids), V] of a fresh sequence."""
        self.clear()
        return self._decode(ids, 0, True)

    def logprobs(self, ids):
        """Log-probability of ids[t + 1] after ids[..t], f64, len(ids) - 1 of them."""
        z = self.logits(ids).astype(np.float64)[:-1]
        z -= z.max(axis=1, keepdims=True)
        return z[np.arange(len(z)), ids[1:]] - np.log(np.exp(z).sum(axis=1))

    def greedy(self, ids, n, stop=()):
        """n greedy tokens, and for each the gap between the best two logits."""
        self.clear()
        out, gaps, at, step = [], [], 0, list(ids)
        for _ in range(n):
            z = self._decode(step, at, False)[0]
            at += len(step)
            best = int(z.argmax())
            second = np.partition(z, -2)[-2]
            out.append(best)
            gaps.append(float(z[best] - second))
            if best in stop:
                break
            step = [best]
        return out, gaps
