"""The curl lines of the page In production are sent as they stand there."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import torch

import metarec as mr
from metarec import Recommender
from metarec.data.dataset import Catalog
from metarec.data.features import Modality
from metarec.recipes import MML
from metarec.service import Build, Limits, create_app
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


def test_the_example_of_the_page_keeps_items_learns_on_and_goes_back() -> None:
    found = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "examples" / "production.py"))
    kept, rolled = (mr.load(found["folder"] / name) for name in ("shop-2.safetensors", "shop.safetensors"))
    assert found["recommender"].user("bob").history == ("new", "item7")
    for model, file in ((found["learned"], kept), (found["model"], rolled)):
        assert all(map(torch.equal, model.state_dict().values(), file.state_dict().values()))
    assert not torch.equal(found["learned"].members()["SASRec"].items.table(), found["learner"].items.table())
    assert sum(found["again"].learned.dropped.values()) == len(found["down"])


def test_every_figure_to_watch_is_shown(tmp_path: Path) -> None:
    mr.save(MML.build(UP, TWO_LEARNERS), tmp_path / "shop.safetensors")
    build = Build(tmp_path / "shop.safetensors", Limits(), allow_changes=True, learn=60.0)
    recommender = Recommender.load(build.model)
    with running(recommender, allow_changes=True, journal=build.open_journal(), learned=build.learned) as port:
        asked = sent(
            'curl -H \'content-type: application/json\' -d \'{"clicks": ["item3"], "k": 7}\' http://127.0.0.1:8000/recommend',
            port,
        )
        _, _, _, text = sent("curl http://127.0.0.1:8000/metrics", port)
    named = set(re.findall(r"^\| `(metarec_\w+)`", PAGE, re.MULTILINE))
    assert len(named) == 4 and all(f"# HELP {name.removesuffix('_total')}" in text for name in named)
    shown = {seen: float(n) for seen, n in re.findall(r'metarec_shown_items_total\{seen="(\w+)"\} (\S+)', text)}
    warm = {item: bool(flag) for item, flag in zip(UP.catalog.items.ids, UP.warm[1:], strict=True)}
    items = [one["id"] for one in json.loads(asked[3])["items"]]
    assert shown == {"yes": sum(warm[item] for item in items), "no": sum(not warm[item] for item in items)}
