"""Selected inner steps: where they are all there is to know, where clicks are noise, and that a word decides it."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metarec.data import Dataset, EpisodeSampler, split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.recipes import MML, MMLConfig, mml, select_inner_steps, with_inner_steps

World = tuple[MML, Dataset]


@pytest.fixture(scope="module")
def personal() -> World:
    """Every user follows a rule of their own, which only adapted weights can follow."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from dial import CONFIG, ITEMS

    up, down = split_by_time(planted(users=500, items=ITEMS, adaptation=1.0), at=PLANTED_SPLIT)
    model = MML.build(up, MMLConfig(**CONFIG, epochs=6), seed=0)
    for _ in mml.train(model, EpisodeSampler(up, seed=0)):
        pass
    return model, down


def test_steps_are_taken_where_they_are_all_there_is_to_know(personal: World) -> None:
    model, down = personal
    found = select_inner_steps(model, down, clicks=2)
    gained = {}
    for name in model.learners:  # from the ranks of an evaluation
        adapted, still = (
            evaluate(m.meta(name), down, exclude_seen=True).rank for m in (model, with_inner_steps(model, 0))
        )
        gain = np.where(adapted <= 10, 1 / np.log2(1 + adapted), 0) - np.where(still <= 10, 1 / np.log2(1 + still), 0)
        gained[name] = gain.mean() / (gain.std(ddof=1) / np.sqrt(len(gain)))
    assert gained["text"] > 4
    assert found["text"] == model.config.inner_steps
    assert all(not steps for name, steps in found.items() if gained[name] < 0)


def test_none_are_taken_where_clicks_are_noise(personal: World) -> None:
    model, down = personal
    noise = np.random.default_rng(0).integers(1, down.catalog.size, len(down))
    assert set(select_inner_steps(model, replace(down, item=noise)).values()) == {0}


def test_other_steps_leave_the_model_as_it_is(personal: World) -> None:
    model, down = personal
    still = with_inner_steps(model, 0)
    assert model.config.steps("text") == model.config.inner_steps and still.config.steps("text") == 0
    assert still.learners is model.learners
    batch = next(EpisodeSampler(down, part="test").epoch(0))
    with torch.no_grad():
        one = still.meta("text").adapt(batch.support)(batch.query).scores
        two = model.learner("text").eval().adapt(batch.support)(batch.query).scores
    torch.testing.assert_close(one, two)


def test_it_wants_users_who_were_asked(personal: World) -> None:
    model, down = personal
    few = down.user == down.user[0]
    one = replace(down, user=down.user[few], item=down.item[few], time=down.time[few])
    with pytest.raises(ValueError, match=r"expected .*clicks.* 1"):
        select_inner_steps(model, one)
