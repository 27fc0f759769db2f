"""The notebook as it is committed; ``make notebook`` runs it."""

from __future__ import annotations

import base64
import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import metarec as mr

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "examples" / "tour.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def pictures(cell: dict[str, Any]) -> list[str]:
    return [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]


def printed(name: str) -> str:
    cell = next(cell for cell in CODE if cell["id"] == name)
    return "".join(line for output in cell["outputs"] for line in output["text"])


def test_it_ran_from_top_to_bottom_without_a_word_on_stderr() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    kinds = {(output["output_type"], output.get("name")) for cell in CODE for output in cell["outputs"]}
    assert kinds <= {("stream", "stdout"), ("display_data", None)}
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    assert all(set(cell["metadata"]) <= {"alt"} for cell in NOTEBOOK["cells"])


def test_every_picture_says_in_words_what_it_shows() -> None:
    drawn = {cell["id"]: len(pictures(cell)) for cell in CODE if pictures(cell)}
    assert set(drawn) == {"curves", "bars", "slopes", "weights", "space"}
    assert set(drawn.values()) == {1}
    assert all(len(cell["metadata"]["alt"]) > 60 for cell in CODE if cell["id"] in drawn)


def test_what_it_printed_about_the_data_is_so() -> None:
    data = mr.datasets.movietweetings()
    up, down = mr.split_by_time(data, at=mr.split_time(data, cold_users=0.2))
    whole, later, films = printed("data").splitlines()
    assert (whole, later) == (str(up), str(down))
    assert films == f"{len(set(data.item) - set(up.item))} of {len(data.catalog.items)} films are cold"
    titles = data.catalog.attributes["title"]
    lists = re.findall(r"^ +\d+ (.+)$", printed("user"), re.MULTILINE)
    assert len(lists) == 30 and set(lists) <= set(titles)
    rated = printed("user").partition("then:")[0].splitlines()[1:]
    assert not {title.strip() for title in rated} & set(lists)


def test_the_page_of_the_site_has_all_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "tour.ipynb").write_text(json.dumps(NOTEBOOK), encoding="utf-8")
    importlib.import_module("notebook").write_page(SimpleNamespace(srcdir=str(tmp_path / "docs")))
    page = (tmp_path / "docs" / "_generated" / "tour.md").read_text(encoding="utf-8")
    assert page.startswith("# A tour of metarec\n")
    for cell in CODE:
        assert "".join(cell["source"]) in page
        if pictures(cell):
            image = tmp_path / "docs" / "_generated" / "tour" / f"{cell['id']}.png"
            assert image.read_bytes() == base64.b64decode(pictures(cell)[0])
            assert f"tour/{image.name}" in page and cell["metadata"]["alt"] in page
        elif cell["outputs"]:
            assert printed(cell["id"]).rstrip() in page
