"""Made-up lists over the planted world, for the tests of what a report says of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from metarec.data import Dataset, split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.types import Examples, Scored, Scorer

K = (3, 8)


def sides() -> tuple[Dataset, Dataset]:
    """Upstream and downstream; repeats are asked for."""
    return split_by_time(replace(planted(users=60, items=40), upstream_repeat_share=0.5), at=PLANTED_SPLIT)


class Hashed:
    """Scores items by a formula of the last click, without ties; knows the first 38 items."""

    information = "upstream"

    def adapt(self, support: Examples) -> Scorer:
        def score(query: Examples) -> Scored:
            last = query.history.gather(1, query.position)
            scores = ((torch.arange(41) * 37 + last.unsqueeze(-1) * 11) % 101).float()
            known = torch.arange(41) < 39
            return Scored(scores, torch.zeros(*last.shape, 1), known, torch.ones_like(last) > 0)

        return score


def lists_of(last: int) -> list[int]:
    """The item codes that are listed after a click, by hand."""
    return sorted(range(1, 39), key=lambda code: -((code * 37 + last * 11) % 101))
