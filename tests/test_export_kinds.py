"""What of the models can be exported: single learners score as they do themselves; others are refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from metarec.__main__ import main
from metarec.export import Scoring, export_onnx, export_program
from metarec.io import save
from metarec.meta import MetaLearner
from metarec.recipes.metatl import TransitionLearner
from metarec.types import Examples
from saved_cases import CASES, model_of
from tiny import UP

HISTORY = torch.tensor([[3, 14, 15, 9], [7, 4, 11, 12]])
KINDS = ["SASRec of ids", "SASRec of the sum", "features as they are", "MAML", "ANIL", "Meta-SGD", "fused"]


@pytest.mark.parametrize("case", KINDS)
def test_a_learner_is_exported_as_it_scores_unadapted(case: str) -> None:
    model = model_of(case)
    place, nothing = torch.full((2, 1), 3), torch.zeros(2, 1)
    query = Examples(HISTORY, place, place, place.unsqueeze(-1), nothing)
    with torch.no_grad():
        expected = model.adapt(query)(query)  # of weight 0: no step moves anything
    for found in (Scoring(model)(HISTORY), export_program(model).module()(HISTORY)):
        torch.testing.assert_close(found[0], expected.scores[:, 0], atol=1e-5, rtol=1e-4)
        assert found[1].shape[0] == 2 and found[1].sum(1).allclose(torch.ones(2))
    codes, best, _ = Scoring(model, k=5)(HISTORY)
    assert codes.shape == best.shape == (2, 5)


def test_a_learner_under_maml_is_exported_as_one_user_adapts_it() -> None:
    model = model_of("MAML")
    clicks = ["item3", "item14", "item15", "item9"]
    adapted, still = (Scoring(model, clicks=given)(HISTORY)[0] for given in (clicks, None))
    assert not torch.allclose(adapted, still, atol=1e-3)


@pytest.mark.parametrize("case", [name for name in CASES if name in ("EASE", "transitions", "ensemble", "MetaTL")])
def test_what_cannot_be_exported_is_named(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "MetaLearner of TransitionLearner" if case == "MetaTL" else type(model_of(case)).__name__
    with pytest.raises(TypeError, match=re.escape(name)):
        export_onnx(model_of(case), tmp_path / "x.onnx")
    save(model_of(case), tmp_path / "model")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "model"), str(tmp_path / "x.onnx")])
    assert name in capsys.readouterr().err and not (tmp_path / "x.onnx").exists()


def test_a_learner_without_items_is_named() -> None:
    bare = model_of("SASRec of ids").task_view("encoder")
    with pytest.raises(TypeError, match=r"attach\(upstream\)"):
        Scoring(bare)
    with pytest.raises(TypeError, match="TransitionLearner"):
        Scoring(MetaLearner(TransitionLearner(UP, dim=4), objectives=("softmax", "softmax")))
