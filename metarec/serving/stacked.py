"""One user adapted by all learners at once: M encoders of one shape whose parameters have a leading M.

Small steps cost what their calls cost, not what they compute. M learners take their steps together and read item
vectors once, so that a single user pays for the calls of less than one learner.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.functional import losses
from metarec.meta import MetaLearner
from metarec.meta.inspection import as_built, leads_back, separate
from metarec.nn import ModalityLearner, SequenceEncoder
from metarec.nn.encoder import EncoderBlock
from metarec.types import Examples


class _Linears(nn.Module):
    """M linear layers."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        """(M, L, in) -> (M, L, out)."""
        return torch.baddbmm(self.bias, x, self.weight)


class _Norms(nn.Module):
    """M layer norms."""

    def __init__(self, layers: Sequence[nn.LayerNorm]) -> None:
        super().__init__()
        self.shape, self.eps = layers[0].normalized_shape, layers[0].eps
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]).unsqueeze(1))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        """(M, L, D) -> (M, L, D)."""
        return torch.addcmul(self.bias, F.layer_norm(x, self.shape, None, None, self.eps), self.weight)


class _Blocks(nn.Module):
    """One block of M encoders."""

    def __init__(self, blocks: Sequence[EncoderBlock]) -> None:
        super().__init__()
        self.heads = blocks[0].heads
        self.query_key_value = _Linears([b.query_key_value for b in blocks])
        self.attention_out = _Linears([b.attention_out for b in blocks])
        self.attention_norm = _Norms([b.attention_norm for b in blocks])
        self.feedforward_in = _Linears([b.feedforward_in for b in blocks])
        self.feedforward_out = _Linears([b.feedforward_out for b in blocks])
        self.feedforward_norm = _Norms([b.feedforward_norm for b in blocks])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(M, L, D) and what is added to the attention's logits (M * heads, L, L) -> (M, L, D)."""
        learners, length, dim = x.shape
        width = dim // self.heads
        parts = self.query_key_value(x).view(learners, length, 3, self.heads, width).permute(2, 0, 3, 1, 4)
        query, key, value = parts.reshape(3, learners * self.heads, length, width).unbind()
        weights = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=1 / math.sqrt(width)).softmax(-1)
        seen = (weights @ value).view(learners, self.heads, length, width).transpose(1, 2).reshape(x.shape)
        x = self.attention_norm(x + self.attention_out(seen))
        out: Tensor = self.feedforward_norm(x + self.feedforward_out(F.gelu(self.feedforward_in(x))))
        return out


class StackedEncoder(nn.Module):
    """M encoders of one shape as one, without dropout, for histories without padding.

    Args:
        encoders: of one shape.

    Example:
        >>> a, b = SequenceEncoder(dim=8).eval(), SequenceEncoder(dim=8).eval()
        >>> x = torch.randn(2, 5, 8)
        >>> both = StackedEncoder([a, b])
        >>> torch.allclose(both(x, both.bias(x))[1], b(x[1], torch.ones(5) > 0), atol=1e-5)
        True
    """

    def __init__(self, encoders: Sequence[SequenceEncoder]) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.stack([encoder.position.detach() for encoder in encoders]))
        self.norm = _Norms([encoder.norm for encoder in encoders])
        blocks = zip(*(cast("list[EncoderBlock]", list(encoder.blocks)) for encoder in encoders), strict=True)
        self.blocks = nn.ModuleList(_Blocks(same) for same in blocks)
        self.heads, self.scale = cast(EncoderBlock, encoders[0].blocks[0]).heads, encoders[0].context_scale

    def bias(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """What is added to the attention's logits, (M * heads, L, L): later clicks are out of sight.

        Args:
            x: (M, L, D).
            context: (M, L, E) feature vectors for feature-aware attention.
        """
        length = x.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        near = x.new_zeros(len(x), 1, 1) if context is None else self.scale * (context @ context.transpose(1, 2))
        return near.masked_fill(later, -1e9).repeat_interleave(self.heads, 0)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(M, L, D) and the bias (M * heads, L, L) -> states (M, L, D)."""
        x = self.norm(x + self.position[:, : x.shape[1]])
        for block in self.blocks:
            x = block(x, bias)
        return x


def tables_of(learners: Sequence[ModalityLearner]) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
    """Of M learners: the item vectors (I, D), the context vectors (I, E) or None, and which items are known (M, I)."""
    return (
        [learner.items.table() for learner in learners],
        [None if learner.context is None else learner.context.table() for learner in learners],
        torch.stack([learner.items.known for learner in learners]),
    )


def encoder_apart(learner: ModalityLearner) -> nn.Module:
    """A copy of a learner's encoder, which later training does not reach.

    Raises:
        TypeError: if the learner is of another class, whose losses and scores serving would pass over, or the copy
            would compute with the original's parts.
    """
    if type(learner) is not ModalityLearner or any(
        hasattr(ModalityLearner, n) and callable(v) for n, v in vars(learner).items()
    ):
        raise TypeError(
            f"serving computes what a ModalityLearner does, got {type(learner).__name__} or one with methods of its "
            "own; serve it by metarec.Served, which calls the method itself"
        )
    if name := leads_back(learner.encoder):
        raise TypeError(
            f"encoder.{name} is a function that a copy would share with the original, whose weights it reads; write it "
            "into a class, as a method"
        )
    return copy.deepcopy(learner.encoder)


def contexts_of(tables: Sequence[Tensor | None], history: Tensor) -> Tensor | None:
    """Context vectors (M, L, E) of a history (L,), zero for learners without; None if no learner has any."""
    found = [None if table is None else F.embedding(history, table) for table in tables]
    some = next((vectors for vectors in found if vectors is not None), None)
    return None if some is None else torch.stack([torch.zeros_like(some) if v is None else v for v in found])


def _shape_of(encoder: SequenceEncoder) -> list[Any]:
    """All of an encoder that is no weight."""
    heads = [block.heads for block in cast("list[EncoderBlock]", list(encoder.blocks))]
    eps = [module.eps for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    return [[(name, p.shape) for name, p in encoder.named_parameters()], heads, eps, encoder.context_scale]


class OneUser:
    """Adapts one user with M learners at once; equal to their own :meth:`MetaLearner.adapt` up to rounding.

    Args:
        metas: learners that read from tables, adapt their encoders, and are of one shape; see :meth:`fits`.
    """

    def __init__(self, metas: Sequence[MetaLearner]) -> None:
        learners = [cast(ModalityLearner, meta.learner) for meta in metas]
        self.tables, self.contexts, self.known = tables_of(learners)
        encoders = [cast(SequenceEncoder, learner.encoder) for learner in learners]
        self.shared, self.encoder = StackedEncoder(encoders), StackedEncoder(encoders)
        self.parameters = list(self.encoder.parameters())
        self.objective = metas[0].objectives[0]
        self.included = learners[0].candidates
        self.candidates = torch.zeros(())
        if self.objective == "softmax":
            self.candidates = torch.stack([table[self.included].T for table in self.tables])
        rates = [[meta.lr * (step < meta.steps) for meta in metas] for step in range(max(meta.steps for meta in metas))]
        self.rates = self.tables[0].new_tensor(rates)
        self.lock = threading.Lock()

    @staticmethod
    def fits(metas: Sequence[MetaLearner]) -> bool:
        """Whether the learners adapt their encoders only, these are what their class builds, and all have one shape."""
        encoders = [cast(ModalityLearner, meta.learner).encoder for meta in metas]
        plain = all(meta.adapts == "encoder" for meta in metas) and all(type(e) is SequenceEncoder for e in encoders)
        if not plain or not all(as_built(e) and separate(e) for e in encoders):
            return False
        alike = [
            (_shape_of(cast(SequenceEncoder, e)), meta.objectives[0]) for e, meta in zip(encoders, metas, strict=True)
        ]
        return all(one == alike[0] for one in alike)

    @torch.no_grad()
    def adapt(self, support: Examples, query: Examples) -> tuple[Tensor, Tensor]:
        """One user's states (1, M, D) after its last click, and which learners know something of it, (1, M)."""
        history = query.history[0]
        x = torch.stack([F.embedding(history, table) for table in self.tables])
        bias = self.encoder.bias(x, contexts_of(self.contexts, history))
        with self.lock:
            for own, shared in zip(self.parameters, self.shared.parameters(), strict=True):
                own.copy_(shared)
            if len(history) > 1:
                self._step(x, bias, support)
            state = self.encoder(x, bias)[:, -1]
        return state.unsqueeze(0), self.known[:, history].any(1).unsqueeze(0)

    def _step(self, x: Tensor, bias: Tensor, support: Examples) -> None:
        """All inner steps."""
        before, target, mask = x[:, :-1], x[:, 1:], bias[:, :-1, :-1]
        drawn = torch.stack([F.embedding(support.negatives[0], table) for table in self.tables])
        for rate in self.rates:
            with torch.enable_grad():
                state = self.encoder(before, mask)
                positive = (state * target).sum(-1)
                if self.objective == "softmax":
                    each = losses.softmax_among(positive, state @ self.candidates, self.included[support.target[0]])
                else:
                    each = getattr(losses, self.objective)(positive, (state.unsqueeze(-2) * drawn).sum(-1))
                gradients = torch.autograd.grad((each.mean(-1) * rate).sum(), self.parameters)
            for own, gradient in zip(self.parameters, gradients, strict=True):
                own.sub_(gradient)
