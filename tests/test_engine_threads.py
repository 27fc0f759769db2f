"""Several threads that adapt one learner."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import DIM, Own, id_learner, learner_of, ragged_episodes
from metarec.meta import MetaLearner, compiled
from metarec.nn import ModalityLearner


class Slow(Own):
    """Reads its weight, so that the generic engine runs it."""

    def forward(self, x, keep, context=None):
        return self.norm(F.linear(x, self.layer.weight).cumsum(-2))


def hooked() -> ModalityLearner:
    learner = id_learner()
    learner.encoder.norm.register_forward_hook(lambda m, i, o: 0.5 * o)
    return learner


@pytest.mark.parametrize("mode", ["compiled", "factors", "generic", "second", "all", "hooked", "recurrent"])
def test_threads_that_adapt_one_learner_get_what_one_gets(mode, monkeypatch):
    makers = {
        "generic": lambda: learner_of(Slow(nn.Linear(DIM, DIM))),
        "recurrent": lambda: learner_of(Own(nn.GRU(DIM, DIM, batch_first=True))),
        "hooked": hooked,
    }
    given = {"second": {"second_order": True}, "all": {"adapts": "all"}}.get(mode, {})
    if mode == "factors":
        monkeypatch.setattr(compiled, "library", lambda: None)
    meta = MetaLearner(makers.get(mode, id_learner)(), lr=0.1, steps=2, **given)
    parts = [ragged_episodes([3 + n % 4, 5], seed=n) for n in range(6)]

    def scores(part):
        with torch.no_grad():
            return meta.adapt(part.support)(part.query).scores

    expected, wrong = [scores(part) for part in parts], []

    def ask(offset):
        for turn in range(12):
            place = (offset + turn) % len(parts)
            try:
                if not torch.equal(scores(parts[place]), expected[place]):
                    wrong.append((offset, turn))
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
