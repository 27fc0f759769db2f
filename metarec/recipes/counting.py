"""Base of count-based models: user states that are histories, added items, and serialisation."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.data.dataset import Catalog, Dataset
from metarec.functional.histories import readable
from metarec.learning import Learning
from metarec.model import Model, Saved
from metarec.recipes.click_log import check_items
from metarec.scoring import UserState
from metarec.types import Examples

_lock = threading.Lock()  # one thread moves counts on at a time


class Counted(Protocol):
    """Immutable counts, which give new ones for later clicks."""

    def followed_by(self, clicks: Dataset) -> Self:
        """What is counted with later clicks too."""
        ...

    def padded(self, items: int) -> Self:
        """The same for a larger catalogue."""
        ...


class Counts(Model):
    """A base for count-based models, whose user state is the history that they read.

    Live counts keep the time that is asked about, NaN where it is not told, which means after all clicks counted until
    the scores are made; so a state that was made before others clicked does not grow old.
    """

    catalog: Catalog
    warm: NDArray[Any]
    observed: Tensor  # () int64, how often it has moved on
    _counted: Counted
    information: str = "upstream"
    fitted_until: float | None = None

    def encode(
        self, support: Examples, query: Examples, *, start: UserState | None = None, keep_weights: bool = False
    ) -> UserState:
        """What is read of each query's history, and at what time; nothing is adapted.

        Raises:
            ValueError: if weights are to be kept: there are none.
        """
        if keep_weights:
            raise ValueError(f"keep_weights: {type(self).__name__} has no weights of a user's own; leave it out")
        state = self.read(query)
        if self.information == "live":
            asked = torch.full(query.target.shape, math.nan) if query.time is None else query.time
            state["time"] = asked.to(query.history.device, torch.float64).flatten()
        return UserState(state)

    def encode_empty(self) -> UserState:
        """A user without history, asked about after all clicks."""
        none = torch.zeros(1, 1, dtype=torch.int64)
        return self.encode(empty := Examples(none, none, none, none.unsqueeze(2), torch.ones(1, 1)), empty)

    def read(self, query: Examples) -> dict[str, Tensor]:
        """What is kept of each of N = B * Q queries, by name, with ``"active"``."""
        raise NotImplementedError

    def state(self) -> Saved:
        """What was counted, until when, and the items that scores are measured by."""
        own = self._told()
        about = {"fitted_until": self.fitted_until, "fitted": self.fitted}
        return replace(own, settings={**own.settings, **about})

    @classmethod
    def from_state(cls, saved: Saved, catalog: Catalog, warm: NDArray[Any]) -> Self:
        """The model that :meth:`state` told of.

        Raises:
            ValueError: if what is told does not belong together; names what.
        """
        made: Any = cls.__new__(cls)
        if isinstance(made, nn.Module):
            nn.Module.__init__(made)
        model: Self = made
        with reading(cls):
            model._settle(saved.settings, catalog, warm)
            model._take(saved)
        return model

    def _settle(self, settings: Mapping[str, Any], catalog: Catalog, warm: NDArray[Any]) -> None:
        """Take over what a file says of the items and of the fit."""
        if warm.shape != (catalog.size,) or warm.dtype != np.bool_:
            raise ValueError(f"warm must be bool of shape ({catalog.size},), got {warm.dtype} {warm.shape}")
        self.catalog, self.warm = catalog, warm
        self.fitted_until, self.fitted = setting(settings, "fitted_until", float), setting(settings, "fitted", int)
        if self.fitted is not None and not 1 <= self.fitted <= catalog.size:
            raise ValueError(f"fitted: expected 1..{catalog.size} items, got {self.fitted}")

    def _told(self) -> Saved:
        """What was counted."""
        raise NotImplementedError

    def _take(self, saved: Saved) -> None:
        """Take over what was counted, checked."""
        raise NotImplementedError

    def observe(self, clicks: Dataset) -> Self:
        """Move on by everybody's new clicks, in place; returns itself. Upstream counts stay as they are.

        Scores that were made before stay what they were; threads that make some meanwhile read the old counts or the
        new ones.

        Raises:
            ValueError: if a click is earlier than the last one counted, or of no item of the catalogue; names it, and
                nothing has changed.
        """
        if self.information == "live":
            check_items(clicks, self.catalog)
            with _lock:
                self._counted = self._counted.followed_by(clicks)
                self.observed.add_(1)  # tells caches that something has changed
        return self

    def _go_on(self, clicks: Dataset, before: Dataset | None, how: Learning) -> Self:
        """Counts that have moved on; these stay as they are."""
        out = self.copied()
        if self.information == "live":
            out.observed = self.observed.clone()
        return out.observe(clicks)

    def copied(self) -> Self:
        """A copy whose attributes, parameters and buffers can be replaced without changing this one's."""
        out = copy.copy(self)
        for name in {"_parameters", "_buffers", "_modules"} & set(vars(out)):
            vars(out)[name] = dict(vars(out)[name])
        return out

    def add_items(self, added: Catalog) -> Self:
        """The same model with more items, which nobody has clicked yet; this one stays as it is.

        Raises:
            ValueError: if an id is there already, or the items have a modality that the catalogue lacks.
        """
        out = self.copied()
        out.catalog = self.catalog.add_items(added)
        out.warm = np.pad(self.warm, (0, len(added.items)))
        out.fitted = self.fitted or len(self.warm)
        out._grow(out.catalog.size)
        return out

    def measured(self, known: Tensor) -> Tensor:
        """(I,) bool, the known items that scores are measured by: those that were there when it was fitted."""
        return known if self.fitted is None else known & (torch.arange(len(known), device=known.device) < self.fitted)

    def _grow(self, items: int) -> None:
        """Make room for a larger catalogue."""
        raise NotImplementedError


def all_read(query: Examples) -> Tensor:
    """(N, L) int32, the items of the history that each query may read, 0 elsewhere."""
    return (query.history[:, None] * readable(query)).flatten(0, 1).int()


def last_read(query: Examples, clicks: int) -> Tensor:
    """(N, clicks) int32, the last items of the history that each query may read, the last one first, 0 after them.

    Several models of an ensemble ask the same of one query, which keeps the answer.
    """
    kept: dict[int, Tensor] = vars(query).setdefault("_last_read", {})
    if clicks not in kept:
        kept[clicks] = _last_read(query, clicks)
    return kept[clicks]


def _last_read(query: Examples, clicks: int) -> Tensor:
    after = torch.minimum(query.position + 1, query.history.count_nonzero(-1).unsqueeze(-1))
    place = (after.unsqueeze(-1) - torch.arange(clicks, device=after.device)).clamp(min=0)  # 0 before the first
    items = F.pad(query.history, (1, 0)).gather(1, place.flatten(1))
    return items.view(-1, clicks).int()


@contextmanager
def reading(model: type) -> Iterator[None]:
    """Turn whatever is wrong with what a file says of a model into one that names it.

    Raises:
        ValueError: if something inside raises one, or a name is missing or of another type.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{model.__name__}: {error.args[0]!r} is missing") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{model.__name__}: {error}") from error


def setting(settings: Mapping[str, Any], name: str, kind: type[bool] | type[int] | type[float]) -> Any:
    """A setting of a file: a truth value, a whole number, or a finite number; any but the first may be None.

    Raises:
        KeyError, ValueError: if it is missing or something else.
    """
    value = settings[name]
    kinds = (int, float) if kind is float else (kind,)
    if value is None and kind is not bool:
        return None
    if type(value) not in kinds or not math.isfinite(value):
        raise ValueError(f"{name}: expected a {kind.__name__}, got {value!r}")
    return kind(value)


def numbers(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, *shape: int) -> NDArray[Any]:
    """A tensor of a file, finite and of one shape.

    Raises:
        KeyError, ValueError: if it is missing or something else.
    """
    tensor = tensors[name]
    if tensor.dtype != dtype or tensor.shape != shape or not bool(torch.isfinite(tensor).all()):
        got = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(f"{name} must be finite {dtype} of shape {shape}, got {got}")
    return tensor.numpy()
