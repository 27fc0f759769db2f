"""The values that pass between the packages.

Letters used in every docstring: B users, S support examples, Q query examples, L history length,
N negatives, I catalogue rows (row 0 is padding), C candidates, M modalities, D width, F feature columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from metarec.examples import Examples
from metarec.renamed import with_former_names

__all__ = ["EpisodeBatch", "Examples", "Method", "Modality", "Progress", "Scored", "Scorer"]


@dataclass(frozen=True)
class Modality:
    """Feature vectors of the catalogue's items under one modality.

    Attributes:
        name: e.g. ``"text"``.
        features: (I, F) numbers, kept as float32; row = item code, row 0 and items without features are zero.
        present: (I,) bool, False for padding and for items without features.

    Raises:
        ValueError: if shapes disagree or a feature is not finite.
    """

    name: str
    features: Tensor
    present: Tensor

    @classmethod
    def extended(cls, name: str, present: Tensor, last: Tensor, whole: Callable[[], Tensor]) -> Self:
        """One whose features are put together when they are first asked for; only the last ones are at hand.

        Args:
            name: of the modality.
            present: (I,) bool.
            last: (m, F) finite features of the last m items.
            whole: gives (I, F), the same ones last.

        Example:
            >>> longer = Modality.extended("text", torch.ones(3) > 0, torch.ones(1, 2), lambda: torch.ones(3, 2))
            >>> longer.dim, longer.rows_from(2).tolist(), longer.features.shape
            (2, [[1.0, 1.0]], torch.Size([3, 2]))
        """
        out = cls.__new__(cls)
        vars(out).update(name=name, present=present, _last=last, _whole=whole)
        return out

    def __getattr__(self, name: str) -> Any:
        if name != "features" or "_whole" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return vars(self).setdefault("features", vars(self)["_whole"]())

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "features": self.features, "present": self.present}

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.present.shape != self.features.shape[:1]:
            raise ValueError(
                f"modality {self.name!r}: expected features (I,F) and present (I,), got "
                f"{tuple(self.features.shape)} and {tuple(self.present.shape)}"
            )
        object.__setattr__(self, "features", self.features.to(torch.float32))
        if not bool(torch.isfinite(self.features).all()):
            row, column = (int(i) for i in (~torch.isfinite(self.features)).nonzero()[0])
            raise ValueError(f"modality {self.name!r}: feature of item code {row}, column {column} is not finite")

    @property
    def dim(self) -> int:
        """F, the number of feature columns."""
        own: Tensor | None = vars(self).get("_last")
        return (self.features if own is None else own).shape[1]

    def rows_from(self, first: int) -> Tensor:
        """(I - first, F) features of the last items."""
        own: Tensor | None = vars(self).get("_last")
        if own is None or len(self.present) - len(own) > first:
            return self.features[first:]
        skipped = first - len(self.present) + len(own)
        return own[skipped:] if skipped else own

    def followed_by(self, more: Modality | None, items: int) -> Modality:
        """The same with further items' rows; absent ones where ``more`` is None. Its padding row is left out.

        The features that are there are not copied before somebody asks for all of them.
        """
        old: tuple[Tensor, Tensor] | None = vars(self).get("_parts")
        first, last = (self.features, self.features[:0]) if old is None else old
        features, present = last.new_zeros(items, self.dim), self.present.new_zeros(items)
        if more is not None:
            features, present = more.features[1:].to(features), more.present[1:].to(present)
        last = torch.cat([last, features])
        out = self.extended(
            self.name, torch.cat([self.present, present]), last, lambda: torch.cat([first, last.to(first)])
        )
        vars(out)["_parts"] = first, last
        return out


@dataclass(frozen=True)
class EpisodeBatch:
    """B users as tasks: what each learns from (support) and what it is judged on (query).

    Attributes:
        user: (B,) int64 user codes.
        support: the examples that the inner loop adapts to.
        query: the later examples that measure the adapted weights.

    Raises:
        ValueError: if the three do not hold the same number of users.

    Example:
        >>> e = Examples(torch.tensor([[3], [5]]), torch.tensor([[0], [0]]), torch.tensor([[1], [2]]),
        ...              torch.tensor([[[2]], [[4]]]), torch.ones(2, 1))
        >>> batch = EpisodeBatch(torch.tensor([7, 8]), support=e, query=e)
        >>> len(batch), [part.user.tolist() for part in batch.chunks(1)]
        (2, [[7], [8]])
    """

    user: Tensor
    support: Examples
    query: Examples

    def __post_init__(self) -> None:
        if not len(self.user) == len(self.support) == len(self.query):
            got = f"{len(self.user)}, {len(self.support)} and {len(self.query)}"
            raise ValueError(f"EpisodeBatch: user, support and query must hold the same users, got {got}")

    def __len__(self) -> int:
        return len(self.user)

    def to(self, device: torch.device | str) -> Self:
        """The same episodes on another device."""
        return type(self)(self.user.to(device), self.support.to(device), self.query.to(device))

    def chunks(self, *users: int) -> Iterator[EpisodeBatch]:
        """The batch in pieces, each trimmed to its own longest history.

        Args:
            users: the size of each piece in turn; the last size goes on to the end of the batch.

        Raises:
            ValueError: if no size is given or one is less than 1.
        """
        if not users or min(users) < 1:
            raise ValueError(f"chunks: sizes must be at least 1, got {users}")
        start = 0
        for size in chain(users, repeat(users[-1])):
            if start >= len(self):
                return
            part = slice(start, start + size)
            yield EpisodeBatch(self.user[part], self.support[part].trim(), self.query[part].trim())
            start += size


@with_former_names(known="item_mask", active="has_known_history")
@dataclass(frozen=True)
class Scored:
    """Scores of the whole catalogue for some examples, with the user states behind them.

    Attributes:
        scores: (..., Q, C), one score per candidate; over the whole catalogue C = I and column = item code.
        state: (..., Q, D), the encoder's state from which the scores were made.
        item_mask: (C,) bool, candidates that the learner's modality has something to say about.
        has_known_history: (..., Q) bool, examples with at least one history item that the modality knows.
        fitted: candidates that scores are measured by, the first so many: those that training knew. None for all.

    Example:
        >>> scored = Scored(torch.tensor([[0.0, 2.0, 1.0]]), torch.zeros(1, 4), torch.arange(3) > 0, torch.ones(1) > 0)
        >>> scored.scores.masked_fill(~scored.item_mask, -torch.inf).argmax(-1)
        tensor([1])
    """

    scores: Tensor
    state: Tensor
    item_mask: Tensor
    has_known_history: Tensor
    fitted: int | None = None


@dataclass(frozen=True)
class Progress:
    """One step of training, as the training generators report it.

    Attributes:
        stage: what is being trained, e.g. ``"text"`` or ``"fusion"``.
        epoch: the epoch, from 1.
        epochs: how many epochs the stage has.
        users: users done in this epoch.
        total_users: users in one epoch.
        loss: mean loss per user of this step.
        users_per_second: speed of this epoch so far.
        metrics: what a validation after this step gave, by name; empty where there was none.

    Example:
        >>> step = Progress("text", epoch=1, epochs=2, users=64, total_users=64, loss=0.6931, users_per_second=180.2)
        >>> print(step, step.epoch_done)
        text epoch 1/2 user 64/64 loss 0.6931 180 users/s True
    """

    stage: str
    epoch: int
    epochs: int
    users: int
    total_users: int
    loss: float
    users_per_second: float
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def epoch_done(self) -> bool:
        """Whether this step was the last of its epoch."""
        return self.users >= self.total_users

    def __str__(self) -> str:
        found = "".join(f" {name} {value:.4f}" for name, value in self.metrics.items())
        done = f"{self.stage} epoch {self.epoch}/{self.epochs} user {self.users}/{self.total_users}"
        return f"{done} loss {self.loss:.4f} {self.users_per_second:.0f} users/s{found}"


Scorer = Callable[[Examples], Scored]
"""Adapted weights of some users: score the whole catalogue for each example."""


@runtime_checkable
class Method(Protocol):
    """Anything that can be evaluated or served: adapts to users' support and returns what scores them.

    Example:
        >>> from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
        >>> isinstance(ModalityLearner(IdItems(size=6, dim=8), SequenceEncoder(dim=8)), Method)
        True
    """

    def adapt(self, support: Examples) -> Scorer:
        """Adapt to B users at once; the method itself is left as it was.

        Evaluation and serving call this under ``torch.no_grad()``: enable gradients where they are needed.
        """
