"""Serialise learners: their parts as plain JSON, and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarec.data.dataset import Catalog
from metarec.model import Saved
from metarec.recipes.optimizing import as_large
from metarec.recipes.training import MOMENTS
from metarec.saving.difference import difference
from metarec.saving.parts import Describing, Reading
from metarec.saving.world import World, current, quietly, single

MOMENTS_OF = "moments."  # before the names of an optimizer's state
WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Structured:
    """Codec of learners: a description and tensors, rebuilt and compared with the original before saving."""

    def state(self, model: Any) -> Saved:
        """Settings and parts of a module, its weights, and tensors that neither settings nor catalogue make.

        Raises:
            ValueError: if the module that would be built is another one; names the first difference.
        """
        world = current(model.catalog, model.warm)
        kept: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
        if empty := [name for name, tensor in weights.items() if tensor.is_meta]:
            raise ValueError(f"weight {empty[0]!r} is on the device meta, without values")
        said = Describing(world, kept).whole(model)
        rebuilt = quietly(Reading(world, {**weights, **kept}, said).module)
        if problem := difference(model, rebuilt):
            raise ValueError(problem)
        moments = {MOMENTS_OF + name: tensor for name, tensor in _moments(model).items()}
        return Saved({name: said[name] for name in ("settings", "parts")}, {**weights, **kept, **moments})

    def from_state(self, kind: type[Any], saved: Saved, catalog: Catalog, warm: NDArray[Any]) -> Any:
        """The module, its weights those of the file: none is made first; half precision becomes single.

        Raises:
            ValueError: if settings and tensors do not belong together.
        """
        world = current(catalog, warm)
        check_types(saved.tensors)
        tensors = {name: t for name, t in saved.tensors.items() if not name.startswith(MOMENTS_OF)}
        reading = Reading(world, tensors, {"class": kind.__name__, **saved.settings})
        out = quietly(reading.module)
        assign(out, {name: t for name, t in tensors.items() if name not in reading.taken}, world)
        if len(tensors) < len(saved.tensors):
            moments = {n.removeprefix(MOMENTS_OF): t for n, t in saved.tensors.items() if n.startswith(MOMENTS_OF)}
            _check_moments(out, moments)
            vars(out)["moments"] = moments
        return out


def _moments(module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state that a model keeps, for its weights as large as they are now."""
    own = dict(module.named_parameters())
    parts = ((name, *name.rpartition(".")[::2], tensor) for name, tensor in vars(module).get("moments", {}).items())
    return {name: as_large(tensor, own[weight], key) for name, weight, key, tensor in parts}


def _check_moments(module: nn.Module, moments: Mapping[str, Tensor]) -> None:
    """See that an optimizer's state is that of weights of this model."""
    shapes = {f"{n}.{key}": p.shape for n, p in module.named_parameters() for key in MOMENTS if key != "step"}
    shapes |= {f"{name}.step": torch.Size() for name, _ in module.named_parameters()}
    for name, tensor in moments.items():
        if name not in shapes or tensor.shape != shapes[name] or not tensor.is_floating_point():
            raise ValueError(f"{MOMENTS_OF}{name}: expected {tuple(shapes.get(name, ()))} of a weight of the model")
        if name.endswith((".step", ".exp_avg_sq")) and bool((tensor < 0).any()):
            raise ValueError(f"{MOMENTS_OF}{name} must not be below 0")


def check_types(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of a type that no learner has."""
    for name, tensor in tensors.items():
        if tensor.dtype not in (*WEIGHTS, torch.bool, torch.int64):
            raise ValueError(f"weights must be of one type, of {list(WEIGHTS)}, {name} is {tensor.dtype}")


def assign(module: nn.Module, weights: dict[str, Tensor], world: World) -> None:
    """Give a module its weights.

    Raises:
        ValueError: if they have other names, or are not all of one floating-point type.
        RuntimeError: if they have other shapes.
    """
    own = dict(module.named_parameters(remove_duplicate=False))
    dtype = next((t.dtype for t in weights.values()), torch.float32)
    strange = sorted(name for name, t in weights.items() if t.dtype != dtype or t.dtype not in WEIGHTS)
    if strange:
        raise ValueError(
            f"weights must be of one type, of {list(WEIGHTS)}, {strange[0]} is {weights[strange[0]].dtype}"
        )
    ready = {name: world.parameter(t) if name in own else single(t) for name, t in weights.items()}
    module.load_state_dict(ready, assign=True)
    empty = [name for name, t in [*module.named_parameters(), *module.named_buffers()] if t.is_meta]
    if empty:
        raise ValueError(f"tensor {empty[0]!r} has no value")
    if dtype == torch.float64:
        module.double()


STRUCTURED = Structured()
