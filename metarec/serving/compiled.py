"""One user adapted by all learners at once in the compiled kernel: M learners are M rows of weights to it.

What does not depend on the user is done once: the learners' weights lie in the kernel's order, ready to be copied.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.meta import MetaLearner
from metarec.meta.kernel import KernelEncoder
from metarec.meta.kernel_stack import computes
from metarec.meta.library import OBJECTIVES, library
from metarec.nn import ModalityLearner
from metarec.serving.stacked import OneUser, contexts_of, tables_of
from metarec.types import Examples


class CompiledUser:
    """Adapts one user with M learners at once, as :class:`~metarec.serving.stacked.OneUser` does.

    Args:
        metas: learners that read from tables, adapt their encoders, and are of one shape; see :meth:`fits`.
    """

    def __init__(self, metas: Sequence[MetaLearner]) -> None:
        learners = [cast(ModalityLearner, meta.learner) for meta in metas]
        self.tables, self.contexts, self.known = tables_of(learners)
        self.objective, self.steps, self.lr = metas[0].objectives[0], metas[0].steps, metas[0].lr
        self.encoder = KernelEncoder(learners[0].encoder, len(metas)).eval()
        self.encoder.mode = "values"
        self.encoder.row = torch.stack([KernelEncoder(learner.encoder, 1).row for learner in learners])

    @staticmethod
    def fits(metas: Sequence[MetaLearner]) -> bool:
        """Whether the kernel is there and knows encoders and loss, and all learners take the same steps."""
        encoders = [cast(ModalityLearner, meta.learner).encoder for meta in metas]
        return (
            library() is not None
            and OneUser.fits(metas)
            and all(map(computes, encoders))
            and metas[0].objectives[0] in OBJECTIVES
            and len({(meta.steps, meta.lr) for meta in metas}) == 1
            and len({p.dtype for encoder in encoders for p in encoder.parameters()}) == 1
        )

    @torch.no_grad()
    def adapt(self, support: Examples, query: Examples) -> tuple[Tensor, Tensor]:
        """One user's states (1, M, D) after its last click, and which learners know something of it, (1, M)."""
        history, learners = query.history[0], len(self.tables)
        among = torch.cat([support.target[0].unsqueeze(-1), support.negatives[0]], -1)
        ids = torch.cat([history, among.flatten()])
        x, vectors = torch.stack([F.embedding(ids, table) for table in self.tables]).split(
            [len(history), among.numel()], 1
        )
        context = contexts_of(self.contexts, history)
        keep = torch.ones(learners, len(history), dtype=torch.bool)
        at = torch.arange(len(history)).expand(learners, -1)
        encoder = copy.copy(self.encoder)
        if len(history) > 1 and self.steps:
            encoder.row = self.encoder.row.clone()  # steps overwrite it
            products = (
                x[:, :-1],
                keep[:, :-1],
                None if context is None else context[:, :-1],
                at[:, :-1],
                vectors.unflatten(1, among.shape),
                support.weight.expand(learners, -1),
            )
            encoder.descend(products, self.objective, self.steps, self.lr)
        state = encoder(x, keep, context, at[:, -1:])
        return state.transpose(0, 1), self.known[:, history].any(1).unsqueeze(0)
