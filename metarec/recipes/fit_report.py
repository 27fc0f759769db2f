"""What :func:`metarec.fit` tried, chose and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from metarec.files import write_png

KINDS = ("ensemble", "part", "generator", "adaptation")


@dataclass(frozen=True)
class Candidate:
    """One thing that was tried.

    Attributes:
        kind: ``"ensemble"`` for a form of the ensemble, ``"part"`` for a part by itself, ``"generator"`` for a learner
            with a generator of cold items, ``"adaptation"`` for one with a procedure that adapts it to users.
        name: what it is.
        ndcg: NDCG@10 of the validation users, mean over users; of ensembles cross-validated.
        low: two standard errors below.
        high: two standard errors above.
        chosen: whether the model has it.
    """

    kind: str
    name: str
    ndcg: float
    low: float
    high: float
    chosen: bool


@dataclass(frozen=True)
class FitReport:
    """What was tried on the validation users, who start last upstream and trained nothing.

    Attributes:
        users: so many users validated.
        candidates: all that was tried.
        gain: NDCG@10 of the chosen form over the best single part, both cross-validated; mean, low and high.
        epochs: by learner, how long it trains.
        notes: what else decided, a line each.
        seconds: that all of it took.

    Example:
        >>> one = Candidate("part", "popularity", 0.1, 0.08, 0.12, chosen=True)
        >>> report = FitReport(20, (one,), (0.0, 0.0, 0.0), {}, (), 1.5)
        >>> FitReport.of(report.to_dict()) == report
        True
    """

    users: int
    candidates: tuple[Candidate, ...]
    gain: tuple[float, float, float]
    epochs: Mapping[str, int]
    notes: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "candidates": [asdict(c) for c in self.candidates], "epochs": dict(self.epochs)} | {
            "gain": list(self.gain),
            "notes": list(self.notes),
        }

    @classmethod
    def of(cls, told: object) -> Self:
        """The report that :meth:`to_dict` told of.

        Raises:
            ValueError: if it is something else.
        """
        try:
            given = dict(told)  # type: ignore[call-overload]
            candidates = tuple(Candidate(**one) for one in given["candidates"])
            gain, epochs, notes = tuple(given["gain"]), dict(given["epochs"]), tuple(given["notes"])
            out = cls(given["users"], candidates, gain, epochs, notes, given["seconds"])
            sound = isinstance(given["notes"], list | tuple) and out._is_sound()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"fit report: expected what FitReport.to_dict() gives, got {told!r:.100}") from error
        if not sound:
            raise ValueError(f"fit report: a name or a number is damaged: {told!r:.200}")
        return out

    def _is_sound(self) -> bool:
        """Whether names are text and numbers are numbers."""
        each = self.candidates
        numbers = [*self.gain, self.seconds, *(number for c in each for number in (c.ndcg, c.low, c.high))]
        counts = [self.users, *self.epochs.values()]
        return (
            len(self.gain) == 3
            and all(isinstance(text, str) for text in (*self.epochs, *self.notes, *(c.name for c in each)))
            and all(c.kind in KINDS and isinstance(c.chosen, bool) for c in each)
            and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
            and all(type(count) is int and count >= 0 for count in counts)
        )

    def of_kind(self, kind: str) -> tuple[Candidate, ...]:
        """The candidates of one kind, in the order in which they were tried."""
        return tuple(candidate for candidate in self.candidates if candidate.kind == kind)

    def __str__(self) -> str:
        lines = [f"fitted in {self.seconds:.0f} s; NDCG@10 of {self.users} users who trained nothing:"]
        for kind in KINDS:
            lines += _lines(kind, self.of_kind(kind))
        if self.epochs:
            lines.append("epochs: " + ", ".join(f"{name} {count}" for name, count in self.epochs.items()))
        if self.of_kind("ensemble"):
            mean, low, high = self.gain
            lines.append(f"gain over the best single part: {mean:+.4f} [{low:+.4f}, {high:+.4f}]")
        return "\n".join([*lines, *self.notes])

    def plot(self, path: str | Path) -> None:
        """Draw the candidates against their NDCG with intervals, as a PNG.

        Args:
            path: the file to write; its folder is made.
        """
        from matplotlib.figure import Figure

        shown = sorted(self.candidates, key=lambda c: (-KINDS.index(c.kind), c.ndcg))
        figure = Figure(figsize=(8, 1.2 + 0.28 * max(1, len(shown))), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        for place, one in enumerate(shown):
            error = [[max(0.0, one.ndcg - one.low)], [max(0.0, one.high - one.ndcg)]]
            colour = "#0072B2" if one.chosen else "#999999"
            axes.errorbar(one.ndcg, place, xerr=_finite(error), fmt="o", color=colour, capsize=2)
        axes.set_yticks(range(len(shown)), [f"{c.name}{' (chosen)' if c.chosen else ''}" for c in shown], fontsize=8)
        axes.set_xlabel(f"NDCG@10 of {self.users} validation users, two standard errors")
        axes.grid(axis="x", alpha=0.3)
        write_png(path, figure)


def _finite(error: list[list[float]]) -> list[list[float]]:
    return [[side if math.isfinite(side) else 0.0 for side in row] for row in error]


def _lines(kind: str, candidates: Iterable[Candidate]) -> list[str]:
    out = []
    for one in sorted(candidates, key=lambda c: -c.ndcg):
        mark = "*" if one.chosen else " "
        out.append(f" {mark} {kind:<10} {one.name:<44} {one.ndcg:.4f} [{one.low:.4f}, {one.high:.4f}]")
    return out
