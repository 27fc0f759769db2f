"""The interface of a learner, and the adapted weights of users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metarec.meta.engine import Engine
from metarec.nn.former import FormerNames
from metarec.types import Examples, Scored

OBJECTIVES = ("bpr", "sampled_softmax", "softmax")  # of a learner that does not say otherwise


class Learner(Protocol):
    """A model that MAML can train: losses and scores of examples, and a view of itself as one user's task."""

    def loss(self, examples: Examples, objective: Any) -> Tensor:
        """Mean loss of each user's examples."""
        ...

    def score(self, examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
        """Score the catalogue: scores, user states, and whether the history has a known item."""
        ...

    def encode_queries(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Encode the history up to each query: user states, and whether it has a known item."""
        ...

    def task_view(self, adapts: Any) -> nn.Module:
        """The learner as one user's task: its parameters are what adapts."""
        ...


class Adapted(FormerNames):
    """Adapted weights of B users, as values: calling it scores those users' examples.

    Attributes:
        stacks: the users' weights, one engine for each chunk that was adapted at once.
    """

    def __init__(self, stacks: Sequence[Engine], known: Tensor, fitted: int | None = None) -> None:
        self.stacks = tuple(stacks)
        self.known, self.fitted = known, fitted

    def __len__(self) -> int:
        return sum(stack.users for stack in self.stacks)

    def __call__(self, examples: Examples) -> Scored:
        """Scores of the whole catalogue for each of the B users' examples.

        Raises:
            ValueError: if the examples are not of the B users that were adapted.
        """
        scores, state, active = self.score(examples)
        return Scored(scores, state, self.known, active, self.fitted)

    def score(self, examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
        """Score the catalogue: scores (B, Q, I), user states (B, Q, D), has a known history (B, Q)."""
        scores, state, active = (torch.cat(parts) for parts in zip(*self._each("score", examples), strict=True))
        return scores, state, active

    def encode_queries(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Encode the history up to each query: user states (B, Q, D), has a known history (B, Q)."""
        state, active = (torch.cat(parts) for parts in zip(*self._each("encode_queries", examples), strict=True))
        return state, active

    def loss(self, examples: Examples, objective: str = "bpr") -> Tensor:
        """Each user's loss on its examples, (B,)."""
        return torch.cat(self._each("loss", examples, objective))

    def _each(self, method: str, examples: Examples, *args: Any) -> list[Any]:
        if len(examples) != len(self):
            raise ValueError(f"adapted to {len(self)} users, but got the examples of {len(examples)}")
        if len(self.stacks) == 1:
            return [self.stacks[0](method, examples, *args)]  # trimming synchronises with the GPU
        out, start = [], 0
        for stack in self.stacks:
            out.append(stack(method, examples[start : start + stack.users].trim_history(), *args))
            start += stack.users
        return out

    def weights(self) -> dict[str, Tensor]:
        """Adapted weights by name, (B, ...); touched rows are padded to the widest user.

        Only for users adapted in one chunk or without touched rows, where the shapes agree.
        """
        parts = [stack.weights() for stack in self.stacks]
        return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def check_objectives(learner: Learner, objectives: Sequence[str]) -> None:
    """Check that a learner has a loss by each of the names.

    Args:
        learner: has an attribute ``objectives`` if its losses have other names than ``OBJECTIVES``.
        objectives: inner and outer.

    Raises:
        ValueError: if they are not two, or one is not among the learner's.
    """
    known = tuple(getattr(learner, "objectives", OBJECTIVES))
    if isinstance(objectives, str) or len(objectives) != 2 or not set(objectives) <= set(known):
        raise ValueError(
            f"objectives must be two, the inner and the outer loss, each one of {list(known)}, got {objectives!r}; a "
            f"learner whose loss() takes other names says so: give {type(learner).__name__} an attribute objectives"
        )
