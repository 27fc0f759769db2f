"""How models learn on from new clicks: the settings, and what continues the training of learners of each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

DAY = 86_400.0  # seconds
PER_DAY, PER_ITEM = 200, 10  # clicks of one user in a day that count, and of those on one item
JUMP = 30  # days; clicks of a few clocks that are so far ahead of all others are left out


@dataclass(frozen=True)
class Learning:
    """How a model learns on from new clicks: one more training on them and on a replay of the clicks before.

    Without a replay of earlier examples, a network forgets them (Ratcliff, Connectionist Models of Recognition Memory,
    1990; for recommenders, Mi et al., ADER, RecSys 2020).

    Attributes:
        replay: days of earlier clicks that are trained on again with the new ones.
        replay_users: where fewer users clicked within these days, the replay reaches back to so many; where more did,
            as many are drawn as clicked something new, and at least so many. A step on a few users alone would move all
            weights by their noise.
        epochs: over the users who clicked within them.
        lr: learning rate of Adam; the learners of an MML have those of its settings.
        users_per_batch: B.
        seed: of batches and dropout.
        keep_optimizer: keep Adam's moments in the model, and in its file, and go on with them. Takes twice the memory
            of the weights.
        held_out: last clicks, one of every tenth user, that are not trained on but decide whether the new weights are
            taken; at most so many, and none where there are fewer than 20. 0 takes all that is finite.
        per_day: clicks of one user within a day that count; those beyond, as of a robot, are left out.
        per_item: of those, clicks on one item that count.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> Learning(replay=7).replay, Learning().epochs
        (7, 1)
    """

    replay: float = 14
    replay_users: int = 512
    epochs: int = 1
    lr: float = 1e-3
    users_per_batch: int = 128
    seed: int = 0
    keep_optimizer: bool = False
    held_out: int = 256
    per_day: int = PER_DAY
    per_item: int = PER_ITEM

    def __post_init__(self) -> None:
        if not 0 <= self.replay < float("inf") or not 0 < self.lr < float("inf"):
            raise ValueError(
                f"Learning: expected replay of at least 0 days and lr above 0, got {self.replay}, {self.lr}"
            )
        for name, least in {
            "replay_users": 0,
            "epochs": 1,
            "users_per_batch": 1,
            "seed": 0,
            "held_out": 0,
            "per_day": 1,
            "per_item": 1,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"Learning: expected {name} of at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Learned:
    """What came of learning on; a model that has learned on has it as ``learned``.

    Attributes:
        taken: whether the weights are the new ones; models without weights only count, and take all.
        why: why they are not.
        held_out: clicks that decided on it.
        before: what the old weights were worth on them, the mean of 1 / log2(1 + rank); NaN where nothing decided.
        after: the same of the new weights.
        dropped: clicks that were left out, by what is wrong with them.

    Example:
        >>> Learned().taken, Learned(taken=False, why="loss nan").why
        (True, 'loss nan')
    """

    taken: bool = True
    why: str = ""
    held_out: int = 0
    before: float = float("nan")
    after: float = float("nan")
    dropped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def to_dict(self) -> dict[str, Any]:
        """All as plain data, None for what is no number."""
        said = {"taken": self.taken, "why": self.why, "held_out": self.held_out, "dropped": dict(self.dropped)}
        values = {"before": self.before, "after": self.after}
        return said | {name: None if value != value else value for name, value in values.items()}


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
