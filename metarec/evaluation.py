"""The cold-user protocol: adapt to each user's first clicks, rank the whole catalogue, report."""

from __future__ import annotations

import copy
import importlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from metarec.data.cutting import without_last
from metarec.data.dataset import Dataset
from metarec.data.sampler import LEAST_CLICKS, EpisodeSampler
from metarec.functional.histories import seen_items
from metarec.functional.ranking import ranks
from metarec.meta import MetaLearner
from metarec.report import Report
from metarec.types import EpisodeBatch, Method

STEPS = (0, 1, 2, 5, 10, 20, 50)
INFORMATION = ("upstream", "live", "later")


def evaluate(
    method: Method,
    data: Dataset,
    *,
    k: Sequence[int] = (5, 10, 20),
    part: Literal["validation", "test", "serving"] = "test",
    positions: int = 1,
    exclude_seen: bool = False,
    users_per_batch: int = 512,
    seed: int = 0,
    max_length: int = 50,
    negatives: int = 1,
    progress: bool | str = False,
) -> Report:
    """Adapt to every user of a data set and rank the item that came next among all items.

    Many users at a time. Items that a method does not know come after those that it knows. A method that is an
    ``nn.Module`` runs on its own device and in evaluation mode, and is left in the mode it was in.

    Every figure belongs to what its method could know, which the method declares as ``information``:
    ``"upstream"`` (the default), nothing after the split but the user's own clicks; ``"live"``, everything strictly
    before the click that is asked for; ``"later"``, other cold users' later clicks too, which no one could know in
    time. A method that has been fitted on something says until when as ``fitted_until``, in the units of the data.

    Args:
        method: what to evaluate.
        data: the downstream side of a split.
        k: list lengths for recall, MRR and NDCG.
        part: ``"test"`` ranks each user's last item, ``"validation"`` the one before it, and ``"serving"`` the last
            one again, but adapts to all clicks before it. With it, ``max_length=K`` cuts every history to K clicks.
        positions: rank so many items of each user, from the last one back; each time everything after the item is
            taken away, and users with too few clicks left drop out.
        exclude_seen: leave the items of the query's history out of the ranking (never the target itself). Off by
            default, as in the released MML code; on data without repeats it should be on.
        users_per_batch: users adapted to at a time.
        seed: of the negatives that the support examples carry.
        max_length: items of history kept per user.
        negatives: N of the support examples that the method adapts to.
        progress: show a bar (needs tqdm); a string is its label.

    Returns:
        The report, users in ascending order of their codes.

    Raises:
        ValueError: if a score is not finite (naming method and data), if the scores do not cover the catalogue, if
            ``data`` has no user with enough interactions, or if the method was fitted on clicks of the time of the
            cold users and does not declare ``"later"``.

    Example:
        >>> from metarec.data.dataset import Catalog, Vocabulary
        >>> from metarec.recipes.popularity import Popularity
        >>> users, items = Vocabulary(["u", "v"], "user"), Catalog(Vocabulary(["a", "b", "c"]))
        >>> warm, time = np.array([False, True, True, False]), np.arange(4)
        >>> up = Dataset(users, items, np.array([1, 1, 1, 1]), np.array([2, 1, 2, 1]), time, warm)
        >>> down = Dataset(users, items, np.array([2, 2, 2, 2]), np.array([1, 2, 1, 3]), time + 4, warm)
        >>> evaluate(Popularity(up), down).rank
        array([3.])
    """
    if positions < 1:
        raise ValueError(f"evaluate: positions must be at least 1, got {positions}")
    information = check_information(method, data)
    rows, refused = [], dict[str, int]()
    for position in range(positions):
        rest = without_last(data, position, least=LEAST_CLICKS[part])
        if position and not len(rest):
            break
        sampler = EpisodeSampler(
            rest, seed=seed, users_per_batch=users_per_batch, part=part, negatives=negatives, max_length=max_length
        )
        refused = refused or dict(sampler.refused)
        rows += _all_ranks(method, sampler, exclude_seen=exclude_seen, progress=progress)
    user, target, rank = (torch.cat(column).cpu().numpy() for column in zip(*rows, strict=True))
    order = np.argsort(user, kind="stable")
    how: dict[str, object] = {"part": part, "exclude_seen": exclude_seen, "seed": seed, "positions": positions}
    how |= {"max_length": max_length, "negatives": negatives, "refused": refused}
    known = {"information": information, "fitted_until": getattr(method, "fitted_until", None)}
    return Report(
        user=user[order],
        target=target[order],
        rank=rank[order].astype(np.float64),
        is_cold=~data.warm[target[order]],
        k=tuple(k),
        info={"method": type(method).__name__, "data": data.name, **how, **known},
    )


def _all_ranks(
    method: Method, sampler: EpisodeSampler, *, exclude_seen: bool, progress: bool | str
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """User, target and rank of every query example of one epoch, batch by batch."""
    data, name, rows = sampler.data, type(method).__name__, []
    label = progress if isinstance(progress, str) else f"evaluate {name}"
    with evaluating(method) as device:
        for batch in _shown(sampler, label) if progress else sampler.epoch(0):
            try:
                rows.append(_rank(method, batch.to(device), data.catalog.size, exclude_seen=exclude_seen))
            except ValueError as error:
                raise ValueError(f"evaluating {name} on {data.name}: {error}") from error
    return rows


def check_information(method: Method, data: Dataset) -> str:
    """What a method could know, as it declares it and as far as that can be checked.

    Raises:
        ValueError: if it declares something else than ``"upstream"``, ``"live"`` or ``"later"``, or if it was fitted
            on clicks from the first click of ``data`` on and does not declare ``"later"``.
    """
    name, information = type(method).__name__, str(getattr(method, "information", "upstream"))
    if information not in INFORMATION:
        raise ValueError(f"{name}: information must be one of {list(INFORMATION)}, got {information!r}")
    until = getattr(method, "fitted_until", None)
    if information != "later" and until is not None and until >= data.time.min():
        raise ValueError(
            f"{name} was fitted on clicks until {until}, but {data.name} begins at {data.time.min()}: it has learned "
            "from clicks that come after those it is asked for. Fit it on the upstream side, or have it declare "
            "information = 'later', to be reported apart"
        )
    return information


def choose_steps(meta: MetaLearner, data: Dataset, candidates: Sequence[int] = STEPS, **settings: Any) -> int:
    """How many inner steps a new user should take: the number with the best MRR@10 on the validation clicks.

    Source: the test of the released MML code, which picks among up to 50 steps this way; one number serves all users.

    Args:
        meta: a learner with its step size and what adapts.
        data: the downstream side of a split; its test clicks are not read.
        candidates: the numbers to try. Of equally good ones the smallest is taken.
        settings: as for :func:`evaluate`.

    Raises:
        ValueError: if there is no candidate, or as for :func:`evaluate`.

    Example:
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.data import split_by_time
        >>> from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
        >>> up, down = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
        >>> learner = ModalityLearner(IdItems(up.catalog.size, dim=8), SequenceEncoder(dim=8))
        >>> meta = MetaLearner(learner, lr=0.0, engine="native")  # steps of size 0 change nothing
        >>> choose_steps(meta, down, candidates=(5, 0, 1))
        0
    """
    if not candidates:
        raise ValueError("choose_steps: expected at least one number of steps to try, got none")
    found = {}
    for steps in sorted(candidates):
        trial = copy.copy(meta)
        trial.steps = steps
        found[steps] = evaluate(trial, data, k=(10,), part="validation", **settings).metrics["mrr@10"].mean
    return max(found, key=found.__getitem__)


def _shown(sampler: EpisodeSampler, label: str) -> Iterator[EpisodeBatch]:
    """The batches of an epoch under a bar that counts users."""
    with importlib.import_module("tqdm").tqdm(total=sampler.users, desc=label, unit=" users") as bar:
        for batch in sampler.epoch(0):
            yield batch
            bar.update(len(batch))


def _rank(method: Method, batch: EpisodeBatch, items: int, *, exclude_seen: bool) -> tuple[Tensor, Tensor, Tensor]:
    """User, target and rank of every query example."""
    query = batch.query
    with torch.no_grad():
        scored = method.adapt(batch.support)(query)
        scores = scored.scores
        if scores.shape != (*query.target.shape, items):
            raise ValueError(f"expected scores {(*query.target.shape, items)}, got {tuple(scores.shape)}")
        allowed = (
            ~seen_items(query, items) if exclude_seen else torch.ones(items, dtype=torch.bool, device=scores.device)
        )
        allowed[..., 0] = False
        ordered = scores.masked_fill(~scored.known, torch.finfo(scores.dtype).min)
        rank = ranks(ordered, query.target, allowed=allowed)
    real = query.weight > 0
    return batch.user[:, None].expand_as(real)[real], query.target[real], rank[real]


@contextmanager
def evaluating(method: Method) -> Iterator[torch.device]:
    """The device of the method; a module is in evaluation mode meanwhile, until the last of several threads is done."""
    if not isinstance(method, nn.Module):
        yield torch.device("cpu")
        return
    module = cast(nn.Module, method)
    parts = list(module.modules())
    with _modes_lock:
        for part in parts:
            asked, training = _modes.get(part, (0, part.training))
            _modes[part] = asked + 1, training
            part.training = False
    try:
        yield next((t.device for t in chain(module.parameters(), module.buffers())), torch.device("cpu"))
    finally:
        with _modes_lock:
            for part in parts:
                asked, training = _modes.pop(part)
                if asked > 1:
                    _modes[part] = asked - 1, training
                else:
                    part.training = training


_modes: dict[nn.Module, tuple[int, bool]] = {}  # how many threads evaluate a module, and the mode it goes back to
_modes_lock = threading.Lock()
