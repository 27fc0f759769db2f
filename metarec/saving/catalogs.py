"""A catalogue as tensors of a file, once for all models in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.attributes import encodings_of, encodings_settings
from metarec.data.catalog import Catalog
from metarec.data.vocabulary import pack_ids, unpack_ids
from metarec.files import expect_tensor, pack_strings, unpack_strings
from metarec.saving.parts import names
from metarec.types import Modality


def pack_catalog(catalog: Catalog, warm: NDArray[Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the header says of a catalogue, and its tensors."""
    header: dict[str, Any] = {
        "items": catalog.items.what,
        "modalities": list(catalog.modalities),
        "attributes": list(catalog.attributes),
    }
    if catalog.encodings:
        header["encodings"] = encodings_settings(catalog.encodings)
    if catalog.kinds:
        header["kinds"] = list(catalog.kinds)
    tensors = {"warm": torch.from_numpy(warm), **pack_ids("items", catalog.items.ids)}
    tensors |= pack_ids("hidden", sorted(catalog.hidden))
    for name, modality in catalog.modalities.items():
        tensors |= {f"modality.{name}.features": modality.features, f"modality.{name}.present": modality.present}
    for name, column in catalog.attributes.items():
        tensors |= pack_strings(f"attribute.{name}", column)
    return header, tensors


def unpack_catalog(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> tuple[Catalog, NDArray[np.bool_]]:
    """The catalogue, and (I,) bool which of its items are warm.

    Raises:
        KeyError, ValueError: if what is said does not belong together.
    """
    modalities = {
        name: Modality(
            name,
            expect_tensor(tensors, f"modality.{name}.features", torch.float32, 2),
            expect_tensor(tensors, f"modality.{name}.present", torch.bool, 1),
        )
        for name in names(header["modalities"], "modalities")
    }
    padded = [name for name, modality in modalities.items() if bool(modality.present[:1].any())]
    if padded:
        raise ValueError(f"modality {padded[0]!r} has features of the padding row")
    attributes = {
        name: unpack_strings(f"attribute.{name}", tensors) for name in names(header["attributes"], "attributes")
    }
    if not isinstance(header["items"], str):
        raise ValueError(f"items must be a name, got {header['items']!r}")
    items = unpack_ids("items", tensors, header["items"])
    hidden = unpack_ids("hidden", tensors, header["items"]).ids if header["format"] > 1 else ()
    if not set(hidden) <= set(items.ids):  # before a catalogue looks for the nearest ids
        raise ValueError("hidden ids are not those of items")
    encodings = encodings_of(header.get("encodings", []))
    kinds = tuple(names(header.get("kinds", []), "kinds"))
    catalog = Catalog(items, modalities, attributes, frozenset(hidden), encodings, kinds)
    warm = expect_tensor(tensors, "warm", torch.bool, 1)
    if len(warm) != catalog.size or bool(warm[0]):
        raise ValueError(f"warm {tuple(warm.shape)} does not fit {catalog.size} rows, or has the padding")
    return catalog, warm.numpy()
