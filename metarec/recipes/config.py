"""The settings of MML and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from reprlib import repr as short
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from metarec.nn.learner import Adapts, Objective

STEPS = (0, 1 << 10)
COUNTS: Mapping[str, tuple[int, int]] = {  # more would take memory or time without end, and is no model of anybody's
    "dim": (1, 1 << 16),
    "layers": (1, 1 << 10),
    "heads": (1, 1 << 10),
    "max_length": (3, 1 << 20),
    "users_per_batch": (1, 1 << 20),
    "negatives": (1, 1 << 12),
    "neighbours": (1, 1 << 10),
    "inner_steps": STEPS,
    **dict.fromkeys(("warmup_epochs", "epochs", "generator_epochs", "fusion_epochs"), (0, 1 << 20)),
}
SHARE, RATE = (0.0, 1.0), (0.0, 3e38)  # what float32 can hold
NUMBERS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("dropout", "generated", "fusion_users"), SHARE),
    **dict.fromkeys(("inner_lr", "generator_lr", "fusion_lr"), RATE),
}
SPLIT_TIME = 1631289599  # seconds; the released split of hangzhou, shanghai and changsha


@dataclass(frozen=True)
class MMLConfig:
    """Settings of :class:`~metarec.recipes.mml.MML`.

    The defaults are metarec's own recipe; ``preset`` gives the released hyper-parameters. Learning rates are one
    number, or one per learner (``"id"`` and the modalities' names; others take ``"default"``).

    Attributes:
        modalities: feature modalities to use, each with a learner beside the ID learner; None for all.
        variant: ``"paper"`` takes the released forms where ours deviate (generator, what adapts at test).
        dim: width of item vectors and states.
        layers: encoder blocks.
        heads: attention heads.
        max_length: longest history.
        dropout: of embeddings, hidden layers and attention weights.
        warmup_epochs: ordinary next-item epochs before meta-training.
        epochs: meta-training epochs.
        users_per_batch: users per outer step.
        queries: last clicks of a user that judge the adapted weights: a number, or a share of the clicks.
        lr: outer learning rate (Adam).
        inner_steps: inner SGD steps.
        inner_lr: inner step size.
        objectives: inner and outer loss.
        negatives: negatives per example.
        neighbours: nearest items that a generated vector attends to.
        generated: probability that an item takes its generated vector while the generator is trained.
        generator_epochs: epochs of stage 2.
        generator_lr: its learning rate.
        fusion_users: share of the upstream users that train the fusion, and (but for the paper's variant) nothing else.
        fusion_epochs: at most so many epochs of stage 3.
        fusion_lr: its learning rate.
        test_steps: steps for a new user, one number or one per learner; None for ``inner_steps``.
        test_lr: step size for a new user; None for ``inner_lr``.
        test_adapts: ``"encoder"`` or ``"all"``.

    Raises:
        ValueError: if a setting is out of range, or of another type.

    Example:
        >>> MMLConfig(dim=32).dim, MMLConfig.preset("hangzhou").rate("lr", "text")
        (32, 0.005)
    """

    modalities: tuple[str, ...] | None = None
    variant: Literal["metarec", "paper"] = "metarec"
    dim: int = 64
    layers: int = 2
    heads: int = 2
    max_length: int = 50
    dropout: float = 0.3
    warmup_epochs: int = 6
    epochs: int = 1
    users_per_batch: int = 128
    queries: int | float = 0.5
    lr: float | Mapping[str, float] = 1e-3
    inner_steps: int = 5
    inner_lr: float = 1e-2
    objectives: tuple[Objective, Objective] = ("bpr", "softmax")
    negatives: int = 1
    neighbours: int = 5
    generated: float = 0.1
    generator_epochs: int = 2
    generator_lr: float = 2e-3
    fusion_users: float = 0.1
    fusion_epochs: int = 50
    fusion_lr: float = 1e-3
    test_steps: int | Mapping[str, int] | None = None
    test_lr: float | Mapping[str, float] | None = None
    test_adapts: Literal["encoder", "all"] = "encoder"

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, _plain(getattr(self, name)))
        for name, counts in COUNTS.items():
            _check(name, getattr(self, name), counts)
        for name, numbers in NUMBERS.items():
            _check(name, getattr(self, name), numbers)
        for name, limits in (("lr", RATE), ("test_lr", RATE), ("test_steps", STEPS)):
            _check_each(name, getattr(self, name), limits)
        _check("queries", self.queries, (1, 1 << 20) if isinstance(self.queries, int) else SHARE)
        choices = {"variant": ("metarec", "paper"), "test_adapts": get_args(Adapts)}
        for name, among in choices.items():
            if getattr(self, name) not in among:
                given = getattr(self, name)
                raise ValueError(f"MMLConfig: {name} must be {' or '.join(map(repr, among))}, got {short(given)}")
        self._check_names()
        if self.dim % self.heads:
            raise ValueError(f"MMLConfig: heads must divide dim, got dim={self.dim} and heads={self.heads}")

    def _check_names(self) -> None:
        kinds, given = get_args(Objective), self.objectives
        if not isinstance(given, tuple) or len(given) != 2 or not all(kind in kinds for kind in given):
            raise ValueError(
                f"MMLConfig: objectives must be two of {kinds}, the inner and the outer, got {short(given)}"
            )
        names = () if self.modalities is None else self.modalities
        right = isinstance(names, tuple) and all(isinstance(name, str) and name != "id" for name in names)
        if not right or len(set(names)) != len(names):
            raise ValueError(
                f"MMLConfig: modalities must be a tuple of names, each once and none of them 'id', got {short(names)}"
            )

    def rate(self, name: Literal["lr", "test_lr"], learner: str) -> float:
        """A learning rate for one learner.

        Raises:
            ValueError: if the rates name neither the learner nor a default.
        """
        rates = self.inner_lr if name == "test_lr" and self.test_lr is None else getattr(self, name)
        if not isinstance(rates, Mapping):
            return float(rates)
        if learner not in rates and "default" not in rates:
            raise ValueError(f"MMLConfig: {name} has no rate for {learner!r} and no 'default', only {sorted(rates)}")
        return float(rates.get(learner, rates.get("default", 0.0)))

    def steps(self, learner: str) -> int:
        """The steps that one learner takes for a new user.

        Raises:
            ValueError: if the steps name neither the learner nor a default.
        """
        if not isinstance(self.test_steps, Mapping):
            return self.inner_steps if self.test_steps is None else self.test_steps
        if learner not in self.test_steps and "default" not in self.test_steps:
            raise ValueError(
                f"MMLConfig: test_steps has none for {learner!r} and no 'default', only {sorted(self.test_steps)}"
            )
        return self.test_steps.get(learner, self.test_steps.get("default", 0))

    @classmethod
    def preset(cls, name: str) -> MMLConfig:
        """The released hyper-parameters: ``"hangzhou"``, ``"shanghai"`` or ``"changsha"``.

        Raises:
            ValueError: if there is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"MMLConfig: no preset {name!r}; there are {sorted(PRESETS)}")
        return PRESETS[name]


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, lists as tuples."""
    if isinstance(value, Mapping):
        numpys = any(isinstance(entry, np.generic) for entry in value.values())
        return {name: _plain(entry) for name, entry in value.items()} if numpys else value
    if isinstance(value, list):
        return tuple(value)
    return value.item() if isinstance(value, np.generic) else value


def _check(name: str, value: object, limits: tuple[float, float]) -> None:
    """Refuse what is no number of the limits' type between them."""
    low, high = limits
    whole = isinstance(low, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "an integer" if whole else "a number"
        raise ValueError(f"MMLConfig: {name} must be {kind}, got {short(value)}")
    if not whole and not low <= value <= high:
        raise ValueError(f"MMLConfig: {name} must be between {low:g} and {high:g}, got {value}")
    if not low <= value <= high:
        bound = f"at least {low}" if value < low else f"at most {high}"
        raise ValueError(f"MMLConfig: {name} must be {bound}, got {value}")


def _check_each(name: str, value: object, limits: tuple[float, float]) -> None:
    """The same for one number, or one per learner."""
    if isinstance(value, Mapping):
        for learner, entry in value.items():
            _check(f"{name} of learner {learner!r}", entry, limits)
    elif value is not None or name == "lr":
        _check(name, value, limits)


def _released(id_lr: float, text_lr: float, image_lr: float) -> MMLConfig:
    return MMLConfig(
        variant="paper",
        dropout=0.5,
        warmup_epochs=0,
        epochs=10,
        users_per_batch=2048,
        queries=1,
        lr={"id": id_lr, "text": text_lr, "image": image_lr, "default": id_lr},
        inner_lr=1e-3,
        objectives=("bpr", "bpr"),
        generator_epochs=10,
        generator_lr=1e-3,
        fusion_users=0.25,
        fusion_lr=1e-4,
        fusion_epochs=100,
        test_steps=50,
        test_lr={"id": 0.3, "text": 0.5, "image": 0.07, "default": 0.3},
        test_adapts="all",
    )


_HANGZHOU = _released(1e-3, 5e-3, 3e-3)
PRESETS: Mapping[str, MMLConfig] = MappingProxyType(
    {
        "hangzhou": _HANGZHOU,
        "shanghai": replace(_released(5e-4, 3e-3, 5e-3), neighbours=10, fusion_users=0.10, fusion_lr=5e-4),
        "changsha": replace(
            _HANGZHOU,
            generated=0.15,
            fusion_lr=1e-5,
            test_lr={"id": 0.2, "text": 0.5, "image": 0.07, "default": 0.2},
        ),
    }
)
