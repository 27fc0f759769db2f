"""Attributes in answers, filters by them, and the page of all paths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from metarec import Recommender
from metarec.data.dataset import Catalog
from metarec.recipes import Popularity
from metarec.service import create_app
from metarec.service.reader import Attributes
from service_helpers import ask, running
from tiny import UP

IDS = UP.catalog.items.ids
GENRES = [("Horror", "Horror Comedy", "Drama", "Science|Drama", "")[n % 5] for n in range(len(IDS))]
TITLES = [f"Film {n}" for n in range(len(IDS))]
FILMS = replace(UP, catalog=replace(UP.catalog, attributes={"title": TITLES, "genre": GENRES}))


KNOWN = {item for item, clicked in zip(IDS, UP.warm[1:], strict=True) if clicked}


def having(genre: str) -> set[str]:
    return {item for item, text in zip(IDS, GENRES, strict=True) if genre in re.split(r"[ |]", text)}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with running(Recommender(Popularity(FILMS)), allow_changes=True) as port:
        yield port


def listed(port: int, **asked: Any) -> list[dict[str, Any]]:
    status, answer = ask(port, "/recommend", {"clicks": ["item3"], "k": 30, **asked})
    assert status == 200, answer
    items: list[dict[str, Any]] = answer["items"]
    return items


def test_titles_come_by_themselves_and_others_when_asked_for(port: int) -> None:
    for item in listed(port):
        assert item["attributes"] == {"title": TITLES[IDS.index(item["id"])]}
    for item in listed(port, attributes=["genre"]):
        assert item["attributes"] == {"genre": GENRES[IDS.index(item["id"])]}
    assert all("attributes" not in item for item in listed(port, attributes=[]))
    users = {"users": [{"clicks": ["item3"]}, {"clicks": []}], "k": 2, "attributes": ["title", "genre"]}
    for user in ask(port, "/recommend/users", users)[1]["users"]:
        for item in user["items"]:
            place = IDS.index(item["id"])
            assert item["attributes"] == {"title": TITLES[place], "genre": GENRES[place]}


@pytest.mark.parametrize("genres", [["Horror"], ["Comedy", "Science"], ["Drama"], ["Horror Comedy"]])
def test_a_filter_is_the_list_of_items_that_have_one_of_its_values(port: int, genres: list[str]) -> None:
    whole = {item for item, text in zip(IDS, GENRES, strict=True) if text in genres}
    expected = whole.union(*map(having, genres)) & KNOWN
    found = listed(port, filter={"genre": genres}, exclude_seen=False)
    assert {item["id"] for item in found} == expected
    assert found == listed(port, allow=sorted(expected), exclude_seen=False)


def test_filters_hold_together_with_each_other_and_with_lists_of_ids(port: int) -> None:
    some = IDS[:12]
    both = {"filter": {"genre": ["Drama"], "title": [TITLES[n] for n in range(10)]}, "allow": some, "deny": [IDS[2]]}
    expected = having("Drama") & set(IDS[:10]) & KNOWN - {IDS[2]}
    assert {item["id"] for item in listed(port, **both, exclude_seen=False)} == expected


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"filter": {"gnre": ["Horror"]}}, ["filter", "'gnre'", "'genre'"]),
        ({"filter": {"genre": ["Horor"]}}, ["filter.genre", "'Horor'", "'Horror'"]),
        ({"filter": {"genre": [1]}}, ["filter.genre.0"]),
        ({"filter": {"genre": ["x"] * 46}}, ["filter.genre", "45"]),
        ({"attributes": ["year"]}, ["attributes", "'year'", "'title'"]),
        ({"attributes": ["title"] * 17}, ["attributes", "16"]),
        ({"filter": {f"f{n}": ["x"] for n in range(17)}}, ["filter", "16"]),
    ],
)
def test_what_is_not_there_is_said(port: int, asked: dict[str, Any], said: list[str]) -> None:
    status, answer = ask(port, "/recommend", {"clicks": [], **asked})
    assert status == 422 and all(part in answer["error"] for part in said), answer


def test_the_items_of_a_filter_are_looked_for_once_and_again_in_another_catalogue() -> None:
    catalog = FILMS.catalog
    attributes = Attributes(catalog)
    first = attributes.allowed("genre", frozenset({"Drama"}))
    assert attributes.allowed("genre", frozenset({"Drama"})) is first
    more = Catalog(type(catalog.items)(["new"]), attributes={"genre": ["Drama"]})
    assert Attributes(replace(catalog, modalities={}).add_items(more)).allowed("genre", frozenset({"Drama"})) == {
        *first,
        "new",
    }


def test_a_new_item_comes_with_its_attributes() -> None:
    from tiny import TWO_LEARNERS, trained

    model = trained(TWO_LEARNERS)
    model.catalog = replace(model.catalog, attributes={"title": TITLES})
    new = {"ids": ["new"], "vectors": {"text": {"new": model.catalog["text"].features[3].tolist()}}}
    with running(Recommender(model), allow_changes=True) as port:
        assert ask(port, "/items/add", {**new, "attributes": {"title": ["Alien"]}})[0] == 200
        [item] = listed(port, candidates=["new"])
        assert item["attributes"] == {"title": "Alien"}
        assert {item["id"] for item in listed(port, filter={"title": ["Alien"]})} == {"new"}


def test_the_page_of_all_paths_needs_no_network(port: int) -> None:
    status, page = ask(port, "/docs")
    assert status == 200 and not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page) and "<script" not in page
    schema = create_app(Recommender(Popularity(FILMS)), allow_changes=True).openapi()
    for path, methods in schema["paths"].items():
        for method, told in methods.items():
            assert f"{method.upper()} {path}" in page
            assert all(status in page for status in told["responses"])
    for name, model in schema["components"]["schemas"].items():
        assert name in page
        assert all(f"<code>{field}</code>" in page for field in model.get("properties", ()))
