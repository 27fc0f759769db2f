"""Layers with low-rank updates: shared parameters plus what each user's SGD steps have added to them.

SGD on a linear layer adds ``-lr * G^T X`` to its weight, with X the layer's inputs and G the gradients of its outputs:
a matrix of rank (tokens). A user's adapted layer is therefore the shared layer plus ``(x X^T) G``, and no user needs a
weight of its own until the rank passes what a full matrix costs. The shared part of every user is one matrix product,
gradients of weights are never formed, and what moves through memory is the size of the activations.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.meta import ops

DENSE_PAYS = 1.5  # a user's own matrix pays beyond so many times the numbers of its factors


def kernels(like: Tensor) -> Any | None:
    """:mod:`metarec.meta.gpu` where it runs: float32 on a GPU, with Triton, which CUDA builds of torch bring along."""
    if (
        like.is_cuda
        and torch.version.hip is None
        and like.dtype == torch.float32
        and importlib.util.find_spec("triton") is not None
    ):
        return importlib.import_module("metarec.meta.gpu")
    return None


class AdaptedPart(nn.Module):
    """A module of B users: shared parameters plus what the users' steps have added to them.

    ``inner`` while steps are taken (the shared parameters are constants), ``graph`` when gradients of an outer loss
    are to reach the shared parameters, ``values`` when nothing does.
    """

    mode = "inner"
    expected_steps = 1  # memory for the factors of so many steps is allocated at once
    base: dict[str, Tensor]

    def start(self, weights: dict[str, Tensor]) -> None:
        """Before the first step: each user starts from weights of its own, (B, ...) by name."""
        raise NotImplementedError

    def shared(self, parameter: Tensor) -> Tensor:
        """The shared parameter, detached unless gradients are to reach it."""
        return parameter if self.mode == "graph" else parameter.detach()

    def watched(self) -> list[Tensor]:
        """Tensors whose gradients the next step needs."""
        return []

    def step(self, gradients: list[Tensor | None], lr: float) -> None:
        """Take one SGD step, given the gradients of the watched tensors."""
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        """The adapted parameters, (B, ...)."""
        raise NotImplementedError


class _Linear(torch.autograd.Function):
    """Forward and backward pass of an :class:`AdaptedLinear`, whose own factors are constants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, leaf: Tensor, part: AdaptedLinear) -> Tensor:
        ctx.part = part
        ctx.save_for_backward(x, weight)
        return part.product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        part, gradient = ctx.part, gradient.contiguous()
        back = part.transposed(gradient, weight) if ctx.needs_input_grad[0] else None
        if part.mode == "inner":
            part.calls.append((x.detach(), gradient))
            return back, None, None, None, None
        flat = gradient.flatten(0, -2)
        own_weight = flat.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return back, own_weight, flat.sum(0) if ctx.needs_input_grad[2] else None, None, None


class AdaptedLinear(AdaptedPart):
    """``x (W + dW)^T + b + db`` with dW kept as its factors, or added up once that is cheaper.

    The factors are X (B, rank, in), the inputs of all steps, and G (B, rank, out), ``-lr`` times the gradients of the
    outputs: ``x dW^T + db = (x X^T + 1) G``, where the 1 stands if there is a bias.
    """

    def __init__(self, base: nn.Linear, users: int) -> None:
        super().__init__()
        self.base: dict[str, Tensor] = dict(base.named_parameters())
        self.users = users
        self.one = float("bias" in self.base)
        gpu = kernels(base.weight)
        self.low_rank_add = gpu.low_rank_add if gpu else ops.low_rank_add
        self.rank = 0
        self.inputs = base.weight.new_empty(users, 0, base.in_features)
        self.outputs = base.weight.new_empty(users, 0, base.out_features)
        self.dense: Tensor | None = None
        self.bias: Tensor | None = None
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.leaf = torch.zeros((), requires_grad=True)  # dummy leaf, so that autograd calls backward

    def start(self, weights: dict[str, Tensor]) -> None:
        """Before the first step: each user starts from weights of its own, (B, ...) by name; they become matrices."""
        self.base = {name: p.detach() for name, p in self.base.items()}
        own = {name: (weights[name] - p).detach() for name, p in self.base.items()}
        self.dense = own["weight"].transpose(1, 2).contiguous()
        self.bias = own["bias"].unsqueeze(1) if "bias" in own else None

    def watched(self) -> list[Tensor]:
        """The dummy leaf."""
        return [self.leaf]

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., in) -> (B, ..., out)."""
        base = {name: self.shared(p) for name, p in self.base.items()}
        out: Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
            x.contiguous(), base["weight"], base.get("bias"), self.leaf, self
        )
        return out

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Outputs (B, ..., out) of inputs (B, ..., in)."""
        out = F.linear(x, weight, bias)
        tokens, flat = x.flatten(1, -2), out.view(self.users, -1, out.shape[-1])
        if self.dense is not None:
            flat.baddbmm_(tokens, self.dense)
            if self.bias is not None:
                flat += self.bias
        elif self.rank:
            self.low_rank_add(flat, tokens, self.inputs[:, : self.rank], self.outputs[:, : self.rank], self.one)
        return out

    def transposed(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """Gradients of the inputs (B, ..., in) from those of the outputs (B, ..., out)."""
        back = gradient @ weight
        tokens, flat = gradient.flatten(1, -2), back.view(self.users, -1, back.shape[-1])
        if self.dense is not None:
            flat.baddbmm_(tokens, self.dense.transpose(1, 2))
        elif self.rank:
            self.low_rank_add(flat, tokens, self.outputs[:, : self.rank], self.inputs[:, : self.rank], 0.0)
        return back

    def step(self, gradients: list[Tensor | None], lr: float) -> None:
        """Append the step of every call to the factors, or add it to the matrix."""
        for x, gradient in self.calls:
            self._add(x.flatten(1, -2), gradient.flatten(1, -2), lr)
        self.calls.clear()

    def _add(self, tokens: Tensor, gradient: Tensor, lr: float) -> None:
        rank, (height, width) = self.rank + tokens.shape[1], self.base["weight"].shape
        if self.dense is None and rank * (width + height) > DENSE_PAYS * width * height:
            self._make_dense()
        if self.dense is not None:
            self.dense.baddbmm_(tokens.transpose(1, 2), gradient, alpha=-lr)
            if self.bias is not None:
                self.bias.add_(gradient.sum(1, keepdim=True), alpha=-lr)
            return
        if rank > self.inputs.shape[1]:
            room = (self.users, max(rank, tokens.shape[1] * self.expected_steps))
            X, G = tokens.new_empty(*room, width), tokens.new_empty(*room, height)
            X[:, : self.rank], G[:, : self.rank] = self.inputs[:, : self.rank], self.outputs[:, : self.rank]
            self.inputs, self.outputs = X, G
        self.inputs[:, self.rank : rank] = tokens
        torch.mul(gradient, -lr, out=self.outputs[:, self.rank : rank])
        self.rank = rank

    def _make_dense(self) -> None:
        """Add the factors up to a matrix and free them."""
        X, G = self.inputs[:, : self.rank], self.outputs[:, : self.rank]
        self.dense = X.transpose(1, 2) @ G
        if self.one:
            self.bias = G.sum(1, keepdim=True)
        self.rank, self.inputs, self.outputs = 0, X[:, :0].clone(), G[:, :0].clone()

    def weights(self) -> dict[str, Tensor]:
        """The adapted parameters, (B, ...)."""
        out = {n: self.shared(p).expand(self.users, *p.shape) for n, p in self.base.items()}
        if self.rank:
            G = self.outputs[:, : self.rank]
            out["weight"] = out["weight"] + G.transpose(1, 2) @ self.inputs[:, : self.rank]
            if self.one:
                out["bias"] = out["bias"] + G.sum(1)
        if self.dense is not None:
            out["weight"] = out["weight"] + self.dense.transpose(1, 2)
            if self.bias is not None:
                out["bias"] = out["bias"] + self.bias.squeeze(1)
        return out


class Delta(AdaptedPart):
    """Parameters that are small enough for a difference per user."""

    def __init__(self, users: int, **parameters: Tensor) -> None:
        super().__init__()
        self.names = list(parameters)
        self.base = dict(parameters)
        self.delta = {
            name: torch.zeros(users, *p.shape, dtype=p.dtype, device=p.device, requires_grad=True)
            for name, p in parameters.items()
        }

    def start(self, weights: dict[str, Tensor]) -> None:
        """Before the first step: each user starts from weights of its own, (B, ...) by name."""
        self.base = {name: p.detach() for name, p in self.base.items()}
        self.delta = {name: (weights[name] - p).detach().requires_grad_() for name, p in self.base.items()}

    def value(self, name: str) -> Tensor:
        """(B, ...)."""
        return self.shared(self.base[name]) + self.delta[name]

    def watched(self) -> list[Tensor]:
        """The differences."""
        return [self.delta[name] for name in self.names]

    def step(self, gradients: list[Tensor | None], lr: float) -> None:
        """Take one SGD step."""
        with torch.no_grad():
            for name, gradient in zip(self.names, gradients, strict=True):
                if gradient is not None:
                    self.delta[name].add_(gradient, alpha=-lr)

    def weights(self) -> dict[str, Tensor]:
        """The adapted parameters, (B, ...)."""
        return {name: self.value(name) for name in self.names}


class AdaptedNorm(Delta):
    """Layer norm whose scale and shift differ per user."""

    def __init__(self, base: nn.LayerNorm, users: int) -> None:
        super().__init__(users, weight=base.weight, bias=base.bias)
        self.shape, self.eps = base.normalized_shape, base.eps
        gpu = kernels(base.weight)
        self.scaled_norm = gpu.scaled_norm if gpu else ops.scaled_norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., D) -> (B, ..., D)."""
        lead = (len(x), *(1 for _ in range(x.ndim - 1 - len(self.shape))), *self.shape)
        weight, bias = (self.value(name).view(lead) for name in self.names)
        out: Tensor = self.scaled_norm(x, self.shape, weight, bias, self.eps)
        return out
