"""Sample users as meta-learning tasks: support and query sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.data.dataset import Dataset, Ints
from metarec.data.examples import build_examples, check_sampling_weights
from metarec.data.kinds import EventWindows
from metarec.data.negatives import NegativeSampler
from metarec.data.prefetch import prefetched
from metarec.data.support import SupportMaker, copied, sent
from metarec.data.weights import Weights
from metarec.types import EpisodeBatch

Part = Literal["train", "validation", "test", "serving"]
LEAST_CLICKS: Mapping[str, int] = MappingProxyType({"train": 3, "validation": 4, "test": 4, "serving": 2})


@dataclass(frozen=True, eq=False)
class EpisodeSampler:
    """Turns the clicks x_0..x_{n-1} of each user into one episode; a function of (seed, epoch) alone.

    ========== ============================ ======================================================
    part       support targets              query
    ========== ============================ ======================================================
    train      x_1..x_{n-1-q}               the last q clicks, read from history x_0..x_{n-2}
    validation x_1..x_{n-3}                 x_{n-2}, read from history x_0..x_{n-3}
    test       x_1..x_{n-3}                 x_{n-1}, read from history x_0..x_{n-2}
    serving    x_1..x_{n-2}                 x_{n-1}, read from history x_0..x_{n-2}
    ========== ============================ ======================================================

    Of a user with more than ``max_length + 1`` clicks, train takes a random window of ``max_length + 1``
    consecutive clicks each epoch; the other parts take the last ones. Part test keeps x_{n-2} out of the support,
    so that it can choose settings; serving adapts to all that is known, even a single click (no support at all), with
    the negatives that a :class:`metarec.Recommender` draws for the same clicks.

    Where the data have events of other kinds, examples carry the last ``max_length`` events of all kinds, too, and
    train takes a random window of so many of them.

    Args:
        data: the clicks; negatives are drawn from its warm items, so that cold items are never pushed down.
        seed: with the epoch, the only source of randomness.
        users_per_batch: B of every batch but the last.
        part: what is query and what is support, see the table.
        queries: q of part train: a number of clicks, or a share (0 < share < 1) of the window's clicks,
            rounded, at least 1; always cut down to n-2, so that one support example is left.
        negatives: N, items per example that are not its target.
        negative_sampling: ``"uniform"`` over the warm items, or ``"popularity"``: in proportion to their
            clicks in ``data``.
        max_length: most items of a history, at least 3, or 1 for part serving.
        only: codes of the users to sample; None for all. See :meth:`for_users`.

    Raises:
        ValueError: if a setting is out of range, if negatives are asked for and fewer than 2 warm items can
            be drawn, or if every user has too few clicks.

    Example:
        >>> from metarec.datasets.planted import planted
        >>> sampler = EpisodeSampler(planted(users=30, items=40), users_per_batch=16, negatives=2)
        >>> len(sampler), sampler.users, dict(sampler.refused)
        (2, 30, {'users with fewer than 3 clicks': 0})
        >>> batch = next(sampler.epoch(0))
        >>> len(batch), batch.query.target.shape, batch.query.negatives.shape
        (16, torch.Size([16, 1]), torch.Size([16, 1, 2]))
    """

    data: Dataset
    _: KW_ONLY
    seed: int = 0
    users_per_batch: int = 256
    part: Part = "train"
    queries: int | float = 1
    negatives: int = 1
    negative_sampling: Literal["uniform", "popularity"] = "uniform"
    max_length: int = 50
    only: Ints | None = None

    def __post_init__(self) -> None:
        shortest = 1 if self.part == "serving" else 3
        for name, least in (("seed", 0), ("users_per_batch", 1), ("negatives", 0), ("max_length", shortest)):
            if getattr(self, name) < least:
                raise ValueError(f"EpisodeSampler: {name} must be at least {least}, got {getattr(self, name)}")
        if self.part not in LEAST_CLICKS:
            raise ValueError(f"EpisodeSampler: part must be one of {list(LEAST_CLICKS)}, got {self.part!r}")
        if self.negative_sampling not in ("uniform", "popularity"):
            raise ValueError(
                f"EpisodeSampler: negative_sampling must be 'uniform' or 'popularity', got {self.negative_sampling!r}"
            )
        if self.queries < 1 if isinstance(self.queries, int) else not 0 < self.queries < 1:
            raise ValueError(
                f"EpisodeSampler: queries must be an int of at least 1 or a share between 0 and 1, got {self.queries!r}"
            )
        if self.only is not None:
            _check_known(self.only, self.data.user_codes, self.data.name)
        self._check_users()
        if self.negatives:
            check_sampling_weights(self._weights, self.data.name)

    def __len__(self) -> int:
        """Batches of one epoch."""
        return -(-self.users // self.users_per_batch)

    @property
    def users(self) -> int:
        """Users that are sampled, each once an epoch."""
        return len(self._rows)

    @cached_property
    def user_codes(self) -> Ints:
        """(users,) codes of the users that are sampled, ascending."""
        return self.data.user_codes[self._rows]

    @property
    def refused(self) -> Mapping[str, int]:
        """How many users have too few clicks for this part, under the reason."""
        reason = f"users with fewer than {LEAST_CLICKS[self.part]} clicks"
        return MappingProxyType({reason: int(self._asked.sum()) - self.users})

    def with_part(self, part: Part) -> Self:
        """The same sampler for another part."""
        return replace(self, part=part)

    def for_users(self, codes: Sequence[int] | Ints) -> Self:
        """The same sampler for some of its users; negatives are drawn as before.

        Raises:
            ValueError: if a code is no user of this sampler.
        """
        only = np.unique(np.asarray(codes, dtype=np.int64))
        _check_known(only, self.data.user_codes[self._asked], self.data.name)
        return replace(self, only=only)

    def epoch(self, epoch: int, own: slice = slice(None)) -> Iterator[EpisodeBatch]:
        """The batches of one epoch, the same however often and in whatever order epochs are asked for.

        Train shuffles the users; validation and test keep the order of their codes. Inside a batch the users
        with the longest histories come first, so that :meth:`EpisodeBatch.chunks` trims well.

        Args:
            epoch: from 0.
            own: the users wanted of each batch, e.g. every second one; they are as in the whole batch.

        Raises:
            ValueError: if ``epoch`` is negative.
        """
        if epoch < 0:
            raise ValueError(f"EpisodeSampler: epoch must be at least 0, got {epoch}")
        return (self._with_negatives(batch, epoch, self._draw) for batch in self._batches(epoch, own))

    def prefetch(
        self, epoch: int, own: slice = slice(None), device: torch.device | str = "cpu"
    ) -> Iterator[EpisodeBatch]:
        """The same batches on a device, made ahead by a thread; their negatives are drawn there.

        Args:
            epoch: from 0.
            own: the users wanted of each batch.
            device: where to; copies to a GPU come from pinned memory and do not block.
        """
        device = torch.device(device)
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        return prefetched(self._sent(epoch, own, device, stream))

    def _sent(
        self, epoch: int, own: slice, device: torch.device, stream: torch.cuda.Stream | None
    ) -> Iterator[EpisodeBatch]:
        """The batches on a device, in the order of what else runs on a GPU's stream; another thread may ask."""
        draw = self._draw.to(device)
        for batch in self._batches(epoch, own):
            with torch.cuda.stream(stream):
                there = EpisodeBatch(copied(batch.user, device), sent(batch.support, device), sent(batch.query, device))
                ready = self._with_negatives(there, epoch, draw)
            yield ready

    def _with_negatives(self, batch: EpisodeBatch, epoch: int, draw: NegativeSampler) -> EpisodeBatch:
        support, query = batch.support, draw(batch.query, batch.user, epoch)
        return EpisodeBatch(batch.user, support if self._served else draw(support, batch.user, epoch), query)

    def _batches(self, epoch: int, own: slice) -> Iterator[EpisodeBatch]:
        """The batches without negatives, but for those of users who are served."""
        rng = np.random.default_rng([self.seed, epoch])
        rows, train = self._rows, self.part == "train"
        count = np.minimum(self._clicks[rows], self.max_length + 1)
        spare = self._clicks[rows] - count
        start = self.data.offsets[rows] + (rng.integers(0, spare + 1) if train else spare)
        if train and self._windows is not None:
            start, count = self._windows.drawn(self.data.offsets[rows], self._clicks[rows], rng)
        order = rng.permutation(len(rows)) if train else np.arange(len(rows))
        for at in range(0, len(rows), self.users_per_batch):
            users = order[at : at + self.users_per_batch]
            users = users[np.argsort(-count[users], kind="stable")]
            n = count[users]
            known, first, last = self._spans(n)
            cuts = ((np.zeros_like(n), known), (first, last))
            support, query = (
                build_examples(
                    self.data.item,
                    start[users],
                    a,
                    b,
                    time=self.data.time,
                    second=self.data.second,
                    weight=self._click_weights if train else None,
                    own=own,
                )
                for a, b in cuts
            )
            if self._windows is not None:
                begins = start[users][own]
                window = self._windows.starts(begins + last[own])
                spans = ((support, known), (query, last))
                support, query = (self._windows.beside(e, begins, to[own], window) for e, to in spans)
            if self._served:
                support = self._maker.with_negatives(support)
            codes = torch.from_numpy(self.user_codes[users[own]])
            if self.data.profiles is not None:
                query = replace(query, profile=self.data.profiles.features[codes])
            yield EpisodeBatch(codes, support, query)

    def _spans(self, n: Ints) -> tuple[Ints, Ints, Ints]:
        """Of users with n clicks: support positions 0..known-1, query positions first..last-1."""
        if self.part == "train":
            share = np.full_like(n, self.queries) if isinstance(self.queries, int) else np.rint(n * self.queries)
            q = np.clip(share.astype(np.int64), 1, n - 2)
            return n - q - 1, n - q - 1, n - 1
        last = n - 2 if self.part == "validation" else n - 1
        return n - 2 if self.part == "serving" else n - 3, last - 1, last

    @cached_property
    def _click_weights(self) -> Weights | None:
        """(n,) what clicks weigh beside their user's others: 1 on average over each user's."""
        weight, counts = self.data.weight, np.diff(self.data.offsets)
        if weight is None:
            return None
        return weight / np.repeat(np.add.reduceat(weight, self.data.offsets[:-1]) / counts, counts)

    @cached_property
    def _clicks(self) -> Ints:
        """(u,) clicks of each user of ``data.user_codes``."""
        return np.diff(self.data.offsets)

    @cached_property
    def _asked(self) -> NDArray[np.bool_]:
        """(u,) users of ``data.user_codes`` that may be sampled if they have enough clicks."""
        codes = self.data.user_codes
        return np.ones(len(codes), dtype=np.bool_) if self.only is None else np.isin(codes, self.only)

    @cached_property
    def _rows(self) -> Ints:
        """(users,) rows of ``data.user_codes`` that are sampled."""
        return np.flatnonzero(self._asked & (self._clicks >= LEAST_CLICKS[self.part]))

    @cached_property
    def _windows(self) -> EventWindows | None:
        """The events of all kinds, if there are others than the clicks."""
        data = self.data
        if data.others is None:
            return None
        return EventWindows(data.user, data.item, data.time, data.others, self.max_length)

    @cached_property
    def _maker(self) -> SupportMaker:
        """Makes the support of users who are served."""
        return SupportMaker(self.data.warm, self.negatives, self.max_length)

    @cached_property
    def _weights(self) -> Ints:
        """(I,) sampling weights of the negatives."""
        warm = self.data.warm.astype(np.int64)
        if self.negative_sampling == "uniform":
            return warm
        return warm * np.bincount(self.data.item, minlength=len(warm))

    @property
    def _served(self) -> bool:
        """Whether support has the negatives that are drawn for users who are served."""
        return self.part == "serving" and self.negative_sampling == "uniform"

    @cached_property
    def _draw(self) -> NegativeSampler:
        """Draws the other negatives."""
        return NegativeSampler(self._weights, self.negatives, self.seed, self.data.users.checksums)

    def _check_users(self) -> None:
        if not self.users:
            (reason, count), have = next(iter(self.refused.items())), self._clicks[self._asked]
            raise ValueError(
                f"{self.data.name}: no user can be sampled for part {self.part!r}: {count} of {len(have)} users are "
                f"{reason} (the longest has {have.max(initial=0)}); give users with at least "
                f"{LEAST_CLICKS[self.part]} clicks"
            )


def _check_known(codes: Ints, known: Ints, name: str) -> None:
    strange = codes[~np.isin(codes, known)]
    if len(strange):
        raise ValueError(
            f"{name}: {len(strange)} user codes are no users of this sampler, the first is {strange[0]}; "
            "take them from user_codes"
        )
