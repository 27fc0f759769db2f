"""Equals come in the order of the catalogue, whatever k is and wherever they are ranked: by brute force."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from metarec.data import Catalog, Dataset, Modality
from metarec.export import Scoring, export_onnx
from metarec.functional import nearest_items, top_k
from metarec.functional.neighbours import first_equal
from metarec.nn.generator import warm_neighbours
from metarec.recipes import EASE, MML, ItemKNN
from metarec.recipes.ease import cooccurrences, most_clicked
from metarec.recommender import Recommender
from metarec.scoring import UserState
from metarec.wrapped import as_model
from tiny import CONFIG, UP

WIDTHS = [1, 3, 16, 24, 40, 100, 640]  # a matrix product takes other paths for other widths


def brute(row: list[float], k: int) -> list[int]:
    """Columns by value, equal ones in their order."""
    return sorted(range(len(row)), key=lambda column: -row[column])[:k]


def few_values(*shape: int, seed: int = 0) -> Tensor:
    """Numbers with many equals among them, both zeros and -inf."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.tensor([-torch.inf, -1.0, -0.0, 0.0, 0.0, 2.0, 3.5])
    return values[torch.randint(0, len(values), shape, generator=draw)]


@pytest.mark.parametrize("shape", [(1,), (7,), (40,), (3, 1), (5, 17), (4, 300), (2, 3, 41)])
@pytest.mark.parametrize("seed", range(3))
def test_top_k_by_brute_force(shape: tuple[int, ...], seed: int) -> None:
    scores = few_values(*shape, seed=seed)
    for k in {0, 1, 2, min(5, shape[-1]), shape[-1]}:
        if k > shape[-1]:
            continue
        values, columns = top_k(scores, k)
        assert values.shape == columns.shape == (*shape[:-1], k)
        for row, own, found in zip(
            scores.view(-1, shape[-1]), values.view(-1, k) if k else [], columns.view(-1, k) if k else [], strict=False
        ):
            assert found.tolist() == brute(row.tolist(), k)
            assert own.tolist() == row[found].tolist()


def test_the_first_of_many_are_the_few() -> None:
    scores = few_values(6, 200)
    longest = top_k(scores, 200)[1]
    for k in range(201):
        assert torch.equal(top_k(scores, k)[1], longest[:, :k])


def test_no_row_is_an_empty_answer() -> None:
    assert top_k(torch.zeros(0, 4), 2)[1].shape == (0, 2)


@pytest.mark.parametrize("k", [-1, 5])
def test_more_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"top_k: k .* 0 and the 4 columns, got {k}"):
        top_k(torch.zeros(2, 4), k)


class Best(nn.Module):
    def forward(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        return top_k(scores, 10)


def test_top_k_in_a_program_and_in_onnx() -> None:
    free = ({0: torch.export.Dim("rows")},)
    scores = few_values(9, 40)
    scores[0] = 1.0
    expected = [brute(row, 10) for row in scores.tolist()]
    program = torch.export.export(Best().eval(), (few_values(2, 40),), dynamic_shapes=free)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    again = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    assert again(scores)[1].tolist() == expected
    onnx = torch.onnx.export(Best().eval(), (few_values(2, 40),), dynamic_shapes=free, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(onnx.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"scores": scores.numpy()})[1].tolist() == expected


@pytest.mark.parametrize("width", WIDTHS)
def test_equal_rows_are_equally_near(width: int) -> None:
    """Two kinds of items: the neighbours are one's own kind in the order of the codes, then the others."""
    draw = torch.Generator().manual_seed(width)
    kinds = torch.nn.functional.normalize(torch.randn(2, width, generator=draw), dim=1)
    kinds[1] = -kinds[0] if width == 1 else kinds[1]
    for items in (41, 60):
        kind = torch.arange(items) % 3 // 2
        allowed = torch.arange(items) % 7 != 0
        for k in (5, 10):
            for chunk in (4096, 7):
                found = nearest_items(kinds[kind], allowed, k, chunk)
                for item in range(items):
                    others = [i for i in range(items) if bool(allowed[i]) and i != item]
                    near = sorted(others, key=lambda i: int(kind[i] != kind[item]))[:k]
                    assert found[item].tolist() == near + [0] * (k - len(near))


@pytest.mark.parametrize("unit", [1e-30, 1e-20, 1.0, 1e20, 1e37])
def test_neighbours_do_not_depend_on_the_unit(unit: float) -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    features[torch.arange(40) % 4 == 0] = features[4].clone()
    allowed = torch.arange(40) > 0
    assert torch.equal(nearest_items(features * unit, allowed, 9), nearest_items(features, allowed, 9))


def test_items_without_features_or_with_broken_ones_are_near_to_none() -> None:
    features = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    features[3], features[4, 1], features[5, 2] = 0, torch.nan, torch.inf
    found = nearest_items(features, torch.arange(12) > 0, 20)
    assert not found[3:6].any()
    for item in (0, 1, 2, 6, 11):
        others = [i for i in range(1, 12) if i not in (3, 4, 5, item)]
        expected = sorted(others, key=lambda i: -float(features[item] @ features[i]))
        assert found[item].tolist() == expected + [0] * (20 - len(expected))


def test_first_equal_by_brute_force() -> None:
    rows = few_values(200, 2).nan_to_num(neginf=-7.0)
    expected = [next(i for i in range(n + 1) if bool((rows[i] == rows[n]).all())) for n in range(200)]
    assert first_equal(rows).tolist() == expected
    assert first_equal(rows[:, :0]).tolist() == [0] * 200


def alike() -> Dataset:
    """A world of which 20 items have the same features; all items but two are unseen upstream."""
    same = (torch.arange(41) % 2 == 0) & (torch.arange(41) > 0)
    modalities = {}
    for name, modality in UP.catalog.modalities.items():
        features = modality.features.clone()
        features[same] = features[2].clone()
        modalities[name] = Modality(name, features, modality.present)
    return replace(UP, catalog=Catalog(UP.catalog.items, modalities), warm=np.isin(np.arange(41), (1, 3, 5, 7)))


@pytest.fixture(scope="module")
def model() -> MML:
    """Items of the same features are cold, so that they have the same generated vectors."""
    made = MML.build(alike(), replace(CONFIG, dim=12)).eval()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draw))
    return made


HISTORY = [1, 3, 5]
KS = [5, 10, 20, 30]


def in_order(codes: list[int]) -> None:
    """Equal items stand together, in the order of the catalogue, without a gap at the end of the list."""
    even = [code for code in codes if code % 2 == 0]
    assert even == [2 * i for i in range(1, len(even) + 1)]


@pytest.mark.parametrize("k", KS)
def test_served_and_exported_lists_have_equals_in_the_order_of_the_catalogue(model: MML, k: int, tmp_path) -> None:
    ids = model.catalog.items.decode(HISTORY)
    history = torch.tensor([HISTORY])
    user = Recommender(model).adapt(ids)
    served = model.catalog.items.encode([item.id for item in user.recommend(k)]).tolist()
    in_order(served)
    assert any(code % 2 == 0 for code in served) or k == 5
    export_onnx(model, tmp_path / "user.onnx", clicks=ids, k=k)
    session = onnxruntime.InferenceSession(tmp_path / "user.onnx", providers=["CPUExecutionProvider"])
    for found in (
        Scoring(model, clicks=ids, k=k)(history)[0][0].tolist(),
        session.run(None, {"history": history.numpy()})[0][0].tolist(),
    ):
        in_order(found)
        assert found == served


def test_the_generators_neighbours_are_in_order(model: MML) -> None:
    modalities = [
        Modality(n, *(getattr(m, a) for a in ("features", "present"))) for n, m in model.catalog.modalities.items()
    ]
    warm = torch.arange(41) % 2 == 0
    whole = warm_neighbours(modalities, warm, 19)
    for item in range(2, 41, 2):
        assert whole[item].tolist() == [i for i in range(2, 41, 2) if i != item]
    for k in (3, 10):
        assert torch.equal(warm_neighbours(modalities, warm, k), whole[:, :k])


@pytest.mark.parametrize("neighbours", [1, 3, 7])
def test_itemknn_keeps_the_first_of_equal_neighbours(neighbours: int) -> None:
    codes = most_clicked(UP, 100)
    together = cooccurrences(UP, codes)
    count = together.diagonal()
    model = ItemKNN(UP, neighbours=neighbours)
    state = UserState({"active": torch.ones(len(codes)) > 0, "history": torch.from_numpy(codes).int().unsqueeze(1)})
    weight = model.scores(state).approximate(0, UP.catalog.size)[:, codes]
    for row in range(len(codes)):
        likeness = [
            float(together[row, i] / (count[row].sqrt() * count[i].sqrt() + 20.0)) if i != row else 0.0
            for i in range(len(codes))
        ]
        rounded = [round(x, 6) for x in likeness]
        kept = set(brute(rounded, neighbours))
        for column in range(len(codes)):
            expected = likeness[column] if column in kept else 0.0
            assert float(weight[row, column]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_lists_of_a_method_with_many_equal_scores(k: int) -> None:
    recommender = Recommender(as_model(EASE(UP, items=25), UP))
    clicked = most_clicked(UP, 25)[:2].tolist()
    user = recommender.adapt(UP.catalog.items.decode(clicked))
    scores = user.scores.tolist()
    allowed = [i for i in range(1, 41) if bool(recommender._states.current().known[i]) and i not in clicked]
    k = min(k, len(allowed))
    expected = [allowed[i] for i in brute([scores[i] for i in allowed], k)]
    assert recommender.catalog.items.encode([item.id for item in user.recommend(k)]).tolist() == expected
