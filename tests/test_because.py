"""Which clicks moved an item up: by adapting without each of them, one by one and through the public names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec import Recommender
from metarec.model import Model
from metarec.recipes.ease import EASE
from metarec.recipes.transitions import Transitions
from serving_worlds import HISTORIES, WORLDS, lively
from tiny import UP

ITEMS = ["item9", "item22", "item1"]


def place(recommender: Recommender, history: list[str], item: str) -> float:
    """Where an item lies among the user's scores of all items that training knew, in standard deviations."""
    model = recommender.model
    known = model.item_mask()[: model.fitted]
    scores: Tensor = recommender.adapt(history).scores[: len(known)].double()
    code = recommender.catalog.items.encode([item])[0]
    return float((scores[code] - scores[known].mean()) / scores[known].std(correction=0))


def models() -> dict[str, Model]:
    return {"EASE": EASE(UP)} | {name: lively(*WORLDS[name]) for name in ("default", "all weights", "ids alone")}


@pytest.mark.parametrize("name", ["EASE", "default", "all weights", "ids alone"])
def test_effects_are_those_of_adapting_anew_without_each_item(name: str) -> None:
    recommender = Recommender(models()[name])
    for history in (HISTORIES[0], HISTORIES[3], HISTORIES[5]):
        found = recommender.adapt(history).because(ITEMS, k=100)
        for item, reasons in zip(ITEMS, found, strict=True):
            whole = place(recommender, history, item)
            assert {reason.id for reason in reasons} == {*history}
            assert [reason.effect for reason in reasons] == sorted((r.effect for r in reasons), reverse=True)
            for reason in reasons:
                rest = [one for one in history if one != reason.id]
                assert reason.effect == pytest.approx(whole - place(recommender, rest, item), abs=2e-4)


def test_one_item_or_several_and_only_the_strongest() -> None:
    user = Recommender(EASE(UP)).adapt(HISTORIES[0])
    several = user.because(ITEMS, k=2)
    assert [len(own) for own in several] == [2, 2, 2]
    assert user.because(ITEMS[1], k=2) == several[1]
    assert user.because(ITEMS[1], k=1) == several[1][:1]
    assert repr(several[0][0]).startswith(str(several[0][0].id))


def test_users_without_clicks_have_no_reasons_and_one_click_is_the_only_one() -> None:
    recommender = Recommender(lively(*WORLDS["default"]))
    assert recommender.adapt([]).because("item9") == []
    [reason] = recommender.adapt(["item7"]).because("item9")
    assert reason.id == "item7"
    assert reason.effect == pytest.approx(
        place(recommender, ["item7"], "item9") - place(recommender, [], "item9"), abs=2e-4
    )


def test_only_what_the_model_reads_is_left_out_and_earlier_clicks_come_in() -> None:
    recommender = Recommender(lively(*WORLDS["paper"]))  # reads 5 clicks
    history = [f"item{i}" for i in (1, 2, 3, 4, 6, 7, 8)]
    reasons = recommender.adapt(history).because("item20", k=100)
    assert {reason.id for reason in reasons} == {*history[-5:]}
    for reason in reasons:
        rest = [one for one in history if one != reason.id][-5:]
        expected = place(recommender, history, "item20") - place(recommender, rest, "item20")
        assert reason.effect == pytest.approx(expected, abs=2e-4)


def test_what_is_left_may_be_nothing_that_the_model_knows() -> None:
    recommender = Recommender(EASE(UP))
    unknown = next(item for item in recommender.catalog.items.ids if not EASE(UP).item_mask()[int(item[4:]) + 1])
    user = recommender.adapt(["item7", unknown])
    effects = {reason.id: reason.effect for reason in user.because("item9")}
    assert effects[unknown] == pytest.approx(0, abs=1e-9)
    expected = place(recommender, ["item7"], "item9")
    assert effects["item7"] == pytest.approx(expected, abs=1e-4)  # without it all scores are alike


def test_live_counts_are_those_of_the_time_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = Transitions(UP, live=True, half_life=300_000.0), []
    recommender, encode = Recommender(model), model.encode
    user = recommender.adapt(HISTORIES[0], at=500_000)

    def listening(support: Any, query: Any, **more: Any) -> Any:
        asked.append(query.time.flatten().tolist())
        return encode(support, query, **more)

    monkeypatch.setattr(model, "encode", listening)
    reasons = user.because("item9", k=9)
    assert asked == [[500_000.0] * 5]
    monkeypatch.undo()
    without = [one for one in HISTORIES[0] if one != reasons[0].id]
    moved = [recommender.adapt(own, at=500_000).scores for own in (HISTORIES[0], without)]
    known = model.item_mask()
    places = [(s[10] - s[known].double().mean()) / s[known].double().std(correction=0) for s in moved]
    assert reasons[0].effect == pytest.approx(float(places[0] - places[1]), abs=1e-4)


def test_one_call_encodes_all_imagined_users(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = EASE(UP), []
    recommender, encode = Recommender(model), model.encode
    histories = [HISTORIES[n] for n in (0, 3, 5)]
    users = recommender.adapt(histories)

    def counting(support: Any, query: Any, **more: Any) -> Any:
        sizes.append(len(query))
        return encode(support, query, **more)

    monkeypatch.setattr(model, "encode", counting)
    codes = recommender.catalog.items.encode(ITEMS)
    found = recommender.reasons(users, np.tile(codes, (len(users), 1)), k=3)
    assert sizes == [sum(len({*history}) + 1 for history in histories)]
    for user, own in zip(users, found, strict=True):
        for one, other in zip(user.because(ITEMS), own, strict=True):
            assert [reason.id for reason in one] == [reason.id for reason in other]


def test_bad_questions_are_refused() -> None:
    user = Recommender(EASE(UP)).adapt(HISTORIES[0])
    with pytest.raises(ValueError, match="item99"):
        user.because("item99")
    with pytest.raises(ValueError, match="k"):
        user.because("item9", k=0)


def test_named_clicks_matter_more_than_random_ones() -> None:
    """On the planted world, by ranks after adapting anew: the item falls further, or as far in half of a case."""
    model = EASE(UP)
    recommender, rng, won = Recommender(model), np.random.default_rng(0), []
    known = model.item_mask()

    def rank(history: list[Any], item: Any) -> int:
        scores = recommender.adapt(history).scores
        return int((scores[known] > scores[recommender.catalog.items.encode([item])[0]]).sum())

    for start, stop in zip(UP.offsets[:-1].tolist(), UP.offsets[1:].tolist(), strict=True):
        history = UP.catalog.items.decode(UP.item[start:stop].tolist())
        user = recommender.adapt(history)
        item = user.recommend(k=5)[4].id
        named = user.because(item, k=1)[0].id
        other = rng.choice([one for one in dict.fromkeys(history) if one != named])
        fallen = [rank([one for one in history if one != gone], item) for gone in (named, other)]
        won.append(float(np.sign(fallen[0] - fallen[1])) / 2 + 0.5)
    assert len(won) == len(UP.user_codes) and np.mean(won) >= 0.9


def test_effects_on_another_dtype_are_finite() -> None:
    reasons = Recommender(lively(*WORLDS["softmax"]).to(torch.float64)).adapt(HISTORIES[0]).because("item9", k=9)
    assert np.isfinite([reason.effect for reason in reasons]).all()
