"""Cold users adapted with all their weights and ranked over the whole catalogue: seconds and peak memory.

Usage::

    python benchmarks/ranking.py --users 10000 --items 50000 --device cuda --out meta_test_cuda.json
    python benchmarks/ranking.py --users 10000 --items 1000000 --device cuda --out meta_test_million_cuda.json

The model is MML with three learners behind a generator each, with random weights, as serving holds it. A user takes
its inner steps on all weights of every learner, the rows of the items it touches included; then its best items among
all that it has not clicked are found piece by piece of the catalogue, so that no matrix of users by items exists.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inner_loop import make_users
from machine import add_machine_options, add_numbers, command_line, place, seconds, stamp
from torch import Tensor
from tqdm import tqdm

import metarec as mr
from metarec.data import Modality
from metarec.files import write_json
from metarec.scoring import UserState
from metarec.serving.ranking import USERS, best
from metarec.types import EpisodeBatch

FEATURES = {"text": 32, "image": 32}  # columns; tables are made of them beforehand, so that their width costs nothing
NEIGHBOURS = 5
LR = 0.05
WARM_UP = 64  # users whose time does not count


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, write the JSON, print a summary."""
    options = _parse(arguments)
    torch.set_float32_matmul_precision("highest")  # lists are checked against bounds on float32 products
    users = make_users(options.users, options.clicks, options.items).to(options.device)
    result = {
        **measure(make_model(options).to(options.device), users, options.k),
        "settings": {**{n: v for n, v in vars(options).items() if n not in ("out", "commit", "device")}, "lr": LR},
        "threads": torch.get_num_threads(),
        **stamp(options.device, options.commit),
    }
    write_json(options.out, result)
    print(summary(result), f"written to {options.out}", sep="\n")


def make_model(options: argparse.Namespace) -> mr.MML:
    """Three learners over random items, nine in ten of them warm, with random weights."""
    draw = torch.Generator().manual_seed(0)
    size = options.items + 1
    present = torch.arange(size) > 0
    features = {
        name: Modality(name, torch.randn(size, columns, generator=draw) * present.unsqueeze(1), present)
        for name, columns in FEATURES.items()
    }
    warm = (np.arange(size) > 0) & (np.arange(size) <= max(2, options.items * 9 // 10))
    near = torch.randint(1, int(warm.sum()) + 1, (size, NEIGHBOURS), generator=draw)  # finding the real ones is slow
    config = mr.MMLConfig(
        dim=options.dim, max_length=options.clicks, test_steps=options.steps, test_lr=LR, test_adapts="all"
    )
    model = mr.MML(mr.Catalog(mr.Vocabulary(map(str, range(options.items))), features), warm, config, neighbours=near)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def measure(model: mr.MML, users: EpisodeBatch, k: int) -> dict[str, Any]:
    """Seconds of each part and the peak of memory."""
    device = users.user.device
    warm_up = next(users.chunks(WARM_UP))
    taken = {"tables": seconds(model.item_mask, device), "adapt": 0.0, "rank": 0.0}  # makes what a model keeps
    ranked(model, warm_up, model.encode(warm_up.support, warm_up.query), k)
    before = _peak(device, restart=True)
    bar = tqdm(total=len(users), unit=" users")
    for part in users.chunks(USERS[device.type]):
        found: list[UserState] = []
        adapt, rank = partial(encoded, model, part, found), partial(best_of, model, part, found, k)
        taken["adapt"] += seconds(adapt, device)
        taken["rank"] += seconds(rank, device)
        bar.update(len(part))
    bar.close()
    both = taken["adapt"] + taken["rank"]
    return {
        "seconds": both,
        "users_per_second": len(users) / both,
        "parts": {f"{name}_seconds": value for name, value in taken.items()},
        "peak_bytes": _peak(device),
        "before_bytes": before,
        "users_by_items_bytes": 4 * len(users) * model.catalog.size,
    }


def encoded(model: mr.MML, users: EpisodeBatch, found: list[UserState]) -> None:
    """Adds the states of users after all their steps."""
    found.append(model.encode(users.support, users.query))


def best_of(model: mr.MML, users: EpisodeBatch, found: list[UserState], k: int) -> None:
    """Ranks the users whose states were found last."""
    ranked(model, users, found[-1], k)


def ranked(model: mr.MML, users: EpisodeBatch, state: UserState, k: int) -> tuple[Tensor, Tensor]:
    """Codes and scores (B, k) of each user's best items without those it has clicked."""
    clicked = users.query.history
    who = torch.arange(len(clicked), device=clicked.device).unsqueeze(1).expand_as(clicked)
    return best(model.scores(state), k, model.item_mask(), (who.flatten(), clicked.flatten()))


def summary(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    what, parts, where = result["settings"], result["parts"], place(result["machine"])
    return (
        f"{what['users']:,} users, {what['steps']} steps of all weights, {what['items']:,} items, on {where}: "
        f"{result['seconds']:.2f} s ({parts['adapt_seconds']:.2f} adapting, {parts['rank_seconds']:.2f} ranking), "
        f"after {parts['tables_seconds']:.2f} s for the tables\npeak {result['peak_bytes'] / 2**30:.2f} GiB, "
        f"{result['before_bytes'] / 2**30:.2f} before; a users-by-items matrix alone would be "
        f"{result['users_by_items_bytes'] / 2**30:.2f} GiB"
    )


def _peak(device: torch.device, *, restart: bool = False) -> int:
    """The most bytes held so far: of the GPU since the restart, which gives what is held now, or of the process."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if restart:
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_allocated(device)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    numbers = {
        "users": (200, "cold users"),
        "items": (2000, "items in the catalogue, more than a user's clicks and k together"),
        "clicks": (12, "items in each user's history, at least 3"),
        "dim": (64, "width of item vectors and states"),
        "steps": (50, "inner steps"),
        "k": (20, "items in each user's list"),
    }
    add_numbers(parser, numbers, least={"clicks": 3})
    add_machine_options(parser)
    options = parser.parse_args(arguments)
    if options.items < (least := options.clicks + options.k + 1):
        parser.error(f"--items must be at least {least}, got {options.items}")
    return options


if __name__ == "__main__":
    main()
