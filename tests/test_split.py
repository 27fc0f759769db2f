"""The split against loops that follow its definition word by word."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from metarec.data import load_atomic, split_by_time, split_time
from split_events import EVENTS, Event, dataset, triples


def by_hand(events: list[Event], at: float, least: int) -> tuple[list[Event], list[Event], dict[str, int]]:
    per_user: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        per_user[event[0]].append(event)
    up: list[Event] = []
    down: list[Event] = []
    counts = {"up": 0, "down": 0, "after": 0}
    for mine in per_user.values():
        cold = min(time for _, _, time in mine) > at
        kept = mine if cold else [event for event in mine if event[2] <= at]
        counts["after"] += len(mine) - len(kept)
        if len(kept) < least:
            counts["down" if cold else "up"] += 1
        else:
            (down if cold else up).extend(kept)
    return sorted(up), sorted(down), counts


@settings(max_examples=200, deadline=None)
@given(EVENTS, st.integers(-2, 2), st.integers(1, 3))
def test_split_is_the_definition(events: list[Event], at: int, least: int) -> None:
    up_events, down_events, counts = by_hand(events, at, least)
    data = dataset(events)
    if not up_events or not down_events:
        with pytest.raises(ValueError, match="split_by_time: no "):
            split_by_time(data, at, min_interactions=least)
        return
    up, down = split_by_time(data, at, min_interactions=least)
    assert (triples(up), triples(down)) == (up_events, down_events)
    assert not set(up.user.tolist()) & set(down.user.tolist())
    assert max(up.time) <= at
    seen = {item for _, item, _ in up_events}
    assert up.cold_items.tolist() == [code for code in range(1, 9) if code not in seen]
    assert np.array_equal(up.warm, down.warm)
    assert up.dropped.get(f"upstream users with fewer than {least} interactions", 0) == counts["up"]
    assert up.dropped.get("interactions after the split by upstream users", 0) == counts["after"]
    assert down.dropped.get(f"downstream users with fewer than {least} interactions", 0) == counts["down"]
    assert up.dropped["before"] == down.dropped["before"] == 7
    assert up.users is down.users is data.users
    assert up.catalog is down.catalog is data.catalog
    assert (up.name, down.name) == ("toy upstream", "toy downstream")


def test_what_is_left_out_is_counted_on_its_side() -> None:
    clicks = {1: [1, 2, 3], 2: [2], 3: [1, 2, 9], 4: [4, 9], 5: [8, 8, 9], 6: [7], 7: [8], 8: [9], 9: [1, 3, 5]}
    data = dataset([(user, 1, time) for user, times in clicks.items() for time in times])
    up, down = split_by_time(data, at=3, min_interactions=2)
    assert (up.user_codes.tolist(), down.user_codes.tolist()) == ([1, 3, 9], [4, 5])
    few = "users with fewer than 2 interactions"
    after = "interactions after the split by upstream users"
    assert up.dropped == {"before": 7, f"upstream {few}": 1, f"interactions of upstream {few}": 1, after: 2}
    assert down.dropped == {"before": 7, f"downstream {few}": 3, f"interactions of downstream {few}": 3}


def test_shuffled_rows_give_the_same_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    time = rng.permutation(400)
    lines = [f"u{rng.integers(20) + 20 * (t > 200)}\ti{rng.integers(30)}\t{t}" for t in time]
    sides = []
    for name, order in (("a", np.arange(400)), ("b", rng.permutation(400))):
        rows = ["user_id:token\titem_id:token\ttimestamp:float", *(lines[i] for i in order)]
        (tmp_path / f"{name}.inter").write_text("\n".join(rows))
        data = load_atomic(tmp_path / f"{name}.inter")
        sides.append(split_by_time(data, at=split_time(data, 0.5)))
    for one, other in zip(*sides, strict=True):
        assert one.users == other.users
        assert one.catalog.items == other.catalog.items
        assert triples(one) == triples(other)
        assert np.array_equal(one.time, other.time)
        assert np.array_equal(one.warm, other.warm)


def test_a_user_starts_at_his_earliest_time_not_in_the_first_row(tmp_path: Path) -> None:
    rows = ["v\ta\t9", "v\tb\t1", "w\ta\t8", "w\tb\t9"]
    (tmp_path / "d.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]))
    up, down = split_by_time(load_atomic(tmp_path), at=5, min_interactions=1)
    assert (up.users.decode(up.user), up.item.tolist()) == (["v"], [2])
    assert down.users.decode(down.user) == ["w", "w"]
    assert down.cold_items.tolist() == [1]


def test_times_next_to_each_other_stay_apart() -> None:
    start = 1_631_289_599_000_000_000
    data = dataset([(1, 1, start), (1, 2, start + 1), (2, 3, start + 1)])
    up, down = split_by_time(data, at=start, min_interactions=1)
    assert (triples(up), triples(down)) == ([(1, 1, start)], [(2, 3, start + 1)])
    up, down = split_by_time(data, at=float(start), min_interactions=1)  # a float has no room for start + 1
    assert (triples(up), triples(down)) == ([(1, 1, start)], [(2, 3, start + 1)])
    between = replace(data, time=np.array([1, 2, 2]))
    assert triples(split_by_time(between, at=1.5, min_interactions=1)[0]) == [(1, 1, 1)]


def test_times_that_are_no_integers_are_not_rounded() -> None:
    data = dataset([(1, 1, 0.25), (1, 2, 0.5), (2, 3, 0.75)])
    up, down = split_by_time(data, at=0.5, min_interactions=1)
    assert (triples(up), triples(down)) == ([(1, 1, 0.25), (1, 2, 0.5)], [(2, 3, 0.75)])


@settings(max_examples=200, deadline=None)
@given(EVENTS, st.floats(0.05, 0.95))
def test_split_time_is_the_latest_that_leaves_the_share(events: list[Event], share: float) -> None:
    start: dict[int, float] = {}
    for user, _, time in events:
        start[user] = min(time, start.get(user, time))
    later = {t: sum(s > t for s in start.values()) for t in start.values()}
    good = [t for t, users in later.items() if users > 0 and users >= share * len(start)]
    assume(all(abs(users - share * len(start)) > 1e-6 for users in later.values()))
    if good:
        at = split_time(dataset(events), share)
        assert at == max(good)
        assert isinstance(at, int)
    else:
        message = "ask for a smaller share" if len(later) > 1 else f"all users of toy start at {min(later)}, so none is"
        with pytest.raises(ValueError, match=message):
            split_time(dataset(events), share)


def test_split_time_leaves_exactly_the_share_where_starts_differ() -> None:
    data = dataset([(user, 1, user * 0.5) for user in range(1, 6)])
    assert split_time(data, 0.2) == 2.0
    assert split_time(data, 0.4) == 1.5
    assert isinstance(split_time(data, 0.4), float)
    assert split_time(data, 1e-12) == 2.0, "somebody comes later, however small the share"


def test_errors_say_what_to_do() -> None:
    data = dataset([(1, 1, 10), (2, 1, 20)])
    advice = r"toy go from 10 to 20, and its users start until 20: choose `at` between, e\.g\. split_time"
    with pytest.raises(ValueError, match=rf"no upstream.* 1 interactions at 5; .*{advice}"):
        split_by_time(data, 5, min_interactions=1)
    with pytest.raises(ValueError, match=rf"no downstream.* 1 interactions at 20; .*{advice}"):
        split_by_time(data, 20, min_interactions=1)
    with pytest.raises(ValueError, match=r"no .*downstream.* 4 interactions"):
        split_by_time(data, 15)
    with pytest.raises(ValueError, match=r"no interactions"):
        split_by_time(replace(data, user=data.user[:0], item=data.item[:0], time=data.time[:0]), 15)
    with pytest.raises(ValueError, match=r"at .*nan"):
        split_by_time(data, float("nan"))
    with pytest.raises(ValueError, match=r"min_interactions .*least 1, got 0"):
        split_by_time(data, 15, min_interactions=0)
    for share in (20, 1.5, 1, 0, -0.5):
        with pytest.raises(ValueError, match=rf"cold_users must be between 0 and 1, got {share}"):
            split_time(data, share)
    with pytest.raises(ValueError, match=r"no interactions"):
        split_time(replace(data, user=data.user[:0], item=data.item[:0], time=data.time[:0]))


def test_a_file_without_times_is_named_where_its_rows_do_not_split(tmp_path: Path) -> None:
    clicks = "".join(f"u{user}\ti{item}\n" for user in range(3) for item in range(5))
    (tmp_path / "log.inter").write_text("user_id:token\titem_id:token\n" + clicks)
    data = load_atomic(tmp_path)
    missing = r"log go from 0 to 14 and number the rows, .* timestamp:float .* \(if the .*time_field=\.\.\.\)\), and"
    with pytest.raises(ValueError, match=missing):
        split_by_time(data, 1631289599)
    alone = replace(data, user=data.user[:5], item=data.item[:5], time=data.time[:5])
    with pytest.raises(ValueError, match=r"all .*start.* 0, .* from 0 to 4 .*number"):
        split_time(alone)
    timed = replace(data, time=np.full_like(data.time, 7))
    with pytest.raises(ValueError, match=r"all .*start.* 7, .*later; .* from 7 to 7$"):
        split_time(timed)
    for times in (np.arange(15) + 1, np.arange(15) * 2, np.maximum(np.arange(15), 1) - 1):
        timed = replace(data, time=times)
        with pytest.raises(ValueError, match=rf"times .*log.* {times[0]} to {times[-1]}, and its"):
            split_by_time(timed, 100)
