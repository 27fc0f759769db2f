"""What is not a number is named where it arises: with the learner and the user, in every fusion and list."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metarec.data import EpisodeSampler
from metarec.evaluation import evaluate
from metarec.functional import fuse
from metarec.nn import AdaptiveFusion
from metarec.recipes import EASE, MML, Popularity
from metarec.recipes.candidates import candidate_scores
from metarec.recipes.ensemble import Ensemble
from metarec.recipes.fusing import FusedMethod, fused
from metarec.recipes.inner_steps import select_inner_steps
from metarec.recommender import Recommender
from metarec.types import Examples, Scored
from tiny import CONFIG, DOWN, UP

BROKEN = [torch.nan, torch.inf, -torch.inf]
HISTORIES = [["item3", "item14", "item15"], ["item7", "item2"], ["item5"]]


def said(users: int = 4, items: int = 9, *, unknown: int = 8) -> list[Scored]:
    """Three learners that know all items but padding and one."""
    draw = torch.Generator().manual_seed(0)
    known = (torch.arange(items) > 0) & (torch.arange(items) != unknown)
    return [
        Scored(
            torch.randn(users, 2, items, generator=draw),
            torch.randn(users, 2, 6, generator=draw),
            known,
            torch.ones(users, 2) > 0,
        )
        for _ in range(3)
    ]


def broken(scored: Scored, value: float, *where: int) -> Scored:
    scores = scored.scores.clone()
    scores[where] = value
    return replace(scored, scores=scores)


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("adaptive", [True, False])
def test_a_fusion_names_the_learner_and_the_user(value: float, adaptive: bool) -> None:
    fusion = AdaptiveFusion(3, 6) if adaptive else None
    parts = said()
    parts[1] = broken(parts[1], value, 2, 1, 5)
    with pytest.raises(ValueError, match=rf"learner 'b': score {value} of item code 5 for user 2 .* is not finite"):
        fused(parts, fusion, ["a", "b", "c"])
    if fusion is not None:
        with pytest.raises(ValueError, match="learner '1 of 3': score"):
            fusion(parts)


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("adaptive", [True, False])
def test_what_a_learner_says_of_items_that_it_does_not_know_is_not_read(value: float, adaptive: bool) -> None:
    fusion = AdaptiveFusion(3, 6) if adaptive else None
    parts = said()
    expected = fused(parts, fusion).scores
    parts[1] = broken(broken(parts[1], value, 2, 1, 8), value, 0, 0, 0)
    assert torch.equal(fused(parts, fusion).scores, expected)


def test_a_broken_learner_is_named_where_it_has_no_weight_too() -> None:
    parts = said()
    parts[1] = replace(broken(parts[1], torch.nan, 2, 1, 5), has_known_history=torch.zeros(4, 2) > 0)
    with pytest.raises(ValueError, match=r"learner '1 of 3'.*user 2 "):
        fused(parts, None)


@pytest.mark.parametrize("name", ["bias", "scale", "gate.1.weight"])
def test_a_broken_fusion_is_named(name: str) -> None:
    fusion = AdaptiveFusion(3, 6)
    with torch.no_grad():
        fusion.get_parameter(name).flatten()[0] = torch.nan
    with pytest.raises(ValueError, match=r"fusion's .*learners|the fused score"):
        fusion(said())


def test_fuse_keeps_what_is_not_a_number() -> None:
    scores = torch.randn(5, 3, 9)
    weights = torch.rand(5, 3)
    scores[1, 2, 3], weights[2, 0], scores[3, 0, 4] = torch.nan, torch.nan, torch.inf
    assert fuse(scores, weights, torch.arange(9).expand(3, -1) > 0).isfinite().all(1).tolist() == [
        True,
        False,
        False,
        False,
        True,
    ]


class OneIsBroken:
    """A method of which the scores of one user alone are no numbers."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.clicks: list[int] = []

    def adapt(self, support: Examples) -> OneIsBroken:
        return self

    def __call__(self, examples: Examples) -> Scored:
        scores = torch.zeros(*examples.target.shape, UP.catalog.size)
        clicks = [[code for code in row if code] for row in examples.history.tolist()]
        self.clicks = clicks[3] if len(clicks) > 3 else self.clicks
        if self.clicks in clicks:
            scores[clicks.index(self.clicks), 0, 7] = self.value
        return Scored(scores, scores[..., :1], torch.arange(UP.catalog.size) > 0, scores[..., 0] == 0)


@pytest.mark.parametrize("value", BROKEN)
def test_an_ensemble_names_the_method_and_the_user(value: float) -> None:
    methods = {"ease": EASE(UP), "mine": OneIsBroken(value)}
    episodes = EpisodeSampler(UP, part="serving")
    batch = next(episodes.epoch(0))
    model = Ensemble(methods, UP)
    what = f"learner 'mine': score {value} of item code 7 for user "
    message = f"{what}3 "
    with pytest.raises(ValueError, match=message):
        model.adapt(batch.support)(batch.query)
    with pytest.raises(ValueError, match=message):
        candidate_scores(methods, torch.from_numpy(UP.warm), episodes.epoch(0))
    with pytest.raises(ValueError, match=rf"evaluating Ensemble on .*user '.*{what}0 "):
        evaluate(model, DOWN)


def test_an_ensemble_whose_own_weights_are_broken_says_so() -> None:
    batch = next(EpisodeSampler(UP, part="serving").epoch(0))
    model = Ensemble({"ease": EASE(UP), "popularity": Popularity(UP)}, UP)
    with torch.no_grad():
        model.weights.weight[0, 0] = torch.nan
        with pytest.raises(ValueError, match="learner 'ensemble': score nan"):
            model.adapt(batch.support)(batch.query)
    with pytest.raises(ValueError, match="learner 'ensemble': score nan"):
        Recommender(model).adapt(HISTORIES).recommend(3)


def poisoned(name: str, tensor: str, row: int | slice = slice(None)) -> MML:
    """A model with numbers in one learner that are none."""
    model = MML.build(UP, CONFIG).eval()
    learner: Tensor = model.get_parameter(f"learners.{name}.{tensor}")
    with torch.no_grad():
        learner[row] = torch.nan
    return model


@pytest.mark.parametrize("name", ["id", "image", "text"])
def test_every_path_of_a_model_names_the_learner(name: str) -> None:
    model = poisoned(name, "encoder.position")
    for method in (model, model.methods()["weight fusion"]):
        with pytest.raises(ValueError, match=rf"evaluating .*learner '{name}'.* is not finite"):
            evaluate(method, DOWN)
    with pytest.raises(ValueError, match=rf"user 0: .*scores .*'{name}' after adapting to .* are not finite"):
        Recommender(model).adapt(HISTORIES)
    with pytest.raises(ValueError, match=f"learner '{name}': score nan"):
        select_inner_steps(model, UP)


def test_one_item_that_is_broken_is_named() -> None:
    model = poisoned("id", "items.items.weight", 3)
    with pytest.raises(ValueError, match=r"learner 'id': .*vector.* 'item2' is not finite"):
        Recommender(model).adapt(HISTORIES)
    with pytest.raises(ValueError, match=r"learner 'id': .*vector"):
        evaluate(FusedMethod([model.meta("id")], names=["id"]), DOWN)


def test_a_learner_that_is_broken_for_one_user_alone_is_named() -> None:
    recommender = Recommender(MML.build(UP, CONFIG).eval())
    users = recommender.adapt(HISTORIES)
    users.state.tensors["state"][1, 2, 0] = torch.inf
    with pytest.raises(ValueError, match=r"user 1: .*state .*'text' is not finite"):
        users.recommend(3)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("bias", r"the .*learners \['id', 'image', 'text'\]"),
        ("scale", "the score .* of learner 'image'"),
    ],
)
def test_a_served_fusion_that_is_broken_is_named(name: str, what: str) -> None:
    model = MML.build(UP, CONFIG).eval()
    recommender = Recommender(model)
    with torch.no_grad():
        model.fusion.get_parameter(name)[1] = torch.nan
    with pytest.raises(ValueError, match=f"user 0: {what} is not finite"):
        recommender.adapt(HISTORIES).recommend(3)
