"""What a peer is given and what it answers; knows nothing of metarec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Candidate = Mapping[str, Any]
K = 10
READS = 50  # last clicks of a history, as ours read
BATCH = 512  # questions at once


class Scores:
    """What a fitted peer says of all items.

    Args:
        answer: (B, L) item codes, 0 for padding -> (B, I) scores.
        known: (I,) items that it has fitted.
    """

    def __init__(self, answer: Callable[[Array], Array], known: Array) -> None:
        self._answer, self.known = answer, known

    def __call__(self, histories: Array) -> Array:
        """(Q, I) float32 scores."""
        parts = [self._answer(histories[start : start + BATCH]) for start in range(0, len(histories), BATCH)]
        return np.concatenate(parts).astype(np.float32)


def ndcg(scores: Array, known: Array, data: Mapping[str, Array]) -> float:
    """NDCG@10 of the validation targets: ties at the mean rank, unknown items after the known ones."""
    rows, target = np.arange(len(scores)), data["validation_targets"]
    scores = np.where(known, scores, -np.inf)
    scores[:, 0] = np.nan  # padding is no item
    if data["leaves_out_seen"]:
        own = scores[rows, target].copy()
        np.put_along_axis(scores, data["validation_histories"], np.nan, axis=1)
        scores[rows, target] = own
    own = scores[rows, target][:, None]
    better, equal = (scores > own).sum(1), (scores == own).sum(1)
    rank = 1 + better + (equal - 1) / 2
    return float(np.where(rank <= K, 1 / np.log2(rank + 1), 0.0).mean())


Fit = Callable[[Mapping[str, Array], str, Candidate, Any], Scores]
"""Fits a candidate on one side of a job; the last argument watches the training."""
Tune = Callable[[Mapping[str, Array]], tuple[Candidate, list[Any]]]
"""The candidate that validates best, and all that were tried."""
