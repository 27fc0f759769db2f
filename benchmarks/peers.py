"""Users meta-trained per second in every usual way, on the same users and weights, in one run.

Usage::

    python benchmarks/peers.py --users 256 --out peers_cpu.json
    python benchmarks/peers.py --users 4096 --device cuda --tf32 --out peers_cuda.json
    python benchmarks/peers.py --released PATH --out peers_cpu.json      # a checkout of the released MML code too

``metarec``: the batched inner loop. ``torch.func``: one user's inner loop written with ``torch.func.grad``, under
``vmap`` over users. ``learn2learn``: its MAML, ``clone()`` and ``adapt()`` user by user. First order; each adds the
same meta-gradient; how far from it in float64 each is, is written beside its speed. The picture lies beside the JSON.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from inner_loop import LR, loop, make_learner, make_users, native
from machine import add_machine_options, add_numbers, command_line, place, samples, stamp
from released import released_loop
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metarec.files import write_json, write_png
from metarec.nn import ModalityLearner
from metarec.types import EpisodeBatch, Examples

SHAPE = {"clicks": 12, "dim": 64, "layers": 2, "heads": 2, "feedforward": 256, "items": 4000}
STEPS = 5
CHECKED_USERS = 8  # whose meta-gradient is compared with float64


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, write the JSON and the picture, print a table."""
    options = _parse(arguments)
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    torch.manual_seed(0)
    learner = make_learner(argparse.Namespace(**SHAPE)).to(options.device)
    users = make_users(options.users, SHAPE["clicks"], SHAPE["items"]).to(options.device)
    few = next(users.chunks(options.loop_users))
    ways: dict[str, Callable[[], object]] = {
        "metarec": partial(native(learner, STEPS, second_order=False).backward, users),
        "torch.func": partial(mapped, learner, users),
        "learn2learn": partial(loop, learner, few, STEPS, second_order=False),
    }
    if options.released:
        ways["released MML"] = released_loop(options.released, few, SHAPE, STEPS, LR)
    taken = samples(ways, options.device, options.repeats, "peers")
    batched = ("metarec", "torch.func")
    speed = {n: (len(users) if n in batched else len(few)) / median(times) for n, times in taken.items()}
    result = {
        "users_per_second": speed,
        "times_slower_than_metarec": {name: speed["metarec"] / value for name, value in speed.items()},
        "gradient_error": errors(learner, next(users.chunks(CHECKED_USERS))),
        "repeats": taken,
        "settings": {**SHAPE, "steps": STEPS, "lr": LR, "users": options.users, "loop_users": len(few)}
        | {"tf32": options.tf32},
        "threads": torch.get_num_threads(),
        **stamp(options.device, options.commit),
    }
    write_json(options.out, result)
    draw(result, options.out.with_suffix(".png"))
    print(table(result), f"written to {options.out} and {options.out.with_suffix('.png')}", sep="\n")


class _Loss(nn.Module):
    """Lets ``functional_call`` reach a learner's loss."""

    def __init__(self, learner: ModalityLearner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, examples: Examples) -> Tensor:
        """The loss of one user."""
        return self.learner.loss(examples)


def mapped(learner: ModalityLearner, users: EpisodeBatch, steps: int = STEPS) -> None:
    """Add the gradient of the mean query loss to ``.grad`` by one user's loop under ``vmap``."""
    module = _Loss(learner)
    weights: dict[str, Tensor] = dict(module.named_parameters())
    encoder = {name: weight for name, weight in weights.items() if name.startswith("learner.encoder.")}

    def loss(own: dict[str, Tensor], examples: Examples) -> Tensor:
        out: Tensor = functional_call(module, {**weights, **own}, (examples,))
        return out

    def one(support: tuple[Tensor, ...], query: tuple[Tensor, ...]) -> Tensor:
        own = encoder
        for _ in range(steps):
            gradients = grad(loss)(own, Examples(*support))
            own = {name: weight - LR * gradients[name].detach() for name, weight in own.items()}
        return loss(own, Examples(*query))

    vmap(one)(users.support.tensors(), users.query.tensors()).mean().backward()


def errors(learner: ModalityLearner, users: EpisodeBatch) -> dict[str, float]:
    """Largest error of each way's meta-gradient of a few users, against learn2learn's in float64 and relative to it."""
    exact = copy.deepcopy(learner).double()
    expected = _gradient(exact, partial(loop, exact, users, STEPS, second_order=False))
    ways: dict[str, Callable[[], object]] = {
        "metarec": partial(native(learner, STEPS, second_order=False).backward, users),
        "torch.func": partial(mapped, learner, users),
        "learn2learn": partial(loop, learner, users, STEPS, second_order=False),
    }
    found = {name: _gradient(learner, way) for name, way in ways.items()}
    return {name: float((g - expected).abs().max() / expected.abs().max()) for name, g in found.items()}


def _gradient(learner: ModalityLearner, add: Callable[[], object]) -> Tensor:
    learner.zero_grad()
    add()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learner.parameters()])


def table(result: dict[str, Any]) -> str:
    """One line for each way."""
    lines = [f"{'':12}{'users/s':>12}{'slower':>10}{'gradient error':>16}"]
    for name, speed in result["users_per_second"].items():
        slower, error = result["times_slower_than_metarec"][name], result["gradient_error"].get(name)
        lines.append(f"{name:12}{speed:12,.1f}{slower:9,.1f}x{'-' if error is None else f'{error:.1e}':>16}")
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Speeds as bars on a logarithmic axis."""
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 2.4), layout="constrained")
    names, speeds = zip(*reversed(result["users_per_second"].items()), strict=True)
    bars = panel.barh(names, speeds, color="tab:blue")
    panel.bar_label(bars, [f"{speed:,.0f}" for speed in speeds], padding=3)
    title = f"{place(result['machine'])}, commit {result['commit'][:10]}"
    panel.set(xscale="log", xlabel="users meta-trained per second", title=title)
    panel.margins(x=0.15)
    write_png(path, figure, dpi=110)
    pyplot.close(figure)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    numbers = {
        "users": (256, "users at once"),
        "loop-users": (16, "users that the learn2learn loop takes in each repeat"),
        "repeats": (5, "timed repeats; the median counts"),
    }
    add_numbers(parser, numbers)
    add_machine_options(parser)
    parser.add_argument("--tf32", action="store_true", help="let matrix products on a GPU round to TF32")
    parser.add_argument("--released", type=Path, metavar="PATH", help="a checkout of the released MML code, to run too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
