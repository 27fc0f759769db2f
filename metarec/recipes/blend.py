"""Former names, which work for one release: ``Blend``, ``observe``, ``paying_steps`` and ``with_steps``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from metarec.data.dataset import Dataset
from metarec.recipes.candidates import CandidateScores, candidate_scores
from metarec.recipes.context_weights import PENALTY, ContextWeights
from metarec.recipes.ensemble import Ensemble
from metarec.recipes.inner_steps import select_inner_steps, with_inner_steps
from metarec.recipes.mml import MML
from metarec.recipes.user_context import user_context
from metarec.types import EpisodeBatch, Examples, Method


class Blend(Ensemble):
    """Deprecated: :class:`~metarec.recipes.Ensemble`, which takes the upstream side and has its weights in ``weights``.

    Args:
        methods: name -> method.
        warm: (I,) bool, items seen upstream.
        context: let the weights depend on the user; otherwise they are the same for all.

    Raises:
        ValueError: if there is no method.
    """

    def __init__(self, methods: dict[str, Method], warm: Tensor, *, context: bool = True) -> None:
        _warn("Blend", "Ensemble")
        if not methods:
            raise ValueError("Blend: expected at least one method, got none")
        super().__init__(methods, weights=ContextWeights(list(methods), context=context).to(warm.device))
        self.methods, self.warm = dict(methods), warm.cpu().numpy()

    @property
    def weight(self) -> nn.Parameter:
        """(1 or 5, S), see :class:`ContextWeights`."""
        return self.weights.weight

    @property
    def unknown(self) -> nn.Parameter:
        """(1 or 5, S), see :class:`ContextWeights`."""
        return self.weights.unknown

    @property
    def usual(self) -> Tensor:
        """(2,), mean and deviation of the log of the gap."""
        return self.weights.usual

    def context(self, examples: Examples) -> Tensor:
        """(B, Q, 3), see :func:`~metarec.recipes.user_context.user_context`."""
        return user_context(examples, torch.from_numpy(self._seen()).to(examples.history.device))

    def features(self, context: Tensor) -> Tensor:
        """(..., 1 or 5) that the weights are linear in, from contexts (..., 3)."""
        return self.weights.features(context)

    def fuse(self, z: Tensor, unknown: Tensor, context: Tensor) -> Tensor:
        """(n, S, C) and (n, S, C) bool, with contexts (n, 3), to fused scores (n, C)."""
        return self.weights.fuse(z, unknown, context)

    def fit(self, seen: CandidateScores, *, penalty: float = PENALTY, top: float = 0.4, iterations: int = 40) -> None:
        """See :meth:`ContextWeights.fit`."""
        self.weights.fit(seen, penalty=penalty, top=top, iterations=iterations)

    def take_weights(self, other: Blend) -> None:
        """The weights of another blend, whose methods have the same names.

        Raises:
            ValueError: if they have not.
        """
        if list(self.methods) != list(other.methods):
            raise ValueError(f"Blend: expected the methods {list(self.methods)}, got {list(other.methods)}")
        self.weights.load_state_dict(other.weights.state_dict())
        self.weights.until = other.weights.until


def observe(
    methods: Mapping[str, Method], warm: Tensor, episodes: Iterable[EpisodeBatch], *, exclude_seen: bool = True
) -> CandidateScores:
    """Deprecated: :func:`~metarec.recipes.candidates.candidate_scores`."""
    _warn("blend.observe", "candidates.candidate_scores")
    return candidate_scores(methods, warm, episodes, exclude_seen=exclude_seen)


def paying_steps(model: MML, users: Dataset, *, clicks: int = 5) -> dict[str, int]:
    """Deprecated: :func:`~metarec.recipes.select_inner_steps`."""
    _warn("paying_steps", "select_inner_steps")
    return select_inner_steps(model, users, clicks=clicks)


def with_steps(model: MML, steps: int | Mapping[str, int]) -> MML:
    """Deprecated: :func:`~metarec.recipes.with_inner_steps`."""
    _warn("with_steps", "with_inner_steps")
    return with_inner_steps(model, steps)


def _warn(old: str, new: str) -> None:
    warnings.warn(
        f"metarec.recipes.{old} is now metarec.recipes.{new}; the old name goes with the next release",
        DeprecationWarning,
        stacklevel=3,
    )
