"""A held-out slice of the last clicks, which decides whether new weights are taken.

Every tenth user, by a checksum of the id, gives the last click. The same users are held out at every learning, so what
decides was a training target neither of the old weights nor of the new ones since learning on began; by the time that a
click is trained on, its user has clicked something else.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.dataset import Dataset, Ints
from metarec.data.examples import filter_interactions
from metarec.data.joining import among_last
from metarec.data.sampler import LEAST_CLICKS, EpisodeSampler
from metarec.functional.ranking import ranks
from metarec.learning import Learned
from metarec.model import dense
from metarec.modes import device_of, evaluating
from metarec.nn.record import negatives_of

SHARE = 10  # of so many users one
LEAST = 20  # clicks; fewer decide nothing
NOISE = 2.0  # standard errors


def held_rows(data: Dataset, since: float, new: float, most: int) -> Ints:
    """Rows of the clicks that are held out: the latest, from a time on; new ones alone where they are enough.

    Args:
        data: all clicks.
        since: the time.
        new: when the new ones begin.
        most: so many clicks at most.

    Example:
        >>> from metarec.datasets import planted
        >>> data = planted(users=600, items=40)
        >>> rows = held_rows(data, 0, 0, 256)
        >>> len(rows) > 20, set(rows.tolist()) <= set((data.offsets[1:] - 1).tolist())
        (True, True)
    """
    last, found = data.offsets[1:] - 1, list[int]()
    last = last[(np.diff(data.offsets) > LEAST_CLICKS["serving"]) & (data.time[last] >= since)]
    for row in last[np.argsort(-data.time[last], kind="stable")].tolist():
        if len(found) >= most or (len(found) >= LEAST and data.time[row] < new):
            break
        name = data.users.ids[int(data.user[row]) - 1]
        if zlib.crc32(str(name).encode()) % SHARE == 0:
            found.append(row)
    return np.array(sorted(found) if len(found) >= LEAST else [], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Clicks that decide.

    Attributes:
        data: the histories of their users, which end with them; all items that either model knows are warm.
        seed: of the negatives of support examples.
    """

    data: Dataset
    seed: int

    @classmethod
    def of(cls, data: Dataset, rows: Ints, length: int, seed: int) -> HeldOut:
        """Of rows of the data, with histories of a length."""
        own = np.isin(data.user, data.user[rows])
        return cls(filter_interactions(data, own & among_last(data, length + 1)), seed)

    def worth(self, model: Any, length: int) -> NDArray[np.float64]:
        """(n,) 1 / log2(1 + rank) of each click in the catalogue, NaN if a score is."""
        if not len(self.data):
            return np.zeros(0)
        asked = {"part": "serving", "users_per_batch": 128, "max_length": length, "seed": self.seed}
        sampler = EpisodeSampler(self.data, negatives=negatives_of(model), **asked)  # type: ignore[arg-type]
        with evaluating(model), torch.no_grad():
            found = [_ranks(model, batch.to(device_of(model))) for batch in sampler.epoch(0)]
        return (1 / torch.log2(1 + torch.cat(found).double())).cpu().numpy()

    def decide(self, old: Any, new: Any, length: int) -> Learned:
        """Whether the weights of a new model are to be taken: unless they are worse beyond noise."""
        before, after = (self.worth(model, length) for model in (old, new))
        said = {"held_out": len(before), "before": _mean(before), "after": _mean(after)}
        if np.isnan(after).any():
            return Learned(taken=False, why="scores of held-out clicks are not finite", **said)  # type: ignore[arg-type]
        gain = after - before
        if len(gain) and gain.mean() + NOISE * gain.std(ddof=1) / math.sqrt(len(gain)) < 0:
            why = f"held-out clicks are ranked worse by {-gain.mean():.4f}, beyond {NOISE:g} standard errors"
            return Learned(taken=False, why=why, **said)  # type: ignore[arg-type]
        return Learned(**said)  # type: ignore[arg-type]


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _ranks(model: Any, batch: Any) -> Tensor:
    scored, real = dense(model, batch.support, batch.query), batch.query.weight > 0
    scores = scored.scores.masked_fill(~scored.item_mask, torch.finfo(scored.scores.dtype).min)
    if not bool(torch.isfinite(scores).all()):
        return torch.full_like(scores[..., 0][real], torch.nan)
    allowed = torch.arange(scores.shape[-1], device=scores.device) > 0
    return ranks(scores, batch.query.target, allowed=allowed)[real]
