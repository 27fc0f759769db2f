"""Clicks and changes told to the service over HTTP, and to several processes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from journal_cases import LATER, OPEN, counts, opened, served, tell
from metarec import Recommender
from service_helpers import ask, running


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def test_clicks_over_http_and_users_by_name(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    with running(Recommender(counts()), journal=journal, allow_changes=True) as port:
        body = {
            "clicks": [{"user": "ann", "item": "item3", "time": LATER}, {"user": "bob", "item": "item4", "time": LATER}]
        }
        assert tell(port, "/clicks", body, "k1") == (200, {"clicks": 2, "new_users": ["ann", "bob"], "not_counted": 0})
        assert tell(port, "/clicks", body, "k1") == (200, {"clicks": 2, "new_users": ["ann", "bob"], "not_counted": 0})
        named = ask(port, "/recommend", {"user": "ann", "k": 5})
        assert (
            named[0] == 200 and named[1]["items"] == ask(port, "/recommend", {"clicks": ["item3"], "k": 5})[1]["items"]
        )
        many = ask(port, "/recommend/users", {"users": [{"user": "bob"}, {"clicks": ["item9"]}], "k": 3})[1]["users"]
        for own, clicked in zip(many, ("item4", "item9"), strict=True):
            assert own["items"] == ask(port, "/recommend", {"clicks": [clicked], "k": 3})[1]["items"]
        for wrong, said in (
            ({"clicks": [{"user": "ann", "item": "itm3", "time": LATER}]}, "clicks.0.item: unknown item id 'itm3'"),
            ({"clicks": [{"user": "ann", "item": "item3", "time": LATER - 1}]}, "'ann'"),
            ({"clicks": [{"user": " ", "item": "item3", "time": LATER}]}, "clicks.0.user"),
            ({"clicks": [{"user": "ann", "item": "item3", "time": "x"}]}, "clicks.0.time"),
            ({"clicks": [{"user": "ann", "item": "item3", "time": LATER}] * 46}, "clicks: expected at most 45"),
        ):
            status, answer = tell(port, "/clicks", wrong)
            assert status == 422 and said in answer["error"]
        assert tell(port, "/clicks", body, "x" * 300)[0] == 422
        assert tell(port, "/items/remove", {"ids": ["item1"]}, "k1")[0] == 422
        status, answer = ask(port, "/recommend", {"user": "eve"})
        assert status == 422 and "eve" in answer["error"]
        assert ask(port, "/recommend", {"user": "ann", "clicks": ["item3"]})[0] == 422
    assert served(tmp_path / "j").recommender.user("bob").history == ("item4",)


def test_a_flood_is_answered_and_moves_counts_no_more_than_a_day_of_one_user(tmp_path: Path) -> None:
    with running(Recommender(counts()), journal=opened(tmp_path / "j"), allow_changes=True) as port:
        bots = [{"user": "bot", "item": "item3", "time": LATER} for _ in range(40)]
        assert "not_counted" not in ask(port, "/health")[1]
        for left_out in (30, 40, 40):
            assert tell(port, "/clicks", {"clicks": bots})[1]["not_counted"] == left_out
        assert ask(port, "/health")[1]["not_counted"] == 110
        flooded = ask(port, "/recommend", {"clicks": ["item9"], "k": 40})[1]
    again = served(tmp_path / "j")
    assert again.not_counted == 110
    with running(Recommender(counts()), journal=opened(tmp_path / "other"), allow_changes=True) as port:
        assert tell(port, "/clicks", {"clicks": bots[:10]})[1]["not_counted"] == 0
        assert ask(port, "/recommend", {"clicks": ["item9"], "k": 40})[1] == flooded


def test_many_clients_at_once_are_written_together(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    with running(Recommender(counts()), journal=journal, allow_changes=True) as port:
        bodies = [{"clicks": [{"user": f"u{n % 8}", "item": f"item{n % 40}", "time": LATER}]} for n in range(64)]
        with ThreadPoolExecutor(16) as clients:
            got = list(clients.map(lambda n: tell(port, "/clicks", bodies[n], f"k{n}"), range(64)))
    assert [status for status, _ in got] == [200] * 64
    held = served(tmp_path / "j").recommender
    for user in range(8):
        assert sorted(held.user(f"u{user}").history) == sorted(f"item{n % 40}" for n in range(user, 64, 8))


def test_two_services_on_one_journal_know_of_each_other(tmp_path: Path) -> None:
    journals = [opened(tmp_path / "j") for _ in range(2)]
    with (
        running(Recommender(counts()), journal=journals[0], allow_changes=True) as one,
        running(Recommender(counts()), journal=journals[1], allow_changes=True) as two,
    ):
        for number, (here, there) in enumerate([(one, two), (two, one), (one, two)]):
            body = {"clicks": [{"user": f"u{number}", "item": "item3", "time": LATER}]}
            assert tell(here, "/clicks", body)[0] == 200
            assert ask(there, "/recommend", {"user": f"u{number}", "k": 1})[0] == 200
            assert tell(here, "/items/remove", {"ids": [f"item{number + 5}"]})[1]["removed"] == number + 1
            only = {"clicks": ["item9"], "candidates": [f"item{number + 5}"]}
            assert ask(there, "/recommend", only)[1]["items"] == []
