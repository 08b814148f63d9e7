"""Losses on the product of hidden states h [N, D] with the head's weight w [V, D], four ways:

  full        all logits [N, V] at once, autograd: what most people run
  torch       F.linear_cross_entropy with LinearCrossEntropyOptions: PyTorch's own chunked form
  checkpoint  rows in chunks under torch.utils.checkpoint: logits are computed again in the backward
  fused       rows in chunks, loss and gradients together in the forward (one custom autograd.Function):
              no logits are kept and none is computed twice

Targets: `ce` labels [N] with -100 where nothing is supervised; `dense_kd` a teacher's probabilities [N, V];
`sparse_kd` ids [N, K] and probabilities [N, K] of a teacher; both with the sum of p log p of each row [N], which
the teacher's side knows and the student's gradient does not need.
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


def dense_kd_sum(z, p, p_log_p):
    return p_log_p.sum() - (p * F.log_softmax(z, dim=-1)).sum()


def sparse_kd_sum(z, ids, p, p_log_p):
    log_q = z.gather(1, ids) - torch.logsumexp(z, dim=-1, keepdim=True)
    return (p_log_p - (p * log_q).sum(dim=-1)).sum()


SUMS = {"ce": ce_sum, "dense_kd": dense_kd_sum, "sparse_kd": sparse_kd_sum}


# ---- the same with the logits replaced by their gradient: z <- scale * (softmax(z) * sum of p - p) ------------
# The first two go over all of z and are worth compiling; a compiled scatter is slower than PyTorch's own.


def softmax_(z, row_scale):
    """z <- row_scale [n, 1] * softmax(z); returns the log of each row's sum, [n, 1]."""
    log_sum = torch.logsumexp(z, dim=-1, keepdim=True)
    z.sub_(log_sum).exp_().mul_(row_scale)
    return log_sum


def softmax_less_(z, p, scale):
    """z <- scale * (softmax(z) - p); returns the sum over rows of -p log softmax(z)."""
    log_sum = torch.logsumexp(z, dim=-1, keepdim=True)
    loss = log_sum.sum() - (p * z).sum()
    z.sub_(log_sum).exp_().sub_(p).mul_(scale)
    return loss


def ce_gradient_(z, soften_, scale, labels):
    supervised = (labels != IGNORED).unsqueeze(1)
    index, row_scale = labels.clamp(min=0).unsqueeze(1), supervised * scale
    picked = z.gather(1, index)
    log_sum = soften_(z, row_scale)
    z.scatter_add_(1, index, -row_scale)
    return ((log_sum - picked) * row_scale).sum()


def dense_kd_gradient_(z, soften_, scale, p, p_log_p):
    return (p_log_p.sum() + soften_(z, p, scale)) * scale


def sparse_kd_gradient_(z, soften_, scale, ids, p, p_log_p):
    mass = p.sum(dim=-1, keepdim=True)
    cross = (p * z.gather(1, ids)).sum()
    log_sum = soften_(z, mass * scale)
    z.scatter_add_(1, ids, p * -scale)
    return (p_log_p.sum() - cross + (mass * log_sum).sum()) * scale


GRADIENTS = {
    "ce": (ce_gradient_, softmax_),
    "dense_kd": (dense_kd_gradient_, softmax_less_),
    "sparse_kd": (sparse_kd_gradient_, softmax_),
}


class Fused(torch.autograd.Function):
    """Per chunk: logits, loss, logits' gradient in place, then both products that it goes into."""

    @staticmethod
    def forward(ctx, h, w, chunk, gradient_, soften_, scale, *targets):
        dh, dw = torch.empty_like(h), torch.empty_like(w)
        logits = h.new_empty(min(chunk, len(h)), len(w))
        loss = h.new_zeros(())
        for at in range(0, len(h), chunk):
            rows = slice(at, at + chunk)
            z = torch.mm(h[rows], w.t(), out=logits[: len(h[rows])])
            loss += gradient_(z, soften_, scale, *(t[rows] for t in targets))
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
    gradient_, soften_ = GRADIENTS[loss]
    soften_ = torch.compile(soften_) if compiled else soften_

    def fused(h, w, n, *targets):
        return Fused.apply(h, w, chunk, gradient_, soften_, 1.0 / n, *targets)

    return fused


def torch_head(loss, chunk):
    if loss == "sparse_kd":
        raise ValueError("F.linear_cross_entropy knows labels and full distributions only")
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)

    def head(h, w, n, target, p_log_p=None):
        loss = F.linear_cross_entropy(h, w, target, reduction="mean", options=options)
        return loss if p_log_p is None else loss + p_log_p.sum() / n

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
