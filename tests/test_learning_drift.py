"""A month of learning on in a world where only adapted weights can follow a user: adapting still gives what it gave."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from metarec.data import EpisodeSampler, split_by_time
from metarec.data.examples import filter_interactions
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.recipes import MML, MMLConfig, mml, with_inner_steps
from metarec.streaming.asked import Stream

DAYS, STEP = 30, 3


def test_what_adapting_gives_is_kept_after_a_month_of_drift() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from dial import CONFIG, ITEMS

    data = planted(users=500, items=ITEMS, adaptation=1.0)  # a tenth of the items is clicked by later users alone
    up, down = split_by_time(data, at=PLANTED_SPLIT)
    model = MML.build(up, MMLConfig(**CONFIG, epochs=6), seed=0)
    for _ in mml.train(model, EpisodeSampler(up, seed=0)):
        pass
    day = float(data.day or 0)
    stream, begin = Stream(data, PLANTED_SPLIT, day), PLANTED_SPLIT + 1 + day * np.arange(0, DAYS + 1, STEP)
    first = np.repeat(down.time[down.offsets[:-1]], np.diff(down.offsets))
    later = filter_interactions(down, first >= begin[-1])

    def given(one: MML) -> float:
        """NDCG with inner steps over that without, to users who come after the month."""
        adapted, still = (evaluate(m.meta("text"), later, exclude_seen=True) for m in (one, with_inner_steps(one, 0)))
        return adapted.metrics["ndcg@10"].mean - still.metrics["ndcg@10"].mean

    learned, taken = model, 0
    for one, end in pairwise(begin.tolist()):
        learned = learned.learn(stream.between(one, end), before=stream.between(0, one))
        taken += learned.learned is not None and learned.learned.taken
    assert taken >= DAYS // STEP - 2
    pairs = zip(model.state_dict().values(), learned.state_dict().values(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)
    before, after = given(model), given(learned)
    assert before > 0.2
    assert after >= 0.95 * before
