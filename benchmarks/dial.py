"""What adapting gives, as a planted world goes from one rule for all users to a rule of each user's own.

Usage::

    python benchmarks/dial.py --out benchmarks/results/dial.json

At 0 the history tells all: what follows an item is the same for everybody, and the shared weights know it. At 1 only
the user's own clicks tell: a step on them stores what follows what in the weights. Each world gets an MML learner of
texts, meta-trained by the batched loop; the same weights are evaluated with the inner steps and without them. Beside
it stands a SASRec of texts that is trained on every click for as many epochs and never adapts: what it finds, it looks
up in the history. Several seeds of world and weights; the intervals are paired bootstraps over the users of all worlds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import add_machine_options, add_numbers, command_line, stamp
from tqdm import tqdm

import metarec as mr
from metarec.comparison import compare
from metarec.files import write_json
from metarec.report import Report

DIAL = (0.0, 0.25, 0.5, 0.75, 1.0)
ITEMS = 100
METRIC = "recall@10"
CONFIG: dict[str, Any] = {
    "modalities": ("text",),
    "dim": 32,
    "layers": 1,
    "dropout": 0.0,
    "warmup_epochs": 0,
    "users_per_batch": 64,
    "queries": 4,
    "lr": 1e-2,
    "inner_lr": 0.5,
    "objectives": ("softmax", "softmax"),
    "generator_epochs": 0,
    "fusion_epochs": 0,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Turn the dial, write the JSON, print a line for each place of it."""
    options = _parse(arguments)
    rows = []
    for dial in tqdm(DIAL, desc="dial"):
        found = [one(dial, seed, options) for seed in range(options.seeds)]
        adapted, still, plain = (joined([reports[way] for reports in found]) for way in range(3))
        beside = compare(adapted, plain, METRIC).to_dict()
        rows.append({"adaptation": dial, **compare(adapted, still, METRIC).to_dict(), "beside_sasrec": beside})
        line = f"{dial:4}: 0 steps {rows[-1]['baseline']:.3f}, adapted {beside['method']:.3f}"
        tqdm.write(f"{line}, SASRec {beside['baseline']:.3f}")
    said = {"users": options.users, "items": ITEMS, "seeds": options.seeds, "epochs": options.epochs, **CONFIG}
    write_json(options.out, {"rows": rows, "settings": said, **stamp(options.device, options.commit)})
    print(f"written to {options.out}")


def one(dial: float, seed: int, options: argparse.Namespace) -> list[Report]:
    """One world: the cold users' reports with the inner steps, with the same weights without them, and of SASRec."""
    data = mr.datasets.planted(users=options.users, items=ITEMS, adaptation=dial, seed=seed)
    up, down = mr.split_by_time(data, at=mr.datasets.PLANTED_SPLIT)
    model = mr.MML.build(up, mr.MMLConfig(**CONFIG, epochs=options.epochs), seed=seed).to(options.device)
    for _ in mr.recipes.mml.train(model, mr.EpisodeSampler(up, seed=seed)):
        pass
    shape = {name: CONFIG[name] for name in ("dim", "layers", "dropout")}
    plain = mr.recipes.sasrec.build(up, ("text",), **shape, seed=seed).to(options.device)
    for _ in mr.recipes.sasrec.train(plain, up, epochs=options.epochs, lr=CONFIG["lr"], users_per_batch=64, seed=seed):
        pass
    methods = model.meta("text", generator=False), model.learner("text", generator=False), plain
    return [mr.evaluate(method, down, k=(10,)) for method in methods]


def joined(reports: Sequence[Report]) -> Report:
    """The users of several worlds as one report, each world's under numbers of their own."""
    most = 1 + max(int(report.user.max()) for report in reports)
    user = np.concatenate([report.user + most * place for place, report in enumerate(reports)])
    rest: dict[str, Any] = {
        name: np.concatenate([getattr(r, name) for r in reports]) for name in ("target", "rank", "is_cold", "is_repeat")
    }
    return replace(reports[0], user=user, lists={}, coverage={}, **rest)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    numbers = {
        "users": (1500, "users of a world, a fifth of them cold"),
        "seeds": (3, "worlds at each place of the dial"),
        "epochs": (9, "of meta-training"),
    }
    add_numbers(parser, numbers, least={"users": 50})
    add_machine_options(parser, device="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
