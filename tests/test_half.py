"""Models in half precision: loaded, evaluated, served and exported, about as in single precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metarec.encoders import encode_items
from metarec.evaluation import evaluate
from metarec.export import Scoring
from metarec.io import load, save
from metarec.recipes import MML
from metarec.recommender import Recommender
from tiny import DOWN, UP, trained

HISTORIES = [["item3", "item14", "item15"], ["item7"], [], ["item36", "item39", "item8"]]
TEXT = UP.catalog["text"].features


@pytest.fixture(scope="module")
def model() -> MML:
    return trained()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_serves(model: MML, kind: torch.dtype, tmp_path: Path) -> None:
    save(model, tmp_path / "single")
    half = load(tmp_path / "single").to(kind)
    save(half, tmp_path / "half")
    assert Recommender(load(tmp_path / "half")).adapt(HISTORIES).recommend(3)
    recommender, single = Recommender(half), Recommender(model)
    users, expected = recommender.adapt(HISTORIES), single.adapt(HISTORIES)
    assert users.state.tensors["state"].dtype == torch.float32
    scores = recommender.scores_of(users)
    assert (
        float(
            torch.corrcoef(torch.cat([scores, single.scores_of(expected)]))[: len(HISTORIES), len(HISTORIES) :]
            .diagonal()
            .min()
        )
        > 0.99
    )
    np.testing.assert_allclose(users.weights, expected.weights, atol=0.05)
    for one in (recommender.adapt(HISTORIES[0]), users.update([["item9"], [], ["item5"], []])[0]):
        assert len(one.recommend(3)) == 3
    recommender.add_items(["x"], text=TEXT[3:4].to(kind))
    assert recommender.adapt(["x", "item3"]).recommend(3)
    for method in (half, half.methods()["weight fusion"]):
        assert len(evaluate(method, DOWN).rank) == len(evaluate(model, DOWN).rank)
    codes, values, _ = Scoring(half, k=4)(torch.tensor([[3, 4]]))
    assert codes.shape == (1, 4) and values.isfinite().all()


def test_an_encoder_may_answer_in_half_precision() -> None:
    def encoder(texts, *, progress=False):
        return torch.tensor([[float(len(text)), 0.5] for text in texts], dtype=torch.bfloat16)

    modality = encode_items("text", UP.catalog.items, {"item3": "horror", "item5": "war"}, encoder)
    assert modality.features.dtype == torch.float32
    assert modality.features[[4, 6]].tolist() == [[6.0, 0.5], [3.0, 0.5]]
