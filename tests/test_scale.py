"""Features of any unit, with wrong rows and columns in them, against numpy; and what is said of them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.data import Catalog, Modality, Vocabulary
from metarec.functional import standardise, standardise_features
from metarec.recipes import MML, sasrec
from tiny import CONFIG, UP

TEXT = UP.catalog["text"].features
ROWS = torch.arange(41)


def features_of(features: Tensor, present: Tensor | None = None) -> Tensor:
    """What a model makes of text features, (I, F)."""
    text = Modality("text", features, UP.catalog["text"].present if present is None else present)
    catalog = Catalog(UP.catalog.items, {**UP.catalog.modalities, "text": text})
    return MML.build(replace(UP, catalog=catalog), CONFIG).learner("text", generator=False).items.features


def by_numpy(features: Tensor, rows: np.ndarray) -> np.ndarray:
    """Measured by some rows, in double precision."""
    x = features.double().numpy()
    centred = x - x[rows].mean(0)
    return centred / np.sqrt(np.square(centred[rows]).sum(1).mean())


@pytest.mark.parametrize("unit", [1e-44, 1e-38, 1e-20, 1e-8, 1e-3, 1e8, 1e18, 1e37])
def test_the_unit_of_features_does_not_matter(unit: float) -> None:
    given = TEXT * unit
    expected = by_numpy(given.double() / unit, np.arange(1, 41))
    np.testing.assert_allclose(features_of(given)[1:], expected[1:], atol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_features_of_any_type_of_number(kind: torch.dtype) -> None:
    given = (10 * TEXT).to(kind)
    found = features_of(given)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[1:], by_numpy(given, np.arange(1, 41))[1:], atol=1e-5)


def test_a_number_beyond_single_precision_is_refused() -> None:
    given = TEXT.double()
    given[3, 2] = 1e300
    with pytest.raises(ValueError, match=r"'text': feature.* 3, column 2 is not finite"):
        Modality("text", given, ROWS > 0)


def test_a_large_offset_does_not_hide_what_varies() -> None:
    given = torch.cat([TEXT + 1e4, torch.full((41, 1), 1e9), torch.full((41, 1), 0.1)], 1)
    found = features_of(given)
    np.testing.assert_allclose(found[1:, :24], by_numpy(TEXT, np.arange(1, 41))[1:], atol=1e-3)
    assert not found[:, 24:].any()


@pytest.mark.parametrize("size", [20.0, 1e3])
def test_an_outlier_is_named_left_out_of_the_scale_and_pulled_in(size: float) -> None:
    given = TEXT * torch.where(ROWS == 7, size, 1.0).unsqueeze(1)
    column = int(given[7].abs().argmax())
    with pytest.warns(
        UserWarning, match=rf"'text': item 'item6' is .* \(column {column} is {float(given[7, column]):.6g}\)"
    ):
        found = features_of(given)
    others = np.array([i for i in range(1, 41) if i != 7])
    expected = by_numpy(given, others)
    np.testing.assert_allclose(found[others], expected[others], atol=1e-5)
    length = np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(found[7], expected[7] / length[7] * length[others].max(), rtol=1e-4)


def test_more_than_one_outlier_are_counted() -> None:
    given = torch.where((ROWS % 3 == 1).unsqueeze(1), -999.0, TEXT)
    with pytest.warns(UserWarning, match=r"'text': item 'item0' is .* \(column \d+ is -999\), and 13 more items"):
        found = features_of(given)
    kept = np.array([i for i in range(1, 41) if i % 3 != 1])
    np.testing.assert_allclose(found[kept], by_numpy(given, kept)[kept], atol=1e-5)


@pytest.mark.parametrize("value", [1e20, -3.4028e38, 3e7])
@pytest.mark.parametrize("columns", [slice(0, 1), slice(None)], ids=["one cell", "a row"])
def test_a_stand_in_for_a_missing_value_is_refused(value: float, columns: slice) -> None:
    given = TEXT.clone()
    given[5, columns] = value
    for build in (features_of, summed):
        number = re.escape(f"{value:.6g}")
        with pytest.raises(ValueError, match=rf"'text': item 'item4' .* \(column \d+ is {number}\)"):
            build(given)


def summed(features: Tensor) -> None:
    """The same features in a SASRec."""
    catalog = Catalog(UP.catalog.items, {"text": Modality("text", features, ROWS > 0)})
    sasrec.build(replace(UP, catalog=catalog), ("id", "text"), dim=8)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["normal", "prices", "tags", "unit", "one column"])
def test_nothing_is_said_of_features_as_they_come(kind: str, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    normal = torch.randn(500, 8, generator=draw)
    made = {
        "normal": normal,
        "prices": normal[:, :1].exp(),
        "tags": (torch.rand(500, 30, generator=draw) < 0.1).float(),
        "unit": torch.nn.functional.normalize(normal, dim=1),
        "one column": normal[:, :1],
    }[kind]
    modality = Modality("text", made, torch.arange(500) > 0)
    catalog = Catalog(Vocabulary([str(i) for i in range(499)]), {"text": modality})
    learner = sasrec.build(replace(UP, catalog=catalog, warm=np.arange(500) > 0), ("text",), dim=8)
    np.testing.assert_allclose(learner.items.features[1:], by_numpy(made, np.arange(1, 500))[1:], atol=1e-4)


@pytest.mark.parametrize("kind", ["equal", "alike", "zeros"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_many_rows_of_one_kind_make_no_outliers_of_the_others(kind: str, share: float) -> None:
    given = TEXT.clone()
    rows = slice(1, 1 + round(40 * share))
    given[rows] = {"equal": TEXT[4].clone(), "alike": TEXT[4] + 1e-3 * TEXT[rows], "zeros": 0.0}[kind]
    np.testing.assert_allclose(features_of(given)[1:], by_numpy(given, np.arange(1, 41))[1:], atol=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_stand_in_is_found_however_many_items_have_it(share: float) -> None:
    given = TEXT.clone()
    given[1 : 1 + round(40 * share)] = -1e6
    with pytest.raises(ValueError, match=rf"'item0' .* and {round(40 * share) - 1} more items are .*leave"):
        features_of(given)


SAME = {
    "zeros": (torch.zeros_like(TEXT), None, "all 40 .*features"),
    "constant": (torch.full_like(TEXT, 0.1), None, "all 40 .*features"),
    "one item": (TEXT * (ROWS == 4).unsqueeze(1), ROWS == 4, "1 .*features"),
    "none": (torch.zeros_like(TEXT), ROWS < 0, "0 .*features"),
}


@pytest.mark.parametrize("case", SAME)
def test_features_that_tell_no_item_from_another_are_named(case: str) -> None:
    given, present, what = SAME[case]
    with pytest.warns(UserWarning, match=rf"modality 'text': {what}, .*modality"):
        assert not features_of(given, present).any()


def test_a_column_that_leaves_nothing_of_the_others_is_named() -> None:
    with pytest.warns(UserWarning, match=r"'text': column 3 .*thousand"):
        features_of(torch.cat([TEXT[:, :3], 1e5 * TEXT[:, 3:4]], 1))


@pytest.mark.parametrize("unit", [1e-40, 1e-30, 1e-8, 1e8, 1e30])
def test_the_unit_of_scores_does_not_matter(unit: float) -> None:
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * unit
    row = scores.double().numpy()[:, 1:]
    expected = (row - row.mean(1, keepdims=True)) / row.std(1, keepdims=True)
    found = standardise(scores, torch.arange(50) > 0)
    np.testing.assert_allclose(found[:, 1:], expected, atol=1e-4)


@pytest.mark.parametrize("value", [0.1, 1e-30, 1e30, 7.0])
def test_equal_scores_say_nothing_however_they_are_rounded(value: float) -> None:
    scores = torch.full((2, 1001), value)
    scores[:, -1] = 5 * value
    assert not standardise(scores[:, :-1], torch.ones(1000) > 0).any()
    assert not standardise(scores, torch.ones(1001) > 0, fitted=1000).any(), "nor is a later one measured by them"


@pytest.mark.parametrize("fitted", [2, 5, 9])
def test_scores_are_measured_by_the_first_alone(fitted: int) -> None:
    scores = torch.randn(3, 2, 9, generator=torch.Generator().manual_seed(0)).double()
    scores[..., fitted:] *= 1e6
    known = torch.arange(9) % 4 != 0
    own = scores[..., :fitted][..., known[:fitted]].numpy()
    if fitted > 2:
        expected = (scores.numpy() - own.mean(-1, keepdims=True)) / own.std(-1, keepdims=True)
        np.testing.assert_allclose(standardise(scores, known, fitted), np.where(known, expected, 0), rtol=1e-9)
    else:
        assert not standardise(scores, known, fitted).any(), "one alone stands at the mean"


def test_what_is_not_a_number_stays_so() -> None:
    scores = torch.randn(4, 6)
    scores[1, 2], scores[2, 3], scores[3, 0] = torch.nan, torch.inf, torch.nan
    found = standardise(scores, torch.arange(6) > 0)
    assert found.isfinite().all(1).tolist() == [True, False, False, True], "an unknown candidate does not count"


def test_features_are_in_double_precision_on_the_way() -> None:
    given = 1e6 + torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(
        standardise_features(given, torch.ones(200) > 0), by_numpy(given, np.arange(200)), rtol=1e-6, atol=1e-7
    )
