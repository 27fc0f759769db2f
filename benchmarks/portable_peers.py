"""Other libraries' models on the same questions as ours: fitted elsewhere, ranked here.

Each is fitted by benchmarks/peer_process.py in an environment of its own. It gets the clicks of the upstream side and
answers with scores of all items; the ranks come from :func:`metarec.evaluate`, as everybody's do. So ties stand at
their mean rank, items that a peer does not know come after those it knows, no list is padded, and of clicks at the
same time the order is ours.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import ROOT
from numpy.typing import NDArray
from portable_data import Split

from metarec.data import Dataset
from metarec.evaluation import evaluate
from metarec.functional.histories import leaves_out_seen
from metarec.recipes.nested_validation import last_clicks, validation_split
from metarec.report import Report
from metarec.types import Examples, Scored, Scorer

PEERS = ("RecTools SASRec", "RecTools eSASRec", "implicit ALS", "implicit BM25")
PYTHON = ROOT / "build" / "peers" / "bin" / "python"
READS = 50
VALIDATED = 3  # last clicks of each validation user
WIDTHS, EPOCHS, PATIENCE = (64, 128), 200, 5


class Answered(NamedTuple):
    """What came of a peer: its report, and what it says of its tuning."""

    report: Report
    told: Mapping[str, Any]


class Questions:
    """A method that says nothing and keeps what it is asked.

    Args:
        up: the upstream side.

    Attributes:
        asked: the histories, a row each, by what they are told apart by.
    """

    information = "upstream"
    max_length = READS

    def __init__(self, up: Dataset) -> None:
        self.fitted_until = float(up.time.max())
        self.repeat_share = up.known_repeat_share
        self.items = up.catalog.size
        self.asked: dict[bytes, NDArray[np.int64]] = {}

    def adapt(self, support: Examples) -> Scorer:
        """Equal scores for all items."""
        return self._answer

    def _answer(self, examples: Examples) -> Scored:
        for row in read(examples):
            self.asked.setdefault(row.tobytes(), row)
        shape = examples.target.shape
        known = torch.arange(self.items) > 0
        return Scored(torch.zeros(*shape, self.items), torch.zeros(*shape, 1), known, torch.ones(shape) > 0)


class Answers(Questions):
    """A method that answers what was asked before with the scores that it was given.

    Args:
        up: the upstream side.
        histories: (Q, L) what was asked.
        scores: (Q, I).
        known: (I,) items that have scores.
    """

    def __init__(
        self, up: Dataset, histories: NDArray[np.int64], scores: NDArray[np.float32], known: NDArray[np.bool_]
    ) -> None:
        super().__init__(up)
        self.place = {row.tobytes(): number for number, row in enumerate(histories)}
        self.given, self.known = torch.from_numpy(scores), torch.from_numpy(known)

    def _answer(self, examples: Examples) -> Scored:
        rows = torch.tensor([self.place[row.tobytes()] for row in read(examples)])
        shape = examples.target.shape
        scores = self.given[rows].view(*shape, -1)
        return Scored(scores, torch.zeros(*shape, 1), self.known, torch.ones(shape) > 0)


def read(query: Examples) -> NDArray[np.int64]:
    """(B * Q, READS) the last clicks of each question, padded at the end."""
    out = np.zeros((*query.target.shape, READS), dtype=np.int64)
    for user, (history, positions) in enumerate(zip(query.history.cpu(), query.position.cpu(), strict=True)):
        for number, position in enumerate(positions.tolist()):
            clicks = history[: position + 1][-READS:].numpy()
            out[user, number, : len(clicks)] = clicks
    return out.reshape(-1, READS)


def job(split: Split, histories: NDArray[np.int64], seed: int, **settings: Any) -> dict[str, Any]:
    """What a peer is given."""
    up = split.up
    earlier, later = validation_split(up)
    batches = list(last_clicks(later, VALIDATED))
    views = [view.features.numpy() for _, view in sorted(up.catalog.modalities.items())]
    sides = {
        f"{side}_{column}": getattr(data, column)
        for side, data in (("earlier", earlier), ("whole", up))
        for column in ("user", "item")
    }
    return {
        **sides,
        "items": up.catalog.size,
        "features": np.hstack([np.zeros((up.catalog.size, 0), dtype=np.float32), *views]),
        "validation_histories": np.concatenate([read(batch.query) for batch in batches]),
        "validation_targets": np.concatenate([batch.query.target.flatten().numpy() for batch in batches]),
        "leaves_out_seen": leaves_out_seen(up.known_repeat_share),
        "histories": histories,
        "seed": seed,
        "widths": np.array(WIDTHS),
        "epochs": EPOCHS,
        "patience": PATIENCE,
        **settings,
    }


def peer_reports(
    split: Split, seed: int, python: Path, positions: int, names: Sequence[str] = PEERS, **settings: Any
) -> dict[str, Answered]:
    """The report of each peer on the cold users.

    Args:
        split: the data.
        seed: of weights and draws.
        python: of the environment that has the peers.
        positions: last clicks of each user that are asked for.
        names: of the peers.
        settings: ``widths``, ``epochs`` and ``patience`` of the transformers, if not the usual ones.

    Raises:
        RuntimeError: if a peer fails, with what it said.
    """
    questions = Questions(split.up)
    evaluate(questions, split.down, positions=positions)
    histories = np.stack(list(questions.asked.values()))
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        given, answered = Path(folder) / "job.npz", Path(folder) / "scores.npz"
        np.savez(given, **job(split, histories, seed, **settings))
        for name in names:
            command = [str(python), str(ROOT / "benchmarks" / "peer_process.py"), name, str(given), str(answered)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name} on {split.name} failed:\n{done.stderr[-2000:]}")
            with np.load(answered) as found:
                method = Answers(split.up, histories, found["scores"], found["known"])
                told = json.loads(str(found["told"]))
            out[name] = Answered(evaluate(method, split.down, positions=positions), told)
    return out
