"""The packaged data: the counts its README states, and the files read again with the standard library."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

import metarec.datasets
from metarec.data import Dataset, split_by_time, split_time
from metarec.datasets import movietweetings

FILES = Path(metarec.datasets.__file__).parent / "files" / "movietweetings"


@pytest.fixture(scope="module")
def data() -> Dataset:
    return movietweetings()


def read(name: str) -> list[dict[str, str]]:
    with gzip.open(FILES / name, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_counts_of_the_readme(data: Dataset) -> None:
    assert (len(data), len(data.users), len(data.catalog.items)) == (100_241, 6_737, 4_235)
    assert np.bincount(data.user)[1:].min() >= 4
    assert np.bincount(data.item)[1:].min() >= 2
    first, last = np.array([data.time.min(), data.time.max()]).astype("datetime64[s]").astype(str)
    assert (first[:10], last[:10]) == ("2013-02-28", "2013-11-06")
    assert data.dropped == {}


def test_interactions_and_titles_are_those_of_the_files(data: Dataset) -> None:
    events = [
        (r["user_id:token"], r["item_id:token"], int(r["timestamp:float"])) for r in read("movietweetings.inter.gz")
    ]
    loaded = zip(data.users.decode(data.user), data.catalog.items.decode(data.item), data.time.tolist(), strict=True)
    assert list(loaded) == sorted(events, key=lambda e: (e[0], e[2]))
    titles = {row["item_id:token"]: row["title:token_seq"] for row in read("movietweetings.item.gz")}
    assert dict(zip(data.catalog.items.ids, data.catalog.attributes["title"], strict=True)) == titles


@pytest.mark.parametrize(("name", "columns"), [("text", 384), ("image", 256)])
def test_features_are_those_of_the_files(data: Dataset, name: str, columns: int) -> None:
    modality = data.catalog[name]
    assert modality.dim == columns
    assert bool(modality.present[1:].all())
    with np.load(FILES / f"{name}.npz") as arrays:
        rows = dict(zip(arrays["ids"].tolist(), arrays["feat"], strict=True))
    for code, item in enumerate(data.catalog.items.ids, start=1):
        assert np.array_equal(modality.features[code].numpy(), rows[item].astype(np.float32))


def test_the_split_at_which_a_fifth_of_the_users_start_later(data: Dataset) -> None:
    at = split_time(data, cold_users=0.2)
    up, down = split_by_time(data, at)
    short = up.dropped["upstream users with fewer than 4 interactions"]
    assert (len(up.user_codes) + short, len(down.user_codes)) == (5_389, 1_348)
    assert np.median(np.diff(down.offsets)) == 7
    unseen = ~np.isin(down.item, data.item[data.time <= at])  # the README's figure counts all that was seen by then
    assert round(float(unseen.mean()), 3) == 0.131
