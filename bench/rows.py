"""The rows that compare.py measures: which work, which peer in which configurations, which target.

The first variant of a row is the peer's fastest on the machine where this was written (two cores of an AMD EPYC
with AVX2); --try-variants looks again. `{hf}`, `{gguf}` and `{gguf_f32}` stand for files from the command line.
"""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Variant:
    name: str
    arguments: tuple


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    what: str
    # `stillroom bench` and these.
    ours: tuple
    # A script of peers/ and its arguments, or none: then the peer is Stillroom with the variant's arguments.
    script: str
    peer: tuple
    variants: tuple
    # Targets: at least this many times the peer's speed, at most this share of its peak memory, at least this
    # share of the FMA peak; None where there is none.
    ratio: float = None
    memory: float = None
    share: float = None
    # Timed steps of a run.
    steps: int = 8
    threads: int = None


def words(text):
    return tuple(text.split())


def variant(name, arguments):
    return Variant(name, words(arguments))


COMPILED = "--compile --allocator huge"


def torch_variants(*names):
    """Configurations of train_torch.py by name, the first one first."""
    known = {
        "compiled, all logits": COMPILED,
        "compiled, PyTorch's chunked head": f"{COMPILED} --head torch --chunk 256",
        "compiled, PyTorch's chunked head, 512 rows": f"{COMPILED} --head torch --chunk 512",
        "compiled, fused head": f"{COMPILED} --head fused --chunk 512",
        "compiled, fused head, 128 rows": f"{COMPILED} --head fused --chunk 128",
        "compiled, checkpointed head": f"{COMPILED} --head checkpoint --chunk 256",
        "eager, all logits": "--allocator huge",
        "eager, all logits, as installed": "",
    }
    return tuple(Variant(f"PyTorch, {name}", words(known[name])) for name in names)


def train(name, what, work, variants, peer_only="", ours_only="", **more):
    """A row of training steps: `work` is the same on both sides."""
    ours = ("train", *words(work), *words(ours_only))
    return Row(name, what, ours, "train_torch.py", (*words(work), *words(peer_only)), variants, **more)


def llamacpp_score(name, what, outputs, **more):
    """A row of our scoring against llama.cpp, which makes logits of `outputs` rows."""
    variants = (
        variant("llama.cpp, Q4_1", f"--gguf {{gguf}} --outputs {outputs}"),
        variant("llama.cpp, F32", f"--gguf {{gguf_f32}} --outputs {outputs} --micro-batch 2048"),
    )
    return Row(name, what, words(SCORE_135M), "score_llamacpp.py", (), variants, **more)


V49K = "--vocab 49152 --tied"
SPARSE = f"{V49K} --loss sparse_kd --draws 50"
SCORE_135M = "score --model {hf} --batch 4 --sequence 512"
FEW_TOKENS = "--prompt-tokens 16 --tokens 128"
BASE = torch_variants(
    "compiled, PyTorch's chunked head",
    "compiled, fused head, 128 rows",
    "compiled, all logits",
    "eager, all logits",
    "eager, all logits, as installed",
)
LARGE_HEAD = torch_variants(
    "compiled, fused head", "compiled, PyTorch's chunked head, 512 rows", "compiled, all logits", "eager, all logits"
)

TABLE = [
    train("train_v8k", "training step, V = 8,192", "", BASE, ratio=1.5, memory=0.5, share=0.75),
    train("train_v49k", "training step, V = 49,152, tied", V49K, LARGE_HEAD, ratio=2.0, memory=0.25, steps=5),
    train(
        "kd_dense",
        "distillation step: ours on sparse targets, the peer's on given probabilities",
        V49K,
        torch_variants("compiled, fused head", "compiled, all logits", "compiled, PyTorch's chunked head, 512 rows"),
        peer_only="--loss dense_kd",
        ours_only="--loss sparse_kd --draws 50",
        ratio=3.0,
        memory=0.25,
        steps=5,
    ),
    train(
        "kd_chunked",
        "distillation step: both on the same sparse targets",
        SPARSE,
        torch_variants("compiled, fused head", "compiled, all logits", "compiled, checkpointed head"),
        ratio=1.8,
        memory=0.6,
        steps=5,
    ),
    train(
        "sft_masked",
        "fine-tuning step, half of each sequence masked; the peer computes every row's logits",
        f"{V49K} --masked 0.5",
        LARGE_HEAD,
        ratio=2.5,
        steps=5,
    ),
    train(
        "sft_masked_skipped",
        "the same; the peer leaves masked rows out of its head, as careful trainers do",
        f"{V49K} --masked 0.5",
        torch_variants("compiled, fused head"),
        peer_only="--skip-masked",
        steps=5,
    ),
    Row(
        "sft_unmasked",
        "our fine-tuning step half masked against our own with nothing masked",
        words(f"train {V49K} --masked 0.5"),
        "",
        (),
        (variant("Stillroom, unmasked", f"train {V49K}"),),
        ratio=1.35,
        steps=5,
    ),
    Row(
        "finetune_135m",
        "full fine-tune of SmolLM2-135M, 4 x 512",
        words("train --model {hf} --batch 4 --sequence 512"),
        "train_torch.py",
        words("--hf {hf} --batch 4 --sequence 512"),
        (
            *torch_variants("compiled, all logits", "compiled, fused head", "eager, all logits"),
            variant("transformers, eager", "--implementation transformers --allocator huge"),
        ),
        ratio=1.5,
        memory=0.5,
        steps=3,
    ),
    Row(
        "score_transformers",
        "scoring SmolLM2-135M in f32, 4 x 512",
        words(SCORE_135M),
        "score_transformers.py",
        words("--hf {hf}"),
        (
            variant("transformers, compiled", COMPILED),
            variant("transformers, compiled, head in chunks", f"{COMPILED} --chunk 256"),
            variant("transformers, frozen", f"{COMPILED} --freeze --chunk 256"),
            variant("transformers, eager, head in chunks", "--allocator huge --chunk 128"),
            variant("transformers, eager, as installed", ""),
        ),
        ratio=1.5,
        steps=4,
    ),
    llamacpp_score(
        "score_llamacpp",
        "the same; llama.cpp with every row's logits and their log-softmax",
        "all",
        ratio=3.0,
        steps=3,
    ),
    llamacpp_score(
        "score_llamacpp_prompt",
        "our scoring against llama.cpp's prompt alone: logits of each sequence's last row, less work than ours",
        "last",
        steps=3,
    ),
    Row(
        "decode_greedy",
        "greedy decoding of SmolLM2-135M, batch 1, the Q4_1 file",
        words(f"decode --model {{gguf}} --batch 1 {FEW_TOKENS}"),
        "decode_llamacpp.py",
        words(f"--gguf {{gguf}} {FEW_TOKENS}"),
        (variant("llama.cpp", ""), variant("llama.cpp, no flash attention, f32 cache", "--flash off --kv f32")),
        ratio=1.1,
        steps=5,
    ),
    Row(
        "decode_batch32",
        "sampling with SmolLM2-135M in f32, batch 32",
        words(f"decode --model {{hf}} --batch 32 {FEW_TOKENS} --temperature 1"),
        "decode_transformers.py",
        words(f"--hf {{hf}} {FEW_TOKENS}"),
        (
            variant("transformers, dynamic cache", "--allocator keep"),
            variant("transformers, static cache, compiled", f"--cache static {COMPILED}"),
            variant("transformers, static cache", "--cache static --allocator huge"),
        ),
        ratio=3.0,
        share=0.6,
        steps=2,
    ),
]

# Parameters with V = 8,192 untied; the last has SmolLM2-135M's shape.
SCALED_SIZES = {
    "5m": "--hidden 192 --layers 4 --heads 3 --ffn 512",
    "17m": "",
    "60m": "--hidden 640 --layers 10 --heads 10 --ffn 1728",
    "135m": f"--hidden 576 --layers 30 --heads 9 --kv-heads 3 --ffn 1536 {V49K}",
}
SCALED_SEQUENCES = [256, 512, 1024, 2048, 4096]

SCALING = [
    *(train(f"threads_{n}", f"training step, V = 8,192, {n} threads", "", BASE[:1], threads=n) for n in (1, 2)),
    *(
        train(f"size_{name}", f"training step, {name[:-1]} M parameters", work, BASE[:1], steps=4)
        for name, work in SCALED_SIZES.items()
    ),
    *(
        train(f"sequence_{t}", f"training step on one sequence of {t}", f"--batch 1 --sequence {t}", BASE[:1], steps=4)
        for t in SCALED_SEQUENCES
    ),
]

ALL = [*TABLE, *SCALING]
GROUPS = {"table": TABLE, "scaling": SCALING, "all": ALL, **{row.name: [row] for row in ALL}}


def chosen(names):
    """Rows by the names of rows and groups, each once."""
    found = [row for name in names for row in GROUPS[name]]
    return list(dict.fromkeys(found))
