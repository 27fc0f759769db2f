"""What attributes of films say beside their texts, and how fast a bag of their values is made.

Usage::

    python benchmarks/attributes.py --out benchmarks/results/attributes.json

On MovieTweetings SASRec learners of genres, of the year (which stands in the titles), of both, of texts, and
of texts and both are trained on the upstream side alike, with a generator of cold items in front, and evaluated on cold
users; ``cold`` is the users whose target is a film that nobody had clicked. How many epochs the generator is trained,
none among them, is chosen for each seed by a split inside the upstream side; what else is set was chosen there too.
``among_cold`` ranks only films that nobody had clicked, as if it were known that the target is one of them: what is
left is what the inputs tell of these films. Intervals are paired bootstraps over users. ``bags`` is what
benchmarks/bags.py times.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from bags import BAGS, DIM, times_of_bags
from machine import add_machine_options, add_numbers, command_line, stamp
from numpy.typing import NDArray
from tqdm import tqdm

import metarec as mr
from metarec.comparison import compare
from metarec.files import write_json
from metarec.recipes.generating import train_generator, with_generator
from metarec.recipes.nested_validation import validation_split
from metarec.report import Report
from metarec.types import Examples, Scored

BOTH = ("genres", "year")
LEARNERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "genres": (("genres",), ("attributes",)),
    "year": (("year",), ("attributes",)),
    "genres and year": (BOTH, ("attributes",)),
    "text": ((), ("text",)),
    "text, genres and year": (BOTH, ("text", "attributes")),
}
METRIC = "ndcg@10"
DROP = 0.5  # probability with which one of several inputs is left out for an item


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, time; write the JSON and print a line for each."""
    options = _parse(arguments)
    rows = learners(options.epochs, options.generator_epochs, options.seeds)
    bags = times_of_bags(options.bags, torch.device("cpu"))
    said = {"epochs": options.epochs, "generator_epochs": options.generator_epochs, "seeds": options.seeds}
    said |= {"drop_inputs": DROP, "metric": METRIC, "dim": DIM}
    result = {"learners": rows, "bags": bags, "settings": said, **stamp(options.device, options.commit)}
    write_json(options.out, result)
    for row in rows:
        told = (f"{on} {row[on]['method']:.3f}, {beside(row[on])}" for on in ("cold", "among_cold", "all"))
        print(f"{row['learner']:22} {'; '.join(told)}")
    print(f"written to {options.out}")


def beside(row: Mapping[str, Any]) -> str:
    """A difference to texts and its interval."""
    return f"{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})"


def films(attributes: Sequence[str], *, texts: bool) -> mr.Dataset:
    """MovieTweetings with these attributes to learn from, and with texts if they are asked for."""
    data = mr.datasets.movietweetings(())
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
        return mr.Dataset.from_frame(clicks, items, features={"text": text} if texts else {}, attributes=attributes)


def learners(epochs: int, generator_epochs: int, seeds: int) -> list[dict[str, Any]]:
    """Every learner beside the one of texts: on all targets, on cold ones, and on these where they are told."""
    found: dict[str, list[tuple[int, Report, Report]]] = {}
    for name, (attributes, inputs) in tqdm(LEARNERS.items(), desc="learners"):
        up, down = mr.split_by_time(data := films(attributes, texts="text" in inputs), mr.data.split_time(data, 0.2))
        found[name] = [one(up, down, inputs, epochs, generator_epochs, seed) for seed in range(seeds)]
    _, plain, told = zip(*found["text"], strict=True)
    rows = []
    for name, own in found.items():
        chosen, reports, among_cold = zip(*own, strict=True)
        row: dict[str, Any] = {"learner": name, "inputs": list(LEARNERS[name][1]), "generator_epochs": list(chosen)}
        for on, ours, text in (("cold", reports, plain), ("among_cold", among_cold, told), ("all", reports, plain)):
            row[on] = compare(ours, text, METRIC, cold=on != "all").to_dict()
        row["cold_of_seeds"] = [float(report.cold[METRIC].mean) for report in reports]
        rows.append(row)
    return rows


def one(
    up: mr.Dataset, down: mr.Dataset, inputs: Sequence[str], epochs: int, generator_epochs: int, seed: int
) -> tuple[int, Report, Report]:
    """One learner, chosen and trained: how long its generator is trained, and how it does."""
    earlier, later = validation_split(up)
    curve: list[float] = []
    learner = trained(earlier, inputs, epochs, seed)
    curve.append(ndcg(learner, later))
    generating = with_generator(learner, earlier, seed=seed)

    def validate(_: int) -> bool:
        generating.eval()
        curve.append(ndcg(generating, later))
        generating.train()
        return False

    for _ in train_generator(generating, earlier, epochs=generator_epochs, seed=seed, after=validate):
        pass
    chosen = int(np.argmax(curve))
    model = trained(up, inputs, epochs, seed)
    if chosen:
        model = with_generator(model, up, seed=seed)
        for _ in train_generator(model, up, epochs=chosen, seed=seed):
            pass
    return chosen, mr.evaluate(model, down, k=(10,)), mr.evaluate(AmongCold(model, ~up.warm), down, k=(10,))


def trained(data: mr.Dataset, inputs: Sequence[str], epochs: int, seed: int) -> mr.ModalityLearner:
    """A SASRec of some inputs."""
    model = mr.recipes.sasrec.build(data, inputs, dim=DIM, seed=seed, drop_inputs=DROP if len(inputs) > 1 else 0)
    for _ in mr.recipes.sasrec.train(model, data, epochs=epochs, seed=seed):
        pass
    return model


def ndcg(model: mr.ModalityLearner, data: mr.Dataset) -> float:
    """Of each user's last click; the training may be under way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not trained to the end.*")
        return float(mr.evaluate(model, data, k=(10,)).metrics[METRIC].mean)


class AmongCold(torch.nn.Module):
    """A learner that ranks cold items alone.

    Args:
        learner: what scores them.
        cold: (I,) bool.
    """

    def __init__(self, learner: mr.ModalityLearner, cold: NDArray[np.bool_]) -> None:
        super().__init__()
        self.learner, self.cold = learner, torch.from_numpy(cold)
        self.information, self.fitted_until = "upstream", learner.fitted_until
        self.repeat_share = learner.repeat_share

    def adapt(self, support: Examples) -> AmongCold:
        """Itself."""
        return self

    def forward(self, examples: Examples) -> Scored:
        """Scores of the whole catalogue, of which cold items count."""
        scored: Scored = self.learner(examples)
        return replace(scored, item_mask=scored.item_mask & self.cold)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    numbers = {
        "epochs": (8, "of training"),
        "generator-epochs": (8, "of a generator's training, at most"),
        "seeds": (3, "trainings of each learner"),
        "bags": (len(BAGS), "sizes of bags that are timed"),
    }
    add_numbers(parser, numbers)
    add_machine_options(parser, device="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
