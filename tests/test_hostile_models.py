"""Model files whose settings and header their own tensors do not bear out: refused before a model is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarec.data import Modality
from metarec.files import read_tensors, write_tensors
from metarec.io import load, save
from metarec.recipes import MML
from metarec.recipes.config import COUNTS, NUMBERS
from tiny import CONFIG, UP


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = tmp_path_factory.mktemp("saved") / "mml"
    save(MML.build(UP, CONFIG), path)
    return read_tensors(path)


def test_every_tensor_of_a_file_must_be_finite(tmp_path: Path, parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, header = parts
    for name in [name for name, tensor in tensors.items() if tensor.is_floating_point()][::7]:
        bad = tensors[name].clone()
        bad.view(-1)[0] = float("-inf")
        with monkeypatch.context() as patch:
            patch.setattr("metarec.files._not_finite", lambda tensor: "")
            write_tensors(tmp_path / "mml", {**tensors, name: bad}, header)
        with pytest.raises(ValueError, match=rf"mml: '{name}' holds -inf at"):
            load(tmp_path / "mml")


SETTINGS: dict[str, dict[str, Any]] = {
    **{f"{name} too large": {name: 2 * high + 1} for name, (_, high) in {**COUNTS, **NUMBERS}.items()},
    **{f"{name} too small": {name: low - 1} for name, (low, _) in {**COUNTS, **NUMBERS}.items()},
    **{f"{name} as {value!r}": {name: value} for name in (*COUNTS, *NUMBERS) for value in (True, None, "1", [1])},
    **{f"{name} as a fraction": {name: 5.5} for name in COUNTS},
    **{
        f"{name} as {v!r}": {name: v} for name in ("lr", "test_lr") for v in (True, "x", -1.0, 1e39, [1.0], {"id": "x"})
    },
    **{f"test_steps as {v!r}": {"test_steps": v} for v in (True, "x", -1, 1.0, 1_000_000, {"id": 1_000_000})},
    "no steps for a learner": {"test_steps": {"id": 3}},
    "no rate for a learner": {"test_lr": {"text": 0.1}},
    "another width": {"dim": 16},
    "a width for every bit": {"dim": 1 << 16},
    "longer histories": {"max_length": 1 << 20},
    "more layers": {"layers": 1 << 10},
    "fewer layers": {"layers": 2},
    "more heads": {"heads": 3},
    "a modality less": {"modalities": ["text"]},
    "a modality twice": {"modalities": ["text", "text"]},
    "a modality 1,000 times": {"modalities": ["image", "text"] * 1000},
    "a modality called id": {"modalities": ["id", "text"]},
    "modalities as text": {"modalities": "text"},
    "modalities as numbers": {"modalities": [1, 2]},
    "queries as text": {"queries": "1"},
    "no queries": {"queries": 0},
    "a loss that there is not": {"objectives": ["bpr", "bce"]},
    "three losses": {"objectives": ["bpr"] * 3},
    "a variant that there is not": {"variant": "released"},
    "what does not adapt": {"test_adapts": "items"},
}
HEADERS: dict[str, dict[str, Any]] = {
    "a modality twice": {"modalities": ["image", "text", "text"]},
    "a modality 100,000 times": {"modalities": ["text"] * 100_000},
    "a modality that there is not": {"modalities": ["image", "sound", "text"]},
    "modalities as an object": {"modalities": {"image": 0, "text": 0}},
    "modalities as numbers": {"modalities": [0, 1]},
    "no modalities": {"modalities": None},
    "an attribute 100,000 times": {"attributes": ["title"] * 100_000},
    "attributes as text": {"attributes": "title"},
    "a weight frozen twice": {"frozen": ["fusion.bias"] * 2},
    "fitted beyond the end": {"fitted": 1 << 62},
    "fitted as text": {"fitted": "40"},
    "items as a list": {"items": ["item"]},
    "a stage trained 100,000 times": {"trained": ["fusion"] * 100_000},
    "stages that there are not": {"trained": [f"stage {n}" for n in range(100_000)]},
    "settings as a list": {"config": []},
}


def forbidden(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a model is made of a file that should have been refused")


@pytest.mark.parametrize(
    "header",
    [*({"config": settings} for settings in SETTINGS.values()), *HEADERS.values()],
    ids=[*(f"setting: {name}" for name in SETTINGS), *HEADERS],
)
def test_hostile_headers_are_refused_before_anything_is_made(
    tmp_path: Path, parts: Any, header: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, whole = parts
    said = json.loads(json.dumps(whole))
    config = header.get("config")
    said.update(header if not isinstance(config, dict) else {"config": {**said["config"], **config}})
    write_tensors(tmp_path / "mml", tensors, said)
    for part in ("SequenceEncoder", "FeatureItems", "IdItems", "ColdItemGenerator", "standardised"):
        if "lr" not in str(header) and "test_steps" not in str(header):
            monkeypatch.setattr(f"metarec.recipes.mml.{part}", forbidden)
    reads = count_modalities(monkeypatch)
    with pytest.raises(ValueError, match=r"mml: "):
        load(tmp_path / "mml")
    assert len(reads) <= 2


def count_modalities(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modalities that are made, one entry each time."""
    made: list[str] = []

    def counted(name: str, features: Tensor, present: Tensor) -> Modality:
        made.append(name)
        return Modality(name, features, present)

    monkeypatch.setattr("metarec.saving.catalogs.Modality", counted)
    return made


TENSORS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "no neighbours": lambda t: t.pop("neighbours"),
    "a layer more": lambda t: t.update({"weights.learners.id.encoder.blocks.1.x": torch.ones(1)}),
    "a learner more": lambda t: t.update({"weights.learners.sound.encoder.position": torch.ones(50, 8)}),
    "no learner": lambda t: [t.pop(name) for name in list(t) if name.startswith("weights.learners.text.")],
    "no positions": lambda t: t.pop("weights.learners.id.encoder.position"),
    "the padding has features": lambda t: t["modality.text.present"].fill_(value=True),
    "a hidden id that there is not": lambda t: t.update(
        {"hidden.bytes": torch.full((1000,), 65, dtype=torch.uint8), "hidden.ends": torch.tensor([1000])}
    ),
    "complex weights": lambda t: t.update({n: v + 0j for n, v in t.items() if n.startswith("weights.")}),
}


@pytest.mark.parametrize("case", TENSORS)
def test_hostile_tensors_are_refused_before_anything_is_made(
    tmp_path: Path, parts: Any, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {name: tensor.clone() for name, tensor in parts[0].items()}
    TENSORS[case](tensors)
    write_tensors(tmp_path / "mml", tensors, parts[1])
    monkeypatch.setattr("metarec.recipes.mml.MML.__init__", forbidden)
    monkeypatch.setattr("difflib.get_close_matches", forbidden)
    with pytest.raises(ValueError, match=r"mml: .*contents.* MML of this version"):
        load(tmp_path / "mml")


def test_keys_that_it_does_not_know_are_let_be(tmp_path: Path, parts: Any) -> None:
    write_tensors(tmp_path / "mml", parts[0], {**parts[1], "noted": {"by": "a later version"}})
    assert load(tmp_path / "mml").catalog.items == UP.catalog.items


def test_neighbours_of_an_old_file_are_computed_for_a_bounded_catalogue(
    tmp_path: Path, parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {name: tensor for name, tensor in parts[0].items() if name != "neighbours"}
    write_tensors(tmp_path / "mml", tensors, {**parts[1], "format": 1})
    assert load(tmp_path / "mml").catalog.items == UP.catalog.items
    monkeypatch.setattr("metarec.saving.mml_file.OLD_NEIGHBOURS", 40 * 5)
    monkeypatch.setattr("metarec.recipes.mml.MML.__init__", forbidden)
    with pytest.raises(ValueError, match=r"mml: .*the generators' neighbours are missing"):
        load(tmp_path / "mml")
