"""Choose the engine of the inner loop: here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from metarec.meta.compiled import CompiledUsers
from metarec.meta.engine import Engine, InnerLoop
from metarec.meta.low_rank import LowRankUsers
from metarec.meta.through_learn2learn import Learn2LearnUsers
from metarec.meta.vmap import VmapUsers

FASTEST_FIRST: tuple[type[Engine], ...] = (CompiledUsers, LowRankUsers, VmapUsers)


def choose(
    view: nn.Module, loop: InnerLoop, start: Mapping[str, Tensor], engine: Literal["auto", "learn2learn"] = "auto"
) -> type[Engine]:
    """Choose the fastest engine that computes exactly what a view computes; learn2learn's only where it is asked for.

    Args:
        view: one user's task.
        loop: the inner loop.
        start: weights that users start from, by name; their number of users is of no account.
        engine: which one is asked for.

    Example:
        >>> from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
        >>> view = ModalityLearner(IdItems(size=6, dim=8), SequenceEncoder(dim=8)).task_view("encoder")
        >>> choose(view, InnerLoop("bpr", steps=5, rate=0.1, second_order=True), {}).__name__
        'VmapUsers'
    """
    kinds = (Learn2LearnUsers,) if engine == "learn2learn" else FASTEST_FIRST
    return next(kind for kind in kinds if kind.fits(view, loop, start))
