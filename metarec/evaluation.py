"""The cold-user protocol: adapt to each user's first clicks, rank the whole catalogue, report."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from metarec.data.dataset import Dataset
from metarec.data.sampler import EpisodeSampler
from metarec.functional.ranking import ranks
from metarec.report import Report
from metarec.types import EpisodeBatch, Examples, Method


def evaluate(
    method: Method,
    data: Dataset,
    *,
    k: Sequence[int] = (5, 10, 20),
    part: Literal["validation", "test"] = "test",
    exclude_seen: bool = False,
    users_per_batch: int = 512,
    seed: int = 0,
    max_length: int = 50,
    negatives: int = 1,
    progress: bool = False,
) -> Report:
    """Adapt to every user of a data set and rank the item that came next among all items.

    Many users at a time. A method that is an ``nn.Module`` runs on its own device and in evaluation mode, and is left
    in the mode it was in.

    Args:
        method: what to evaluate.
        data: the downstream side of a split.
        k: list lengths for recall, MRR and NDCG.
        part: ``"test"`` ranks each user's last item, ``"validation"`` the one before it.
        exclude_seen: leave the items of the query's history out of the ranking (never the target itself). Off by
            default, as in the released MML code; on data without repeats it should be on.
        users_per_batch: users adapted to at a time.
        seed: of the negatives that the support examples carry.
        max_length: items of history kept per user.
        negatives: N of the support examples that the method adapts to.
        progress: show a bar (needs tqdm).

    Returns:
        The report, users in ascending order of their codes.

    Raises:
        ValueError: if a score is not finite (naming method and data), if the scores do not cover the catalogue, or if
            ``data`` has no user with enough interactions.

    Example:
        >>> from metarec.data.dataset import Catalog, Vocabulary
        >>> from metarec.recipes.popularity import Popularity
        >>> users, items = Vocabulary(["u", "v"], "user"), Catalog(Vocabulary(["a", "b", "c"]))
        >>> warm, time = np.array([False, True, True, False]), np.arange(4)
        >>> up = Dataset(users, items, np.array([1, 1, 1, 1]), np.array([2, 1, 2, 1]), time, warm)
        >>> down = Dataset(users, items, np.array([2, 2, 2, 2]), np.array([1, 2, 1, 3]), time, warm)
        >>> evaluate(Popularity(up), down).rank
        array([3.])
    """
    sampler = EpisodeSampler(
        data, seed=seed, users_per_batch=users_per_batch, part=part, negatives=negatives, max_length=max_length
    )
    name, rows = type(method).__name__, []
    batches: Iterable[EpisodeBatch] = sampler.epoch(0)
    if progress:
        batches = importlib.import_module("tqdm").tqdm(
            batches, total=len(sampler), desc=f"evaluate {name}", unit="batch"
        )
    with evaluating(method) as device:
        for batch in batches:
            try:
                rows.append(_rank(method, batch.to(device), data.catalog.size, exclude_seen=exclude_seen))
            except ValueError as error:
                raise ValueError(f"evaluating {name} on {data.name}: {error}") from error
    user, target, rank = (torch.cat(column).cpu().numpy() for column in zip(*rows, strict=True))
    order = np.argsort(user, kind="stable")
    info = {"method": name, "data": data.name, "part": part, "exclude_seen": exclude_seen, "seed": seed}
    return Report(
        user=user[order],
        target=target[order],
        rank=rank[order].astype(np.float64),
        is_cold=~data.warm[target[order]],
        k=tuple(k),
        info={**info, "max_length": max_length, "negatives": negatives, "refused": dict(sampler.refused)},
    )


def _rank(method: Method, batch: EpisodeBatch, items: int, *, exclude_seen: bool) -> tuple[Tensor, Tensor, Tensor]:
    """User, target and rank of every query example."""
    query = batch.query
    with torch.no_grad():
        scores = method.adapt(batch.support)(query).scores
        if scores.shape != (*query.target.shape, items):
            raise ValueError(f"expected scores {(*query.target.shape, items)}, got {tuple(scores.shape)}")
        allowed = ~_seen(query, items) if exclude_seen else torch.ones(items, dtype=torch.bool, device=scores.device)
        allowed[..., 0] = False
        rank = ranks(scores, query.target, allowed=allowed)
    real = query.weight > 0
    return batch.user[:, None].expand_as(real)[real], query.target[real], rank[real]


def _seen(query: Examples, items: int) -> Tensor:
    """(B, Q, I) bool, the items of the history that each example may read."""
    read = torch.arange(query.history.shape[1], device=query.history.device) <= query.position[..., None]
    seen = torch.zeros(*query.target.shape, items, dtype=torch.bool, device=query.history.device)
    return seen.scatter(-1, query.history[:, None] * read, value=True)


@contextmanager
def evaluating(method: Method) -> Iterator[torch.device]:
    """The device of the method; a module is in evaluation mode meanwhile."""
    if not isinstance(method, nn.Module):
        yield torch.device("cpu")
        return
    module = cast(nn.Module, method)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield next((p.device for p in module.parameters()), torch.device("cpu"))
    finally:
        for part, training in modes.items():
            part.training = training
