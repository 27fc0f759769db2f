"""The web service under load on this machine's loopback: throughput, percentiles, and whether each answer is right.

Usage::

    python benchmarks/service.py --model runs/movietweetings-default-seed0/model.safetensors --out service.json
    python benchmarks/service.py --out service.json          # an untrained model of the MovieTweetings size

A server is started as ``metarec serve`` starts it. Every client asks about users of its own choice, waits for each
answer, and checks it against the one that a recommender gave directly beforehand. Last come clients that send garbage,
too much, or too slowly, while good ones go on asking. Clients and server share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from clients import answer, garbage, got, oversized, port_of, post, slow
from machine import ROOT, AtLeast, add_numbers, command_line, stamp

import metarec as mr
from metarec.files import write_json

MARGIN = 3  # times k: entries of the direct list that an answer may be made of
CLOSE = 1e-3  # scores of another batch differ by rounding


@dataclass(frozen=True)
class Question:
    """A request and what the answer must be."""

    content: bytes
    scores: Mapping[str, float]
    k: int

    def wrong(self, answer: Mapping[str, Any]) -> bool:
        """Whether an answer is not this question's."""
        items, best = answer["items"], list(self.scores.values())[: self.k]
        if len({item["id"] for item in items}) != self.k:
            return True
        pairs = zip(items, best, strict=True)
        return any(
            abs(item["score"] - self.scores.get(item["id"], 1e9)) > CLOSE or abs(item["score"] - score) > CLOSE
            for item, score in pairs
        )


@dataclass
class Tally:
    """What clients have seen."""

    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    statuses: Counter[str] = field(default_factory=Counter)

    def summary(self, clients: int, wall: float) -> dict[str, Any]:
        """Figures of one level of load."""
        times = sorted(self.seconds)
        at = {f"p{p}_ms": 1000 * times[min(len(times) - 1, len(times) * p // 100)] for p in (50, 99) if times}
        right = self.statuses["200"] - self.wrong
        return {
            "clients": clients,
            "requests": self.statuses.total(),
            "requests_per_second": len(times) / wall,
            **at,
            "right": right,
            "wrong": self.wrong,
            "lost": self.statuses.total() - right - self.wrong,
            "statuses": dict(self.statuses),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, write the JSON, print a summary."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or _untrained(Path(folder) / "model.safetensors")
        model = mr.load(path)
        questions = ask_directly(mr.Recommender(model), users=options.users, clicks=options.clicks, k=options.k)
        with served(path, options) as (port, server):
            levels = [asyncio.run(load(port, questions, n, options.requests)) for n in options.clients]
            abuse = asyncio.run(abused(port, questions, options.requests, options.bad))
        stopped = server.returncode
    result = {
        "levels": levels,
        "abuse": {**abuse, "exit_status": stopped},
        "settings": {
            name: getattr(options, name) for name in ("users", "clicks", "k", "requests", "bad", "read_timeout")
        },
        "model": {
            "items": len(model.catalog.items),
            "dim": model.config.dim,
            "steps": model.config.inner_steps,
            "learners": list(model.learners),
        },
        "threads": options.threads,
        **stamp(torch.device("cpu"), options.commit),
    }
    write_json(options.out, result)
    print(summary(result), f"written to {options.out}", sep="\n")


def ask_directly(recommender: mr.Recommender, *, users: int, clicks: int, k: int) -> list[Question]:
    """Users with 3 to so many random clicks, and their lists."""
    rng, ids = random.Random(0), recommender.catalog.items.ids
    histories = [rng.sample(ids, rng.randint(3, clicks)) for _ in range(users)]
    lists = recommender.adapt(histories).recommend(k=MARGIN * k)
    return [
        Question(json.dumps({"clicks": history, "k": k}).encode(), {item.id: item.score for item in own}, k)
        for history, own in zip(histories, lists, strict=True)
    ]


@contextlib.contextmanager
def served(path: Path, options: argparse.Namespace, tree: Path = ROOT) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The port of a running server, which is told to stop at the end; of the code in another tree, without uvloop."""
    code = "import sys, torch; torch.set_num_threads(int(sys.argv.pop(1))); from metarec.__main__ import main; main()"
    limits = ["--port", "0", "--read-timeout", str(options.read_timeout), *getattr(options, "more", [])]
    if tree != ROOT:
        code = f"import sys; sys.modules['uvloop'] = None; {code}"  # it did not come with the extra then
    elif getattr(options, "workers", 1) > 1:
        limits += ["--workers", str(options.workers)]
    command = [sys.executable, "-c", code, str(options.threads), "serve", str(path), *limits]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=here, cwd=tree) as server:
        try:
            yield port_of(server), server
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)


async def load(port: int, questions: Sequence[Question], clients: int, requests: int) -> dict[str, Any]:
    """Figures of so many clients at once; a few untimed requests come first."""
    await asyncio.gather(*(client(port, questions, n, 2, Tally()) for n in range(clients)))
    tally, each = Tally(), max(1, requests // clients)
    before, start = await batches(port), time.perf_counter()
    await asyncio.gather(*(client(port, questions, n, each, tally) for n in range(clients)))
    wall, after = time.perf_counter() - start, await batches(port)
    return tally.summary(clients, wall) | {"users_per_batch": (after[0] - before[0]) / (after[1] - before[1])}


async def batches(port: int) -> tuple[float, float]:
    """Users and inner loops so far, by the service's own metrics."""
    _, text = await got(port, "/metrics")
    users, count = (re.search(rf"^metarec_batch_users_{name} (\S+)$", text, re.MULTILINE) for name in ("sum", "count"))
    return (float(users[1]), float(count[1])) if users and count else (0.0, 0.0)


async def client(port: int, questions: Sequence[Question], seed: int, requests: int, tally: Tally) -> None:
    """Ask, wait, check, again; over one connection for as long as it holds."""
    rng, streams = random.Random(seed), None
    for _ in range(requests):
        question, start = rng.choice(questions), time.perf_counter()
        try:
            streams = streams or await asyncio.open_connection("127.0.0.1", port)
            streams[1].write(post(question.content))
            status, content = await answer(streams[0])
        except (OSError, asyncio.IncompleteReadError):
            tally.statuses["no answer"] += 1
            streams = None
            continue
        tally.statuses[status] += 1
        if status == "200":
            tally.seconds.append(time.perf_counter() - start)
            tally.wrong += question.wrong(json.loads(content))
    if streams:
        streams[1].close()


async def abused(port: int, questions: Sequence[Question], requests: int, each: int) -> dict[str, Any]:
    """Eight good clients while others misbehave; then the service's health."""
    tally, start = Tally(), time.perf_counter()
    good = [client(port, questions, n, max(1, requests // 8), tally) for n in range(8)]
    kinds = {"garbage": garbage, "oversized": oversized, "slow": slow}
    bad = {name: [kind(port, n) for n in range(each)] for name, kind in kinds.items()}
    done = asyncio.gather(*good)
    outcomes = {name: Counter(await asyncio.gather(*tasks)) for name, tasks in bad.items()}
    await done
    figures = tally.summary(8, time.perf_counter() - start)
    health, _ = await got(port, "/health")
    return {"good": figures, **{name: dict(counts) for name, counts in outcomes.items()}, "health": health}


def summary(result: Mapping[str, Any]) -> str:
    """The figures in a few lines."""
    rows = [*result["levels"], {**result["abuse"]["good"], "clients": "8, beside bad ones"}]
    lines = [
        f"{row['clients']} clients: {row['requests_per_second']:.0f} requests/s, p50 {row['p50_ms']:.1f} ms, "
        f"p99 {row['p99_ms']:.1f} ms, wrong {row['wrong']}, lost {row['lost']}"
        for row in rows
    ]
    bad = {name: result["abuse"][name] for name in ("garbage", "oversized", "slow", "health", "exit_status")}
    return "\n".join([*lines, *(f"{name}: {outcome}" for name, outcome in bad.items())])


def _untrained(path: Path) -> Path:
    data = mr.datasets.movietweetings()
    up, _ = mr.split_by_time(data, at=mr.split_time(data, cold_users=0.2))
    mr.save(mr.MML.build(up), path)
    return path


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--model", type=Path, metavar="PATH", help="a saved model (default: an untrained one)")
    levels = "levels of load (default: 1 8 64)"
    add("--clients", action=AtLeast, nargs="+", default=[1, 8, 64], metavar="N", help=levels)
    numbers = {
        "requests": (1024, "at each level, of all clients"),
        "users": (256, "asked about"),
        "clicks": (20, "of a user, at most; at least 3"),
        "k": (10, "length of a list"),
        "bad": (60, "misbehaving clients of each kind"),
        "threads": (1, "of torch in the server"),
    }
    add_numbers(parser, numbers, least={"clicks": 3})
    add("--read-timeout", type=float, default=10.0, metavar="S", help="of the server (default: 10)")
    add("--commit", help="if git is not there to tell")
    add("--out", type=Path, required=True, metavar="PATH", help="the JSON file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
