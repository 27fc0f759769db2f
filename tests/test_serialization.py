"""Saved and loaded models against the model itself, and every way in which a file can be wrong."""

from __future__ import annotations

import pickle
import random
import resource
import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from metarec import files
from metarec.data import Catalog, Dataset, EpisodeSampler, Modality, Vocabulary
from metarec.evaluation import evaluate
from metarec.files import read_tensors, write_tensors
from metarec.io import load, save
from metarec.recipes import MML, MMLConfig
from tiny import CONFIG, DOWN, UP, same_weights, trained


@pytest.fixture(scope="module")
def model() -> MML:
    return trained()


@pytest.fixture(scope="module")
def saved(model: MML, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "mml.safetensors"
    save(model, path)
    return path


def scores(model: MML) -> Tensor:
    """Of all cold users, adapted together."""
    batch = next(EpisodeSampler(DOWN, part="test").epoch(0))
    with torch.no_grad():
        return model.adapt(batch.support)(batch.query).scores


def test_equal_scores_after_loading(model: MML, saved: Path) -> None:
    again = load(saved)
    assert again is not model and same_weights(model, again)
    assert torch.equal(scores(again), scores(model))
    assert scores(model).std() > 0.1
    for name, method in model.methods().items():
        assert np.array_equal(evaluate(again.methods()[name], DOWN).rank, evaluate(method, DOWN).rank), name
    assert not any(part.training for part in again.modules())


def test_loading_leaves_the_random_numbers_alone(saved: Path) -> None:
    before = torch.random.get_rng_state()
    load(saved)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_catalogue_comes_back(model: MML, saved: Path) -> None:
    old, new = model.catalog, load(saved).catalog
    assert new.items == old.items and new.items.what == old.items.what
    assert dict(new.attributes) == dict(old.attributes)
    assert list(new.modalities) == list(old.modalities)
    for name, modality in old.modalities.items():
        assert new[name].name == name
        assert torch.equal(new[name].features, modality.features)
        assert torch.equal(new[name].present, modality.present)
    assert np.array_equal(load(saved).warm, model.warm) and not model.warm[1:].all()


def test_strange_strings_and_missing_features_come_back(tmp_path: Path) -> None:
    ids = (" ", "a", "Amélie", "映画\n\t", "😀", "\0")
    catalog = Catalog(
        Vocabulary(ids, "film"),
        {"text": Modality("text", torch.randn(7, 3), torch.tensor([False, True, True, False, True, True, False]))},
        {"title": [""] * 6, "title.bytes": ["", *reversed(ids[1:])], "b": ["x"] * 6},
    )
    model = MML(catalog, np.array([False, True, True, True, False, False, False]), CONFIG)
    save(model, tmp_path / "x")
    again = load(tmp_path / "x")
    assert again.catalog.items.ids == ids and again.catalog.items.what == "film"
    assert list(again.catalog.attributes) == ["title", "title.bytes", "b"]
    assert {n: list(column) for n, column in again.catalog.attributes.items()} == dict(catalog.attributes)
    assert torch.equal(again.catalog["text"].present, catalog["text"].present)


def plain_data(items: int = 5) -> Dataset:
    """No modality, no attribute."""
    item = np.arange(1, items + 1)
    warm = np.arange(items + 1) > 0
    return Dataset(Vocabulary(["u"], "user"), Catalog(Vocabulary("abcde")), np.ones_like(item), item, item, warm)


def test_a_model_of_ids_alone(tmp_path: Path) -> None:
    model = MML.build(plain_data(), CONFIG)
    save(model, tmp_path / "x")
    assert same_weights(load(tmp_path / "x"), model)


CONFIGS = {
    "default": MMLConfig(),
    "preset": MMLConfig.preset("changsha"),
    "tuples": replace(CONFIG, modalities=("text",), objectives=("sampled_softmax", "softmax")),
    "mapping": replace(CONFIG, lr=MappingProxyType({"default": 0.1, "id": 1e-3}), queries=0.25, test_lr=None),
    "int and float": replace(CONFIG, queries=1, dropout=0, test_steps=0, test_adapts="all"),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_settings_come_back(tmp_path: Path, config: MMLConfig) -> None:
    save(MML.build(UP, config), tmp_path / "x")
    again = load(tmp_path / "x").config
    assert again == config
    for f in fields(config):
        if not isinstance(getattr(config, f.name), MappingProxyType):
            assert type(getattr(again, f.name)) is type(getattr(config, f.name)), f.name


def test_double_precision_comes_back(tmp_path: Path) -> None:
    model = MML.build(UP, CONFIG).double().eval()
    save(model, tmp_path / "x")
    again = load(tmp_path / "x")
    assert same_weights(model, again)
    assert {p.dtype for p in again.parameters()} == {torch.float64}
    assert torch.equal(scores(again), scores(model))


def test_load_puts_the_model_where_it_is_asked_for(saved: Path) -> None:
    assert {p.device.type for p in load(saved, device="meta").parameters()} == {"meta"}


def test_no_pickle(model: MML, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("pickle")

    for module, names in (
        (pickle, ("dump", "dumps", "load", "loads", "Pickler", "Unpickler")),
        (torch, ("save", "load")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    save(model, tmp_path / "x")
    assert same_weights(load(tmp_path / "x"), model)
    assert b"cnumpy" not in (tmp_path / "x").read_bytes()


def test_only_models_are_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"save: .*written.* Linear"):
        save(torch.nn.Linear(1, 1), tmp_path / "x")  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: .*save\(\)"):
        load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_a_file_cut_off(saved: Path, tmp_path: Path, share: float) -> None:
    content = saved.read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut: .*whole"):
        load(tmp_path / "cut")


def test_a_changed_byte(model: MML, saved: Path, tmp_path: Path) -> None:
    content, draw, loaded = saved.read_bytes(), random.Random(0), 0
    header = int.from_bytes(content[:8], "little")
    positions = [*range(8), *(draw.randrange(8, 8 + header) for _ in range(100))]
    for position in [*positions, *(draw.randrange(8 + header, len(content)) for _ in range(200))]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << draw.randrange(8)
        (tmp_path / "x").write_bytes(damaged)
        try:
            again = load(tmp_path / "x")
        except ValueError:
            continue
        loaded += 1
        assert position < 8 + header and same_weights(again, model)
    assert loaded < 3


def rewrite(saved: Path, path: Path, tensors: dict[str, Tensor | None], **header: Any) -> Path:
    """The saved file with other contents and a right checksum."""
    old, values = read_tensors(saved)
    write_tensors(path, {n: t for n, t in {**old, **tensors}.items() if t is not None}, {**values, **header})
    return path


def test_another_version(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "READABLE", (7, 8))
    with pytest.raises(ValueError, match=r"mml\.safetensors: format version 2, .*versions 7 and 8"):
        load(saved)


def test_safetensors_of_something_else(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "bert.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"bert\.safetensors: .*whole"):
        load(tmp_path / "bert.safetensors")


def test_a_kind_that_it_does_not_know(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x: .* expected kind 'model' or 'MML', got 'SASRec'"):
        load(rewrite(saved, tmp_path / "x", {}, kind="SASRec"))


def test_settings_that_it_does_not_know_or_take(saved: Path, tmp_path: Path) -> None:
    config = read_tensors(saved)[1]["config"]
    with pytest.raises(ValueError, match=r"x: .*unknown settings \['depth'\]"):
        load(rewrite(saved, tmp_path / "x", {}, config={**config, "depth": 3}))
    with pytest.raises(ValueError, match=r"x: .*MMLConfig: dim .*least 1, got 0"):
        load(rewrite(saved, tmp_path / "x", {}, config={**config, "dim": 0}))


@pytest.mark.parametrize(
    "tensors",
    [{"warm": None}, {"items.ends": None}, {"weights.fusion.bias": None}, {"weights.fusion.scale": torch.ones(9)}],
    ids=str,
)
def test_contents_that_make_no_model(saved: Path, tmp_path: Path, tensors: dict[str, Tensor | None]) -> None:
    with pytest.raises(ValueError, match=r"x: .*contents.* MML of this version"):
        load(rewrite(saved, tmp_path / "x", tensors))


def test_a_failing_write_leaves_the_old_file(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "mml.safetensors"
    shutil.copy(saved, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (saved.stat().st_size // 2, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(MML.build(UP, CONFIG, seed=1), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == saved.read_bytes()
    assert list(tmp_path.iterdir()) == [path]
    save(MML.build(UP, CONFIG, seed=1), path)
    assert same_weights(load(path), MML.build(UP, CONFIG, seed=1))
