"""The curl lines of the page In production are sent as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

from metarec import Recommender
from metarec.data.dataset import Catalog
from metarec.data.features import Modality
from metarec.recipes import MML
from metarec.service import create_app
from service_helpers import running
from tiny import TWO_LEARNERS, UP

PAGE = (Path(__file__).parents[1] / "docs" / "production.md").read_text(encoding="utf-8")
LINES = re.findall(r"^curl .*$", PAGE, re.MULTILINE)


def sent(line: str, port: int) -> tuple[str, str, int, str]:
    """Method, path, status and answer of a curl line."""
    words, headers, data = shlex.split(line)[1:], {}, None
    while words and words[0].startswith("-"):
        option, value, *words = words
        if option == "-H":
            headers.update([value.split(": ", 1)])
        else:
            assert option == "-d"
            data = value
    [address] = words
    method, path = "GET" if data is None else "POST", address.removeprefix("http://127.0.0.1:8000")
    connection = HTTPConnection("127.0.0.1", port)
    connection.request(method, path, data, headers)
    answer = connection.getresponse()
    out = method, path, answer.status, answer.read().decode()
    connection.close()
    return out


def test_every_path_has_a_line_that_works() -> None:
    size = UP.catalog.size
    text = UP.catalog["text"]
    four = Modality("text", text.features[:, :4].contiguous(), text.present)
    genres = {"title": ["A film"] * (size - 1), "genre": ["Horror"] * (size - 1)}
    world = replace(UP, catalog=Catalog(UP.catalog.items, {"text": four}, genres))
    recommender = Recommender(MML.build(world, TWO_LEARNERS))
    with running(recommender, allow_changes=True) as port:
        answers = [sent(line, port) for line in LINES]
    assert [(path, status, text) for _, path, status, text in answers if status != 200] == []
    told = create_app(recommender, allow_changes=True).openapi()["paths"]
    expected = {(method.upper(), path) for path, methods in told.items() for method in methods} | {("GET", "/docs")}
    assert {(method, path) for method, path, _, _ in answers} == expected
    films = [json.loads(text) for _, path, _, text in answers if path == "/recommend"]
    assert films[1]["items"][0]["attributes"] == {"title": "A film", "genre": "Horror"}
