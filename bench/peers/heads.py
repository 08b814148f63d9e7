"""Losses on the product of hidden states h [N, D] with the head's weight w [V, D], four ways:

  full        all logits [N, V] at once, autograd, F.cross_entropy or F.kl_div: what most people run
  torch       F.linear_cross_entropy with LinearCrossEntropyOptions: PyTorch's own chunked form
  checkpoint  rows in chunks under torch.utils.checkpoint: logits are computed again in the backward
  fused       rows in chunks, loss and gradients together in the forward (one custom autograd.Function):
              no logits are kept and none is computed twice

Targets: `ce` labels [N] with -100 where nothing is supervised; `dense_kd` a teacher's probabilities [N, V];
`sparse_kd` ids [N, K] and probabilities [N, K] of a teacher, with the sum of p log p of each row [N].
Every loss is in nats, the mean over the supervised rows. Divergences are KL(teacher || student).
"""
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

IGNORED = -100
WAYS = ["full", "torch", "checkpoint", "fused"]


# ---- sums over rows of the loss, from logits z [n, V] --------------------------------------------------------


def ce_sum(z, labels):
    return F.cross_entropy(z, labels, ignore_index=IGNORED, reduction="sum")


def dense_kd_sum(z, p):
    return F.kl_div(F.log_softmax(z, dim=-1), p, reduction="sum")


def sparse_kd_sum(z, ids, p, p_log_p):
    log_q = z.gather(1, ids) - torch.logsumexp(z, dim=-1, keepdim=True)
    return (p_log_p - (p * log_q).sum(dim=-1)).sum()


SUMS = {"ce": ce_sum, "dense_kd": dense_kd_sum, "sparse_kd": sparse_kd_sum}


# ---- the same with the logits replaced by their gradient: z <- scale * (sum of p) * q - scale * p ------------


def softmax_(z, scale):
    """z <- scale * softmax(z), in place; returns the log of each row's sum, [n, 1]."""
    log_sum = torch.logsumexp(z, dim=-1, keepdim=True)
    z.sub_(log_sum).exp_().mul_(scale)
    return log_sum


def ce_gradient_(z, softmax_, scale, labels):
    supervised = labels != IGNORED
    index = labels.clamp(min=0).unsqueeze(1)
    picked = z.gather(1, index)
    row_scale = (supervised * scale).unsqueeze(1)
    log_sum = softmax_(z, row_scale)
    z.scatter_add_(1, index, -row_scale)
    return ((log_sum - picked) * supervised.unsqueeze(1)).sum() * scale


def dense_kd_gradient_(z, softmax_, scale, p):
    entropy_term = torch.special.xlogy(p, p).sum()
    cross = (p * z).sum()
    log_sum = softmax_(z, torch.full((z.shape[0], 1), scale))
    z.add_(p, alpha=-scale)
    return (entropy_term - cross + log_sum.sum()) * scale


def sparse_kd_gradient_(z, softmax_, scale, ids, p, p_log_p):
    cross = (p * z.gather(1, ids)).sum()
    mass = p.sum(dim=-1, keepdim=True)
    log_sum = softmax_(z, mass * scale)
    z.scatter_add_(1, ids, p * -scale)
    return (p_log_p.sum() - cross + (mass * log_sum).sum()) * scale


GRADIENTS = {"ce": ce_gradient_, "dense_kd": dense_kd_gradient_, "sparse_kd": sparse_kd_gradient_}


class Fused(torch.autograd.Function):
    """Per chunk: logits, loss, logits' gradient in place, then both products that it goes into."""

    @staticmethod
    def forward(ctx, h, w, chunk, gradient_, softmax_, scale, *targets):
        dh, dw = torch.empty_like(h), torch.empty_like(w)
        logits = h.new_empty(min(chunk, len(h)), len(w))
        loss = h.new_zeros(())
        for at in range(0, len(h), chunk):
            rows = slice(at, at + chunk)
            z = torch.mm(h[rows], w.t(), out=logits[: len(h[rows])])
            loss += gradient_(z, softmax_, scale, *(t[rows] for t in targets))
            torch.mm(z, w, out=dh[rows])
            torch.addmm(dw, z.t(), h[rows], beta=float(at > 0), out=dw)
        ctx.save_for_backward(dh, dw)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        dh, dw = ctx.saved_tensors
        if upstream.item() != 1.0:
            dh.mul_(upstream)
            dw.mul_(upstream)
        return dh, dw, *(None,) * (len(ctx.needs_input_grad) - 2)


def make_head(way, loss, chunk, compiled):
    """A function (h, w, n, *targets) -> mean loss; n is the number of supervised rows."""
    sum_of = SUMS[loss]
    if way == "full":
        return lambda h, w, n, *targets: sum_of(F.linear(h, w), *targets) / n
    if way == "torch":
        return torch_head(loss, chunk)
    if way == "checkpoint":
        return checkpoint_head(sum_of, chunk, compiled)
    soft = torch.compile(softmax_) if compiled else softmax_

    def fused(h, w, n, *targets):
        return Fused.apply(h, w, chunk, GRADIENTS[loss], soft, 1.0 / n, *targets)

    return fused


def torch_head(loss, chunk):
    if loss == "sparse_kd":
        raise ValueError("F.linear_cross_entropy knows labels and full distributions only")
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)

    def head(h, w, n, target):
        if loss == "ce":
            return F.linear_cross_entropy(h, w, target, reduction="mean", options=options)
        # Cross-entropy with the probabilities; their entropy is no part of the gradient.
        entropy_term = torch.special.xlogy(target, target).sum() / n
        return F.linear_cross_entropy(h, w, target, reduction="mean", options=options) + entropy_term

    return head


def checkpoint_head(sum_of, chunk, compiled):
    def of_chunk(h, w, *targets):
        return sum_of(F.linear(h, w), *targets)

    body = torch.compile(of_chunk) if compiled else of_chunk

    def head(h, w, n, *targets):
        total = h.new_zeros(())
        for at in range(0, len(h), chunk):
            rows = slice(at, at + chunk)
            total = total + checkpoint(body, h[rows], w, *(t[rows] for t in targets), use_reentrant=False)
        return total / n

    return head
