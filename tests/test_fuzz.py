"""Mutated files, a few hundred of the ten thousand that the benchmark tries, and the hostile ones by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as pack

from metarec.files import checksum, read_tensors
from metarec.io import load, save
from metarec.recommender import Recommender
from serving_worlds import HISTORIES, lively
from tiny import CONFIG, UP, same_weights

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("what", ["models", "ensembles", "users", "checkpoints"])
def test_mutated_files_are_refused_or_what_they_say(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fuzz

    found = fuzz.attack(300, seed=1, what=what, progress=False)
    ends = {end for kind in found.values() for end in kind}
    assert ends <= {fuzz.SAME, fuzz.OTHER, fuzz.REFUSED}
    assert sum(sum(kind.values()) for kind in found.values()) == 300 and len(found) == 15
    assert sum(kind[fuzz.REFUSED] for kind in found.values()) > 200


def sealed(path: Path, tensors: dict[str, torch.Tensor], text: str) -> Path:
    path.write_bytes(pack(tensors, {"metarec": text, "sha256": checksum(tensors, text)}))
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    path = tmp_path_factory.mktemp("fuzz") / "mml"
    save(lively(UP, CONFIG), path)
    return read_tensors(path)


HOSTILE = {
    "huge width": {"dim": 1 << 16},
    "huger width": {"dim": 1 << 40},
    "endless neighbours": {"neighbours": 1 << 40},
    "endless layers": {"layers": 1 << 30},
    "endless steps": {"test_steps": 1 << 50},
    "true": {"dim": True},
    "a width that is a float": {"dim": 8.0},
    "no number": {"inner_lr": "x"},
    "infinite": {"test_lr": {"id": 1e999}},
    "another objective": {"objectives": ["bpr"]},
    "another adaptation": {"test_adapts": "none"},
    "modalities": {"modalities": [["text"]]},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_settings(parts: Any, tmp_path: Path, case: str) -> None:
    tensors, header = parts
    text = json.dumps({**header, "config": {**header["config"], **HOSTILE[case]}})
    with pytest.raises(ValueError, match=r"mml"):
        load(sealed(tmp_path / "mml", tensors, text))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 9999 + "1" + "}" * 9999, "9" * 9999, "null", '{"format": true}', "{}"]
)
def test_hostile_json(parts: Any, tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"mml: (.*whole|format version)"):
        load(sealed(tmp_path / "mml", parts[0], text))


TENSORS = {
    "ends out of order": ("items.ends", lambda t: t.flip(0)),
    "ends past the end": ("items.ends", lambda t: t + 1),
    "ends as floats": ("items.ends", lambda t: t.double()),
    "warm as numbers": ("warm", lambda t: t.long()),
    "padding is warm": ("warm", lambda t: t | True),
    "neighbours past the end": ("neighbours", lambda t: t + 1000),
    "neighbours that are cold": ("neighbours", lambda t: torch.full_like(t, 40)),
    "features of another type": ("modality.text.features", lambda t: t.half()),
    "weights of another type": ("weights.fusion.scale", lambda t: t.long()),
    "weights of two types": ("weights.fusion.scale", lambda t: t.double()),
    "bias as integers": ("weights.fusion.bias", lambda t: t.long()),
}


@pytest.mark.parametrize("case", TENSORS)
def test_hostile_tensors(parts: Any, tmp_path: Path, case: str) -> None:
    tensors, header = parts
    name, change = TENSORS[case]
    with pytest.raises(ValueError, match=r"mml: .*contents.* MML of this version"):
        load(sealed(tmp_path / "mml", {**tensors, name: change(tensors[name])}, json.dumps(header)))


def test_a_file_of_the_first_version_loads(parts: Any, tmp_path: Path) -> None:
    tensors, header = parts
    older = {n: t for n, t in tensors.items() if n != "neighbours" and not n.startswith("hidden.")}
    text = json.dumps({**{n: v for n, v in header.items() if n != "fitted"}, "format": 1})
    again, expected = load(sealed(tmp_path / "mml", older, text)), lively(UP, CONFIG)
    assert same_weights(again, expected)
    clicks = HISTORIES[0]
    assert Recommender(again).adapt(clicks).recommend(k=9) == Recommender(expected).adapt(clicks).recommend(k=9)


CHANGES = [
    "state",
    "nan",
    "rows",
    "offsets",
    "code",
    "width",
    "double",
    "codes_float",
    "codes_long",
    "offsets_int",
    "active",
    "corrections",
    "below",
    "flat",
    "none",
]


@pytest.mark.parametrize("change", CHANGES)
def test_hostile_users(tmp_path: Path, change: str) -> None:
    recommender, path = Recommender(lively(UP, replace(CONFIG, test_adapts="all"))), tmp_path / "users"
    recommender.adapt(HISTORIES).save(path)
    tensors, header = read_tensors(path)
    wrong = {
        "state": {"state": tensors["state"][:, 0].clone()},
        "nan": {"state": (tensors["state"] + 1).abs() / 0},
        "rows": {"rows": tensors["rows"].double()},
        "offsets": {"offsets": tensors["offsets"].flip(0)},
        "code": {"codes": tensors["codes"] - 5},
        "width": {"state": tensors["state"].repeat(1, 1, 2)},
        "double": {name: tensors[name].double() for name in ("state", "corrections")},
        "codes_float": {"codes": tensors["codes"].float()},
        "codes_long": {"codes": tensors["codes"].long()},
        "offsets_int": {"offsets": tensors["offsets"].int()},
        "active": {"active": tensors["active"].long()},
        "corrections": {"corrections": tensors["corrections"].half()},
        "below": {"rows": torch.full((6, 3, 1), -2, dtype=torch.int32), "corrections": torch.zeros(6, 3, 1)},
        "flat": {"state": tensors["state"].sum()},
        "none": {"offsets": tensors["offsets"][:0]},
    }[change]
    message = "users: 'state' holds inf at" if change == "nan" else "users: its contents make no users"
    with pytest.raises(ValueError, match=message):
        recommender.load_users(sealed(path, {**tensors, **wrong}, json.dumps(header)))


def test_a_model_is_no_users_and_users_are_no_model(tmp_path: Path) -> None:
    recommender = Recommender(lively(UP, CONFIG))
    save(recommender.model, tmp_path / "mml")
    recommender.adapt(HISTORIES).save(tmp_path / "users")
    with pytest.raises(ValueError, match="users: holds no model"):
        load(tmp_path / "users")
    with pytest.raises(ValueError, match="mml: expected kind 'users', got 'MML'"):
        recommender.load_users(tmp_path / "mml")
