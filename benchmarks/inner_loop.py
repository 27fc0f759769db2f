"""Users meta-trained per second: the batched inner loop against learn2learn's MAML loop over users, in one run.

Usage::

    python benchmarks/inner_loop.py --users 256 --out inner_loop.json
    python benchmarks/inner_loop.py --users 4096 --device cuda --out inner_loop.json

One meta-trained user is its inner steps on the support, its query loss, and its share of the meta-gradient of the
encoder and of the item vectors. Both ways get the same users and the same weights, without dropout.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from floor import Shape, users_per_second, work
from inner_loop_beside import before, memory
from machine import (
    add_machine_options,
    add_numbers,
    command_line,
    copy_rates,
    matmul_rate,
    place,
    samples,
    seconds,
    stamp,
)
from torch import Tensor

from metarec.files import write_json
from metarec.meta import MetaLearner
from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
from metarec.types import EpisodeBatch, Examples

LR = 0.1  # large enough that the inner steps show in the meta-gradient
NUMBERS = {
    "users": (256, "users in one meta-gradient of the batched loop"),
    "items": (4000, "items in the catalogue, at least 2"),
    "clicks": (12, "items in each user's history, at least 2"),
    "dim": (64, "width of item vectors and states"),
    "layers": (2, "encoder blocks"),
    "heads": (2, "attention heads"),
    "feedforward": (256, "width of the blocks' hidden layer"),
    "steps": (5, "inner steps"),
    "loop-users": (16, "users that the learn2learn loop takes in each repeat"),
    "repeats": (5, "timed repeats; the median counts"),
}
CHECKED_USERS = 8  # whose meta-gradient is compared with float64
STAGED_USERS = {"cpu": 256, "cuda": 4096}  # at most so many at once, where forward and backward are timed apart


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, write the JSON, print a summary."""
    options = _parse(arguments)
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    torch.manual_seed(0)
    device = options.device
    if options.gib:
        torch.cuda.set_per_process_memory_fraction(options.gib * 2**30 / torch.cuda.mem_get_info(device)[1])
    learner = make_learner(options).to(device)
    users = make_users(options.users, options.clicks, options.items).to(device)
    ceilings = {"matmul_flops_per_second": matmul_rate(device), "copy_bytes_per_second": copy_rates(device)}
    result = {
        **measure(learner, users, options, ceilings),
        "memory": memory(native(learner, options.steps, second_order=False, graphs=False), users),
        "stages": stages(learner, users, options),
        "second_order": {
            **measure(learner, users, options, ceilings, second_order=True),
            "memory": memory(native(learner, options.steps, second_order=True, graphs=False), users),
        },
        "ceilings": ceilings,
        "settings": settings(options),
        "threads": torch.get_num_threads(),
        **stamp(device, options.commit),
    }
    if options.before:
        found = before(options, NUMBERS)
        result["before_users_per_second"] = found["users_per_second"]
        result["second_order"]["before_users_per_second"] = found["second_order"]["users_per_second"]
    write_json(options.out, result)
    print(summary(result), f"written to {options.out}", sep="\n")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was measured."""
    given = {name: value for name, value in vars(options).items() if name not in ("out", "commit", "before")}
    return {**given, "device": options.device.type, "lr": LR, "dtype": "float32"}


def make_learner(options: argparse.Namespace) -> ModalityLearner:
    """An ID learner at its usual initial weights."""
    encoder = SequenceEncoder(
        options.dim,
        max_length=options.clicks,
        layers=options.layers,
        heads=options.heads,
        feedforward=options.feedforward,
        dropout=0.0,
    )
    return ModalityLearner(IdItems(options.items + 1, options.dim), encoder)


def make_users(users: int, clicks: int, items: int) -> EpisodeBatch:
    """Users who click at random: support is every step inside the history, query the click after it."""
    generator = torch.Generator().manual_seed(0)
    click = torch.randint(1, items + 1, (users, clicks + 1), generator=generator)
    negative = (click - 1 + torch.randint(1, items, click.shape, generator=generator)) % items + 1  # not the target
    support = Examples(
        click[:, : clicks - 1],
        torch.arange(clicks - 1).expand(users, -1),
        click[:, 1:clicks],
        negative[:, 1:clicks, None],
        torch.ones(users, clicks - 1),
    )
    query = Examples(
        click[:, :clicks],
        torch.full((users, 1), clicks - 1),
        click[:, clicks:],
        negative[:, clicks:, None],
        torch.ones(users, 1),
    )
    return EpisodeBatch(torch.arange(users), support, query)


def loop(learner: ModalityLearner, users: EpisodeBatch, steps: int, second_order: bool) -> None:
    """Add the gradient of the mean query loss to ``.grad``, one user after another, as learn2learn is used."""
    from learn2learn.algorithms import MAML

    maml = MAML(learner.encoder, lr=LR, first_order=not second_order)
    for user in range(len(users)):
        encoder = maml.clone()
        own = ModalityLearner(learner.items, encoder)
        for _ in range(steps):
            encoder.adapt(own.loss(users.support[user : user + 1]).sum())
        (own.loss(users.query[user : user + 1]).sum() / len(users)).backward()


def native(learner: ModalityLearner, steps: int, second_order: bool, *, graphs: bool = True) -> MetaLearner:
    """The batched inner loop of the same meta-learning."""
    return MetaLearner(
        learner,
        lr=LR,
        steps=steps,
        second_order=second_order,
        objectives=("bpr", "bpr"),
        graphs=graphs,
    )


def measure(
    learner: ModalityLearner,
    users: EpisodeBatch,
    options: argparse.Namespace,
    ceilings: dict[str, Any],
    *,
    second_order: bool = False,
) -> dict[str, Any]:
    """Speeds of both ways, their floor and their error."""
    few = _first(users, options.loop_users)
    meta = native(learner, options.steps, second_order)
    ways: dict[str, Callable[[], object]] = {"native": lambda: meta.backward(users)}
    if not options.skip_learn2learn:
        ways["learn2learn"] = lambda: loop(learner, few, options.steps, second_order)
    order = "second order" if second_order else "first order"
    taken = samples(ways, users.user.device, options.repeats, order)
    speed = {name: (len(users) if name == "native" else len(few)) / median(times) for name, times in taken.items()}
    shape = Shape(options.dim, options.layers, options.feedforward, options.clicks, options.steps)
    least = work(shape, second_order=second_order)
    floors = users_per_second(least, ceilings["matmul_flops_per_second"], ceilings["copy_bytes_per_second"])
    floor = min(floors["flops"], floors["traffic"])
    theirs = speed.get("learn2learn")
    return {
        "users_per_second": speed["native"],
        "learn2learn_users_per_second": theirs,
        "ratio_to_learn2learn": theirs and speed["native"] / theirs,
        "floor_users_per_second": floor,
        "share_of_floor": speed["native"] / floor,
        **gradient_errors(learner, _first(users, CHECKED_USERS), options, second_order),
        "floors": floors,
        "work_per_user": least,
        "repeats": taken,
    }


def gradient_errors(
    learner: ModalityLearner, users: EpisodeBatch, options: argparse.Namespace, second_order: bool
) -> dict[str, Any]:
    """Largest error of the meta-gradients of a few users, relative to the largest entry, against float64.

    The float64 gradient is learn2learn's own where it is installed, so that it also says whether both do the same.
    """
    exact = copy.deepcopy(learner).double()
    precise = EpisodeBatch(users.user, _double(users.support), _double(users.query))
    how = (options.steps, second_order)
    if options.skip_learn2learn:
        expected = _gradient(exact, lambda: native(exact, *how).backward(precise))
        theirs, reference = None, "native loop in float64"
    else:
        expected = _gradient(exact, lambda: loop(exact, precise, *how))
        theirs = _error(_gradient(learner, lambda: loop(learner, users, *how)), expected)
        reference = "learn2learn loop in float64"
    ours = _error(_gradient(learner, lambda: native(learner, *how).backward(users)), expected)
    return {
        "gradient_error": ours,
        "learn2learn_gradient_error": theirs,
        "gradient_reference": reference,
    }


def stages(learner: ModalityLearner, users: EpisodeBatch, options: argparse.Namespace) -> dict[str, Any]:
    """Forward (inner loop and query loss) and backward (meta-gradient) seconds apart, first order."""
    device = users.user.device
    part = _first(users, STAGED_USERS[device.type])
    meta = native(learner, options.steps, second_order=False, graphs=False)
    losses: list[Tensor] = []
    taken: dict[str, list[float]] = {"forward": [], "backward": []}
    for turn in range(1 + options.repeats):
        learner.zero_grad()
        forward = seconds(lambda: losses.append(meta.query_loss(part)), device)
        backward = seconds(lambda: losses.pop().mean().backward(), device)
        if turn:
            taken["forward"].append(forward)
            taken["backward"].append(backward)
    return {"users": len(part), **{f"{name}_seconds": median(times) for name, times in taken.items()}, "repeats": taken}


def summary(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    machine, what = result["machine"], result["settings"]
    lines = [
        f"{what['users']} users, {what['clicks']}-item histories, {what['steps']} steps, on {place(machine)}, "
        f"{result['threads']} threads, commit {result['commit'][:10]}",
        f"{'':13}{'users/s':>12}{'learn2learn':>13}{'ratio':>9}{'floor':>12}{'share':>8}{'gradient error':>16}",
    ]
    for title, block in (("first order", result), ("second order", result["second_order"])):
        theirs, ratio = block["learn2learn_users_per_second"], block["ratio_to_learn2learn"]
        lines.append(
            f"{title:13}{block['users_per_second']:12,.1f}{'-' if theirs is None else f'{theirs:,.1f}':>13}"
            f"{'-' if ratio is None else f'{ratio:,.1f}':>9}{block['floor_users_per_second']:12,.0f}"
            f"{block['share_of_floor']:8.1%}{block['gradient_error']:16.1e}"
        )
    return "\n".join(lines)


def _first(users: EpisodeBatch, count: int) -> EpisodeBatch:
    return EpisodeBatch(users.user[:count], users.support[:count], users.query[:count])


def _double(examples: Examples) -> Examples:
    return replace(examples, weight=examples.weight.double())


def _gradient(learner: ModalityLearner, add: Callable[[], object]) -> Tensor:
    """The whole gradient that a call adds, as one vector."""
    learner.zero_grad()
    add()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learner.parameters()])


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    add_numbers(parser, NUMBERS, least={"items": 2, "clicks": 2})
    add_machine_options(parser)
    parser.add_argument("--tf32", action="store_true", help="let matrix products on a GPU round to TF32")
    parser.add_argument("--gib", type=float, metavar="N", help="of a GPU's memory at most, as a smaller card has")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="checkout of another build to measure, too")
    parser.add_argument("--skip-learn2learn", action="store_true", help="measure the batched loop alone")
    options = parser.parse_args(arguments)
    if options.dim % options.heads:
        parser.error(f"--heads must divide --dim, got {options.heads} and {options.dim}")
    if options.tf32 and options.device.type != "cuda":
        parser.error("--tf32 needs a GPU")
    if not options.skip_learn2learn and importlib.util.find_spec("learn2learn") is None:
        parser.error("learn2learn is not installed: `make extras` installs it, --skip-learn2learn does without it")
    return options


if __name__ == "__main__":
    main()
