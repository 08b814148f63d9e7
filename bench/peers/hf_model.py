"""A model in transformers and how it is reported; shared by the scripts that time it. Not a program."""
import torch
import transformers
from transformers import AutoModelForCausalLM

import common


def load(args):
    """The model in f32, and the bytes that were resident before there was one."""
    torch.set_num_threads(args.threads)
    imports = common.resident_bytes()
    model = AutoModelForCausalLM.from_pretrained(args.hf, dtype=torch.float32, attn_implementation=args.attention)
    model.eval()
    torch.manual_seed(2)
    return model, imports


def report(args, work, *measured, **more):
    """Prints the measurement as transformers'; `measured` as common.report takes it."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    common.report(args, work, "transformers", versions, *measured, **more)
