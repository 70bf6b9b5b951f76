"""Muon: momentum, orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

The gradient of a weight matrix is dominated by a few directions. Muon replaces the momentum M =
U S V^T of each hidden matrix by U V^T, the nearest matrix whose directions all count alike, found
without a decomposition by a few Newton-Schulz steps, which need nothing but matrix products.
Embeddings, output layers, norms and biases keep AdamW (Loshchilov and Hutter 2019).
"""

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from groundup.train import machine

# The odd quintic a x + b x^3 + c x^5, taken five times, sends all but the smallest singular values
# in (0, 1] to about 1 (0.7 to 1.2): steep at 0, at the price of accuracy at 1, which training does
# not miss.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """U V^T of each matrix U S V^T, approximately: (count, rows, columns) -> the same.

    In bf16 for speed alone: in fp32 where that is faster.
    """
    a, b, c = QUINTIC
    has_kernel = machine.has_bf16_kernel(matrices.device.type)
    x = matrices.bfloat16() if has_kernel else matrices.float()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT  # the products below are rows x rows: let that be the short side
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that FSDP has spread over the processes; every one of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(whole: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that every process has, cut as the parameter `p` is."""
    if not isinstance(p, DTensor):
        return whole
    # src_data_rank=None: nothing is sent, each process cuts its own copy.
    return distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)


class Muon(torch.optim.Optimizer):
    """Muon for the hidden matrices and AdamW for the rest, as one optimiser.

    Under FSDP each process keeps a part of each matrix and of its momentum. To orthogonalise takes
    all of it: for this alone the matrices are gathered, and every process does the same product.

    Args:
        groups: parameter groups; each has `params`, `use_muon` (its parameters are then matrices,
            or filters of a convolution, which count as a matrix of a row per filter), `lr` and
            `weight_decay` (decoupled: weights shrink by lr * weight_decay). With `keep_norm`, a
            Muon group's parameters are scaled to norm sqrt(rows) before each update: for filters
            before a normalisation, whose size means nothing, this holds the update's relative
            size at `lr`.
        momentum: Muon's, with Nesterov's look ahead.
        betas, eps: AdamW's.

    Raises:
        ValueError: a parameter in a Muon group is a vector.
    """

    def __init__(self, groups, momentum: float = 0.95, betas=(0.9, 0.95), eps: float = 1e-8):
        groups = list(groups)
        for group in groups:
            if group["use_muon"] and any(p.ndim < 2 for p in group["params"]):
                raise ValueError("Muon takes matrices; put vectors in a group with use_muon=False")
        defaults = {"momentum": momentum, "betas": betas, "eps": eps, "keep_norm": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """One update; the gradients are left as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["use_muon"]:
                self._muon_step(params, group)
            else:
                self._adamw_step(params, group)
        return loss

    def _muon_step(self, params, group):
        """Matrices of one shape go through Newton-Schulz together, as one batched product."""
        by_shape = {}
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            ahead = p.grad.lerp(state["momentum"], group["momentum"])
            ahead = gather(ahead).flatten(1)  # filters (out, in, y, x) -> (out, in * y * x)
            by_shape.setdefault(ahead.shape, []).append((p, ahead))
        for (rows, columns), pairs in by_shape.items():
            updates = orthogonalize(torch.stack([ahead for _, ahead in pairs]))
            # sqrt(rows / columns): the same change of the output's size whatever the shape.
            scale = group["lr"] * max(1, rows / columns) ** 0.5
            for (p, _), update in zip(pairs, updates, strict=True):
                if group["keep_norm"]:
                    p.mul_(rows**0.5 / p.norm())
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(shard_like(update.to(p.dtype).view(p.shape), p), alpha=-scale)

    def _adamw_step(self, params, group):
        beta1, beta2 = group["betas"]
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = 0
                state["mean"] = torch.zeros_like(p)
                state["square"] = torch.zeros_like(p)
            state["step"] += 1
            state["mean"].lerp_(p.grad, 1 - beta1)
            state["square"].lerp_(p.grad.square(), 1 - beta2)
            mean = state["mean"] / (1 - beta1 ** state["step"])
            root = (state["square"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.addcdiv_(mean, root, value=-group["lr"])
