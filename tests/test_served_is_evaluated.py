"""A served user is an evaluated user: `Recommender` and `evaluate(part="serving")` rank alike, for every model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from metarec import MML, EpisodeSampler, MetaLearner, MMLConfig, Recommender, as_model, evaluate
from metarec.data import split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.functional.ranking import ranks
from metarec.recipes import (
    EASE,
    CoClicks,
    ItemKNN,
    LivePopularity,
    OwnClicks,
    Popularity,
    Transitions,
    mml,
    mml_blend,
    sasrec,
)
from metarec.recipes.anil import HeadLearner
from metarec.recipes.lightgcn import LightGCN
from metarec.recipes.metasgd import MetaSGD
from metarec.recipes.metatl import TransitionLearner
from metarec.types import Examples, Method, Scored, Scorer

DATA = planted(users=120, items=40)
UP, DOWN = split_by_time(DATA, at=PLANTED_SPLIT)
QUICK = MMLConfig(dim=8, layers=1, warmup_epochs=1, epochs=1, generator_epochs=1, fusion_epochs=1)


def fitted_sasrec(*inputs: str) -> Method:
    learner = sasrec.build(UP, inputs or ("id",), dim=8)
    for _ in sasrec.train(learner, UP, epochs=1):
        pass
    return learner


def fitted_mml(**settings: object) -> MML:
    model = MML.build(UP, MMLConfig(**{**vars(QUICK), **settings}))  # type: ignore[arg-type]
    for _ in mml.train(model, EpisodeSampler(UP)):
        pass
    return model


class MeanCode:
    """A method of somebody's own: the nearer to the mean code of the history, the better."""

    def adapt(self, support: Examples) -> Scorer:
        def score(query: Examples) -> Scored:
            real = query.history > 0
            mean = (query.history * real).sum(-1) / real.sum(-1)
            codes = torch.arange(DATA.catalog.size, dtype=torch.float32)
            near = -(codes - mean[:, None, None]).abs().expand(*query.target.shape, -1)
            return Scored(near, near[..., :1], codes > 0, query.weight > 0)

        return score


MODELS: dict[str, Callable[[], Method]] = {
    "popularity": lambda: Popularity(UP),
    "recent popularity": lambda: Popularity(UP, since=float(np.median(UP.time))),
    "live popularity": lambda: LivePopularity(DATA, window=60.0, half_life=10.0),
    "transitions": lambda: Transitions(UP),
    "live transitions": lambda: Transitions(DATA, half_life=20.0, live=True),
    "co-clicks": lambda: CoClicks(UP),
    "live co-clicks": lambda: CoClicks(DATA, live=True),
    "own clicks": lambda: OwnClicks(UP),
    "EASE": lambda: EASE(UP),
    "ItemKNN": lambda: ItemKNN(UP),
    "LightGCN": lambda: LightGCN(UP, dim=8),
    "SASRec": fitted_sasrec,
    "SASRec of ids and features": lambda: fitted_sasrec("id", "image", "text"),
    "MAML": lambda: MetaLearner(fitted_sasrec(), lr=0.1, steps=3, objectives=("softmax", "softmax")),  # type: ignore[arg-type]
    "MAML, BPR": lambda: MetaLearner(fitted_sasrec(), lr=0.5, steps=3),  # type: ignore[arg-type]
    "ANIL": lambda: MetaLearner(HeadLearner(fitted_sasrec()), lr=0.1, steps=2),  # type: ignore[arg-type]
    "Meta-SGD": lambda: MetaSGD(fitted_sasrec(), lr=0.1, steps=2),  # type: ignore[arg-type]
    "MetaTL": lambda: MetaLearner(TransitionLearner(UP, dim=8), lr=0.1, steps=1, objectives=("margin", "margin")),
    "MML": fitted_mml,
    "MML, all adapts": lambda: fitted_mml(test_adapts="all"),
    "MML, several negatives": lambda: fitted_mml(negatives=3),
    "one part of MML": lambda: fitted_mml().meta("text"),
    "ensemble": lambda: mml_blend(UP, QUICK, sasrec_epochs=1),
    "live ensemble": lambda: mml_blend(UP, QUICK, sasrec_epochs=1, live=DATA),
    "somebody's own": MeanCode,
}


@pytest.mark.parametrize("name", MODELS)
def test_ranks_agree(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # untrained models have ranks, too
        model = MODELS[name]()
        report = evaluate(model, DOWN, part="serving", exclude_seen=False)
        recommender = Recommender(as_model(model, UP))
    clicks = [np.flatnonzero(DOWN.user == user) for user in report.user]
    if name == "MetaTL":  # reads the last click alone, and says so where it does not know that item
        usable = [bool(UP.warm[DOWN.item[own[-2]]]) for own in clicks]
        clicks = [own for own, fits in zip(clicks, usable, strict=True) if fits]
        rows = {n: getattr(report, n)[usable] for n in ("user", "target", "rank", "is_cold", "is_repeat")}
        report = replace(report, lists={}, coverage={}, **rows)
    users = recommender.adapt(
        [DOWN.catalog.items.decode(DOWN.item[own[:-1]].tolist()) for own in clicks],
        at=[float(DOWN.time[own[-1]]) for own in clicks],
        last=[float(DOWN.time[own[-2]]) for own in clicks],
    )
    scores = torch.stack([user.scores for user in users])
    known = recommender.model.item_mask()
    served = ranks(
        scores.masked_fill(~known, torch.finfo(scores.dtype).min),
        torch.from_numpy(report.target),
        allowed=(torch.arange(len(known)) > 0).expand(len(scores), -1),
    )
    np.testing.assert_allclose(served.numpy(), report.rank, atol=0.51)  # half a rank where two scores are rounded apart
    assert (served.numpy() == report.rank).mean() >= 0.95
