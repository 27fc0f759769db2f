"""What learning on beside the service costs those who wait for an answer: percentiles with a learner and without.

Usage::

    python benchmarks/service_learning.py --out benchmarks/results/stream_service.json

A SASRec and live counts of MovieTweetings are served; eight clients ask, each waiting for its answer, while another
posts the clicks that came after the split, in their order. Runs with ``--learn`` and without alternate, each with a
journal of its own, so that what else the machine does falls on both. The median over the pairs is told.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clients import answer, got, post
from machine import add_numbers, command_line, stamp
from service import ask_directly, load, served
from stream import live, trained

import metarec as mr
from metarec.data import split_time
from metarec.files import write_json
from metarec.recipes import Ensemble

PORTION, PAUSE = 20, 0.05  # clicks of a request, and seconds between two


def bodies(data: mr.Dataset, after: float) -> list[bytes]:
    """The clicks after a time, in their order, as requests."""
    rows = np.flatnonzero(data.time > after)
    rows = rows[np.argsort(data.time[rows], kind="stable")]
    users, items = data.users.decode(data.user[rows].tolist()), data.catalog.items.decode(data.item[rows].tolist())
    clicks = [
        {"user": str(user), "item": item, "time": time}
        for user, item, time in zip(users, items, data.time[rows].tolist(), strict=True)
    ]
    portions = range(0, len(clicks), PORTION)
    return [json.dumps({"clicks": clicks[first : first + PORTION]}).encode() for first in portions]


async def told(port: int, requests: list[bytes]) -> int:
    """Post clicks until it is cancelled, and count them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    done = 0
    try:
        for content in requests:
            writer.write(post(content, "/clicks"))
            status, _ = await answer(reader)
            done += PORTION * (status == "200")
            await asyncio.sleep(PAUSE)
    except asyncio.CancelledError:
        writer.close()
    return done


async def loaded(port: int, questions: Any, requests: list[bytes], options: Namespace, *, learns: bool) -> Any:
    """Percentiles of those who ask while clicks come, once the learner has made its first step."""
    telling = asyncio.create_task(told(port, requests))
    while learns and not (await learning(port))["serving"]:
        await asyncio.sleep(PAUSE)
    before = await learning(port)
    found = await load(port, questions, options.clients, options.requests)
    telling.cancel()
    after = await learning(port)
    return {**found, "steps": after["serving"] - before["serving"], "clicks": await telling}


async def learning(port: int) -> dict[str, Any]:
    """What the service says of its learner."""
    _, health = await got(port, "/health")
    return {"serving": 0, **json.loads(health).get("learning", {})}


def main() -> None:
    """Measure and write."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, default=Path("stream_service.json"))
    parser.add_argument("--learn", default="5s", help="a step so often")
    usual = {"clients": (8, "at once"), "requests": (6000, "of a run"), "pairs": (5, "of runs"), "epochs": (5, "")}
    add_numbers(parser, usual)
    options = parser.parse_args()
    data = mr.datasets.movietweetings()
    up, _ = mr.split_by_time(data, at=split_time(data, 0.2))
    model = Ensemble({**live(up), "SASRec": trained(up, options.epochs)}, up)
    requests, runs = bodies(data, float(up.time.max())), list[dict[str, Any]]()
    questions = ask_directly(mr.Recommender(model), users=200, clicks=20, k=10)
    with tempfile.TemporaryDirectory() as folder:
        mr.save(model, Path(folder) / "model.safetensors")
        for pair in range(2 * options.pairs):
            learns = pair % 2 == 1
            path = Path(folder) / str(pair) / "model.safetensors"
            path.parent.mkdir()
            shutil.copy(Path(folder) / "model.safetensors", path)
            more = ["--allow-changes", *(["--learn", options.learn] if learns else [])]
            how = Namespace(threads=1, read_timeout=5.0, more=more, workers=1)
            with served(path, how) as (port, _):
                found = asyncio.run(loaded(port, questions, requests, options, learns=learns))
            runs.append({"learns": learns, **found})
    p99 = np.array([run["p99_ms"] for run in runs]).reshape(-1, 2)
    out = {"runs": runs, "learn": options.learn, "p99_ratio": float(np.median(p99[:, 1] / p99[:, 0]))}
    write_json(options.out, {**out, "p99_ms": np.median(p99, 0).tolist(), **stamp(torch.device("cpu"))})


if __name__ == "__main__":
    main()
