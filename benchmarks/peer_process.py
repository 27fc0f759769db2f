"""Fits one peer in an environment of its own and scores all items: files in, files out. Knows nothing of metarec.

    python -m venv PEERS && PEERS/bin/pip install "rectools[torch]" implicit
    PEERS/bin/python benchmarks/peer_process.py "RecTools SASRec" job.npz scores.npz    # benchmarks/portable.py does it

A job holds clicks sorted by user and time, as ``earlier``, on which candidates are fitted, and ``whole``, on which the
best one is; histories and targets that validate; and histories to answer. Histories are padded with 0 at the end. The
answer has scores (Q, I), and which items the peer knows; what becomes of the others is up to who asked.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peer_scores import Array, Candidate, Fit, Scores, Tune, ndcg
from peer_transformers import transformer, tune_transformer


def main(arguments: Sequence[str]) -> None:
    """Fit the candidates, take the best, fit it on everything, answer."""
    name, job, out = arguments
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with np.load(job) as packed:
        data = {key: packed[key] for key in packed.files}
    began = time.perf_counter()
    tuned, fit = PEERS[name]
    best, tried = tuned(data)
    scores = fit(data, "whole", best, None)
    answered = scores(data["histories"])
    versions = {package: importlib.metadata.version(package) for package in (name.split()[0].lower(), "torch", "numpy")}
    told = {"chosen": best, "tried": tried, "versions": versions, "seconds": time.perf_counter() - began}
    np.savez(out, scores=answered, known=scores.known, told=json.dumps(told))


def one_by_one(candidates: Sequence[Candidate], fit: Fit) -> Tune:
    """The candidate that validates best."""

    def tuned(data: Mapping[str, Array]) -> tuple[Candidate, list[Any]]:
        tried = []
        for candidate in candidates:
            scores = fit(data, "earlier", candidate, None)
            tried.append({**candidate, "ndcg": ndcg(scores(data["validation_histories"]), scores.known, data)})
        best = max(tried, key=lambda row: float(row["ndcg"]))
        return {key: value for key, value in best.items() if key != "ndcg"}, tried

    return tuned


def als(data: Mapping[str, Array], side: str, candidate: Candidate, watch: None) -> Scores:
    """Implicit's ALS; a user is folded in from their clicks."""
    matrix, items = _matrix(data, side)
    model = importlib.import_module("implicit.als").AlternatingLeastSquares(
        factors=candidate["factors"], alpha=candidate["alpha"], random_state=int(data["seed"]), num_threads=1
    )
    model.fit(matrix, show_progress=False)

    def answer(histories: Array) -> Array:
        clicked = _rows(histories, items)
        users = model.recalculate_user(np.arange(len(histories)), clicked)
        return np.asarray(users @ model.item_factors.T)

    return Scores(answer, _clicked(data, side))


def bm25(data: Mapping[str, Array], side: str, candidate: Candidate, watch: None) -> Scores:
    """Implicit's item-item model with BM25 weights: the sum of what is like each item of the history."""
    matrix, items = _matrix(data, side)
    model = importlib.import_module("implicit.nearest_neighbours").BM25Recommender(
        K=candidate["neighbours"], K1=1.2, B=candidate["b"], num_threads=1
    )
    model.fit(matrix, show_progress=False)
    return Scores(lambda histories: (_rows(histories, items) @ model.similarity).toarray(), _clicked(data, side))


def _matrix(data: Mapping[str, Array], side: str) -> tuple[Any, int]:
    sparse = importlib.import_module("scipy.sparse")
    items = int(data["items"])
    user, item = data[f"{side}_user"], data[f"{side}_item"]
    _, row = np.unique(user, return_inverse=True)
    shape = (int(row.max()) + 1, items)
    return sparse.coo_matrix((np.ones(len(row), dtype=np.float32), (row, item)), shape=shape).tocsr(), items


def _rows(histories: Array, items: int) -> Any:
    """Histories as rows of counts."""
    sparse = importlib.import_module("scipy.sparse")
    row, place = np.nonzero(histories)
    counts = np.ones(len(row), dtype=np.float32)
    return sparse.coo_matrix((counts, (row, histories[row, place])), shape=(len(histories), items)).tocsr()


def _clicked(data: Mapping[str, Array], side: str) -> Array:
    return np.isin(np.arange(int(data["items"])), data[f"{side}_item"])


PEERS: dict[str, tuple[Tune, Fit]] = {
    "RecTools SASRec": (tune_transformer("SASRec"), transformer("SASRec")),
    "RecTools eSASRec": (tune_transformer("eSASRec"), transformer("eSASRec")),
    "implicit ALS": (
        one_by_one([{"factors": f, "alpha": a} for f in (32, 64) for a in (1.0, 10.0)], als),
        als,
    ),
    "implicit BM25": (one_by_one([{"neighbours": k, "b": b} for k in (20, 200) for b in (0.2, 0.75)], bm25), bm25),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
