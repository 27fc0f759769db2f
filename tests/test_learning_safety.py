"""What keeps learning on safe: screened clicks, and a held-out slice that decides whether new weights are taken."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec import Dataset, Vocabulary
from metarec.data import split_by_time
from metarec.data.examples import filter_interactions
from metarec.data.joining import TWICE, followed_by
from metarec.data.screening import AHEAD, FLOOD, screened
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.learning import Learned, Learning
from metarec.recipes import Ensemble, LivePopularity, sasrec
from metarec.recipes.held_out import held_rows
from metarec.recipes.learning_on import Batches
from metarec.types import Examples


def chained(data: Dataset, step: int) -> NDArray[Any]:
    """Items of which each follows the one before in the catalogue, or goes before it; users begin anywhere."""
    place = np.arange(len(data)) - np.repeat(data.offsets[:-1], np.diff(data.offsets))
    return (7 * data.user + step * place) % (data.catalog.size - 1) + 1


WORLD = planted(users=3000, items=40)
WORLD = replace(WORLD, item=chained(WORLD, 1))
UP, DOWN = split_by_time(WORLD, at=PLANTED_SPLIT)
DAY = 4_000  # of the planted world
USUAL: dict[str, Any] = {"day": DAY, "most": (200, 10), "jump": 30 * DAY}
LAST = int(DOWN.time.max())


@pytest.fixture(scope="module")
def old() -> Any:
    made = sasrec.build(UP, ("id",), dim=8, layers=1)
    for _ in sasrec.train(made, UP, epochs=3):
        pass
    return made


def weights(of: Any) -> list[Tensor]:
    return list(of.state_dict().values())


def same(a: Any, b: Any) -> bool:
    return all(map(torch.equal, weights(a), weights(b)))


def with_clicks(data: Dataset, user: str, items: list[int], times: list[int]) -> Dataset:
    """The data and clicks of a user who has none there."""
    users = Vocabulary([*data.users.ids, user], "user")
    columns = zip((data.user, data.item, data.time), ([len(users)] * len(items), items, times), strict=True)
    user_, item, time = (np.append(column, np.array(new, column.dtype)) for column, new in columns)
    return replace(data, users=users, user=user_, item=item, time=time)


def spoilt(data: Dataset) -> Dataset:
    """The data where all but every tenth user go backwards."""
    real = np.array([zlib.crc32(str(data.users.ids[code - 1]).encode()) % 10 == 0 for code in data.user.tolist()])
    return replace(data, item=np.where(real, data.item, chained(data, -1)))


def worth(model: Any, data: Dataset, row: int, length: int = 50) -> float:
    """1 / log2(1 + rank) of one click, user by user and item by item."""
    own = np.flatnonzero(data.user == data.user[row])
    history, target = data.item[own[own < row]][-length:].tolist(), int(data.item[row])
    support = Examples(
        torch.tensor([history]),
        torch.tensor([range(len(history) - 1)]),
        torch.tensor([history[1:]]),
        torch.zeros(1, len(history) - 1, 1, dtype=torch.long),
        torch.ones(1, len(history) - 1),
    )
    query = Examples(
        torch.tensor([history]),
        torch.tensor([[len(history) - 1]]),
        torch.tensor([[target]]),
        torch.zeros(1, 1, 1, dtype=torch.long),
        torch.ones(1, 1),
    )
    with torch.no_grad():
        scores = model.eval().scores(model.encode(support, query)).approximate(0, data.catalog.size)[0].tolist()
    known = model.item_mask().tolist()
    scores = [score if is_known else -math.inf for score, is_known in zip(scores, known, strict=True)]
    better, equal = (
        sum(f(s) for s in scores[1:]) for f in (lambda s: s > scores[target], lambda s: s == scores[target])
    )
    return 1 / math.log2(1 + 1 + better + (equal - 1) / 2)


def test_a_step_that_ranks_held_out_clicks_worse_is_not_taken(old: Any) -> None:
    clicks, how = spoilt(DOWN), Learning(lr=0.05, epochs=5, replay_users=0)
    every = followed_by(UP, clicks)
    refused, taken = (old.learn(clicks, before=UP, how=one) for one in (how, replace(how, held_out=0)))
    assert not refused.learned.taken and same(refused, old) and np.array_equal(refused.warm, old.warm)
    assert refused.fitted_until == UP.time.max()
    assert taken.learned == Learned() or (taken.learned.taken and taken.learned.held_out == 0)
    assert not same(taken, old)
    rows = held_rows(every, float(DOWN.time.min()) - 14 * DAY, float(DOWN.time.min()), how.held_out)
    wanted = [worth(old, every, row) for row in rows.tolist()]
    assert refused.learned.held_out == len(rows) >= 20
    assert refused.learned.before == pytest.approx(np.mean(wanted), abs=1e-6)
    assert refused.learned.after < refused.learned.before
    assert f"{refused.learned.before - refused.learned.after:.4f}" in refused.learned.why


def test_a_usual_step_is_taken_and_says_what_it_is_worth(old: Any) -> None:
    learned, every = old.learn(DOWN, before=UP), followed_by(UP, DOWN)
    assert learned.learned.taken and not learned.learned.why and not same(learned, old)
    rows = held_rows(every, float(DOWN.time.min()) - 14 * DAY, float(DOWN.time.min()), 256)
    wanted = [worth(learned, every, row) for row in rows.tolist()]
    assert learned.learned.after == pytest.approx(np.mean(wanted), abs=1e-6)
    assert learned.learned.to_dict()["held_out"] == len(rows) and Learned().to_dict()["after"] is None


@pytest.mark.parametrize("lr", [1e30, 1e18])
def test_what_is_not_finite_is_not_taken(old: Any, lr: float) -> None:
    learned = old.learn(DOWN, before=UP, how=Learning(lr=lr, held_out=0 if lr > 1e20 else 256))
    assert not learned.learned.taken and same(learned, old) and learned.learned.why
    both = Ensemble({"live": LivePopularity(UP, window=1e9), "sasrec": old}, UP)
    other = both.learn(DOWN, before=UP, how=Learning(lr=lr))
    assert not other.members()["sasrec"].learned.taken
    counted = LivePopularity(followed_by(UP, DOWN), window=1e9)
    live = other.members()["live"]
    assert live.learned.taken and torch.equal(scores(live), scores(counted))


def scores(of: Any) -> Tensor:
    return of.scores(of.encode_empty()).approximate(0, UP.catalog.size)  # type: ignore[no-any-return]


def test_held_out_clicks_are_the_last_of_every_tenth_user_and_are_not_trained_on(old: Any) -> None:
    every, how = followed_by(UP, DOWN), Learning(replay=1e6)
    batches = Batches(old, DOWN, UP, how)
    rows = held_rows(every, batches.since, float(DOWN.time.min()), how.held_out)
    tenth = [u for u in every.user_codes.tolist() if zlib.crc32(str(every.users.ids[u - 1]).encode()) % 10 == 0]
    last = {int(user): row for row, user in enumerate(every.user.tolist())}
    new = [last[u] for u in tenth if every.time[last[u]] >= DOWN.time.min()]
    if len(new) >= 20:
        assert rows.tolist() == sorted(new)
    else:
        wanted = sorted((last[u] for u in tenth), key=lambda row: -every.time[row])[:20]
        assert rows.tolist() == sorted(wanted)
    held = Counter(zip(every.user[rows].tolist(), every.item[rows].tolist(), every.time[rows].tolist(), strict=True))
    trained = batches.data
    assert not held & Counter(zip(trained.user.tolist(), trained.item.tolist(), trained.time.tolist(), strict=True))
    assert held_rows(every, batches.since, 0, 19).size == 0
    assert len(held_rows(every, 0, 0, 25)) == 25


def test_a_flood_of_one_user_counts_as_a_day_of_an_eager_one(old: Any) -> None:
    count, begin = np.arange(10_000), LAST // DAY * DAY
    items, times = (1 + count % 40).tolist(), (begin + count // 40).tolist()
    distinct, kept = (with_clicks(DOWN, "bot", items[:n], times[:n]) for n in (10_000, 200))
    one, other = (old.learn(clicks, before=UP) for clicks in (distinct, kept))
    assert one.learned.dropped == {FLOOD: 9_800} and not other.learned.dropped
    assert same(one, other)
    live = LivePopularity(UP, window=1e9)
    assert torch.equal(scores(live.learn(distinct, before=UP)), scores(live.learn(kept, before=UP)))
    on_one = live.learn(with_clicks(DOWN, "bot", [7] * 3_000, (begin + count[:3_000]).tolist()), before=UP)
    assert on_one.learned.dropped == {FLOOD: 2_990}
    ten = live.learn(with_clicks(DOWN, "bot", [7] * 10, (begin + count[:10]).tolist()), before=UP)
    assert torch.equal(scores(on_one), scores(ten))
    often = old.learn(with_clicks(DOWN, "bot", [7] * 10_000, [begin] * 10_000), before=UP)
    assert often.learned.dropped == {TWICE: 9_999} and same(
        often, old.learn(with_clicks(DOWN, "bot", [7], [begin]), before=UP)
    )


def test_clocks_that_jump_ahead_are_left_out_and_later_clicks_are_learned(old: Any) -> None:
    ahead = with_clicks(DOWN, "late", [3, 4], [LAST + 3650 * DAY, LAST + 3651 * DAY])
    live = LivePopularity(UP, window=1e9)
    for model in (old, live):
        jumped, usual = model.learn(ahead, before=UP), model.learn(DOWN, before=UP)
        assert jumped.learned.dropped == {AHEAD: 2} and not usual.learned.dropped
        assert same(jumped, usual) if model is old else torch.equal(scores(jumped), scores(usual))
        assert jumped.fitted_until == usual.fitted_until
        later = replace(DOWN, time=DOWN.time + LAST)
        assert jumped.learn(later, before=followed_by(UP, DOWN)).learned.taken
    with pytest.raises(ValueError, match=str(int(UP.time.max()))):
        live.learn(replace(DOWN, time=DOWN.time - LAST))


def test_screening_is_that_of_a_loop_over_the_clicks() -> None:
    draw = np.random.default_rng(0)
    user = np.sort(draw.integers(1, 9, 400))
    time = np.concatenate([np.sort(draw.integers(0, 3 * DAY, int((user == u).sum()))) for u in range(1, 9)])
    users = Vocabulary([f"u{code}" for code in range(1, 9)], "user")
    data = replace(UP, users=users, user=user, item=draw.integers(1, 4, 400), time=time // 9_000 * 9_000)
    before, clicks = (filter_interactions(data, rows) for rows in (data.time < 100_000, data.time >= 90_000))
    found = screened(clicks, before, day=DAY, most=(5, 3), jump=DAY)
    seen = {(u, i, t) for u, i, t in zip(before.user.tolist(), before.item.tolist(), before.time.tolist(), strict=True)}
    per_day, per_item = Counter((u, t // DAY) for u, _, t in seen), Counter((u, t // DAY, i) for u, i, t in seen)
    wanted, dropped = [], Counter[str]()
    for click in zip(clicks.user.tolist(), clicks.item.tolist(), clicks.time.tolist(), strict=True):
        of_day = click[0], click[2] // DAY
        if click in seen:
            dropped[TWICE] += 1
            continue
        seen.add(click)
        per_day[of_day] += 1
        per_item[*of_day, click[1]] += 1
        if per_day[of_day] > 5 or per_item[*of_day, click[1]] > 3:
            dropped[FLOOD] += 1
        else:
            wanted.append(click)
    kept = zip(found.user.tolist(), found.item.tolist(), found.time.tolist(), strict=True)
    assert list(kept) == wanted and found.dropped == {**clicks.dropped, **dropped}
    codes = np.arange(8, 0, -1)
    turned = replace(before, users=Vocabulary([users.ids[code - 1] for code in codes], "user"))
    order = np.argsort(9 - before.user, kind="stable")
    turned = replace(turned, user=(9 - before.user)[order], item=before.item[order], time=before.time[order])
    other = screened(clicks, turned, day=DAY, most=(5, 3), jump=DAY)
    assert np.array_equal(other.item, found.item) and np.array_equal(other.time, found.time)


def test_a_gap_before_many_clicks_is_no_wrong_clock() -> None:
    later = replace(DOWN, time=DOWN.time + 3650 * DAY)
    assert screened(later, UP, **USUAL) is later
    few = filter_interactions(later, np.arange(len(later)) < 3)
    assert screened(few, UP, **USUAL).dropped[AHEAD] == 3
    assert len(screened(few, UP, **USUAL)) == 0
    assert screened(few, None, **USUAL) is few
