"""More clicks of a known user: against adapting afresh, and against one user's steps written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarec.data.histories import Clicks
from metarec.recipes import MML
from metarec.recommender import Recommender
from metarec.types import Examples
from serving_worlds import HISTORIES, WORLDS, lively
from tiny import CONFIG, UP


@pytest.mark.parametrize("adapts", ["encoder", "all"])
def test_an_update_equals_a_fresh_adaptation(adapts: str) -> None:
    recommender = Recommender(lively(UP, replace(CONFIG, test_adapts=adapts, test_lr=0.3, max_length=6)))
    more = [["item5"], ["item8", "item9"], [], ["item0"], [], ["item2", "item2"]]
    whole = [a + b for a, b in zip(HISTORIES, more, strict=True)]
    updated, fresh = recommender.adapt(HISTORIES).update(more), recommender.adapt(whole)
    assert np.array_equal(updated.clicks.codes, fresh.clicks.codes)
    assert torch.allclose(updated.state.tensors["state"], fresh.state.tensors["state"], atol=1e-5)
    assert np.array_equal(updated.recommend(k=10).codes, fresh.recommend(k=10).codes)
    one = recommender.adapt(HISTORIES[0]).update(["item5"]).update(["item6", "item7"])
    again = recommender.adapt([*HISTORIES[0], "item5", "item6", "item7"])
    assert one.history == again.history and one.recommend(k=5) == again.recommend(k=5)
    with pytest.raises(ValueError, match=r"update: .*clicks.* 6 users, got 1 sequences"):
        recommender.adapt(HISTORIES).update([["item1"]])


class Called(nn.Module):
    """Lets ``functional_call`` reach any method of a learner."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, method: str, *args: Any) -> Any:
        return getattr(self.learner, method)(*args)


def under(weights: dict[str, Tensor], learner: nn.Module, method: str, *args: Any) -> Any:
    """A method of a learner that has other weights."""
    return functional_call(Called(learner), {f"learner.{n}": w for n, w in weights.items()}, (method, *args))


def stepped(model: MML, name: str, weights: dict[str, Tensor], support: Examples) -> dict[str, Tensor]:
    """One user's SGD steps, one after the other."""
    for _ in range(model.config.steps(name)):
        weights = {n: w.detach().requires_grad_() for n, w in weights.items()}
        loss = under(weights, model.learner(name), "loss", support, model.config.objectives[0]).sum()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        rate = model.config.rate("test_lr", name)
        weights = {n: (w - rate * g).detach() for (n, w), g in zip(weights.items(), gradients, strict=True)}
    return weights


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("world", ["default", "steps and rates per learner", "softmax"])
def test_with_kept_weights_an_update_goes_on_with_the_steps(
    world: str, kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setattr("metarec.meta.compiled.CompiledUsers.fits", lambda *given: False)
    model = lively(UP, replace(WORLDS[world][1], inner_lr=0.2))
    recommender = Recommender(model)
    more = [["item5"], ["item8", "item9"], ["item1", "item30"], [], ["item0"], ["item2", "item2"]]
    kept = recommender.adapt(HISTORIES, keep_weights=True)
    assert torch.allclose(kept.state.tensors["state"], recommender.adapt(HISTORIES).state.tensors["state"], atol=1e-5)
    kept.save(tmp_path / "users")
    found = recommender.load_users(tmp_path / "users").update(more)
    fresh = recommender.adapt([a + b for a, b in zip(HISTORIES, more, strict=True)])
    assert torch.equal(found.state.tensors["state"][3], kept.state.tensors["state"][3]), "no new clicks"
    assert torch.allclose(found.state.tensors["state"][[1, 2]], fresh.state.tensors["state"][[1, 2]], atol=1e-5), (
        "had not moved"
    )
    for number in (0, 4, 5):
        for position, name in enumerate(model.learners):
            weights = {n: p for n, p in model.learner(name).named_parameters() if n.startswith("encoder.")}
            for history in (HISTORIES[number], HISTORIES[number] + more[number]):
                support, query = recommender._states.current().support(Clicks.of([history], model.catalog.items))
                weights = stepped(model, name, weights, support)
            state, _ = under(weights, model.learner(name), "encode_queries", query)
            assert torch.allclose(found.state.tensors["state"][number, position], state[0, 0], atol=5e-5), (
                number,
                name,
            )
    moved = (found.state.tensors["state"] - fresh.state.tensors["state"])[[0, 4, 5]].abs().amax((1, 2))
    assert (moved > 1e-3).all(), "going on is not starting again"
    alone = recommender.adapt(HISTORIES[0], keep_weights=True).update(more[0])
    assert torch.allclose(alone.users.state.tensors["state"][0], found.state.tensors["state"][0], atol=1e-5)


def test_weights_are_kept_of_encoders_alone() -> None:
    every = Recommender(lively(UP, replace(CONFIG, test_adapts="all")))
    with pytest.raises(ValueError, match=r"keep_weights: .*adapts.* \(test_adapts='all'\)"):
        every.adapt(HISTORIES, keep_weights=True)
