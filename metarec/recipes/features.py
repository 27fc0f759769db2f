"""The features of a catalogue as recipes read them: on one scale, with a word where they say nothing or too much."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from metarec.data.dataset import Catalog
from metarec.functional.appending import side_by_side
from metarec.functional.scaling import FeatureScale
from metarec.types import Modality

SENTINEL = 1e3  # times the limit: no features are that far; a stand-in for a missing value is, or a damaged number

_standardised = WeakTensorKeyDictionary()  # features as they came -> the scale that measured them last, and the result


def scales_of(catalog: Catalog, names: Sequence[str], fitted: int) -> dict[str, FeatureScale]:
    """The scale of each modality, from the first ``fitted`` rows of the catalogue.

    Raises:
        ValueError: if the catalogue lacks a modality, or an item's features are so far off that they cannot be meant.

    Warns:
        UserWarning: if an item is an outlier (it is left out of the scale, and pulled in to the farthest of the
            others), if all items have the same features, or one column's spread leaves nothing of the others'.
    """
    out = {}
    for name in names:
        modality = catalog[name]
        scale = out[name] = FeatureScale.of(modality.features[:fitted], modality.present[:fitted])
        _tell_outliers(catalog, modality, scale)
        where = f"modality {name!r}: "
        if scale.flat:
            count = int(modality.present[:fitted].sum())
            what = f"all {count} items have the same features" if count > 1 else f"{count} of the items has features"
            warnings.warn(f"{where}{what}, which tells no item from another; leave the modality out", stacklevel=2)
        if scale.main is not None:
            warnings.warn(
                f"{where}column {scale.main} varies over a thousand times as much as all others together, of which "
                "nothing is left then; bring the columns to one scale, or take the column's logarithm",
                stacklevel=2,
            )
    return out


def standardised(catalog: Catalog, scales: Mapping[str, FeatureScale]) -> list[Modality]:
    """Modalities of a catalogue, measured by their scales."""
    return [_measured(catalog[name], scale) for name, scale in scales.items()]


def _measured(modality: Modality, scale: FeatureScale) -> Modality:
    """Standardised features: one tensor for all learners that have them at one time, none of which changes it."""
    told = scale.key, modality.present.cpu().numpy().tobytes()
    known: tuple[object, weakref.ref[Tensor]] | None = _standardised.get(modality.features)
    features = None if known is None or known[0] != told else known[1]()
    if features is None:
        features = scale(modality.features, modality.present)
        _standardised[modality.features] = told, weakref.ref(features)
    return replace(modality, features=features)


def joined(modalities: Sequence[Modality]) -> Modality:
    """All features of each item as one modality; an item has it that has any."""
    present = torch.stack([m.present for m in modalities]).any(0)
    return Modality("all", side_by_side([m.features for m in modalities]), present)


def check_scale(added: Catalog, scales: Mapping[str, FeatureScale]) -> None:
    """Compare the features of new items with the scale of those that training knew.

    Raises:
        ValueError: if an item's features are on another scale: farther from the mean than any item may be, or more
            than ten times shorter than the shortest.
    """
    for name, modality in added.modalities.items():
        codes = modality.present.nonzero().squeeze(-1)
        if name not in scales or not len(codes):
            continue
        scale, rows = scales[name], modality.features[codes]
        if scale.flat:
            raise ValueError(
                f"add_items: {name} of item {added.items.ids[int(codes[0]) - 1]!r} cannot be measured: all items of "
                f"training have the same; leave {name} out"
            )
        what = f"add_items: {name} of item %r is on another scale than the features of training: "
        away, length = scale.distance(rows), torch.linalg.vector_norm(rows.double(), dim=-1)
        if float(away.max()) > scale.limit:
            worst = int(away.argmax())
            column = _column(rows[worst], scale)
            raise ValueError(
                f"{what % added.items.ids[int(codes[worst]) - 1]}{float(away[worst]):.3g} times as far from their mean "
                f"as these are, and {scale.limit:.3g} times is the limit (column {column} is "
                f"{float(rows[worst, column]):.6g}); make its features as those of training were made"
            )
        if float(length.min()) < scale.shortest / 10:
            worst = int(length.argmin())
            raise ValueError(
                f"{what % added.items.ids[int(codes[worst]) - 1]}its length is {float(length[worst]):.3g}, and none of "
                f"theirs is below {scale.shortest:.3g}; make its features as those of training were made, or leave "
                "them out if there are none"
            )


def _tell_outliers(catalog: Catalog, modality: Modality, scale: FeatureScale) -> None:
    codes = scale.outliers
    if not len(codes):
        return
    away = scale.distance(modality.features[codes])
    worst, most = int(codes[away.argmax()]), float(away.max())
    column = _column(modality.features[worst], scale)
    what = (
        f"modality {modality.name!r}: item {catalog.items.ids[worst - 1]!r} is {most:.3g} times as far from the "
        f"mean as others are (column {column} is {float(modality.features[worst, column]):.6g})"
    )
    if len(codes) > 1:
        what += f", and {len(codes) - 1} more items are beyond {scale.limit:.3g} times"
    if most > SENTINEL * scale.limit:
        raise ValueError(
            f"{what}. That stands for a missing value, or is a damaged number: leave out the row of an item without "
            "features (present=False, zeros)"
        )
    warnings.warn(
        f"{what}. Outliers are left out of the scale and pulled in to {scale.farthest:.3g} times; check them, take the "
        "logarithm of counts or prices, and leave out the rows of items without features",
        stacklevel=3,
    )


def _column(row: Tensor, scale: FeatureScale) -> int:
    """The column that takes a row farthest from the mean."""
    return int(((row.double() - scale.mean).abs() * scale.varies).argmax())
