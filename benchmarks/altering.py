"""What users do to a part of an encoder; for altered_encoders.py and its test."""

from __future__ import annotations

import copy
import random
import types
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from own_encoders import DIM, OWN
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from metarec.functional.attention import attend
from metarec.nn import SequenceEncoder
from metarec.nn.encoder import EncoderBlock


class Scaled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Half as much."""
        return 0.5 * super().forward(x)


class ScaledNorm(nn.LayerNorm):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice as much."""
        return 2 * super().forward(x)


class OwnBlock(EncoderBlock):
    """A block with another activation."""

    def forward(self, x: Tensor, keep: Tensor, bias: Tensor | None, at: Tensor | None = None) -> Tensor:
        """As the block, and a sine of it."""
        return torch.sin(super().forward(x, keep, bias, at))


class LowRank(nn.Module):
    """LoRA: a frozen layer, and what two thin ones add."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a, self.b = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out: Tensor = self.base(x) + self.b(self.a(x))
        return out


def stock(draw: random.Random) -> SequenceEncoder:
    """A small encoder of ours."""
    heads, layers, wide = draw.choice((1, 2, 4)), draw.choice((1, 2, 3)), draw.choice((5, 8, 16))
    return SequenceEncoder(DIM, max_length=8, layers=layers, heads=heads, feedforward=wide, dropout=0.0)


Alteration = Callable[[nn.Module, random.Random], object]


def replaced(root: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module], draw: random.Random) -> None:
    """Exchange one part of a type for another."""
    places = [(m, n) for m in root.modules() for n, c in m.named_children() if type(c) is kind]
    if places:
        parent, name = draw.choice(places)
        parent._modules[name] = make(parent._modules[name])


def one(root: nn.Module, kind: type[nn.Module], draw: random.Random) -> Any:
    """One part of a type; the whole if there is none."""
    return draw.choice([m for m in root.modules() if isinstance(m, kind)] or [root])


def square(root: nn.Module, draw: random.Random) -> Any:
    """A linear layer that any other of its shape may stand for."""
    found = [m for m in root.modules() if type(m) is nn.Linear and m.weight.shape == (DIM, DIM)]
    return draw.choice(found or [nn.Linear(DIM, DIM)])


def _bound(module: nn.Module) -> None:
    kind = type(module)
    own = types.MethodType(lambda self, *given, **named: 0.7 * kind.forward(self, *given, **named), module)
    module.__dict__["forward"] = own


def _closed(module: nn.Module) -> None:
    module.__dict__["forward"] = lambda x: F.linear(torch.sin(x), module.weight)  # type: ignore[arg-type]


def _halved(*given: Any) -> Tensor:
    return 0.5 * attend(*given)


def _tie(root: nn.Module, draw: random.Random) -> None:
    square(root, draw).weight = square(root, draw).weight


def _share(root: nn.Module, draw: random.Random) -> None:
    places = [(m, n) for m in root.modules() for n, c in m.named_children() if type(c) is nn.LayerNorm]
    (first, name), (second, other) = draw.choice(places or [(root, "n")]), draw.choice(places or [(root, "n")])
    if places:
        first._modules[name] = second._modules[other]


def _same_block(root: nn.Module, draw: random.Random) -> None:
    blocks = getattr(root, "blocks", [])
    if len(blocks) > 1:
        blocks[-1] = blocks[0]


def _block(root: nn.Module, draw: random.Random, change: Callable[[Any], object]) -> None:
    block = one(root, EncoderBlock, draw)
    if isinstance(block, EncoderBlock):
        change(block)


def _heads(root: nn.Module, draw: random.Random) -> None:
    _block(root, draw, lambda block: setattr(block, "heads", draw.choice((1, 2, 4, 8))))


def _transposed(root: nn.Module, draw: random.Random) -> None:
    parameter = one(root, nn.Linear, draw).weight if any(isinstance(m, nn.Linear) for m in root.modules()) else None
    if parameter is not None:
        parameter.data = parameter.data.t().contiguous().t()


def _quantised(root: nn.Module, draw: random.Random) -> None:
    parts = [m for m in root.modules() if any(type(c) is nn.Linear for c in m.children())]
    part = draw.choice(parts or [root])
    for name, child in list(part.named_children()):
        if type(child) is nn.Linear and next(child.parameters()).dtype == torch.float32:
            part._modules[name] = torch.ao.quantization.quantize_dynamic(nn.Sequential(child), {nn.Linear})[0]


def _drops(root: nn.Module) -> bool:
    return any(m.p > 0 for m in root.modules() if isinstance(m, nn.Dropout))


def _spectral(module: Any) -> None:
    parametrizations.spectral_norm(module)
    module.eval()


ALTERATIONS: dict[str, Alteration] = {
    "no bias": lambda e, d: replaced(e, nn.Linear, lambda m: nn.Linear(m.in_features, m.out_features, bias=False), d),
    "linear subclass": lambda e, d: replaced(e, nn.Linear, lambda m: Scaled(m.in_features, m.out_features), d),
    "two layers": lambda e, d: replaced(
        e, nn.Linear, lambda m: nn.Sequential(nn.Linear(m.in_features, 3), nn.ReLU(), nn.Linear(3, m.out_features)), d
    ),
    "low rank": lambda e, d: replaced(e, nn.Linear, LowRank, d),
    "norm subclass": lambda e, d: replaced(e, nn.LayerNorm, lambda m: ScaledNorm(DIM), d),
    "RMSNorm": lambda e, d: replaced(e, nn.LayerNorm, lambda m: nn.RMSNorm(DIM), d),
    "norm without affine": lambda e, d: replaced(
        e, nn.LayerNorm, lambda m: nn.LayerNorm(DIM, elementwise_affine=False), d
    ),
    "norm without bias": lambda e, d: replaced(e, nn.LayerNorm, lambda m: nn.LayerNorm(DIM, bias=False), d),
    "Identity": lambda e, d: replaced(e, nn.LayerNorm, lambda m: nn.Identity(), d),
    "other dropout": lambda e, d: replaced(e, nn.Dropout, lambda m: nn.Tanh(), d),
    "old weight_norm": lambda e, d: nn.utils.weight_norm(square(e, d)),
    "weight_norm": lambda e, d: parametrizations.weight_norm(square(e, d)),
    "spectral_norm": lambda e, d: _spectral(square(e, d)),
    "old spectral_norm": lambda e, d: nn.utils.spectral_norm(square(e, d)).eval(),
    "pruned": lambda e, d: prune.l1_unstructured(square(e, d), "weight", 0.5),
    "forward hook": lambda e, d: one(e, nn.Module, d).register_forward_hook(lambda m, i, o: 0.5 * o),
    "forward pre-hook": lambda e, d: square(e, d).register_forward_pre_hook(lambda m, i: (torch.sin(i[0]),)),
    "backward hook": lambda e, d: square(e, d).register_full_backward_hook(
        lambda m, i, o: (2 * i[0],) if i[0] is not None else None
    ),
    "own forward": lambda e, d: _bound(one(e, nn.LayerNorm, d)),
    "own forward, closed": lambda e, d: _closed(square(e, d)),
    "own block": lambda e, d: _block(e, d, lambda block: setattr(block, "__class__", OwnBlock)),
    "own attention": lambda e, d: _block(e, d, lambda block: setattr(block, "attend", _halved)),
    "same block": _same_block,
    "same norm": _share,
    "same weight": _tie,
    "frozen": lambda e, d: [p.requires_grad_(False) for p in e.parameters() if d.random() < 0.4],
    "frozen part": lambda e, d: one(e, nn.Module, d).requires_grad_(False),
    "transposed": _transposed,
    "parameter more": lambda e, d: one(e, nn.Module, d).register_parameter("more", nn.Parameter(torch.ones(2))),
    "buffer more": lambda e, d: one(e, nn.Module, d).register_buffer("more", torch.ones(2)),
    "another mode": lambda e, d: one(e, nn.Module, d).train(d.random() < 0.5 and not _drops(e)),
    "dropout set": lambda e, d: setattr(
        one(e, nn.Dropout, d), "p", 0.5 if not any(m.training for m in e.modules()) else 0.0
    ),
    "eps": lambda e, d: setattr(one(e, nn.LayerNorm, d), "eps", 0.1),
    "heads": _heads,
    "context scale": lambda e, d: setattr(e, "context_scale", 0.5),
    "quantised": _quantised,
    "nothing": lambda e, d: None,
}

COMPUTED_IN_CALLS = {"old weight_norm", "old spectral_norm", "pruned"}  # the weight, which nobody may read elsewhere


def altered(seed: int, dtype: torch.dtype) -> tuple[nn.Module, str]:
    """A random encoder of which up to two random parts are altered, and what was done."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    name = draw.choice(("SequenceEncoder", *OWN)) if draw.random() < 0.5 else "SequenceEncoder"
    encoder = (OWN[name]() if name in OWN else stock(draw)).to(dtype).eval()
    for p in encoder.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    possible = [change for change in ALTERATIONS if name != "ReadsWeight" or change not in COMPUTED_IN_CALLS]
    names = [draw.choice(possible) for _ in range(draw.choice((1, 1, 2)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what it calls old
        for change in names:
            with suppress(AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # not after the one before
                ALTERATIONS[change](encoder, draw)
    encoder.to(dtype)
    if draw.random() < 0.1:
        with suppress(RuntimeError):  # the old weight_norm
            encoder = copy.deepcopy(encoder)
            names.append("copied")
    return encoder, f"{name}: {', '.join(names)}"
