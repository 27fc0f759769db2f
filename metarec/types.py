"""The values that pass between the packages.

Letters used in every docstring: B users, S support examples, Q query examples, L history length,
N negatives, I catalogue rows (row 0 is padding), C candidates, M modalities, D width, F feature columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import chain, repeat
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from metarec.renamed import with_former_names


@dataclass(frozen=True)
class Examples:
    """Next-item examples of B users, all cut from one sequence per user.

    Example ``s`` of a user reads ``history[: position[s] + 1]`` and predicts ``target[s]``. A causal encoder
    therefore serves all S examples from a single pass over the history; no prefix is stored twice.

    Attributes:
        history: (B, L) int64 item codes in time order, padded on the right with 0.
        position: (B, S) int64, index of the last history item that example s may read.
        target: (B, S) int64, the item that came next (0 where the example is padding).
        negatives: (B, S, N) int64 items that are not the target.
        weight: (B, S) float, 1 for an example and 0 for padding.
        time: (B, S) when the target was clicked, in the units of the data; None where it is not known. Scorers of
            what is popular at the moment read it; learners do not.
        gap: (B, S) how many seconds before that the user clicked last, in the units of the data where nothing says how
            long a second is; None where it is not known.
        profile: (B, P) what is known of each user, 0 where nothing is; None where nothing is of anybody.

    Raises:
        ValueError: if the shapes do not belong together.

    Example:
        >>> e = Examples(torch.tensor([[3, 1, 0]]), torch.tensor([[0]]), torch.tensor([[1]]),
        ...              torch.tensor([[[2]]]), torch.ones(1, 1))
        >>> len(e), e.trim().history.tolist()
        (1, [[3]])
    """

    history: Tensor
    position: Tensor
    target: Tensor
    negatives: Tensor
    weight: Tensor
    time: Tensor | None = None
    gap: Tensor | None = None
    profile: Tensor | None = None

    def __post_init__(self) -> None:
        users, shape = self.history.shape[:-1], self.position.shape
        ok = (
            shape[:-1] == users
            and all(tensor.shape == shape for tensor in self._clock().values())
            and self.target.shape == shape
            and self.weight.shape == shape
            and self.negatives.shape[:-1] == shape
            and (self.profile is None or self.profile.shape[:-1] == users)
        )
        if not ok:
            given = {f.name: getattr(self, f.name) for f in fields(self)}
            got = {name: tuple(tensor.shape) for name, tensor in given.items() if tensor is not None}
            want = "expected history (B,L), position, target, weight, time, gap (B,S), negatives (B,S,N), profile (B,P)"
            raise ValueError(f"Examples: {want}, got {got}")

    def __len__(self) -> int:
        return self.history.shape[0]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The five tensors that a learner reads, in the order of the constructor."""
        return self.history, self.position, self.target, self.negatives, self.weight

    def _clock(self) -> dict[str, Tensor]:
        """What is known of time and gap."""
        return {name: tensor for name, tensor in (("time", self.time), ("gap", self.gap)) if tensor is not None}

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed."""
        known = self._clock() | ({} if self.profile is None else {"profile": self.profile})
        return type(self)(*map(change, self.tensors()), **{name: change(t) for name, t in known.items()})

    def to(self, device: torch.device | str) -> Self:
        """The same examples on another device."""
        return self.each(lambda tensor: tensor.to(device))

    def __getitem__(self, users: slice | Tensor) -> Self:
        """The examples of some users, in the order asked for."""
        return self.each(lambda tensor: tensor[users])

    def trim(self) -> Self:
        """The same examples without the trailing columns that only pad."""
        real = (self.weight > 0).any(0)
        examples = int(real.nonzero().max()) + 1 if real.any() else 1
        return replace(
            self,
            position=self.position[:, :examples],
            target=self.target[:, :examples],
            negatives=self.negatives[:, :examples],
            weight=self.weight[:, :examples],
            **{name: tensor[:, :examples] for name, tensor in self._clock().items()},
        ).trim_history()

    def trim_history(self) -> Self:
        """The same examples without the trailing columns of the history that no example reads."""
        read = self.position[self.weight > 0]
        length = int(read.max()) + 1 if read.numel() else 1
        return replace(self, history=self.history[:, :length], position=self.position.clamp(max=length - 1))


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
        return self.features.shape[1]

    def followed_by(self, more: Modality | None, items: int) -> Modality:
        """The same with further items' rows; absent ones where ``more`` is None. Its padding row is left out."""
        features, present = self.features.new_zeros(items, self.dim), self.present.new_zeros(items)
        if more is not None:
            features, present = more.features[1:].to(features), more.present[1:].to(present)
        return Modality(self.name, torch.cat([self.features, features]), torch.cat([self.present, present]))


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
