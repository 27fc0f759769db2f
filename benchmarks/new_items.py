"""Items that no training has seen, added to a trained model: do the people who click them next find them?

Usage::

    python benchmarks/new_items.py --seeds 3 --models new_items_models --out new_items.json

MovieTweetings, split in time. The model is built on a catalogue from which every film is missing that nobody has
clicked upstream; these films are then added with ``Recommender.add_items``. Every click of a downstream user on such a
film, with at least two clicks before it, is one case: the earlier clicks are adapted to, the whole catalogue is ranked
without what the user has clicked, and the film's rank counts. Clicks on films that the model knows are ranked too, for
what the new ones cost them.

The share of the places that new films get (``Recommender(new_share=)``) is chosen by nested temporal validation: the
upstream side is split once more. Compared with adding nothing to a score, known films may lose at most 1% of recall and
of NDCG there with the model of each seed, since one model is deployed and not their mean. Of the shares that hold this
bound the one that finds most new films is taken, or none if adding nothing finds as many.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import add_numbers, command_line, stamp
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
MOST = 3000  # cases of known items, drawn at random
SHARES = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.15, 0.2)
COST = 0.01  # what the share may cost the known items in any model of the validation, of their recall and of their NDCG
SETTINGS: dict[str, Any] = {
    "dim": 32,
    "layers": 1,
    "max_length": 20,
    "warmup_epochs": 4,
    "epochs": 1,
    "generator_epochs": 2,
    "fusion_epochs": 20,
}


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


def cases_of(down: mr.Dataset, *, known: bool = False) -> Cases:
    """Every click of a downstream user on an item that is new, or is known, with enough clicks before it."""
    histories, target, users = [], [], []
    for user, (start, end) in enumerate(zip(down.offsets, down.offsets[1:], strict=False)):
        own = down.item[start:end]
        for place in np.flatnonzero(down.warm[own] == known):
            if place >= LEAST and own[place] not in own[:place]:
                histories.append(down.catalog.items.decode(own[:place]))
                target.append(own[place])
                users.append(user)
    return Cases(histories, np.array(target), np.array(users))


def some(cases: Cases, most: int) -> Cases:
    """At most so many of them, drawn at random."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(cases.target))[:most])
    return Cases([cases.histories[i] for i in chosen], cases.target[chosen], cases.user[chosen])


def ranked(scores: Tensor, cases: Cases, items: mr.Vocabulary, among: Tensor) -> Tensor:
    """Ranks (n,) of the targets by scores (n, I) among some of the items (I,) without what a user has clicked."""
    parts = []
    for start in range(0, len(cases.target), BATCH):
        part = slice(start, start + BATCH)
        allowed = among.repeat(len(cases.histories[part]), 1)
        allowed[:, 0] = False
        for row, history in enumerate(cases.histories[part]):
            allowed[row, items.encode(history)] = False
        parts.append(ranks(scores[part], torch.from_numpy(cases.target[part]), allowed=allowed))
    return torch.cat(parts)


def figures(found: Sequence[Mapping[str, Tensor]], cases: Cases) -> dict[str, Any]:
    """Recall and NDCG of ranks by what they are among; a case counts with its mean over the seeds."""
    out = {}
    for among in found[0]:
        for name, metric in ((f"recall@{K}", recall_at), (f"ndcg@{K}", ndcg_at)):
            values = torch.stack([metric(ranks[among], K) for ranks in found])
            error = clustered(values.mean(0).numpy(), cases.user)
            out[name + among] = {
                "mean": float(values.mean()),
                "standard_error": error,
                "seeds": values.mean(1).tolist(),
            }
    return out


def clustered(values: NDArray[np.float32], user: NDArray[np.int64]) -> float:
    """The standard error of a mean over cases of which one user may have several."""
    centred = np.bincount(user, values - values.mean())
    return float(math.sqrt(np.square(centred).sum()) / len(values))


def nearest(catalog: mr.Catalog, cases: Cases) -> Tensor:
    """Items by their cosine with the mean of the features of what was clicked, (n, I)."""
    views = [standardise_features(m.features, m.present) for m in catalog.modalities.values()]
    vectors = torch.nn.functional.normalize(torch.cat(views, 1), dim=1)
    means = [vectors[torch.from_numpy(catalog.items.encode(history))].mean(0) for history in cases.histories]
    return torch.stack(means) @ vectors.T


def trained(data: mr.Dataset, seed: int, kept: Path | None) -> mr.MML:
    """A model of the catalogue without the new items, from a file if it was trained before."""
    if kept is not None and kept.is_file():
        found: mr.MML = mr.load(kept)
        return found
    model = mr.MML.build(data, mr.MMLConfig(**SETTINGS), seed=seed)
    steps = mr.recipes.mml.train(model, mr.EpisodeSampler(data, seed=seed))
    for step in tqdm(steps, desc=f"training, seed {seed}", unit=" steps"):
        if not math.isfinite(step.loss):
            raise FloatingPointError(f"seed {seed}: {step}")
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        mr.save(model, kept)
    return model


class World:
    """One split in time: what is trained on, and who asks for what.

    Attributes:
        known: the upstream side without the new items.
        down: the downstream side, with all items.
        new: (I,) bool, the new items.
        cases: clicks on new items, and on known ones.
    """

    def __init__(self, up: mr.Dataset, down: mr.Dataset) -> None:
        self.known, self.down, self.items = without_new(up), down, down.catalog.items
        self.new = torch.from_numpy(~down.warm)
        self.new[0] = False
        self.cases = {"new": cases_of(down), "known": some(cases_of(down, known=True), MOST)}

    def served(self, model: mr.MML, new_share: float | None = None) -> mr.Recommender:
        """The model after the new items were added."""
        recommender = mr.Recommender(model, new_share=new_share)
        add(recommender, self.items.decode(self.new.nonzero().squeeze(1).tolist()), self.down.catalog)
        return recommender

    def scores(self, recommender: mr.Recommender, cases: Cases) -> Tensor:
        """(n, I) in the order of the downstream catalogue."""
        order = torch.from_numpy(np.append(0, recommender.catalog.items.encode(list(self.items.ids))))
        pieces = recommender.stream(tqdm(cases.histories, desc="cases", leave=False), users=BATCH)
        return torch.cat([recommender.scores_of(users)[:, order] for users in pieces])

    def ranks(self, scores: Tensor, kind: str, shift: float = 0.0) -> dict[str, Tensor]:
        """Ranks of the cases of a kind in the whole catalogue, and among the items of the kind."""
        own = self.new if kind == "new" else ~self.new
        among = {"": torch.ones_like(self.new), f" among {kind} items": own}
        shifted = scores + shift * self.new
        return {name: ranked(shifted, self.cases[kind], self.items, mask) for name, mask in among.items()}


def by_share(world: World, models: Sequence[mr.MML]) -> dict[str, dict[str, list[float]]]:
    """What new and known items get by the share of the places, of each model; "none" adds nothing to a score."""
    found: dict[str, list[dict[str, float]]] = {}
    for model in models:
        recommender = world.served(model)
        added = torch.arange(recommender.catalog.size) >= model.catalog.size
        scores = {kind: world.scores(recommender, cases) for kind, cases in world.cases.items()}
        for share in (None, *SHARES):
            state = world.served(model, share)._states.current()
            shift = 0.0 if state.shift is None else float(state.shift[added].max())
            row = {"shift": shift}
            for kind, own in scores.items():
                rank = world.ranks(own, kind, shift)[""]
                row |= {f"recall@{K} {kind}": float(recall_at(rank, K).mean())}
                row |= {f"ndcg@{K} {kind}": float(ndcg_at(rank, K).mean())}
            found.setdefault(str(share).lower(), []).append(row)
    return {share: {n: [row[n] for row in rows] for n in rows[0]} for share, rows in found.items()}


def chosen(curve: Mapping[str, Mapping[str, Sequence[float]]]) -> float | None:
    """The share that finds most new items at a cost to known items of at most ``COST`` with each model, or None."""

    def holds(share: str) -> bool:
        known = [(curve[share][n], values) for n, values in curve["none"].items() if n.endswith("known")]
        return all(v >= (1 - COST) * w for own, none in known for v, w in zip(own, none, strict=True))

    best = max(("none", *filter(holds, map(str, SHARES))), key=lambda share: np.mean(curve[share][f"recall@{K} new"]))
    return None if best == "none" else float(best)


def compared(world: World, models: Sequence[mr.MML], share: float | None) -> dict[str, dict[str, Any]]:
    """Ranks by kind of case, method and model."""
    shares = {"add_items": None} if share is None else {"add_items": None, "add_items, new_share": share}
    out: dict[str, dict[str, Any]] = {}
    for kind, cases in world.cases.items():
        draw = torch.Generator().manual_seed(0)
        plain = [torch.rand(len(cases.target), world.items.size, generator=draw), nearest(world.down.catalog, cases)]
        names = ("random", "nearest by features")
        out[kind] = {name: [world.ranks(s, kind)] for name, s in zip(names, plain, strict=True)}
        for name, own in shares.items():
            out[kind][name] = [world.ranks(world.scores(world.served(m, own), cases), kind) for m in models]
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train, choose the share, add the items, measure, write the JSON."""
    options = _parse(arguments)
    data = mr.datasets.movietweetings()
    up, down = mr.split_by_time(data, at=split_time(data, cold_users=0.2))
    world = World(up, down)
    earlier = World(*mr.split_by_time(world.known, at=split_time(world.known, cold_users=0.2)))
    models: dict[str, list[mr.MML]] = {}
    for name, where in (("nested_validation", earlier), ("whole", world)):
        kept = [options.models and options.models / f"{name}_{seed}.safetensors" for seed in range(options.seeds)]
        models[name] = [trained(where.known, seed, path) for seed, path in enumerate(kept)]
    curves = {name: by_share(where, models[name]) for name, where in (("nested_validation", earlier), ("whole", world))}
    share = chosen(curves["nested_validation"])
    found = compared(world, models["whole"], share)
    tables = {kind: {n: figures(r, world.cases[kind]) for n, r in by.items()} for kind, by in found.items()}
    nothing = {name: {"mean": 0.0, "standard_error": 0.0} for name in tables["new"]["random"]}
    result = {
        "methods": {"not rankable": nothing, **tables["new"]},
        "known_items": tables["known"],
        "new_share": {
            "chosen": share,
            "cost_at_most": COST,
            "nested_validation": curves["nested_validation"],
            "afterwards": curves["whole"],
        },
        "cases": len(world.cases["new"].target),
        "known_cases": len(world.cases["known"].target),
        "users": len(np.unique(world.cases["new"].user)),
        "new_items": int(world.new.sum()),
        "items": len(world.items),
        "settings": {**SETTINGS, "seeds": options.seeds, "exclude_seen": True, "least_clicks": LEAST},
        "information": "upstream clicks; features of all items; of a case, the user's earlier clicks only",
        **stamp(torch.device("cpu")),
    }
    write_json(options.out, result)
    for kind, methods in tables.items():
        for name, values in methods.items():
            shown = (f"{metric} {v['mean']:.4f}±{v['standard_error']:.4f}" for metric, v in values.items())
            print(f"{kind} {name:22}", *shown)
    print(f"new_share {share}", *curves["nested_validation"].items(), sep="\n")


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
    add_numbers(parser, {"seeds": (3, "trainings")})
    parser.add_argument("--models", type=Path, metavar="DIR", help="trained models are kept here, and read if there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
