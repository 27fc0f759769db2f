"""The parts of learners that this library has: item vectors, encoders, fusion."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from metarec.model import register
from metarec.nn import AdaptiveFusion, ColdItemGenerator, FeatureItems, IdItems, SequenceEncoder, TableItems
from metarec.nn.kinds import EventKinds
from metarec.recipes.anil import HeadedEncoder
from metarec.recipes.config import COUNTS, SHARE
from metarec.recipes.sasrec import SummedItems
from metarec.saving.parts import Describing, Kind, Reading, add_kind

DIM, WIDE, MANY = COUNTS["dim"], (1, 1 << 20), (1, 1 << 10)


def _id_items(items: IdItems, describing: Describing) -> dict[str, Any]:
    describing.keep("known", items.known)
    return {"dim": items.weight.shape[1]}


def _build_id_items(cls: type[Any], reading: Reading) -> nn.Module:
    known, dim = reading.known("known"), reading.whole("dim", *DIM)
    with torch.device("meta"):
        out: IdItems = cls(reading.world.catalog.size, dim, known=known)
    out.known = known  # not a copy of it: several learners may share it
    return out


def _feature_items(items: FeatureItems, describing: Describing) -> dict[str, Any]:
    dim, trained = items.projection.out_features, isinstance(items.features, nn.Parameter)
    if trained:
        describing.keep("known", items.known)
    given = Raw(items.named, items.features, items.known)
    said = items.named if trained else describing.features("features", given)
    return {"dim": dim, "columns": items.features.shape[1], "features": said}


def _build_feature_items(cls: type[Any], reading: Reading) -> nn.Module:
    dim, columns, said = reading.whole("dim", *DIM), reading.whole("columns", *WIDE), reading.setting("features")
    if isinstance(said, str):  # they are weights
        known = reading.known("known")
        with torch.device("meta"):
            out: FeatureItems = cls(Raw(said, torch.empty(len(known), columns), known), dim, train_features=True)
        return out
    modality = reading.features("features", said)
    if modality.dim != columns:
        raise ValueError(f"{reading.path}columns is {columns}, its features have {modality.dim}")
    with torch.device("meta"):
        found: nn.Module = cls(modality, dim)
    return found


class Raw:
    """A modality as it is: of any type, and its values need not be there."""

    def __init__(self, name: str, features: torch.Tensor, present: torch.Tensor) -> None:
        self.name, self.features, self.present, self.dim = name, features, present, features.shape[1]


def _table_items(items: TableItems, describing: Describing) -> dict[str, Any]:
    describing.keep("weight", items.weight)
    describing.keep("known", items.known)
    return {}


def _build_table_items(cls: type[Any], reading: Reading) -> nn.Module:
    table = reading.tensor("weight", None, reading.world.catalog.size, None)
    out: TableItems = cls(table, reading.known("known"))
    return out


def _generator(items: ColdItemGenerator, describing: Describing) -> dict[str, Any]:
    describing.part("items", items.items)
    describing.keep("neighbours", items.neighbours)
    describing.keep("warm", items.replaceable)
    buffers = [(items.get_buffer(f"features_{n}"), items.get_buffer(f"present_{n}")) for n in range(len(items.named))]
    given = [Raw(name, *each) for name, each in zip(items.named, buffers, strict=True)]
    return {
        "dim": items.projections[0].out_features,
        "probability": items.probability,
        "variant": items.variant,
        "features": [describing.features(f"features_{n}", each) for n, each in enumerate(given)],
    }


def _build_generator(cls: type[Any], reading: Reading) -> nn.Module:
    inner, said = reading.part("items"), reading.setting("features")
    if not isinstance(said, list) or len(said) != reading.count("projections"):
        raise ValueError(f"{reading.path}features are not those of {reading.count('projections')} projections")
    modalities = [reading.features(f"features_{n}", each) for n, each in enumerate(said)]
    size, warm = reading.world.catalog.size, reading.known("warm")
    near = reading.tensor("neighbours", torch.int64, size, None)
    if not (bool(((near >= 0) & (near < size)).all()) and bool((warm[near] | (near == 0)).all())):
        raise ValueError(f"{reading.path}neighbours must be warm items for each of {size} rows")
    dim, probability = reading.whole("dim", *DIM), reading.number("probability", *SHARE)
    variant = reading.choice("variant", ("metarec", "paper"))
    with torch.device("meta"):
        out: ColdItemGenerator = cls(
            inner, modalities, warm, dim=dim, neighbours=near, probability=probability, variant=variant
        )
    return out


def _sum(items: SummedItems, describing: Describing) -> dict[str, Any]:
    for number, source in enumerate(items.sources):
        describing.part(f"sources.{number}", source)
    return {"drop": items.drop, "sources": len(items.sources)}


def _build_sum(cls: type[Any], reading: Reading) -> nn.Module:
    drop = reading.number("drop", *SHARE)
    sources = [reading.part(f"sources.{number}") for number in range(reading.whole("sources", *MANY))]
    out: SummedItems = cls(sources, drop=drop)
    return out


def _encoder(encoder: SequenceEncoder, describing: Describing) -> dict[str, Any]:
    blocks: Any = encoder.blocks
    length, dim = encoder.position.shape
    return {
        "dim": dim,
        "max_length": length,
        "layers": len(blocks),
        "heads": blocks[0].heads if len(blocks) else 1,
        "feedforward": blocks[0].feedforward_in.out_features if len(blocks) else 4 * dim,
        "dropout": encoder.dropout.p,
    }


def _build_encoder(cls: type[Any], reading: Reading) -> nn.Module:
    whole = {"max_length": (1, 1 << 20), "layers": (0, 1 << 10), "heads": MANY, "feedforward": WIDE}
    sizes = {name: reading.whole(name, *bounds) for name, bounds in whole.items()}
    if sizes["layers"] != reading.count("blocks"):
        raise ValueError(f"{reading.path}layers is {sizes['layers']}, its weights are of {reading.count('blocks')}")
    dim, dropout = reading.whole("dim", *DIM), reading.number("dropout", *SHARE)
    with torch.device("meta"):
        out: SequenceEncoder = cls(dim, dropout=dropout, **sizes)
    return out


def _headed(encoder: HeadedEncoder, describing: Describing) -> dict[str, Any]:
    describing.part("body", encoder.body)
    return {"dim": encoder.head.out_features}


def _build_headed(cls: type[Any], reading: Reading) -> nn.Module:
    body, dim = reading.part("body"), reading.whole("dim", *DIM)
    with torch.device("meta"):
        out: HeadedEncoder = cls(body, dim)
    return out


def _fusion(fusion: AdaptiveFusion, describing: Describing) -> dict[str, Any]:
    norm, hidden = fusion.gate[0], fusion.gate[1]
    dim: Any = norm.normalized_shape
    return {"modalities": len(fusion.bias), "dim": dim[0], "hidden": hidden.out_features}


def _build_fusion(cls: type[Any], reading: Reading) -> nn.Module:
    modalities, dim, hidden = (
        reading.whole("modalities", *MANY),
        reading.whole("dim", *DIM),
        reading.whole("hidden", *WIDE),
    )
    with torch.device("meta"):
        out: AdaptiveFusion = cls(modalities, dim, hidden=hidden)
    return out


for _cls, _kind in {
    IdItems: Kind(_id_items, _build_id_items),
    FeatureItems: Kind(_feature_items, _build_feature_items),
    TableItems: Kind(_table_items, _build_table_items),
    ColdItemGenerator: Kind(_generator, _build_generator),
    SummedItems: Kind(_sum, _build_sum),
    SequenceEncoder: Kind(_encoder, _build_encoder),
    HeadedEncoder: Kind(_headed, _build_headed),
    AdaptiveFusion: Kind(_fusion, _build_fusion),
}.items():
    add_kind(register(_cls), _kind)
register(EventKinds)
