"""Events of several kinds: read from tables, kept apart from what is counted, in the examples that learners read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metarec as mr
from kind_worlds import KINDS, carts, random_kinds, shop
from metarec.data import EpisodeSampler
from metarec.data.examples import filter_interactions, leave_last_out, on_catalog
from metarec.data.joining import followed_by
from metarec.data.kinds import OtherEvents, every_event
from metarec.functional.kinds import ITEM, coded, items_of, kinds_of
from metarec.meta import MetaLearner
from metarec.meta.compiled import CompiledUsers
from metarec.meta.vmap import VmapUsers
from metarec.nn.kinds import EventKinds
from metarec.recipes import CoClicks, sasrec
from metarec.recipes.next_item import backward_softmax, every_click


def test_rows_of_the_target_kind_are_the_clicks_and_the_others_stand_beside_them() -> None:
    data = mr.Dataset.from_frame(shop(), kind="event", target="buy")
    assert data.catalog.items.decode(data.item) == ["x", "y", "x", "y"] and data.time.tolist() == [2, 4, 5, 7]
    assert data.catalog.kinds == KINDS and data.others is not None and data.others.names == KINDS
    assert data.others.time.tolist() == [0, 1, 3, 6] and data.others.kind.tolist() == [2, 2, 1, 2]
    assert data.catalog.items.decode(data.others.item) == ["x", "y", "z", "x"]
    assert data.warm.tolist() == [False, True, True, False]  # z was only put into the cart


def test_times_in_text_are_of_one_unit_for_all_kinds() -> None:
    when = [f"2024-05-01T12:00:{second:02}" for second in range(8)]
    frame = shop().drop("time").insert_column(3, shop()["time"].replace_strict(range(8), when).alias("time"))
    data = mr.Dataset.from_frame(frame, kind="event", target="buy")
    assert data.others is not None and data.second == 1
    assert (data.time - data.others.time[0]).tolist() == [2, 4, 5, 7]


def test_atomic_files_are_read_as_frames_are(tmp_path: Path) -> None:
    rows = "\n".join("\t".join(map(str, row)) for row in shop().rows())
    path = tmp_path / "shop.inter"
    path.write_text(f"user_id:token\titem_id:token\tevent:token\ttimestamp:float\n{rows}")
    own = mr.load_atomic(path, kind_field="event", target="buy")
    other = mr.Dataset.from_frame(shop(), kind="event", target="buy")
    for mine, theirs in zip(every_event(own), every_event(other), strict=True):
        assert mine.tolist() == theirs.tolist()
    assert own.catalog.kinds == other.catalog.kinds


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"kind": "event"}, "target"),
        ({"target": "buy"}, "kind"),
        ({"kind": "event", "target": "purchase"}, r"'purchase'.*\['buy', 'cart', 'view'\]"),
        ({"kind": "what", "target": "buy"}, "'what'"),
    ],
)
def test_columns_and_kinds_that_are_not_there_are_named(asked: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        mr.Dataset.from_frame(shop(), **asked)  # type: ignore[arg-type]


def test_rows_without_a_kind_are_left_out_and_counted() -> None:
    frame = shop().with_columns(event=shop()["event"].replace("cart", None))
    data = mr.Dataset.from_frame(frame, kind="event", target="buy")
    assert data.dropped["rows without event"] == 1 and data.catalog.kinds == ("buy", "view")


def test_values_that_do_not_belong_together_are_refused() -> None:
    one = np.array([1])
    for wrong in ({"kind": np.array([3])}, {"kind": np.array([0])}, {"item": np.array([1, 2])}):
        with pytest.raises(ValueError, match="other events"):
            OtherEvents(**{"names": KINDS, "user": one, "item": one, "time": one, "kind": one, **wrong})  # type: ignore[arg-type]
    data = random_kinds()
    with pytest.raises(ValueError, match="kinds"):
        replace(data, catalog=replace(data.catalog, kinds=("buy", "view")))
    assert data.others is not None
    with pytest.raises(ValueError, match="item codes"):
        replace(data, others=replace(data.others, item=data.others.item + 40))


def test_a_split_keeps_later_events_from_the_upstream_side() -> None:
    data = random_kinds()
    at = mr.split_time(data)
    up, down = mr.split_by_time(data, at)
    assert up.others is not None and down.others is not None and data.others is not None
    assert up.others.time.max() <= at and len(up.others) + len(down.others) < len(data.others)
    assert set(up.others.user) <= set(up.user_codes) and set(down.others.user) <= set(down.user_codes)


def test_counts_see_the_target_kind_alone() -> None:
    data = random_kinds()
    plain = replace(data, others=None, catalog=replace(data.catalog, kinds=()))
    sides = [mr.split_by_time(one, mr.split_time(one)) for one in (data, plain)]
    own, theirs = (mr.evaluate(CoClicks(up), down) for up, down in sides)
    assert own.rank.tolist() == theirs.rank.tolist() and own.info["method"] == theirs.info["method"]


def _by_hand(data: mr.Dataset, user: int, click: int, length: int) -> tuple[list[int], int]:
    """The last events of a user before a click, by a loop over all events."""
    own = [(t, 0, i) for u, i, t in zip(data.user, data.item, data.time, strict=True) if u == user]
    asked = own[click][0]
    others = data.others
    assert others is not None
    columns = zip(others.user, others.item, others.time, others.kind, strict=True)
    before = [(t, 0, int(i)) for t, _, i in own[:click]]
    before += [(t, 1, int(coded(i, k))) for u, i, t, k in columns if u == user and t < asked]
    return [code for *_, code in sorted(before)][-length:], len(before)


@pytest.mark.parametrize("part", ["validation", "test", "serving"])
@pytest.mark.parametrize("length", [4, 50])
def test_examples_read_the_events_before_their_target_and_no_later_one(part: Any, length: int) -> None:
    data = random_kinds(users=20, others=200)
    sampler = EpisodeSampler(data, part=part, max_length=length, users_per_batch=7)
    for batch in sampler.epoch(0):
        for row, user in enumerate(batch.user.tolist()):
            clicks = int((data.user == user).sum())
            query = batch.query[row : row + 1]
            assert query.events is not None and query.read is not None
            expected, _ = _by_hand(data, user, clicks - (2 if part == "validation" else 1), length)
            last = int(query.read[0, 0])
            assert query.events[0, : last + 1].tolist() == expected
            support = batch.support[row : row + 1]
            assert support.events is not None and support.read is not None
            first = clicks - 1 - min(clicks - 1, length)
            for place, read in zip(support.position[0].tolist(), support.read[0].tolist(), strict=True):
                if support.weight[0, place] and read >= 0:
                    before, _ = _by_hand(data, user, first + place + 1, 10_000)
                    assert support.events[0, : read + 1].tolist() == before[-read - 1 :]


def test_training_windows_ask_for_each_click_after_the_events_before_it() -> None:
    data = random_kinds(users=20, others=200)
    for batch in EpisodeSampler(data, queries=2, users_per_batch=20).epoch(0):
        examples = every_click(batch)
        assert examples.events is not None and examples.read is not None
        for row, user in enumerate(batch.user.tolist()):
            real = examples.weight[row] > 0
            reads = zip(examples.position[row][real].tolist(), examples.read[row][real].tolist(), strict=True)
            for position, read in reads:
                assert examples.events[row, : read + 1].tolist() == _by_hand(data, user, position + 1, 10_000)[0]


def test_windows_of_training_go_over_all_clicks_of_who_has_many_events() -> None:
    data, asked = random_kinds(users=20, others=1000), set()
    for epoch in range(40):
        for batch in EpisodeSampler(data, max_length=10, users_per_batch=20).epoch(epoch):
            assert batch.query.read is not None and int(batch.query.read[batch.query.weight > 0].min()) >= 0
            assert batch.query.events is not None and batch.query.events.shape[1] <= 10
            times = batch.query.time
            assert times is not None
            asked |= {(user, float(time)) for user, time in zip(batch.user.tolist(), times[:, 0], strict=True)}
    first = data.offsets[:-1]
    could = len(data) - 2 * len(first)
    assert len(asked) > 0.9 * could


def test_the_events_of_a_moment_stand_after_its_click() -> None:
    frame = shop().with_columns(time=[0, 1, 2, 2, 4, 5, 5, 7])
    data = mr.Dataset.from_frame(frame, kind="event", target="buy")
    assert [kinds_of(code) for code in every_event(data)[1].tolist()[:5]] == [2, 2, 0, 1, 0]


def test_joining_recoding_and_filtering_keep_events_with_their_users() -> None:
    data = random_kinds()
    assert data.others is not None
    parts = [data.time <= 1_000_000, data.time > 1_000_000]
    moments = [data.others.time <= 1_000_000, data.others.time > 1_000_000]
    sides = [
        replace(filter_interactions(replace(data, others=None), rows), others=data.others.filter(kept))
        for rows, kept in zip(parts, moments, strict=True)
    ]
    both = followed_by(*sides)
    assert _said(both) == _said(data) == _said(followed_by(data, sides[1]))
    part = replace(random_kinds(items=30).catalog, kinds=("buy", "view", "cart"))
    moved = on_catalog(data, part, np.ones(31, dtype=bool))
    assert moved.others is not None and moved.others.names == part.kinds
    assert _said(moved) == [one for one in _said(data) if int(one[1].removeprefix("item")) < 30]
    with pytest.raises(ValueError, match="'cart'"):
        on_catalog(data, replace(part, kinds=("buy", "view")), np.ones(31, dtype=bool))
    assert leave_last_out(data, 1, least=1).others is not None


def _said(data: mr.Dataset) -> list[tuple[str, str, str, float]]:
    """Every event by names."""
    user, code, time = every_event(data)
    names = data.users.decode(user.tolist()), data.catalog.items.decode(items_of(code).tolist())
    kinds = [data.catalog.kinds[kind] for kind in kinds_of(code).tolist()]
    return sorted(zip(*names, kinds, time.tolist(), strict=True))


def _learner(data: mr.Dataset) -> mr.ModalityLearner:
    learner = sasrec.build(data, dim=8, dropout=0.0)
    with torch.no_grad():
        assert learner.kinds is not None
        learner.kinds.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    return learner.eval()


def _states(learner: mr.ModalityLearner, codes: list[int]) -> Tensor:
    """The state after some events, from the parts of a learner by hand."""
    code = torch.tensor([codes])
    assert learner.kinds is not None
    x = learner.items(code & ITEM) + learner.kinds.weight[code >> 48]
    state: Tensor = learner.encoder(x, code > 0, None, torch.tensor([[len(codes) - 1]]))
    return state[0, 0]


def test_a_state_is_that_of_all_events_with_the_vectors_of_their_kinds() -> None:
    data = random_kinds(users=20, others=100)
    learner = _learner(data)
    batch = next(EpisodeSampler(data, part="test").epoch(0))
    found, _ = learner.encode_queries(batch.query)
    for row, user in enumerate(batch.user.tolist()):
        events, _ = _by_hand(data, user, int((data.user == user).sum()) - 1, 50)
        assert torch.allclose(found[row, 0], _states(learner, events), atol=1e-5)


def test_gradients_reach_the_vectors_of_kinds_alike_in_the_kernel_and_without() -> None:
    data, grads = random_kinds(), []
    batch = next(EpisodeSampler(data, users_per_batch=16).epoch(0))
    learner = _learner(data)
    for fast in (True, False):
        learner.zero_grad()
        if fast:
            backward_softmax(learner, batch)
        else:
            learner.loss(every_click(batch), "softmax").mean().backward()
        grads.append([p.grad.clone() for p in learner.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) == len(list(learner.parameters()))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))
    assert learner.kinds is not None and learner.kinds.weight.grad is not None
    assert float(learner.kinds.weight.grad.abs().min(1).values.min()) > 0


@pytest.mark.parametrize("adapts", ["encoder", "all"])
def test_engines_adapt_to_events_alike(adapts: Any) -> None:
    data = random_kinds()
    learner, batch = _learner(data), next(EpisodeSampler(data, part="test", users_per_batch=9).epoch(0))
    meta = MetaLearner(learner, lr=0.1, steps=2, adapts=adapts)
    with torch.no_grad():
        found = meta.adapt(batch.support)(batch.query).scores
    view, loop = learner.task_view(adapts), meta._loop()
    assert not any("kinds" in name for name, _ in view.named_parameters())
    support = learner.reading(batch.support)
    users = VmapUsers(view, len(batch), view.task_tensors(support)).steps(batch.support, loop).detached()
    assert torch.allclose(found, users("score", batch.query)[0], atol=1e-4)
    without = replace(batch.support, events=None, read=None), replace(batch.query, events=None, read=None)
    with torch.no_grad():
        assert not torch.allclose(found, meta.adapt(without[0])(without[1]).scores, atol=1e-3)
    bank = meta.bank()
    assert bank is not None and not bank.together  # the kernel's own look-up reads clicks alone
    assert adapts == "all" or CompiledUsers.fits(view, loop, {})
    scores = meta.scores(meta.encode(batch.support, batch.query)).approximate(0, data.catalog.size)
    known = meta.known_items()
    assert torch.allclose(scores[:, known], found[:, 0, known], atol=1e-4)


def test_meta_gradients_reach_the_vectors_of_kinds() -> None:
    data, grads = random_kinds(), []
    batch = next(EpisodeSampler(data, queries=0.5, users_per_batch=9).epoch(0))
    learner = _learner(data)
    for engine in (None, VmapUsers):
        learner.zero_grad()
        meta = MetaLearner(learner, lr=0.1, steps=2)
        if engine is None:
            meta.backward(batch)
        else:
            users = engine(learner.task_view("encoder"), len(batch)).steps(batch.support, meta._loop())
            (users("loss", batch.query, "bpr").sum() / len(batch)).backward()
        assert learner.kinds is not None and learner.kinds.weight.grad is not None
        grads.append(learner.kinds.weight.grad.clone())
    assert float(grads[0].abs().sum()) > 0 and torch.allclose(*grads, atol=1e-5)


def test_a_learner_that_reads_kinds_beats_one_that_does_not_where_they_matter() -> None:
    data = mr.Dataset.from_frame(carts(), kind="kind", target="buy")
    up, down = mr.split_by_time(data, mr.split_time(data))
    plain = [replace(side, others=None, catalog=replace(side.catalog, kinds=())) for side in (up, down)]
    blind = sasrec.build(up, dim=16, layers=1)
    assert isinstance(blind.kinds, EventKinds)
    torch.nn.init.zeros_(blind.kinds.weight)
    blind.kinds.requires_grad_(False)
    found = []
    for learner, sides in ((sasrec.build(up, dim=16, layers=1), (up, down)), (blind, (up, down)), (None, plain)):
        learner = learner or sasrec.build(sides[0], dim=16, layers=1)
        for _ in sasrec.train(learner, sides[0], epochs=60, lr=5e-3, users_per_batch=32):
            pass
        found.append(mr.evaluate(learner, sides[1], k=(1,), exclude_seen=False).metrics["recall@1"].mean)
    kinds, events, clicks = found
    assert kinds > 0.8 and kinds > events + 0.3 and events > clicks + 0.1
