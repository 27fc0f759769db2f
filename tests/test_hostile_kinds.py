"""Files of any model that are cut off, damaged, or forged with a right checksum: refused by name, nothing is built."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarec.files import read_tensors
from metarec.io import load, save
from metarec.model import Model
from metarec.recipes import Ensemble, LivePopularity, Popularity, Transitions
from saved_cases import CASES, Parts, forge, model_of, nodes, refused, scores
from tiny import UP


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "ensemble"
    save(model_of("ensemble"), path)
    return path


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parts]:
    folder = tmp_path_factory.mktemp("every")
    for number, case in enumerate(CASES):
        if not case.startswith("MML"):
            save(model_of(case), folder / str(number))
    return {case: read_tensors(folder / str(n)) for n, case in enumerate(CASES) if not case.startswith("MML")}


def test_a_file_cut_off_or_with_another_byte_is_refused(whole: Path, tmp_path: Path) -> None:
    content, draw, expected = whole.read_bytes(), random.Random(0), scores(model_of("ensemble"))
    header = int.from_bytes(content[:8], "little")
    for number in range(150):
        place = draw.randrange(len(content) if number % 2 else header)
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        (tmp_path / "x").write_bytes(content[:place] if number % 3 == 0 else changed)
        try:
            assert torch.equal(scores(load(tmp_path / "x")), expected)
        except ValueError as error:
            assert "x: " in str(error)  # noqa: PT017


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith(("MML", "fused"))])
def test_every_tensor_is_checked_by_name_shape_and_type(every: dict[str, Parts], case: str, tmp_path: Path) -> None:
    tensors, header = every[case]
    own_names = sorted(name for name in tensors if name.startswith("model."))
    for name in random.Random(0).sample(own_names, min(12, len(own_names))):
        own = tensors[name]
        others = [
            {f"{name}x": own},
            {name: own.unsqueeze(0)},
            {name: own.reshape(-1)[: own.numel() // 2].clone()},
            {name: own.to(torch.complex64)},
            {name: own.to(torch.int8)},
            {},
        ]
        for changed in others:
            if any(t.shape == own.shape and t.dtype == own.dtype for n, t in changed.items() if n == name):
                continue  # half of nothing
            refused(tmp_path / "x", {**{n: t for n, t in tensors.items() if n != name}, **changed}, header)


STRANGE = (None, True, -1, 1 << 62, 10**400, 1e308, "x", [[]], {"x": 1})


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith(("MML", "ensemble"))])
def test_settings_of_another_type_or_a_huge_size_are_refused_or_what_they_say(
    every: dict[str, Parts], case: str, tmp_path: Path
) -> None:
    tensors, header = every[case]
    places = [(n, key) for n, node in enumerate(nodes(header)) for key in node["settings"]]
    draw, loaded, whole = random.Random(0), 0, 0
    for number, key in draw.sample(places, min(8, len(places))):
        for value in STRANGE:
            said = copy.deepcopy(header)
            list(nodes(said))[number]["settings"][key] = value
            whole += 1
            try:
                loaded += isinstance(load(forge(tmp_path / "x", tensors, said)), Model)
            except ValueError as error:
                assert "x: " in str(error)  # noqa: PT017
    assert loaded < whole / 2  # true is an answer to some questions, and None to others
    said = copy.deepcopy(header)
    list(nodes(said))[-1]["settings"]["unknown"] = 1
    assert "unknown" in refused(tmp_path / "x", tensors, said)


def bad(key: str, value: object) -> Callable[[Any], object]:
    def change(header: dict[str, Any]) -> None:
        header["models"][-1][key] = value

    return change


HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no models": lambda h: h.pop("models"),
    "an empty list": lambda h: h.update(models=[]),
    "300 models": lambda h: h.update(models=h["models"][:1] * 300),
    "models as an object": lambda h: h.update(models={"0": h["models"][0]}),
    "a model as a list": lambda h: h["models"].append([]),
    "a field more": bad("import", "os"),
    "a field less": lambda h: h["models"][-1].pop("records"),
    "a class that there is not": bad("class", "Sabotage"),
    "a class by its module": bad("class", "os.system"),
    "a class that is no model": bad("class", "SequenceEncoder"),
    "a class that is nobody's": bad("class", "Model"),
    "a class as a list": bad("class", ["Ensemble"]),
    "another class": bad("class", "Popularity"),
    "itself as a part": lambda h: h["models"][-1]["parts"].update(MML=len(h["models"]) - 1),
    "a later one as a part": lambda h: h["models"][0]["parts"].update(x=1),
    "a part below 0": lambda h: h["models"][-1]["parts"].update(MML=-1),
    "a part as true": lambda h: h["models"][-1]["parts"].update(MML=True),
    "a part as an object": lambda h: h["models"][-1]["parts"].update(MML=h["models"][0]),
    "a part less": lambda h: h["models"][-1]["parts"].pop("sum"),
    "a part more": lambda h: h["models"][-1]["parts"].update(more=0),
    "parts as a list": bad("parts", [0, 1]),
    "a weight that there is not frozen": bad("frozen", ["x"]),
    "a weight frozen twice": bad("frozen", ["weights.weight"] * 2),
    "no record": bad("records", {}),
    "a record of no part": bad("records", {"": {}, "weights.x": {}}),
    "a record as a list": bad("records", {"": []}),
    "an unknown record": bad("records", {"": {"by": "me"}}),
    "a record of an endless time": bad("records", {"": {"fitted_until": 10**400}}),
    "a record of another information": bad("records", {"": {"information": "now"}}),
    "a record made by itself": bad("records", {"": {"made": 1}}),
    "stages 100,000 times": bad("records", {"": {"trained": [str(n) for n in range(100_000)]}}),
    "a stage twice": bad("records", {"": {"untrained": ["x", "x"]}}),
    "no shared": lambda h: h.pop("shared"),
    "shared as a list": lambda h: h.update(shared=[]),
    "shared with itself": lambda h: h["shared"].update({"model.0.x": "model.0.x"}),
    "shared with the catalogue": lambda h: h["shared"].update({"model.0.x": "modality.text.features"}),
    "shared with nothing": lambda h: h["shared"].update({"model.0.x": "model.0.y"}),
    "shared and there": lambda h: h["shared"].update({"model.0.neighbours": "model.0.fusion.bias"}),
    "shared by no model": lambda h: h["shared"].update({"model.999.x": "model.0.fusion.bias"}),
    "shared by a number in other digits": lambda h: h["shared"].update({"model.²." + "x": "model.0.fusion.bias"}),
    "another kind": lambda h: h.update(kind="ensemble"),
    "an MML": lambda h: h.update(kind="MML"),
    "a modality that there is not": lambda h: h.update(modalities=["sound"]),
}


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_headers_are_refused(whole: Path, tmp_path: Path, case: str) -> None:
    tensors, header = read_tensors(whole)
    HEADERS[case](header)
    refused(tmp_path / "x", tensors, header)


def test_a_class_that_is_not_registered_is_named_with_the_way_out(whole: Path, tmp_path: Path) -> None:
    tensors, header = read_tensors(whole)
    header["models"][-1]["class"] = "Sabotage"
    said = refused(tmp_path / "x", tensors, header)
    assert "'Sabotage'" in said and "metarec.register(Sabotage)" in said


def _ensemble_of(parts: dict[str, int]) -> dict[str, Any]:
    count = len(parts)
    settings = {"names": list(parts), "context": False, "information": "upstream", "fitted_until": None}
    return {"class": "Ensemble", "settings": settings, "parts": parts, "frozen": [], "records": {"": {}}, "n": count}


@pytest.mark.parametrize("wide", [1, 2])
def test_models_within_models_are_bounded(every: dict[str, Parts], tmp_path: Path, wide: int) -> None:
    tensors, header = every["popularity"]
    for depth, fits in ((6, True), (30, False)):
        new, said = dict(tensors), copy.deepcopy(header)
        for number in range(1, depth + 1):
            node = _ensemble_of({str(n): number - 1 for n in range(wide)})
            count = node.pop("n")
            said["models"].append(node)
            for name, value in (("weight", torch.ones(1, count)), ("unknown", torch.zeros(1, count))):
                new[f"model.{number}.{name}"] = value
            new[f"model.{number}.usual"] = torch.tensor([0.0, 1.0])
        if fits:
            assert type(load(forge(tmp_path / "x", new, said))) is Ensemble
        else:
            assert "nested" in refused(tmp_path / "x", new, said)


def test_parts_within_parts_are_bounded(every: dict[str, Parts], tmp_path: Path) -> None:
    tensors, header = every["SASRec of ids"]
    node = header["models"][0]["settings"]["parts"]["items"]
    for depth in (20, 400):
        said, inner = copy.deepcopy(header), node
        for _ in range(depth):
            inner = {"class": "SummedItems", "settings": {"drop": 0.0, "sources": 1}, "parts": {"sources.0": inner}}
        said["models"][0]["settings"]["parts"]["items"] = inner
        refused(tmp_path / "x", tensors, said)


def test_no_catalogue_is_copied_without_end(every: dict[str, Parts], tmp_path: Path) -> None:
    """A scale for every one of many sources: each would be another copy of the features."""
    tensors, header = every["MAML"]
    said, new = copy.deepcopy(header), dict(tensors)
    for number in range(1, 40):
        said["models"].append(copy.deepcopy(header["models"][0]))
        new |= {n.replace("model.0.", f"model.{number}."): t for n, t in tensors.items() if n.startswith("model.0.")}
        new = {n: t.clone() for n, t in new.items()}
        new[f"model.{number}.learner.scales.text.mean"] = tensors["model.0.learner.scales.text.mean"] + number
    assert "ways" in refused(tmp_path / "x", new, said)


def test_nothing_is_made_of_a_size_that_only_a_setting_claims(
    every: dict[str, Parts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, header = every["SASRec of ids"]
    encoder = header["models"][0]["settings"]["parts"]["encoder"]["settings"]
    made: list[int] = []
    usual = torch.empty

    def counted(*sizes: Any, **how: Any) -> Tensor:
        out: Tensor = usual(*sizes, **how)
        made.append(0 if out.is_meta else out.numel())
        return out

    monkeypatch.setattr(torch, "empty", counted)
    for name, value in (("max_length", 1 << 20), ("dim", 1 << 16), ("feedforward", 1 << 20), ("layers", 1 << 10)):
        said = copy.deepcopy(header)
        said["models"][0]["settings"]["parts"]["encoder"]["settings"] = {**encoder, name: value}
        refused(tmp_path / "x", tensors, said)
    assert max(made, default=0) < 1 << 16


def test_tables_that_point_outside_the_catalogue_are_refused(every: dict[str, Parts], tmp_path: Path) -> None:
    tensors, header = every["MAML"]
    for name, value in {
        "learner.items.neighbours": torch.full_like(tensors["model.0.learner.items.neighbours"], 1000),
        "learner.items.warm": torch.ones(41, dtype=torch.bool),
        "learner.candidates": torch.ones(41, dtype=torch.bool),
        "learner.items.items.known": torch.ones(41, dtype=torch.bool),
        "learner.scales.text.outliers": torch.tensor([-1]),
        "learner.scales.text.mean": torch.full((24,), 1e300, dtype=torch.float64),
    }.items():
        assert f"model.0.{name}" in tensors
        refused(tmp_path / "x", {**tensors, f"model.0.{name}": value}, header)


def test_nothing_is_imported_by_a_name_in_a_file(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins
    import importlib

    tensors, header = read_tensors(whole)
    model = load(whole)  # what it imports on the way is imported
    assert isinstance(model, Model)
    monkeypatch.setattr(importlib, "import_module", None)
    for name in ("os", "antigravity", "metarec.meta.kernel", "../x", "", "\0"):
        header["models"][0]["class"] = name
        with monkeypatch.context() as patch:
            usual = builtins.__import__

            def watched(what: str, *rest: Any, usual: Any = usual, name: str = name, **more: Any) -> Any:
                assert what != name or not name
                return usual(what, *rest, **more)

            patch.setattr(builtins, "__import__", watched)
            refused(tmp_path / "x", tensors, header)


def test_counts_of_a_file_are_checked_by_their_own_classes(tmp_path: Path) -> None:
    for model, name in (
        (Popularity(UP), "counts"),
        (LivePopularity(UP, window=1e6), "item"),
        (Transitions(UP, live=True), "item"),
    ):
        save(model, tmp_path / "x")
        tensors, header = read_tensors(tmp_path / "x")
        refused(tmp_path / "x", {**tensors, f"model.0.{name}": tensors[f"model.0.{name}"] - 1000}, header)
