"""Early stopping: it ends where nothing gets better, keeps the best weights, and counts patience in steps."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from metarec.recipes import early_stopping
from metarec.recipes.early_stopping import EarlyStopping
from metarec.recipes.validation import Ranked


def reached(ndcg: float) -> Ranked:
    return Ranked(torch.ones(1, dtype=torch.int64), torch.tensor([ndcg], dtype=torch.float64))


def watched(curve: list[float], *, steps: int) -> tuple[EarlyStopping, nn.Linear, int]:
    """A training whose weight is its epoch, watched until it ends; and how many epochs that took."""
    model, scores = nn.Linear(1, 1, bias=False), iter(curve)
    stopping = EarlyStopping(model, lambda: reached(next(scores)), steps=steps)
    for epoch in range(1, 1000):
        with torch.no_grad():
            model.weight.fill_(epoch)
        if stopping(epoch):
            return stopping, model, epoch
    raise AssertionError("it never ended")


@pytest.mark.parametrize("steps", [1, 5, 40, 500])
def test_it_ends_after_the_patience_and_gives_the_best_weights_back(steps: int) -> None:
    better = [0.1, 0.2, 0.4]
    stopping, model, epochs = watched([*better, *[0.3] * 200], steps=steps)
    every = math.ceil(early_stopping.BETWEEN / steps)
    assert [epoch for epoch, _ in stopping.curve] == list(range(every, epochs + 1, every))
    assert stopping.best == 3 * every
    assert max(early_stopping.EPOCHS, early_stopping.PATIENCE / steps) <= epochs - stopping.best
    assert (epochs - stopping.best - every) * steps < max(early_stopping.PATIENCE, early_stopping.EPOCHS * steps)
    stopping.restore()
    assert model.weight.item() == stopping.best
    assert stopping.found is not None
    assert float(stopping.found.ndcg) == max(better)


def test_of_equal_validations_the_first_is_kept() -> None:
    stopping, _, _ = watched([0.2] * 100, steps=40)
    assert stopping.best == 1


def test_out_of_time_it_validates_at_once() -> None:
    model = nn.Linear(1, 1)
    stopping = EarlyStopping(model, lambda: reached(0.5), steps=1, out_of_time=lambda: True)
    assert stopping(1)
    assert stopping.curve == [(1, 0.5)]
    assert stopping.best == 1


def test_it_validates_in_evaluation_mode_and_trains_on() -> None:
    model, modes = nn.Linear(1, 1).train(), []

    def validate() -> Ranked:
        modes.append(model.training)
        return reached(0.1)

    EarlyStopping(model, validate, steps=100)(1)
    assert modes == [False]
    assert model.training


def test_nothing_is_restored_before_the_first_validation() -> None:
    model = nn.Linear(1, 1)
    before = model.weight.clone()
    none: Iterator[float] = iter(())
    stopping = EarlyStopping(model, lambda: reached(next(none)), steps=1)
    assert not stopping(1)
    stopping.restore()
    assert stopping.best == 0
    assert torch.equal(model.weight, before)
