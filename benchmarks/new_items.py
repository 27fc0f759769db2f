"""Items that no training has seen, added to a trained model: do the people who click them next find them?

Usage::

    python benchmarks/new_items.py --out new_items.json

MovieTweetings, split in time. The model is built on a catalogue from which every film is missing that nobody has
clicked upstream; these films are then added with ``Recommender.add_items``. Every click of a downstream user on such a
film, with at least two clicks before it, is one case: the earlier clicks are adapted to, the whole catalogue is ranked
without what the user has clicked, and the film's rank counts.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import command_line, stamp
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import metarec as mr
from metarec.data import Modality, split_time
from metarec.files import write_json
from metarec.functional import ndcg_at, ranks, recall_at, standardise_features

K = 10
BATCH = 256
LEAST = 2  # clicks before the one that is asked for
SETTINGS: dict[str, Any] = {
    "dim": 32,
    "layers": 1,
    "max_length": 20,
    "warmup_epochs": 4,
    "epochs": 1,
    "generator_epochs": 2,
    "fusion_epochs": 20,
}
Score = Callable[[list[list[str]]], Tensor]


@dataclass(frozen=True)
class Cases:
    """Clicks on new items: what each user had clicked before, and the new item's code in the whole catalogue."""

    histories: list[list[str]]
    target: NDArray[np.int64]
    user: NDArray[np.int64]


def without_new(up: mr.Dataset) -> mr.Dataset:
    """The upstream side with a catalogue that ends where its knowledge ends."""
    kept = np.flatnonzero(up.warm)
    code = np.zeros(up.catalog.size, dtype=np.int64)
    code[kept] = np.arange(1, len(kept) + 1)
    rows = torch.from_numpy(np.append(0, kept))
    old = up.catalog
    catalog = mr.Catalog(
        mr.Vocabulary(old.items.decode(kept), old.items.what),
        {name: Modality(name, m.features[rows], m.present[rows]) for name, m in old.modalities.items()},
        {name: [column[i - 1] for i in kept.tolist()] for name, column in old.attributes.items()},
    )
    return replace(up, catalog=catalog, item=code[up.item], warm=np.arange(catalog.size) > 0)


def cases_of(down: mr.Dataset) -> Cases:
    """Every click of a downstream user on an item that is new, with enough clicks before it."""
    histories, target, users = [], [], []
    for user, (start, end) in enumerate(zip(down.offsets, down.offsets[1:], strict=False)):
        own = down.item[start:end]
        for place in np.flatnonzero(~down.warm[own]):
            if place >= LEAST and own[place] not in own[:place]:
                histories.append(down.catalog.items.decode(own[:place]))
                target.append(own[place])
                users.append(user)
    return Cases(histories, np.array(target), np.array(users))


def measured(score: Score, cases: Cases, items: mr.Vocabulary, new: Tensor) -> dict[str, Any]:
    """Recall and NDCG over the whole catalogue, and over the new items alone, with standard errors over users.

    Args:
        score: scores (B, I) of histories.
        cases: whom to ask.
        items: the vocabulary of the scores' columns.
        new: (I,) bool, the new items.
    """
    whole, alone = [], []
    for part in tqdm(_slices(len(cases.target)), total=-(-len(cases.target) // BATCH), desc="cases"):
        histories = cases.histories[part]
        scores, target = score(histories), torch.from_numpy(cases.target[part])
        allowed = torch.ones(len(histories), items.size, dtype=torch.bool)
        allowed[:, 0] = False
        for row, history in enumerate(histories):
            allowed[row, items.encode(history)] = False
        whole.append(ranks(scores, target, allowed=allowed))
        alone.append(ranks(scores, target, allowed=allowed & new))
    rank, among = torch.cat(whole), torch.cat(alone)
    out = {}
    for name, values in (
        (f"recall@{K}", recall_at(rank, K)),
        (f"ndcg@{K}", ndcg_at(rank, K)),
        (f"recall@{K} among new items", recall_at(among, K)),
        (f"ndcg@{K} among new items", ndcg_at(among, K)),
    ):
        out[name] = {"mean": float(values.mean()), "standard_error": clustered(values.numpy(), cases.user)}
    return out


def clustered(values: NDArray[np.float32], user: NDArray[np.int64]) -> float:
    """The standard error of a mean over cases of which one user may have several."""
    centred = np.bincount(user, values - values.mean())
    return float(math.sqrt(np.square(centred).sum()) / len(values))


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, count, BATCH))


def nearest(catalog: mr.Catalog) -> Score:
    """Items by their cosine with the mean of the features of what was clicked."""
    views = [standardise_features(m.features, m.present) for m in catalog.modalities.values()]
    vectors = torch.nn.functional.normalize(torch.cat(views, 1), dim=1)

    def score(histories: list[list[str]]) -> Tensor:
        means = [vectors[torch.from_numpy(catalog.items.encode(history))].mean(0) for history in histories]
        return torch.stack(means) @ vectors.T

    return score


def trained(data: mr.Dataset, options: argparse.Namespace) -> mr.MML:
    """A model of the catalogue without the new items."""
    model = mr.MML.build(data, mr.MMLConfig(**SETTINGS), seed=options.seed)
    shown = ""
    for step in mr.recipes.mml.train(model, mr.EpisodeSampler(data, seed=options.seed), checkpoint=options.checkpoint):
        if step.epoch_done and step.stage != shown:
            shown = step.stage
            tqdm.write(str(step))
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train, add the items, measure, write the JSON."""
    options = _parse(arguments)
    began, data = time.perf_counter(), mr.datasets.movietweetings()
    up, down = mr.split_by_time(data, at=split_time(data, cold_users=0.2))
    known = without_new(up)
    cases, items = cases_of(down), down.catalog.items
    new = torch.from_numpy(~down.warm)
    new[0] = False
    ids = items.decode(torch.nonzero(new).squeeze(1).tolist())
    recommender = mr.Recommender(trained(known, options))
    training = time.perf_counter() - began
    began = time.perf_counter()
    add(recommender, ids, down.catalog)
    adding = time.perf_counter() - began
    order = torch.from_numpy(np.append(0, recommender.catalog.items.encode(list(items.ids))))
    draw = torch.Generator().manual_seed(options.seed)
    found = {
        "random": measured(lambda h: torch.rand(len(h), items.size, generator=draw), cases, items, new),
        "nearest by features": measured(nearest(down.catalog), cases, items, new),
        "add_items": measured(lambda h: recommender.scores_of(recommender.adapt(h))[:, order], cases, items, new),
    }
    nothing = {name: {"mean": 0.0, "standard_error": 0.0} for name in found["random"]}
    methods: dict[str, dict[str, Any]] = {"not rankable": nothing, **found}
    result = {
        "methods": methods,
        "cases": len(cases.target),
        "users": len(np.unique(cases.user)),
        "new_items": len(ids),
        "items": len(items),
        "seconds": {"training": training, "adding": adding},
        "settings": {**SETTINGS, "seed": options.seed, "exclude_seen": True, "least_clicks": LEAST},
        "information": "upstream clicks; features of all items; of a case, the user's earlier clicks only",
        **stamp(torch.device("cpu")),
    }
    write_json(options.out, result)
    for name, values in methods.items():
        print(f"{name:20}", *(f"{metric} {v['mean']:.4f}±{v['standard_error']:.4f}" for metric, v in values.items()))


def add(recommender: mr.Recommender, ids: list[str], catalog: mr.Catalog) -> None:
    """Add items of a catalogue, with the features that they have."""
    rows = torch.from_numpy(catalog.items.encode(ids))
    vectors = {
        name: {i: v for i, v, own in zip(ids, m.features[rows], m.present[rows], strict=True) if own}
        for name, m in catalog.modalities.items()
    }
    recommender.add_items(ids, vectors)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of training (default: 0)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="training goes on from here if it was stopped")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
