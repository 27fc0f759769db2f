"""The web service beside an earlier build of it: requests per second of processor time, in turn, in one run.

Usage::

    git worktree add --detach ../before 5338d68
    python benchmarks/service_pairs.py --before ../before --out benchmarks/results/service_cpu.json

The same clients ask both servers in turn, and each answer of this build is held to the one that a recommender gave
directly beforehand. What counts is the processor time of all processes of a server, which other programs on the machine
change little. Then a service is killed under load, again and again. The figures are added to the JSON file of
``benchmarks/service.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from kills import killed_often, small_ensemble
from machine import AtLeast, add_numbers, command_line, stamp
from service import Question, _untrained, ask_directly, load, served

import metarec as mr
from metarec.files import write_json

_TICK = os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, add to the JSON, print a summary."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {}
        if options.before:
            path = options.model or _untrained(Path(folder) / "model.safetensors")
            result = paired(path, options.before_model or path, options)
        kills = {}
        if options.kills:
            kills["kills"] = killed_often(
                small_ensemble(Path(folder) / "small.safetensors"), Path(folder), options.kills
            )
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    if options.before:
        result["models"] = {**known.get("models", {}), options.label: {**result, "pairs": result.pop("pairs")}}
    write_json(options.out, {**known, **result, **kills})
    print(json.dumps({name: value for name, value in {**result, **kills}.items() if name != "models"}, indent=1))


def paired(path: Path, before: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of this build and of an earlier one, asked in turn."""
    model = mr.load(path)
    questions = ask_directly(mr.Recommender(model), users=options.users, clicks=options.clicks, k=options.k)
    rounds = []
    with (
        served(path, options) as (port, server),
        served(before, options, options.before.resolve()) as (old_port, old_server),
    ):
        for _ in range(options.rounds):
            now = asked(port, server.pid, questions, options)
            rounds.append({"now": now, "before": asked(old_port, old_server.pid, questions, options)})
    ratios = [one["now"]["requests_per_cpu_second"] / one["before"]["requests_per_cpu_second"] for one in rounds]
    ours = [one["now"] for one in rounds]
    return {
        "requests_per_cpu_second": statistics.median(one["requests_per_cpu_second"] for one in ours),
        "ratio_to_before": statistics.median(ratios),
        "p99_ms": statistics.median(one["p99_ms"] for one in ours),
        "wrong": sum(one["wrong"] for one in ours),
        "pairs": {
            "rounds": rounds,
            "clients": options.clients,
            "workers": options.workers,
            "kind": type(model).__name__,
            "inner_steps": _steps(model),
            "same_model": path == before,
            "before": commit_of(options.before),
            **stamp(torch.device("cpu"), options.commit),
        },
    }


def asked(port: int, server: int, questions: Sequence[Question], options: argparse.Namespace) -> dict[str, Any]:
    """One round of a server: its figures, with the processor time that it took."""
    asyncio.run(load(port, questions, options.clients, options.clients * 2))
    start = cpu_seconds(server)
    found = asyncio.run(load(port, questions, options.clients, options.requests))
    spent = cpu_seconds(server) - start
    asked = found["requests"] + 2 * options.clients  # with those that come before the clock runs
    return {**found, "cpu_ms": 1000 * spent / asked, "requests_per_cpu_second": asked / spent}


def cpu_seconds(process: int) -> float:
    """Processor time of a process and of those that it has started, as far as they live."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    tasks = Path(f"/proc/{process}/task").iterdir()
    children = [int(one) for task in tasks for one in (task / "children").read_text(encoding="utf-8").split()]
    return (int(fields[11]) + int(fields[12])) / _TICK + sum(map(cpu_seconds, children))


def _steps(model: Any) -> dict[str, int]:
    """Inner steps for a new user, by learner, where a model says so."""
    config: Any = getattr(model, "config", None)
    return {name: config.steps(name) for name in model.learners} if hasattr(config, "steps") else {}


def commit_of(tree: Path) -> str:
    """The commit of another tree; ``"unknown"`` without git."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--before", type=Path, metavar="TREE", help="a worktree of the earlier build")
    add("--model", type=Path, metavar="PATH", help="a saved model (default: an untrained MML)")
    add("--label", default="MML", help="what the figures are kept under, beside those of other models (default: MML)")
    add("--before-model", type=Path, metavar="PATH", help="what the earlier build serves (default: the same)")
    numbers = {
        "clients": (64, "at once"),
        "requests": (2048, "of all clients in a round"),
        "rounds": (3, "of each server, in turn"),
        "users": (256, "asked about"),
        "clicks": (20, "of a user, at most; at least 3"),
        "k": (10, "length of a list"),
        "threads": (1, "of torch in the servers"),
        "workers": (1, "processes of this build"),
    }
    add_numbers(parser, numbers, least={"clicks": 3})
    add("--kills", action=AtLeast, least=0, default=0, metavar="N", help="how often a service is killed under load")
    add("--read-timeout", type=float, default=10.0, metavar="S", help="of the servers (default: 10)")
    add("--commit", help="if git is not there to tell")
    add("--out", type=Path, required=True, metavar="PATH", help="the JSON file that the figures are added to")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
