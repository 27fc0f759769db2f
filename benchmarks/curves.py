"""Users meta-trained per second against what a user costs and how many come at once, each with the floor drawn in.

Usage::

    python benchmarks/curves.py        # benchmarks/results/curves_cpu.json and .png; curves_cuda where there is a GPU
    python benchmarks/curves.py --quick --out tiny.json

First order, the native engine. One thing at a time is changed, its values measured in turns: users per batch, history
length, inner steps, width, catalogue size. On a GPU products round to TF32 and batches of one shape run as CUDA graphs.
The floor is that of docs/performance.md, from the ceilings measured in the same run; it knows nothing of the catalogue.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from floor import Shape, users_per_second, work
from inner_loop import make_learner, make_users, native
from machine import (
    ROOT,
    add_machine_options,
    add_numbers,
    command_line,
    copy_rates,
    matmul_rate,
    place,
    samples,
    stamp,
)

from metarec.files import write_json, write_png

SHAPE = {"clicks": 12, "steps": 5, "dim": 64, "items": 4000, "layers": 2, "heads": 2}
USERS = {"cpu": 256, "cuda": 16384}  # per batch, where something else is changed
VALUES: dict[str, dict[str, list[int]]] = {
    "cpu": {
        "users": [16, 64, 256, 1024, 4096],
        "clicks": [4, 8, 12, 24, 50],
        "steps": [0, 1, 2, 5, 10],
        "dim": [16, 32, 64, 128],
        "items": [1000, 10_000, 100_000],
    },
    "cuda": {
        "users": [64, 256, 1024, 4096, 16384, 65536],
        "clicks": [4, 8, 12, 24, 50],
        "steps": [0, 1, 2, 5, 10, 20],
        "dim": [32, 64, 128],
        "items": [1000, 10_000, 100_000, 1_000_000],
    },
}
QUICK_USERS = 4
QUICK: dict[str, list[int]] = {"users": [2, 4], "clicks": [3, 4], "steps": [0, 2], "dim": [8, 16], "items": [10, 20]}
TITLES = {
    "users": "users per batch",
    "clicks": "items in a user's history",
    "steps": "inner steps",
    "dim": "width",
    "items": "items in the catalogue",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, write the JSON and the picture."""
    options = _parse(arguments)
    device = options.device
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    torch.manual_seed(0)
    ceilings = {"matmul_flops_per_second": matmul_rate(device), "copy_bytes_per_second": copy_rates(device)}
    values = QUICK if options.quick else VALUES[device.type]
    base = {**SHAPE, "users": QUICK_USERS if options.quick else USERS[device.type]}
    curves = {axis: curve(axis, values[axis], base, device, ceilings, options.repeats) for axis in values}
    result = {
        "curves": curves,
        "settings": {**base, "repeats": options.repeats, "quick": options.quick, "tf32": device.type == "cuda"},
        "ceilings": ceilings,
        "threads": torch.get_num_threads(),
        **stamp(device, options.commit),
    }
    write_json(options.out, result)
    draw(result, options.out.with_suffix(".png"))
    print(summary(result), f"written to {options.out} and {options.out.with_suffix('.png')}", sep="\n")


def curve(
    axis: str, values: Sequence[int], base: dict[str, int], device: torch.device, ceilings: dict[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """Users per second at each value, measured in turns, so that what slows the machine slows all; and the floor."""
    settings = {f"{value:,}": {**base, axis: value} for value in values}
    taken = samples({name: _step(what, device) for name, what in settings.items()}, device, repeats, TITLES[axis])
    return [{"value": what[axis], **_point(what, taken[name], ceilings)} for name, what in settings.items()]


def _step(what: dict[str, int], device: torch.device) -> Callable[[], object]:
    learner = make_learner(_options(what)).to(device)
    users = make_users(what["users"], what["clicks"], what["items"]).to(device)
    return partial(native(learner, what["steps"], second_order=False).backward, users)


def _point(what: dict[str, int], taken: list[float], ceilings: dict[str, Any]) -> dict[str, Any]:
    shape = Shape(what["dim"], what["layers"], _options(what).feedforward, what["clicks"], what["steps"])
    floors = users_per_second(work(shape), ceilings["matmul_flops_per_second"], ceilings["copy_bytes_per_second"])
    return {
        "users_per_second": what["users"] / median(taken),
        "floor_users_per_second": min(floors["flops"], floors["traffic"]),
        "repeats": taken,
    }


def _options(what: dict[str, int]) -> argparse.Namespace:
    return argparse.Namespace(**what, feedforward=4 * what["dim"])


def draw(result: dict[str, Any], path: Path) -> None:
    """One panel per curve: measured and floor."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(result["curves"]), figsize=(18, 3.8), sharey=True, layout="constrained")
    for panel, (axis, points) in zip(panels, result["curves"].items(), strict=True):
        values = [point["value"] for point in points]
        panel.plot(values, [point["floor_users_per_second"] for point in points], "--", color="0.45", label="floor")
        panel.plot(values, [point["users_per_second"] for point in points], "o-", color="tab:blue", label="metarec")
        panel.set(xlabel=TITLES[axis], yscale="log")
        panel.set_xscale("symlog" if min(values) == 0 else "log", base=2 if max(values) < 1000 else 10)
        panel.set_xticks(values, [f"{value:,}" for value in values])
        panel.set_xticks([], minor=True)
        panel.grid(color="0.9")
    panels[0].set_ylabel("users per second")
    panels[0].legend()
    base, where = result["settings"], place(result["machine"])
    usual = ", ".join(f"{TITLES[axis]} {base[axis]:,}" for axis in result["curves"])
    figure.suptitle(f"{where}, {result['threads']} threads, commit {result['commit'][:10]}; if not changed: {usual}")
    write_png(path, figure, dpi=110)
    pyplot.close(figure)


def summary(result: dict[str, Any]) -> str:
    """The curves as a table."""
    lines = [f"{'':26}{'':>11}{'users/s':>12}{'floor':>12}"]
    for axis, points in result["curves"].items():
        for row, point in enumerate(points):
            speeds = f"{point['users_per_second']:12,.0f}{point['floor_users_per_second']:12,.0f}"
            lines.append(f"{'' if row else TITLES[axis]:26}{point['value']:11,}{speeds}")
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="default: benchmarks/results/curves_DEVICE.json")
    add_numbers(parser, {"repeats": (3, "timed repeats; the median counts")})
    parser.add_argument("--quick", action="store_true", help="two tiny values of everything, to see it run")
    add_machine_options(parser)
    options = parser.parse_args(arguments)
    options.out = options.out or ROOT / "benchmarks" / "results" / f"curves_{options.device.type}.json"
    return options


if __name__ == "__main__":
    main()
