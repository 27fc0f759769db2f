"""Training records of models: until when they saw clicks, which stages are done, how long a history they read.

The training stands as plain attributes on the trained parts themselves, so it goes where the weights go: into copies,
and into whatever is put around the parts. ``fitted_until`` is the time of the last click seen, ``trained`` and
``untrained`` are stages of training, and ``made`` tells weights that nobody has changed since the part was made.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

HISTORY = 50  # clicks, for methods that do not say how many they read
INFORMATION = ("upstream", "live", "later")  # what each knows, the next knows too
_TOLD = ("fitted_until", "trained", "untrained", "information")


@dataclass(frozen=True)
class Record:
    """The training record of a model and its parts.

    Attributes:
        information: what the method could know, see :func:`metarec.evaluate`.
        said: False where nobody said it, so that it is taken to be ``"later"``.
        fitted_until: time of the last click that any part was fitted on; None if there is none or nobody says.
        trained: stages of training that are done.
        untrained: stages that are not, begun or not.
    """

    information: str
    said: bool
    fitted_until: float | None
    trained: tuple[str, ...]
    untrained: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """What a report says of it."""
        own = {"information": self.information, "fitted_until": self.fitted_until}
        return {**own, "said": self.said, "trained": list(self.trained), "untrained": list(self.untrained)}

    def warn(self, name: str, *, stacklevel: int = 3) -> None:
        """Warn of a method that is not trained, or not to the end."""
        if self.untrained:
            how = "to the end" if self.trained else "at all"
            warnings.warn(
                f"{name} is not trained {how}: it lacks {', '.join(self.untrained)}; a training is a generator, go "
                "through all its steps, as in `for step in train(...): pass`",
                stacklevel=stacklevel,
            )


def expect(module: nn.Module, *stages: str) -> None:
    """Note that a module was just made: it has seen no click, and these stages of training are to come."""
    remake(module)
    vars(module)["untrained"] = stages


def remake(module: nn.Module) -> None:
    """Note that a module's weights are those that it was made with."""
    for part in module.modules():
        vars(part)["made"] = version(part)


def begin(module: nn.Module, until: float) -> None:
    """Note that a training begins, on clicks until a time; of several trainings the latest time stands."""
    for part in module.modules():
        said = vars(part).get("fitted_until")
        vars(part)["fitted_until"] = until if said is None else max(said, until)


def begin_stage(module: nn.Module, stage: str) -> None:
    """Note that a stage begins: all parts lack it now, unless some were made to expect it."""
    parts = list(module.modules())
    if not any(stage in (*_stages(part, "untrained"), *_stages(part, "trained")) for part in parts):
        for part in parts:
            vars(part)["untrained"] = (*_stages(part, "untrained"), stage)


def finish(module: nn.Module, stage: str) -> None:
    """Note that a stage is done, on the parts that lack it."""
    for part in module.modules():
        if stage in (left := _stages(part, "untrained")):
            vars(part)["untrained"] = tuple(name for name in left if name != stage)
            vars(part)["trained"] = (*_stages(part, "trained"), stage)


def pass_on(old: nn.Module, new: nn.Module) -> None:
    """Note that a module holds the weights of another, whose training record it takes over."""
    vars(new).update({name: vars(old)[name] for name in _TOLD if name in vars(old)})
    if vars(old).get("made") == version(old):
        remake(new)


def forget(module: nn.Module) -> None:
    """Note that nothing is known of a module's training."""
    for part in module.modules():
        for name in ("made", "untrained"):
            vars(part).pop(name, None)


def record_of(method: object) -> Record:
    """What a method says of its training, and its parts, if it is a module.

    A method that declares its ``information`` is believed, as far as ``fitted_until`` goes. Otherwise it is the
    richest that a part declares; and ``"later"`` where neither the method nor its parts say until when they were
    fitted, or a part has weights that no training is recorded of.

    Raises:
        ValueError: if a declared information is unknown.

    Example:
        >>> from metarec.datasets import planted
        >>> from metarec.recipes import sasrec
        >>> data = planted(users=60, items=40)
        >>> learner = sasrec.build(data, dim=8)
        >>> steps = sasrec.train(learner, data, epochs=1)
        >>> record_of(learner).untrained, record_of(learner).fitted_until
        (('training',), None)
        >>> for step in steps:
        ...     pass
        >>> record_of(learner).trained, record_of(learner).fitted_until == data.time.max().item()
        (('SASRec softmax',), True)
    """
    parts = [method, *(list(method.modules())[1:] if isinstance(method, nn.Module) else [])]
    times = [getattr(part, "fitted_until", None) for part in parts]
    until = max((time for time in times if time is not None), default=None)
    trained, untrained = (_all(_stages(part, name) for part in parts) for name in ("trained", "untrained"))
    weighted = [part for part in parts if isinstance(part, nn.Module) and _weights(part)]
    strange = any(_unrecorded(part) for part in weighted)
    if weighted and not strange and until is None and not untrained:
        untrained = ("training",)
    declared = [_checked(part) for part in parts if getattr(part, "information", None) is not None]
    vouched = any(getattr(method, name, None) is not None for name in ("information", "fitted_until"))
    said = vouched or (not strange and bool(weighted or declared))
    if getattr(method, "information", None) is not None:
        declared = declared[:1]
    information = max(declared, key=INFORMATION.index, default="upstream") if said else "later"
    return Record(information, said, until, trained, untrained)


def longest_history(method: object) -> int:
    """The longest history that any part of a method reads, by its ``max_length``; 50 where none says."""
    parts = [method, getattr(method, "config", None), *(method.modules() if isinstance(method, nn.Module) else [])]
    said = [getattr(part, "max_length", None) for part in parts]
    return max((length for length in said if isinstance(length, int)), default=HISTORY)


def negatives_of(method: object) -> int:
    """Negatives of each support example, as a method or its settings say; 1 where neither does."""
    said = [getattr(part, "negatives", None) for part in (getattr(method, "config", None), method)]
    return next((count for count in said if isinstance(count, int)), 1)


def trained(method: object) -> tuple[str, ...]:
    """The stages of training that are done."""
    return record_of(method).trained


def _checked(part: object) -> str:
    information = str(part.information)  # type: ignore[attr-defined]
    if information not in INFORMATION:
        name = type(part).__name__
        raise ValueError(f"{name}: information must be one of {list(INFORMATION)}, got {information!r}")
    return information


def _weights(part: nn.Module) -> list[nn.Parameter]:
    return list(part.parameters(recurse=False))


def version(part: nn.Module) -> int:
    """How often a part's own weights have been changed in place."""
    return sum(parameter._version for parameter in _weights(part))


def _unrecorded(part: nn.Module) -> bool:
    """Whether a part has weights that are not those it was made with, and no training of which is recorded."""
    return getattr(part, "fitted_until", None) is None and vars(part).get("made") != version(part)


def _stages(part: object, name: str) -> tuple[str, ...]:
    stages = vars(part).get(name) if isinstance(part, nn.Module) else ()
    return stages if isinstance(stages, tuple) else ()


def _all(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(stage for group in groups for stage in group))
