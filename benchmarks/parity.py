"""Are EASE, ItemKNN and SASRec what they are elsewhere? Ours against RecTools' on MovieLens-100K, in one run.

    python benchmarks/parity.py --out parity.json

Wants an environment of its own, since RecTools pins an older numpy: ``pip install "rectools[torch]"`` and, for data,
``pip install --no-deps recbole``, whose wheel carries MovieLens-100K (for research, not to be passed on). Any other
RecBole atomic files serve too. Leave one out: each user's last click is asked for among all items not clicked yet, by
methods that were fitted on every click before it. Both read the same last clicks of each user.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import ROOT, add_machine_options, add_numbers, command_line, stamp
from numpy.typing import NDArray
from tqdm import tqdm

from metarec.comparison import compare
from metarec.data import Dataset, EpisodeSampler, load_atomic
from metarec.data.examples import filter_interactions, leave_last_out
from metarec.files import write_json
from metarec.functional.histories import seen_items
from metarec.recipes import EASE, ItemKNN, sasrec
from metarec.report import Report
from metarec.types import Method

K = 10
PENALTY = 500.0
NEIGHBOURS = 100
BATCH = 32  # users
METRICS = (f"ndcg@{K}", f"recall@{K}")
Lists = dict[int, list[int]]  # user code -> item codes, best first


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit both sides, compare, write the JSON."""
    options = parse(arguments)
    whole = last_clicks(load_atomic(options.data), options.clicks + 1)
    known = leave_last_out(whole, 1, least=3)
    known = replace(known, warm=np.isin(np.arange(known.catalog.size), known.item))
    asked = targets(whole, known)
    theirs = Theirs(known, options)
    ours, peers = OURS, {name: getattr(theirs, name) for name in OURS}
    found: dict[str, list[list[Report]]] = {name: [[], []] for name in ours}
    for seed in range(options.seeds):
        for name in ours if seed == 0 else ("sasrec",):  # the others know no chance
            for side, make in zip(found[name], (ours[name], peers[name]), strict=True):
                began = time.perf_counter()
                lists = make(known, whole, options, seed) if make is ours[name] else make(seed)
                side.append(report(lists, asked))
                tqdm.write(f"{name} {seed}: {side[-1].metrics[METRICS[0]]}, {time.perf_counter() - began:.0f} s")
    result = {
        **stamp(options.device, options.commit),
        "data": {"name": whole.name, "users": len(asked), "items": int(known.warm.sum()), "clicks": len(known)},
        "settings": {name: getattr(options, name) for name in ("clicks", "epochs", "seeds")},
        "rectools": importlib.metadata.version("rectools"),
        "ease_largest_difference_of_a_weight": theirs.ease_difference(),
        "ease_lists_of_rectools_with_the_weights_transposed": theirs.ease_transposed(),
        "comparisons": {name: compared(*sides) for name, sides in found.items()},
    }
    write_json(options.out, result)


def compared(ours: list[Report], theirs: list[Report]) -> list[dict[str, object]]:
    """Ours against theirs in each metric, over seeds and users, and each seed's own figures."""
    rows = []
    for metric in METRICS:
        found = compare(ours, theirs, metric).to_dict()
        each = {"ours": [r.metrics[metric].mean for r in ours], "theirs": [r.metrics[metric].mean for r in theirs]}
        rows.append({**found, "by_seed": each, "equal_ranks": float((ours[0].rank == theirs[0].rank).mean())})
    return rows


def last_clicks(data: Dataset, clicks: int) -> Dataset:
    """Each user's last clicks."""
    after = np.repeat(data.offsets[1:], np.diff(data.offsets)) - np.arange(len(data))
    kept = after <= clicks
    return filter_interactions(data, kept)


def targets(whole: Dataset, known: Dataset) -> dict[int, int]:
    """Each user's last click, where it is on an item that others have clicked before theirs."""
    users = np.intersect1d(whole.user_codes, known.user_codes)
    last = dict(zip(whole.user_codes.tolist(), whole.item[whole.offsets[1:] - 1].tolist(), strict=True))
    return {user: last[user] for user in users.tolist() if known.warm[last[user]]}


def report(lists: Lists, asked: dict[int, int]) -> Report:
    """The rank of what is asked for in each user's list; one past its end if it is not there."""
    user, target = np.array(list(asked)), np.array(list(asked.values()))
    rank = [lists[u].index(t) + 1 if t in lists[u] else K + 1 for u, t in asked.items()]
    return Report(user, target, np.array(rank, dtype=np.float64), np.zeros(len(user), dtype=np.bool_), k=(K,))


@torch.no_grad()
def best(method: Method, whole: Dataset, known: Dataset, options: argparse.Namespace) -> Lists:
    """The best items of each user that they have not clicked before their last click."""
    sampler = EpisodeSampler(whole, part="serving", negatives=0, max_length=options.clicks)
    warm, out = torch.from_numpy(known.warm).to(options.device), Lists()
    for batch in sampler.epoch(0):
        batch = batch.to(options.device)
        scores = method.adapt(batch.support)(batch.query).scores[:, 0]
        allowed = warm & ~seen_items(batch.query, len(warm))[:, 0]
        top = scores.masked_fill(~allowed, -torch.inf).topk(K).indices
        out |= dict(zip(batch.user.tolist(), top.tolist(), strict=True))
    return out


def our_ease(known: Dataset, whole: Dataset, options: argparse.Namespace, seed: int) -> Lists:
    """EASE; there is no chance in it."""
    return best(EASE(known, penalty=PENALTY, device=options.device), whole, known, options)


def our_itemknn(known: Dataset, whole: Dataset, options: argparse.Namespace, seed: int) -> Lists:
    """ItemKNN by plain cosines."""
    method = ItemKNN(known, neighbours=NEIGHBOURS, shrink=0.0, device=options.device)
    return best(method, whole, known, options)


def our_sasrec(known: Dataset, whole: Dataset, options: argparse.Namespace, seed: int) -> Lists:
    """SASRec with the full softmax."""
    learner = sasrec.build(known, max_length=options.clicks, seed=seed).to(options.device)
    for _ in sasrec.train(learner, known, epochs=options.epochs, users_per_batch=BATCH, seed=seed):
        pass
    return best(learner, whole, known, options)


OURS: dict[str, Callable[[Dataset, Dataset, argparse.Namespace, int], Lists]] = {
    "ease": our_ease,
    "itemknn": our_itemknn,
    "sasrec": our_sasrec,
}


class Theirs:
    """The same methods of RecTools, on the same clicks.

    Args:
        known: what they are fitted on.
        options: the command line.
    """

    def __init__(self, known: Dataset, options: argparse.Namespace) -> None:
        self.models: Any = importlib.import_module("rectools.models")
        pandas: Any = importlib.import_module("pandas")
        order = pandas.to_datetime(np.arange(len(known)), unit="s")  # ties in time stay in our order
        columns = {"user_id": known.user, "item_id": known.item, "weight": 1.0, "datetime": order}
        self.data = importlib.import_module("rectools.dataset").Dataset.construct(pandas.DataFrame(columns))
        self.known, self.options = known, options

    def ease(self, seed: int) -> Lists:
        """EASE with their weights B as the paper has it, ``x B``; there is no chance in it.

        ``recommend`` of RecTools 0.19.0 gives the lists of ``x B^T``, so it is not asked.
        """
        return self.ease_lists(self._ease().astype(np.float64))

    def itemknn(self, seed: int) -> Lists:
        """The nearest neighbours of implicit, which count the item itself."""
        neighbours: Any = importlib.import_module("implicit.nearest_neighbours")
        return self._best(self.models.ImplicitItemKNNWrapperModel(neighbours.CosineRecommender(K=NEIGHBOURS + 1)))

    def sasrec(self, seed: int) -> Lists:
        """SASRec of the same size, with the same loss, steps and learning rate."""
        torch.manual_seed(seed)
        return self._best(
            self.models.SASRecModel(
                n_factors=64,
                n_blocks=2,
                n_heads=2,
                dropout_rate=0.3,
                session_max_len=self.options.clicks,
                loss="softmax",
                lr=1e-3,
                batch_size=BATCH,
                epochs=self.options.epochs,
                recommend_torch_device=str(self.options.device),
            )
        )

    def ease_difference(self) -> float:
        """The largest difference between two weights of EASE, here and there."""
        ours = EASE(self.known, penalty=PENALTY)
        place = torch.searchsorted(ours.codes, torch.from_numpy(self._codes()))
        weight = ours.weight[place][:, place]
        return float((weight - torch.from_numpy(self._ease())).abs().max())

    def ease_transposed(self) -> float:
        """The share of users for whom RecTools' own lists are those of the transposed weights."""
        own = self._best(self.models.EASEModel(regularization=PENALTY))
        turned = self.ease_lists(self._ease().T.astype(np.float64))
        return float(np.mean([own[user] == turned[user] for user in own]))

    def ease_lists(self, weight: NDArray[np.float64]) -> Lists:
        """The best items that each user has not clicked by ``x B``, with B in RecTools' order of the items."""
        x = np.asarray(self.data.get_user_item_matrix(include_weights=False).todense())
        top = np.argsort(-np.where(x > 0, -np.inf, x @ weight), axis=1, kind="stable")[:, :K]
        users = np.asarray(self.data.user_id_map.external_ids).tolist()
        return dict(zip(users, self._codes()[top].tolist(), strict=True))

    def _ease(self) -> NDArray[np.float32]:
        model = self.models.EASEModel(regularization=PENALTY)
        model.fit(self.data)
        return np.asarray(model.weight, dtype=np.float32)

    def _codes(self) -> NDArray[np.int64]:
        """Our code of each of RecTools' items."""
        return np.asarray(self.data.item_id_map.external_ids).astype(np.int64)

    def _best(self, model: Any) -> Lists:
        model.fit(self.data)
        table = model.recommend(self.known.user_codes, self.data, k=K, filter_viewed=True)
        out: Lists = {int(user): [] for user in self.known.user_codes}
        for user, item in zip(table["user_id"].tolist(), table["item_id"].tolist(), strict=True):
            out[user].append(item)
        return out


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, default=carried(), help="atomic files (default: recbole's MovieLens-100K)")
    add_numbers(
        parser,
        {
            "clicks": (50, "last clicks of each user that are read"),
            "epochs": (40, "of SASRec"),
            "seeds": (3, "of SASRec"),
        },
    )
    add_machine_options(parser)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "parity.json")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("--data is needed where recbole is not installed")
    return options


def carried() -> Path | None:
    """MovieLens-100K where recbole is installed."""
    found = importlib.util.find_spec("recbole")
    places = list(found.submodule_search_locations or ()) if found else []
    return Path(places[0]) / "dataset_example" / "ml-100k" if places else None


if __name__ == "__main__":
    main()
