"""The settings of MML: the released ones against a table by hand, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metarec.data import split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.recipes.config import MMLConfig
from metarec.recipes.mml import MML

CONFIG = MMLConfig(modalities=("text",), dim=32)

RELEASED = {
    # setting: hangzhou, shanghai, changsha
    "dim": (64, 64, 64),
    "layers": (2, 2, 2),
    "heads": (2, 2, 2),
    "max_length": (50, 50, 50),
    "dropout": (0.5, 0.5, 0.5),
    "epochs": (10, 10, 10),
    "users_per_batch": (2048, 2048, 2048),
    "queries": (1, 1, 1),
    "negatives": (1, 1, 1),
    "inner_steps": (5, 5, 5),
    "inner_lr": (1e-3, 1e-3, 1e-3),
    "objectives": (("bpr", "bpr"),) * 3,
    "warmup_epochs": (0, 0, 0),
    "neighbours": (5, 10, 5),
    "generated": (0.1, 0.1, 0.15),
    "fusion_users": (0.25, 0.10, 0.25),
    "fusion_lr": (1e-4, 5e-4, 1e-5),
    "fusion_epochs": (100, 100, 100),
    "test_steps": (50, 50, 50),
    "test_adapts": ("all", "all", "all"),
    "variant": ("paper", "paper", "paper"),
}
RATES = {
    # (rate, learner): hangzhou, shanghai, changsha
    ("lr", "id"): (1e-3, 5e-4, 1e-3),
    ("lr", "text"): (5e-3, 3e-3, 5e-3),
    ("lr", "image"): (3e-3, 5e-3, 3e-3),
    ("test_lr", "id"): (0.3, 0.3, 0.2),
    ("test_lr", "text"): (0.5, 0.5, 0.5),
    ("test_lr", "image"): (0.07, 0.07, 0.07),
}


@pytest.mark.parametrize(("column", "name"), list(enumerate(["hangzhou", "shanghai", "changsha"])))
def test_presets_are_the_released_settings(column, name):
    preset = MMLConfig.preset(name)
    for setting, values in RELEASED.items():
        assert getattr(preset, setting) == values[column], setting
    for (rate, learner), values in RATES.items():
        assert preset.rate(rate, learner) == values[column], (rate, learner)


def test_a_preset_builds_the_released_sizes_and_steps():
    up, _ = split_by_time(planted(users=40, items=40), at=PLANTED_SPLIT)
    model = MML.build(up, MMLConfig.preset("shanghai"))
    encoder = model.learners["id"].encoder
    assert [block.feedforward_in.out_features for block in encoder.blocks] == [256, 256]
    assert encoder.position.shape == (50, 64)
    assert model.learners["text"].items.neighbours.shape[1] == 10
    test, training = model.meta("image"), model.training_meta("image")
    assert (test.steps, test.lr, test.adapts) == (50, 0.07, "all")
    assert (training.steps, training.lr, training.adapts, training.second_order) == (5, 1e-3, "encoder", False)


def test_rates():
    config = replace(
        CONFIG, lr={"id": 1.0, "default": 2.0}, inner_lr=3.0, test_lr=None, test_steps={"id": 7, "text": 8}
    )
    assert [config.rate("lr", name) for name in ("id", "text")] == [1.0, 2.0]
    assert config.rate("test_lr", "text") == 3.0
    assert [config.steps(name) for name in ("id", "text")] == [7, 8]
    assert CONFIG.steps("text") == CONFIG.inner_steps
    with pytest.raises(ValueError, match=r"lr .*rate.* 'text' and no 'default', only \['id'\]"):
        replace(CONFIG, lr={"id": 1.0}).rate("lr", "text")
    with pytest.raises(ValueError, match=r"test_steps has none for 'image' and no 'default', only \['id', 'text'\]"):
        config.steps("image")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("dim", 0, "dim .*least 1, got 0"),
        ("layers", 0, "layers .*least 1, got 0"),
        ("heads", 0, "heads .*least 1, got 0"),
        ("max_length", 2, "max_length must be at least 3, got 2"),
        ("users_per_batch", 0, "users_per_batch must be at least 1, got 0"),
        ("negatives", 0, "negatives .*least 1, got 0"),
        ("neighbours", 0, "neighbours .*least 1, got 0"),
        ("warmup_epochs", -1, "warmup_epochs must be at least 0, got -1"),
        ("epochs", -1, "epochs .*least 0, got -1"),
        ("inner_steps", -2, "inner_steps must be at least 0, got -2"),
        ("generator_epochs", -1, "generator_epochs must be at least 0, got -1"),
        ("fusion_epochs", -1, "fusion_epochs must be at least 0, got -1"),
        ("dropout", 1.5, "dropout must be between 0 and 1, got 1.5"),
        ("generated", -0.1, "generated must be between 0 and 1, got -0.1"),
        ("fusion_users", 25, "fusion_users must be between 0 and 1, got 25"),
        ("variant", "released", "variant must be 'metarec' or 'paper', got 'released'"),
    ],
)
def test_settings_out_of_range_are_refused(setting, value, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **{setting: value})


def test_unknown_names_are_refused():
    up, _ = split_by_time(planted(users=40, items=40), at=PLANTED_SPLIT)
    with pytest.raises(ValueError, match=r"no preset 'beijing'; there are \['changsha', 'hangzhou', 'shanghai'\]"):
        MMLConfig.preset("beijing")
    with pytest.raises(ValueError, match=r"no modality 'audio'; it has \['image', 'text'\]"):
        MML.build(up, MMLConfig(modalities=("audio",)))
    with pytest.raises(ValueError, match=r"no learner 'image'; there are \['id', 'text'\]"):
        MML.build(up, CONFIG).learner("image")
    with pytest.raises(ValueError, match=r"heads .*divide.* dim=32 and heads=5"):
        MML.build(up, replace(CONFIG, heads=5))
