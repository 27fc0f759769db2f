"""Add items to trained learners without training: cold items, known by their features."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from metarec.data.dataset import Catalog
from metarec.functional.appending import side_by_side
from metarec.functional.scaling import FeatureScale
from metarec.nn.items import more_items
from metarec.types import Modality

T = TypeVar("T", bound=nn.Module)


def larger(owner: Any, added: Catalog) -> Catalog:
    """The catalogue of a model followed by more items.

    Raises:
        ValueError: if the model has none, or as for :meth:`Catalog.add_items <metarec.Catalog.add_items>`.
    """
    catalog: Catalog | None = owner.catalog
    if catalog is None:
        raise ValueError(f"add_items: {type(owner).__name__} does not say which items it has; attach(upstream) first")
    return catalog.add_items(added)


def standardised_by_name(
    catalog: Catalog, scales: Mapping[str, FeatureScale] | None, before: int
) -> dict[str, Modality]:
    """Modalities of a catalogue by name, measured by their scales, and ``"all"``, their features side by side.

    Args:
        catalog: the items.
        scales: by name.
        before: rows of the catalogue that the scales were taken of; the features of later ones alone are computed at
            once, those of all when somebody asks.
    """
    found = {name: _standardised(catalog[name], scale, before) for name, scale in (scales or {}).items()}
    if found:
        parts = list(found.values())
        present = torch.stack([modality.present for modality in parts]).any(0)
        last = torch.cat([modality.rows_from(before) for modality in parts], 1)
        found["all"] = Modality.extended("all", present, last, lambda: side_by_side([m.features for m in parts]))
    return found


def _standardised(given: Modality, scale: FeatureScale, before: int) -> Modality:
    last = scale.of_added(given.rows_from(before), given.present[before:])
    return Modality.extended(given.name, given.present, last, lambda: scale(given.features, given.present))


def with_catalog(learner: T, catalog: Catalog, modalities: Mapping[str, Modality]) -> T:
    """A learner of more items, its weights shared; the new ones are cold. The given one stays as it is.

    Args:
        learner: a :class:`~metarec.nn.ModalityLearner`.
        catalog: its items and others after them.
        modalities: the features of all of them, standardised as the learner's are, by name.

    Raises:
        TypeError: if its items, or those of its context, take in no more.
    """
    old: Any = learner
    before = len(old.candidates)
    items = more_items(old.items, catalog.size, modalities)
    context = None if old.context is None else more_items(old.context, catalog.size, modalities)
    out: Any = copy.copy(old)
    out._modules = {**old._modules, "items": items, "context": context}
    out._buffers = {**old._buffers, "candidates": F.pad(old.candidates, (0, catalog.size - before))}
    vars(out).update(_found=[], fitted=old.fitted or before, catalog=catalog)
    if old.warm is not None:
        out.warm = np.append(old.warm, np.zeros(catalog.size - len(old.warm), dtype=np.bool_))
    added: T = out
    return added
