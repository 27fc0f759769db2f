"""One user adapted by several learners at once in the compiled kernel: M learners are M rows of weights to it.

What does not depend on the user is done once: the learners' weights lie in the kernel's order, ready to be copied.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.meta.compiled import computes
from metarec.meta.kernel import KernelEncoder
from metarec.meta.library import OBJECTIVES, library
from metarec.nn import ModalityLearner
from metarec.types import Examples

AT_ONCE = 64  # users who are encoded at once: what is computed of them stays in a cache


class CompiledUser:
    """Adapts users with M learners at once; equal to their own ``adapt`` up to rounding.

    Args:
        models: learners, or meta-learners of learners, that read from tables; of one kind, see :func:`kind_of`.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        learners = [learner_of(model) for model in models]
        self.tables, self.contexts, self.known = tables_of(learners)
        self.objective, self.steps, self.lr = steps_of(models[0])
        self.encoder = KernelEncoder(learners[0].encoder, len(models)).eval()
        self.encoder.mode = "values"
        self.encoder.row = torch.stack([KernelEncoder(learner.encoder, 1).row for learner in learners])

    @torch.no_grad()
    def adapt(self, support: Examples, query: Examples) -> tuple[Tensor, Tensor]:
        """States (N, M, D) of N = B * Q queries, and which learners know something of the history, (N, M).

        Args:
            support: of B users, who take their steps one after the other.
            query: likewise.
        """
        if len(query) == 1:
            return self._adapt(support, query)
        if self.steps:
            each = (slice(user, user + 1) for user in range(len(query)))
            found = [self._adapt(support[user].trim(), query[user]) for user in each]
        else:
            parts = zip(query.history.split(AT_ONCE), query.position.split(AT_ONCE), strict=True)
            found = [self._stand(*part) for part in parts]
        state, active = (torch.cat(column) for column in zip(*found, strict=True))
        return state, active

    def _adapt(self, support: Examples, query: Examples) -> tuple[Tensor, Tensor]:
        """Of one user."""
        steps = self.steps if self.steps and bool(support.weight.any()) else 0
        history, at = query.history[0], query.position
        encoder, learners = copy.copy(self.encoder), len(self.tables)
        if steps:
            encoder.row = self.encoder.row.clone()  # steps overwrite it
            read, among = support.history[0], torch.cat([support.target[0].unsqueeze(-1), support.negatives[0]], -1)
            ids = torch.cat([history, read, among.flatten()])
            found = torch.stack([F.embedding(ids, table) for table in self.tables])
            x, before, vectors = found.split([len(history), len(read), among.numel()], 1)
            products = (
                before,
                (read > 0).expand(learners, -1),
                self._contexts(read),
                support.position.expand(learners, -1),
                vectors.unflatten(1, among.shape),
                support.weight.expand(learners, -1),
            )
            encoder.descend(products, self.objective, steps, self.lr)
        else:
            x = torch.stack([F.embedding(history, table) for table in self.tables])
        keep = (history > 0).expand(learners, -1)
        state = encoder(x, keep, self._contexts(history), at.expand(learners, -1))
        seen = (self.known[:, history] & keep).cumsum(-1)
        return state.transpose(0, 1), seen[:, at[0]].T > 0

    def _stand(self, history: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Of many users, by the weights that they share."""
        history = history[:, : int(at.max()) + 1]
        encoder, keep, states = copy.copy(self.encoder), history > 0, []
        encoder.users = len(history)
        encoder.sizes = {**encoder.sizes, "users": len(history)}
        for table, context, row in zip(self.tables, self.contexts, self.encoder.row, strict=True):
            encoder.row = row
            bias = None if context is None else F.embedding(history, context)
            states.append(encoder(F.embedding(history, table), keep, bias, at))
        seen = (self.known[:, history] & keep).cumsum(-1).gather(-1, at.expand(len(states), *at.shape))
        return torch.stack(states, 2).flatten(0, 1), seen.permute(1, 2, 0).flatten(0, 1) > 0

    def _contexts(self, history: Tensor) -> Tensor | None:
        """Context vectors (M, L, E) of a history (L,), zero for learners without; None if no learner has any."""
        found = [None if table is None else F.embedding(history, table) for table in self.contexts]
        some = next((vectors for vectors in found if vectors is not None), None)
        return None if some is None else torch.stack([torch.zeros_like(some) if v is None else v for v in found])


def learner_of(model: Any) -> Any:
    """The learner that a model adapts, or is."""
    return getattr(model, "learner", model)


def steps_of(model: Any) -> tuple[str, int, float]:
    """The inner objective, how many steps a model takes and how large; none for a learner by itself."""
    return (model.objectives[0], model.steps, model.lr) if model is not learner_of(model) else ("bpr", 0, 0.0)


def kind_of(model: Any) -> tuple[Any, ...] | None:
    """What models must have in common for one kernel call; None if the kernel does not compute what a model does.

    Args:
        model: a learner that reads from tables, or a meta-learner of one.
    """
    learner = learner_of(model)
    alone = model is learner
    if type(learner) is not ModalityLearner or library() is None or not (alone or vars(type(model)).get("plain_sgd")):
        return None
    if learner.kinds is not None:  # it looks up clicks, not events of several kinds
        return None
    objective, steps, lr = steps_of(model)
    plain = alone or model.adapts == "encoder"
    if not plain or not computes(learner.encoder) or (steps and objective not in OBJECTIVES):
        return None
    return *_shape_of(learner.encoder), _context_of(learner), steps and objective, steps, steps and lr


def _context_of(learner: ModalityLearner) -> int:
    """The width of the context's vectors; that of the items' where there is none, for zeros stand in for it."""
    return (learner.items if learner.context is None else learner.context).table().shape[1]


def _shape_of(encoder: nn.Module) -> tuple[Any, ...]:
    """All of an encoder that is no weight."""
    heads = tuple(cast(Any, block).heads for block in cast(Any, encoder).blocks)
    eps = tuple(module.eps for module in encoder.modules() if isinstance(module, nn.LayerNorm))
    shapes = tuple((name, p.shape, p.dtype) for name, p in encoder.named_parameters())
    return shapes, heads, eps, cast(Any, encoder).context_scale


def tables_of(learners: Sequence[ModalityLearner]) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
    """Of M learners: the item vectors (I, D), the context vectors (I, E) or None, and which items are known (M, I)."""
    return (
        [learner.items.table() for learner in learners],
        [None if learner.context is None else learner.context.table() for learner in learners],
        torch.stack([learner.items.known for learner in learners]),
    )
