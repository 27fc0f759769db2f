"""What inner_loop.py measures beside speed: another build, and memory."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from metarec.meta import MetaLearner
from metarec.types import EpisodeBatch

MEASURED = 2048  # users whose memory is measured


def before(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The same of another build by its own benchmark, in a process of its own.

    Args:
        options: of this one.
        names: of the numbers among them.
    """
    numbers = {name: getattr(options, name.replace("-", "_")) for name in (*names, "device")}
    with TemporaryDirectory() as folder:
        out = Path(folder) / "before.json"
        command = [sys.executable, "benchmarks/inner_loop.py", "--out", str(out), "--skip-learn2learn"]
        command += [part for name, value in numbers.items() for part in (f"--{name}", str(value))]
        command += ["--commit", "before", *(["--tf32"] if options.tf32 else [])]
        tree = options.before.resolve()
        path = os.pathsep.join([str(tree), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": path}, check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def memory(meta: MetaLearner, users: EpisodeBatch) -> dict[str, float] | None:
    """On a GPU, the bytes of a user at the peak of a meta-gradient without graphs, and what was reckoned with."""
    device = users.user.device
    if device.type != "cuda":
        return None
    view = meta.learner.task_view("encoder")
    engine = meta._chosen(view, meta._loop(outer="bpr"), users.support)
    few = EpisodeBatch(users.user[:MEASURED], users.support[:MEASURED], users.query[:MEASURED])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    meta.backward(few)
    peak = (torch.cuda.max_memory_allocated(device) - held) / len(few)
    return {"peak_bytes": peak, "estimated_bytes": meta._bytes(engine)(view, few.support, meta._graph_steps(True))}
