"""How models learn on from new clicks: the settings, and what continues the training of learners of each class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class Learning:
    """How a model learns on from new clicks: one more training on them and on a replay of the clicks before.

    Without a replay of earlier examples, a network forgets them (Ratcliff, Connectionist Models of Recognition Memory,
    1990; for recommenders, Mi et al., ADER, RecSys 2020).

    Attributes:
        replay: days of earlier clicks that are trained on again with the new ones.
        epochs: over the users who clicked within them.
        lr: learning rate of Adam; the learners of an MML have those of its settings.
        users_per_batch: B.
        seed: of batches and dropout.
        keep_optimizer: keep Adam's moments in the model, and in its file, and go on with them. Takes twice the memory
            of the weights.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> Learning(replay=7).replay, Learning().epochs
        (7, 1)
    """

    replay: float = 14
    epochs: int = 1
    lr: float = 1e-3
    users_per_batch: int = 128
    seed: int = 0
    keep_optimizer: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.replay < float("inf") or not 0 < self.lr < float("inf"):
            raise ValueError(
                f"Learning: expected replay of at least 0 days and lr above 0, got {self.replay}, {self.lr}"
            )
        if self.epochs < 1 or self.users_per_batch < 1 or self.seed < 0:
            raise ValueError(
                "Learning: expected epochs and users_per_batch of at least 1 and a seed of at least 0, got "
                f"{self.epochs}, {self.users_per_batch} and {self.seed}"
            )


_CONTINUES: dict[type, Callable[..., Any]] = {}


def add_learning(kind: type, continues: Callable[..., Any]) -> None:
    """Register what continues the training of models of a class, and of its subclasses."""
    _CONTINUES[kind] = continues


def learning_of(kind: type) -> Callable[..., Any] | None:
    """What continues the training of models of a class, called with (model, clicks, before, how); None if they count.

    Example:
        >>> learning_of(int) is None
        True
    """
    return next((_CONTINUES[base] for base in kind.__mro__ if base in _CONTINUES), None)
