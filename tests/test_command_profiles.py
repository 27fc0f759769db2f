"""Commands with profiles of users: who has not clicked gets a list of their own too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import metarec as mr
from metarec.__main__ import main
from metarec.comparison import compare
from metarec.recipes import Ensemble, Popularity, ProfilePopularity

USERS, ITEMS = 60, 40
RNG = np.random.default_rng(0)
GROUP = RNG.integers(0, 2, USERS)
CLICKS = pl.DataFrame(
    {
        "user": np.repeat(np.arange(USERS), 6),
        "item": (RNG.integers(0, 20, (USERS, 6)) + 20 * GROUP[:, None]).ravel(),
        "time": np.arange(6 * USERS) + 1_600_000_000,
    }
)
PEOPLE = pl.DataFrame(
    {
        "user": [*range(USERS), 1000, 1001],  # two who never clicked
        "group": [*("ab"[one] for one in GROUP), "b", "a"],
        "tags": [["x"] if n % 2 else ["x", "y"] for n in range(USERS + 2)],
        "age": [20.0 + n for n in range(USERS + 2)],
    }
)
COLUMNS = ("group", "tags", "age")
SPLIT = 1_600_000_000 + 6 * 48 - 1  # between two users


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    CLICKS.write_parquet(tmp_path / "clicks.parquet")
    PEOPLE.sample(fraction=1.0, shuffle=True, seed=2).write_parquet(tmp_path / "people.parquet")
    data = mr.Dataset.from_frame(CLICKS, users=PEOPLE, profile=COLUMNS)
    up, _ = mr.split_by_time(data, at=SPLIT)
    own = ProfilePopularity(up)
    mr.save(own, tmp_path / "profiles")
    mr.save(Popularity(up), tmp_path / "popularity")
    mr.save(Ensemble({"popularity": Popularity(up), "profile": own}, up), tmp_path / "both")
    return {path.stem.upper(): str(path) for path in tmp_path.iterdir()}


def run(files: dict[str, str], *words: str) -> None:
    main([files.get(word, word) for word in words])


def told(user: int) -> dict[str, object]:
    (row,) = PEOPLE.filter(pl.col("user") == user).select(COLUMNS).to_dicts()
    return row


@pytest.mark.parametrize("clicks", [True, False])
def test_everybody_in_the_files_gets_the_list_of_a_recommender(
    clicks: bool, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metarec.read_commands.AT_ONCE", 25)  # those who never clicked share a block with others
    out = tmp_path / "lists.parquet"
    source = ["BOTH", "CLICKS"] if clicks else ["BOTH"]
    run(files, "recommend", *source, "--users", "PEOPLE", "--k", "3", "--out", str(out))
    lists, recommender = pl.read_parquet(out), mr.Recommender.load(files["BOTH"])
    assert set(lists["user"].to_list()) == set(PEOPLE["user"].to_list())
    for user in PEOPLE["user"].to_list():
        history = CLICKS.filter(pl.col("user") == user)["item"].to_list() if clicks else []
        expected = recommender.adapt(history, profile=told(user)).recommend(k=3)
        assert lists.filter(pl.col("user") == user)["item"].to_list() == [one.id for one in expected]


def test_one_user_by_what_is_known_of_them(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    recommender = mr.Recommender.load(files["BOTH"])
    for history in ([], [3, 5]):
        words = ["--history", *map(str, history)] if history else []
        run(files, "recommend", "BOTH", *words, "--profile", "group=b", "age=31", "--k", "4")
        items = [int(line.split(",")[2]) for line in capsys.readouterr().out.splitlines()[1:]]
        expected = recommender.adapt(history, profile={"group": "b", "age": 31}).recommend(k=4)
        assert items == [one.id for one in expected]


def test_profiles_reach_evaluation_and_comparison(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = mr.Dataset.from_frame(CLICKS, users=PEOPLE, profile=COLUMNS)
    _, down = mr.split_by_time(data, at=SPLIT)
    expected = mr.evaluate(mr.load(files["PROFILES"]), down)
    run(files, "evaluate", "PROFILES", "CLICKS", "--users", "PEOPLE", "--out", str(tmp_path / "report.parquet"))
    assert pl.read_parquet(tmp_path / "report.parquet")["mean"].equals(expected.to_frame()["mean"])
    out = str(tmp_path / "compared.json")
    run(files, "compare", "POPULARITY", "PROFILES", "CLICKS", "--users", "PEOPLE", "--out", out)
    found = compare(expected, mr.evaluate(mr.load(files["POPULARITY"]), down))
    assert f"{found.relative_gain:+.1%}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recommend", "POPULARITY", "CLICKS", "--users", "PEOPLE"], "--users .*reads profiles"),
        (["evaluate", "POPULARITY", "CLICKS", "--users", "PEOPLE"], "--users .*reads profiles"),
        (["compare", "popularity", "ease", "CLICKS", "--users", "PEOPLE"], "--users .*reads profiles"),
        (["recommend", "BOTH", "--users", "CLICKS"], "no column 'group'"),
        (["recommend", "BOTH", "--profile", "grop=a"], "unknown column 'grop'.*'group'"),
        (["recommend", "BOTH", "--profile", "age"], "COLUMN=VALUE"),
        (["recommend", "BOTH", "--profile", "age=old"], "'age'.*'old'"),
        (["recommend", "BOTH", "--users", "PEOPLE", "--profile", "age=3"], "--users"),
        (["recommend", "POPULARITY", "--profile", "age=3"], "profile"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(
    words: list[str], message: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=message) as refused:
        run(files, *words)
    assert refused.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
