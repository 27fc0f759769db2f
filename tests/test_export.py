"""Exported scoring against the recommender and the model itself, run by torch and by onnxruntime."""

import io
import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from metarec.data.histories import Clicks
from metarec.data.support import SupportMaker
from metarec.export import Scoring, export_onnx, export_program
from metarec.recipes import MML
from metarec.recommender import Recommender
from tiny import CONFIG, UP, trained

CLICKS = ["item3", "item14", "item15", "item9"]
HISTORIES = [
    torch.tensor([[3, 14, 15, 9], [7, 0, 0, 0], [5, 6, 0, 0]]),
    torch.tensor([[40]]),
    torch.randint(1, 41, (9, 50), generator=torch.Generator().manual_seed(0)),
]


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def scores_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "scores.onnx"
    export_onnx(model, path)
    return path


def unadapted(model, histories):
    """Scores and weights of the path that evaluation takes, with no example to learn from."""
    codes = [row[row > 0].tolist() for row in histories]
    support, query = SupportMaker(model.warm, 1, 50)(Clicks.join([np.array(own) for own in codes]))
    support = replace(support, weight=torch.zeros_like(support.weight))
    with torch.no_grad():
        out = model.eval().adapt(support)(query)
    return out.scores[:, 0], out.state[:, 0]


def run(path, history):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(out) for out in session.run(None, {"history": history.numpy()})]


@pytest.mark.parametrize("history", HISTORIES, ids=lambda h: str(tuple(h.shape)))
def test_onnx_scores_are_those_of_the_model(model, scores_file, history):
    for got, expected in zip(run(scores_file, history), unadapted(model, history), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_the_program_scores_as_the_model_after_a_round_trip(model):
    buffer = io.BytesIO()
    torch.export.save(export_program(model), buffer)
    program = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    for history in HISTORIES:
        for got, expected in zip(program(history), unadapted(model, history), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_an_onnx_file_of_an_adapted_user_gives_its_list(model, tmp_path):
    path = tmp_path / "user.onnx"
    export_onnx(model, path, clicks=CLICKS, k=7)
    history = torch.from_numpy(model.catalog.items.encode(CLICKS)).unsqueeze(0)
    codes, scores, weights = run(path, history)
    user = Recommender(model).adapt(CLICKS)
    expected = user.recommend(k=7)
    assert model.catalog.items.decode(codes[0].tolist()) == [item.id for item in expected]
    np.testing.assert_allclose(scores[0], [item.score for item in expected], atol=1e-4)
    np.testing.assert_allclose(weights[0], list(user.weights.values()), atol=1e-5)
    assert not torch.allclose(unadapted(model, history)[0][0, codes[0]], scores[0], atol=1e-3)


@pytest.mark.parametrize(
    "config",
    [replace(CONFIG, test_adapts="all", test_lr=0.5), replace(CONFIG, modalities=()), replace(CONFIG, variant="paper")],
    ids=["all weights adapt", "ids only", "paper"],
)
def test_adapted_scores_of_other_recipes(config):
    model = MML.build(UP, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    scores, weights = Scoring(model, clicks=CLICKS)(torch.from_numpy(model.catalog.items.encode(CLICKS)).unsqueeze(0))
    user = Recommender(model).adapt(CLICKS)
    known = torch.from_numpy(model.catalog.items.encode([i.id for i in user.recommend(k=30)]))
    torch.testing.assert_close(scores[0, known], user.scores[known], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(weights[0], list(user.weights.values()), atol=1e-5)


def test_the_best_leave_out_clicked_and_removed_items(model):
    recommender = Recommender(model)
    removed = recommender.catalog.items.decode([1, 2])
    recommender.remove_items(removed)
    history = torch.tensor([[3, 14, 15, 9]])
    codes, scores, _ = Scoring(recommender.model, k=38)(history)
    assert {1, 2, 3, 14, 15, 9} == set(range(1, 41)) - set(codes[0, :34].tolist())
    expected = unadapted(model, history)[0][0]
    torch.testing.assert_close(scores[0, :34], expected[codes[0, :34]])
    assert scores[0, 34:].tolist() == [-float("inf")] * 4


def test_a_history_that_is_too_long_is_refused(scores_file):
    with pytest.raises(Exception, match=r"(?i)onnxruntime|dimension|shape|index"):
        run(scores_file, torch.ones(1, 51, dtype=torch.int64))


def test_the_file_says_what_its_codes_are(model, scores_file):
    session = onnxruntime.InferenceSession(scores_file, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["metarec"])
    assert about == {
        "items": list(model.catalog.items.ids),
        "learners": ["id", "image", "text"],
        "max_length": model.config.max_length,
    }
    assert [out.name for out in session.get_outputs()] == ["scores", "weights"]


def test_exporting_leaves_the_model_as_it_was(model):
    before, mode = {n: p.clone() for n, p in model.state_dict().items()}, model.training
    Scoring(model.train(), clicks=CLICKS)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    model.train(mode)


def test_refusals(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"k .*least 1 and at most 40, .*known.* 41"):
        Scoring(model, k=41)
    with pytest.raises(ValueError, match="unknown item id 'item333'"):
        Scoring(model, clicks=["item333"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'metarec\[export\]'"):
        export_onnx(model, tmp_path / "x.onnx")


@pytest.mark.parametrize("k", [None, 5])
def test_codes_below_zero_are_no_clicks(model, tmp_path, k):
    """pandas codes what it does not know as -1, which ONNX would read as the last item."""
    export_onnx(model, tmp_path / "f.onnx", k=k)
    given = torch.tensor([[3, -1, 14], [-1, 3, 14], [-1, -1, -1]])
    clean = torch.tensor([[3, 14, 0], [3, 14, 0], [0, 0, 0]])
    program = export_program(model, k=k).module()
    for got in (run(tmp_path / "f.onnx", given), list(program(given))):
        for one, expected in zip(got, run(tmp_path / "f.onnx", clean), strict=True):
            torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-4)
