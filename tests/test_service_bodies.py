"""Hostile bodies: how many errors are made of them, what is said, and what never comes into the catalogue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.exceptions import HTTPException
from pydantic import ValidationError

from metarec.functional.text import printable
from metarec.recommender import Recommender
from metarec.service import Limits, create_app
from metarec.service import requests as schema
from metarec.service.body import parsed
from service_helpers import ask, post, running, talk
from tiny import TWO_LEARNERS, trained

MANY = 20_000
WIDE = Limits(body_bytes=1 << 20, users=MANY, ids=MANY, clicks=MANY)


@pytest.fixture(scope="module")
def model() -> Any:
    return trained(TWO_LEARNERS)


@pytest.fixture(scope="module")
def port(model: Any) -> Iterator[int]:
    with running(Recommender(model), WIDE, allow_changes=True) as port:
        yield port


def fields(value: object) -> dict[str, Any]:
    return {f"f{n}": value for n in range(MANY)}


HOSTILE = {
    "clicks of fractions": ("/recommend", {"clicks": [1.5] * MANY}, "clicks.0: "),
    "one fraction among ids": ("/recommend", {"clicks": ["item1"] * 99 + [1.5] * MANY}, "clicks.99: "),
    "allow of nulls": ("/recommend", {"clicks": [], "allow": [None] * MANY}, "allow.0: "),
    "everything ill-typed": (
        "/recommend",
        {name: [0.5] * 5000 for name in ("clicks", "allow", "deny", "candidates")} | {"k": "x", "exclude_seen": 1},
        "and 3 more",
    ),
    "unknown fields": ("/recommend", {"clicks": [], **fields(1)}, "f0: Extra inputs are not permitted"),
    "users of numbers": ("/recommend/users", {"users": [1] * MANY}, "users.0: Input should be an object"),
    "users of nothing": ("/recommend/users", {"users": [{}] * MANY}, "users.0.clicks: Field required"),
    "users of unknown fields": ("/recommend/users", {"users": [{"clicks": [], **fields(1)}]}, "users.0.f0: Extra"),
    "vectors of numbers": ("/items/add", {"ids": [], "vectors": fields(1)}, "vectors.f0: "),
    "rows of numbers": ("/items/add", {"ids": [], "vectors": {"text": fields(1)}}, "vectors.text.f0: "),
    "rows of strings": ("/items/add", {"ids": [], "vectors": {"text": fields(["x"])}}, "vectors.text.f0.0: "),
    "titles of objects": (
        "/items/add",
        {"ids": [], "vectors": {}, "attributes": {"t": [{}] * MANY}},
        "attributes.t.0:",
    ),
    "columns of numbers": ("/items/add", {"ids": [], "vectors": {}, "attributes": fields(1)}, "attributes.f0: "),
    "bad new ids": ("/items/add", {"ids": ["\0"] * MANY, "vectors": {}}, "ids.0: "),
    "ids to remove": ("/items/remove", {"ids": [1.5] * MANY}, "ids.0: "),
}
MODELS = {
    "/recommend": schema.RecommendRequest,
    "/recommend/users": schema.RecommendUsersRequest,
    "/items/add": schema.AddItemsRequest,
    "/items/remove": schema.ItemsRequest,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_body_of_faults_makes_a_few_errors(case: str) -> None:
    path, body, _ = HOSTILE[case]
    with pytest.raises(ValidationError) as caught:
        MODELS[path].model_validate(parsed(json.dumps(body).encode()))
    assert 1 <= caught.value.error_count() <= 6


def test_their_answers_are_short_and_name_the_first_fault(port: int) -> None:
    for case, (path, body, message) in HOSTILE.items():
        status, answer = ask(port, path, body)
        assert status == 422 and message in answer["error"], (case, answer)
        assert len(answer["error"]) < 300


def test_more_lists_than_what_is_allowed_can_have_are_not_read(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr("metarec.service.body.parsed", lambda content: read.append(content) or json.loads(content))
    allowed = {"users": [{"clicks": ["zz"], "candidates": []}] * 4}
    with running(Recommender(model), Limits(users=4, ids=4)) as port:
        status, answer = ask(port, "/recommend/users", {"users": [{}] * 20_000})
        assert status == 413 and "20002 lists" in answer["error"]
        assert ask(port, "/recommend", {"clicks": [[]] * 20_000})[0] == 413
        assert read == []
        status, answer = ask(port, "/recommend/users", allowed)
    assert status == 422 and "users.0.clicks: unknown item id" in answer["error"] and len(read) == 1


UNCLEAR = {
    b'{"clicks": [], "clicks": ["item1"]}': "the body names the field 'clicks' twice",
    b'{"clicks": [], "\\u001b": 1, "\\u001b": 2}': r"the body names the field '\x1b' twice",
    b'{"clicks": [], "k": NaN}': "the body holds NaN, which is not JSON",
    b'{"clicks": [], "k": -Infinity}': "the body holds -Infinity",
    b'{"clicks": [], "k": ' + b"9" * 5000 + b"}": "a number of too many digits",
    b"[" * 20_000: "the body nests too deeply",
    b'{"clicks": ["\xff"]}': "the body is not UTF-8: invalid start byte at byte 13",
    b'{"clicks": ["\xed\xa0\x80"]}': "the body is not UTF-8",
    '{"clicks": []}'.encode("utf-16"): "the body is not UTF-8",
}


@pytest.mark.parametrize("body", UNCLEAR, ids=range(len(UNCLEAR)))
def test_what_could_be_read_in_two_ways_is_refused(body: bytes) -> None:
    with pytest.raises(HTTPException) as caught:
        parsed(body)
    assert caught.value.status_code == 400
    assert UNCLEAR[body] in printable(str(caught.value.detail))


def test_a_byte_order_mark_and_what_looks_alike_are_read() -> None:
    assert parsed(b'\xef\xbb\xbf{"k": 1}') == {"k": 1}
    assert parsed('{"a": ["ünï", "\\ud83d\\ude00"], "b": {"a": 1}}'.encode()) == {"a": ["ünï", "😀"], "b": {"a": 1}}


@pytest.mark.parametrize("text", ["\ud800", "\x1b[31mred", "a\nb", "\u202e"])
@pytest.mark.parametrize("where", ["field", "click", "field of a user", "modality", "column", "id of a vector"])
def test_what_is_repeated_is_printable(port: int, where: str, text: str) -> None:
    path, body = {
        "field": ("/recommend", {"clicks": [], text: 1}),
        "click": ("/recommend", {"clicks": [text]}),
        "field of a user": ("/recommend/users", {"users": [{"clicks": [], text: 1}]}),
        "modality": ("/items/add", {"ids": ["new"], "vectors": {text: {"new": [1.0]}}}),
        "column": ("/items/add", {"ids": [], "vectors": {}, "attributes": {text: ["a"]}}),
        "id of a vector": ("/items/add", {"ids": ["new"], "vectors": {"text": {text: [1.0]}}}),
    }[where]
    status, answer = ask(port, path, body)
    assert status == 422 and answer["error"].isprintable() and len(answer["error"]) < 300


def test_an_unknown_id_is_answered_with_known_ones(port: int) -> None:
    for text in ("\uffff", "\0", "zzz", "item"):
        _, answer = ask(port, "/recommend", {"clicks": [text]})
        assert "nearest known ids: 'item" in answer["error"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([""], "ids.0: Input should be an id, got nothing or blanks"),
        (["good", "  "], "ids.1: Input should be an id"),
        ([" a"], "ids.0: Input should be an id without blanks around it"),
        (["\ud800"], "ids.0: Input should have no control characters and no lone surrogates"),
        (["a\0"], "ids.0: Input should have no control"),
        (["a\x1b[31mb"], "ids.0: Input should have no control"),
        (["a\x85b"], "ids.0: Input should have no control"),
        (["a\u2028b"], "ids.0: Input should have no control"),
        (["x" * 257], "ids.0: Input should have at most 256 characters, got 257"),
        (["a", "a"], "'a' appears more than once"),
        (["item1"], "is in the catalogue already"),
        ([True], "ids.0: Input should be a valid string"),
    ],
)
def test_ids_that_break_later_answers_are_not_added(port: int, model: Any, ids: list[Any], message: str) -> None:
    dim = model.catalog["text"].dim
    rows = {i: [0.5] * dim for i in ids if isinstance(i, str)}
    status, answer = ask(port, "/items/add", {"ids": ids, "vectors": {"text": rows}})
    assert status == 422 and message in answer["error"]
    assert ask(port, "/health")[1]["items"] == 40


def test_titles_with_the_same_faults_are_not_added(port: int) -> None:
    for title in ("\ud800", "a\x1bb", "x" * 10_001):
        body = {"ids": ["new"], "vectors": {}, "attributes": {"title": [title]}}
        status, answer = ask(port, "/items/add", body)
        assert status == 422 and "attributes.title.0: Input should have" in answer["error"]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400, "true", '"1"', "null"])
def test_numbers_that_are_none_are_not_added(port: int, model: Any, number: str) -> None:
    row = ",".join([number] * model.catalog["text"].dim)
    content = f'{{"ids": ["new"], "vectors": {{"text": {{"new": [{row}]}}}}}}'.encode()
    answer = talk(port, post("/items/add", content, "connection: close"))
    assert answer.startswith(b"HTTP/1.1 422 ") and b"vectors.text.new.0: Input should be a" in answer


def test_compressed_bodies_are_named(port: int) -> None:
    answer = talk(port, post("/recommend", b"\x1f\x8b", "content-encoding: gzip"))
    assert answer.startswith(b"HTTP/1.1 415 ") and b"the body is compressed" in answer
    plain = post("/recommend", b'{"clicks": [], "k": 1}', "content-encoding: identity", "connection: close")
    assert talk(port, plain).startswith(b"HTTP/1.1 200 ")


def test_strange_requests_make_no_fault_and_no_new_series(port: int) -> None:
    def series() -> set[str]:
        lines = ask(port, "/metrics")[1].splitlines()
        return {line.rsplit(" ", 1)[0] for line in lines if "_bucket" not in line}

    end = b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    asked = [b"GET /%b" % (b"a%d" % n) for n in range(30)]
    asked += [
        b"OPTIONS *",
        b"TRACE /",
        b"CONNECT x:80",
        b"GET http://[/",
        b"GET /%00%ff%1b%0a",
        b"GET //",
        b"FOO /x?%ff=",
    ]
    series()
    talk(port, asked[0] + end)
    before = series()
    for start in asked:
        assert talk(port, start + end).startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 "))
    assert series() == before


def test_an_answer_says_how_many_items_it_has(port: int) -> None:
    _, answer = ask(port, "/recommend", {"clicks": ["item1", "item2"], "k": 7})
    assert answer["count"] == len(answer["items"]) == 7
    _, answer = ask(port, "/recommend/users", {"users": [{"clicks": []}, {"clicks": ["item3"]}], "k": 4})
    assert [user["count"] for user in answer["users"]] == [4, 4]


def test_a_large_answer_lets_others_in_between(model: Any) -> None:
    steps: list[str] = []

    async def story() -> None:
        service = create_app(Recommender(model)).state.service
        async with service.running(None):
            users = schema.RecommendUsersRequest.model_validate({"users": [{"clicks": []}] * 50, "k": 5})
            found = asyncio.ensure_future(service.recommend_users(users))
            while not found.done():
                await asyncio.sleep(0)
                steps.append("other")
            assert len(json.loads((await found).body)["users"]) == 50

    original = schema.content
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "content", lambda *given: steps.append("user") or original(*given))
        asyncio.run(story())
    first = steps.index("user")
    assert steps[first : first + 100].count("other") >= 49


@pytest.mark.parametrize(("text", "shown"), [("plain ü", "plain ü"), ("a\x1b\n", r"a\x1b\n"), ("\ud800", r"\ud800")])
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text * 3, most=2) == printable((text * 3)[:2]) + "..."
