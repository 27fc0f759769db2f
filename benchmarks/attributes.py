"""What attributes of films say beside their texts, and how fast a bag of their values is made.

Usage::

    python benchmarks/attributes.py --out benchmarks/results/attributes.json

On MovieTweetings SASRec learners of genres alone, of genres and the year (which stands in the titles), of texts, and of
texts and attributes are trained on the upstream side alike and evaluated on cold users; ``cold`` is the users whose
target is a film that nobody had clicked. Epochs and the share of inputs left out were chosen by a split inside the
upstream side. Intervals are paired bootstraps over users. ``bags`` times the mean of the embeddings of each item's
values, forward and backward: as a product with the rows of an encoding, which is what a model does, and by gathering.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import polars as pl
import torch
from machine import add_machine_options, add_numbers, command_line, seconds, stamp
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import metarec as mr
from metarec.comparison import compare
from metarec.files import write_json
from metarec.functional import segment_mean
from metarec.report import Report

BOTH = ("genres", "year")
LEARNERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "genres": (("genres",), ("attributes",)),
    "genres and year": (BOTH, ("attributes",)),
    "text": (BOTH, ("text",)),
    "text, genres and year": (BOTH, ("text", "attributes")),
}
METRIC = "ndcg@10"
DROP = 0.5  # probability with which one of several inputs is left out for an item
BAGS = [(4_235, 24, 3), (4_235, 512, 5), (100_000, 24, 3), (100_000, 512, 5)]  # items, values, values of an item
DIM, TURNS = 64, 7


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, time; write the JSON and print a line for each."""
    options = _parse(arguments)
    rows = learners(options.epochs, options.seeds)
    bags = [time_bag(*sizes) for sizes in tqdm(BAGS[: options.bags], desc="bags")]
    said = {"epochs": options.epochs, "seeds": options.seeds, "drop_inputs": DROP, "metric": METRIC, "dim": DIM}
    result = {"learners": rows, "bags": bags, "settings": said, **stamp(options.device, options.commit)}
    write_json(options.out, result)
    for row in rows:
        cold, everybody = row["cold"], row["all"]
        print(f"{row['learner']:22} cold {cold['method']:.3f}, beside text {cold['relative_gain']:+.0%}; all ", end="")
        print(f"{everybody['method']:.3f} ({everybody['gain_low']:+.3f} to {everybody['gain_high']:+.3f})")
    print(f"written to {options.out}")


def films(attributes: Sequence[str]) -> mr.Dataset:
    """MovieTweetings with texts, and these attributes to learn from."""
    data = mr.datasets.movietweetings()
    titles, genres = (data.catalog.attributes[name] for name in ("title", "genres"))
    items = pl.DataFrame(
        {
            "item_id": data.catalog.items.ids,
            "genres": [genre.split() for genre in genres],
            "year": [float(title[-5:-1]) for title in titles],
        }
    )
    clicks = pl.DataFrame(
        {
            "user_id": data.users.decode(data.user),
            "item_id": data.catalog.items.decode(data.item),
            "time": data.time,
        }
    )
    with as_file(files("metarec.datasets") / "files" / "movietweetings" / "text.npz") as text:
        return mr.Dataset.from_frame(clicks, items, features={"text": text}, attributes=attributes)


def learners(epochs: int, seeds: int) -> list[dict[str, Any]]:
    """Every learner beside the one of texts, on all targets and on cold ones."""
    reports: dict[str, list[Report]] = {}
    for name, (attributes, inputs) in tqdm(LEARNERS.items(), desc="learners"):
        data = films(attributes)
        up, down = mr.split_by_time(data, mr.data.split_time(data, 0.2))
        reports[name] = [one(up, down, inputs, epochs, seed) for seed in range(seeds)]
    rows = []
    for name, found in reports.items():
        cold, everybody = (compare(found, reports["text"], METRIC, cold=cold).to_dict() for cold in (True, False))
        rows.append({"learner": name, "inputs": list(LEARNERS[name][1]), "cold": cold, "all": everybody})
    return rows


def one(up: mr.Dataset, down: mr.Dataset, inputs: Sequence[str], epochs: int, seed: int) -> Report:
    """One learner, trained and evaluated."""
    model = mr.recipes.sasrec.build(up, inputs, dim=DIM, seed=seed, drop_inputs=DROP if len(inputs) > 1 else 0)
    for _ in mr.recipes.sasrec.train(model, up, epochs=epochs, seed=seed):
        pass
    return mr.evaluate(model, down, k=(10,))


def time_bag(items: int, values: int, most: int) -> dict[str, Any]:
    """Median milliseconds of the mean embedding of each item's values and its gradient, in turns."""
    draw = torch.Generator().manual_seed(0)
    count = torch.randint(1, 2 * most, (items,), generator=draw)
    index = torch.arange(items).repeat_interleave(count)
    code = torch.randint(0, values, (len(index),), generator=draw)
    weight = torch.randn(values, DIM, generator=draw, requires_grad=True)
    ways = bags(index, code, items, values)
    upstream = torch.randn(items, DIM, generator=draw)

    def turn(way: Callable[[Tensor], Tensor]) -> None:
        weight.grad = None
        way(weight).backward(upstream)

    cpu = torch.device("cpu")
    taken = {name: [seconds(partial(turn, way), cpu) for _ in range(TURNS)] for name, way in ways.items()}
    fast = {name: round(1000 * statistics.median(each[1:]), 3) for name, each in taken.items()}
    return {"items": items, "values": values, "values_of_all_items": len(index), "milliseconds": fast}


def bags(index: Tensor, code: Tensor, items: int, values: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways to average the embeddings (V, D) of each item's values, (I, D), by name.

    Args:
        index: (n,) the item that each value is of, ascending.
        code: (n,) the values.
        items: I.
        values: V.
    """
    count = torch.bincount(index, minlength=items)
    encoding = torch.zeros(items, values).index_put_((index, code), 1 / count[index], accumulate=True)
    starts = F.pad(count.cumsum(0), (1, 0))
    out: dict[str, Callable[[Tensor], Tensor]] = {
        "product": lambda weight: encoding @ weight,
        "segment_mean": lambda weight: segment_mean(F.embedding(code, weight), index, items),
        "torch.nn.functional.embedding_bag": lambda weight: F.embedding_bag(code, weight, starts[:-1], mode="mean"),
    }
    if importlib.util.find_spec("torch_scatter"):
        scatter = importlib.import_module("torch_scatter")
        out["torch_scatter.scatter"] = lambda w: scatter.scatter(w[code], index, 0, dim_size=items, reduce="mean")
        out["torch_scatter.segment_csr"] = lambda w: scatter.segment_csr(w[code], starts, reduce="mean")
    return out


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    numbers = {
        "epochs": (8, "of training"),
        "seeds": (2, "trainings of each learner"),
        "bags": (len(BAGS), "sizes of bags that are timed"),
    }
    add_numbers(parser, numbers)
    add_machine_options(parser, device="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
