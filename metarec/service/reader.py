"""From requests to jobs: ids and attributes are looked up, and what is too much or not known is refused."""

from __future__ import annotations

import difflib
from bisect import bisect
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from metarec.data.categories import words_of
from metarec.data.dataset import Catalog
from metarec.data.histories import kind_codes
from metarec.data.vocabulary import Id
from metarec.functional.text import printable
from metarec.service.answering import Filters, Job
from metarec.service.limits import Limits
from metarec.service.requests import ClicksRequest, RecommendRequest, RecommendUsersRequest, UserClicks, _Wanted

_NEAR = 50  # neighbours in the alphabet among which the nearest ids are looked for, on either side
_SHOWN = 60  # characters of an id that an error repeats
_FILTERS = 128  # whose items are remembered
_SHOWABLE = 16  # attributes that one request may show, or filter by
_KEY = 256  # characters of the name of a request
_TITLE = "title"


class Attributes:
    """The attributes of a catalogue, the way that answers and filters want them.

    Args:
        catalog: the items, as they are now.

    Example:
        >>> from metarec.data.dataset import Vocabulary
        >>> films = Catalog(Vocabulary(["a", "b"]), attributes={"genre": ["Horror Comedy", "Drama"]})
        >>> sorted(Attributes(films).allowed("genre", frozenset({"Drama", "Horror"}))), Attributes(films).shown(None)
        (['a', 'b'], {})
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._column, self._having = lru_cache(None)(self._by_id), lru_cache(None)(self._by_value)
        self.allowed = lru_cache(_FILTERS)(self._allowed)

    def shown(self, names: Sequence[str] | None) -> Mapping[str, Mapping[str, str]]:
        """The columns that are asked for, by item id; None for the title, if there is one.

        Raises:
            ValueError: if a name is not known, or there are too many.
        """
        if names is None:
            names = [_TITLE] if _TITLE in self.catalog.attributes else []
        check_size("attributes", names, _SHOWABLE)
        return {name: self._column(self.known("attributes", name)) for name in names}

    def known(self, where: str, name: str) -> str:
        """A name of a column.

        Raises:
            ValueError: if it is none.
        """
        if name not in self.catalog.attributes:
            has = ", ".join(map(short, sorted(self.catalog.attributes))) or "none"
            raise ValueError(f"{where}: unknown attribute {short(name)}; the catalogue has {has}")
        return name

    def _allowed(self, name: str, values: frozenset[str]) -> frozenset[str]:
        """Ids of the items that have one of some values."""
        having = self._having(self.known("filter", name))
        unknown = next((value for value in sorted(values) if value not in having), None)
        if unknown is not None:
            near = difflib.get_close_matches(unknown[:_SHOWN], [v for v in having if len(v) <= _SHOWN], n=3, cutoff=0.5)
            hint = f"; nearest values: {', '.join(map(short, near))}" if near else ""
            raise ValueError(f"filter.{printable(name, _SHOWN)}: no item has {short(unknown)}{hint}")
        return frozenset().union(*(having[value] for value in values))

    def _by_id(self, name: str) -> dict[str, str]:
        return dict(zip(self.catalog.items.ids, self.catalog.attributes[name], strict=True))

    def _by_value(self, name: str) -> dict[str, frozenset[str]]:
        found: dict[str, set[str]] = {}
        for item, text in zip(self.catalog.items.ids, self.catalog.attributes[name], strict=True):
            for value in {text, *words_of(text)} - {""}:
                found.setdefault(value, set()).add(item)
        return {value: frozenset(items) for value, items in found.items()}


class Reader:
    """Turns requests into jobs, refusing what is not known or too much.

    Args:
        catalog: the items, as they are now.
        limits: of a request.
    """

    def __init__(self, catalog: Catalog, limits: Limits) -> None:
        self.items, self.limits, self.attributes = catalog.items, limits, Attributes(catalog)

    def job(self, request: RecommendRequest) -> Job:
        """One user's job.

        Raises:
            ValueError: if an id is not known, or something is more than the limits allow.
        """
        return self._jobs(request, [request], ("",))[0]

    def jobs(self, request: RecommendUsersRequest) -> list[Job]:
        """The jobs of several users.

        Raises:
            ValueError: as :meth:`job`, or if there is no user.
        """
        if not request.users:
            raise ValueError("users: expected at least one user, got none")
        check_size("users", request.users, self.limits.users)
        return self._jobs(request, request.users, [f"users.{i}." for i in range(len(request.users))])

    def check_ids(self, name: str, ids: Collection[Id]) -> None:
        """Refuse too many ids, and unknown ones, naming the nearest known.

        Raises:
            ValueError: of either kind.
        """
        check_size(name, ids, self.limits.ids)
        if not self.items.has_all(ids):
            unknown = next(i for i in ids if i not in self.items)
            texts = self._near(str(unknown))
            near = ", ".join(map(short, map(int, texts) if self.items.whole_numbers else texts))
            raise ValueError(f"{name}: unknown item id {short(unknown)}; nearest known ids: {near}")

    def check_clicks(self, request: ClicksRequest) -> None:
        """Refuse too many clicks, and those of unknown items.

        Raises:
            ValueError: of either kind.
        """
        check_size("clicks", request.clicks, self.limits.ids)
        if told := [click.kind for click in request.clicks if click.kind is not None]:
            kind_codes([told], np.array([len(told)]), self.attributes.catalog.kinds)
        for number, click in enumerate(request.clicks):
            if click.item not in self.items:
                self.check_ids(f"clicks.{number}.item", [click.item])

    @cached_property
    def _alphabet(self) -> list[str]:
        return sorted(self.items.texts)

    def _near(self, unknown: str) -> list[str]:
        place = bisect(self._alphabet, unknown)
        around = [known[:_SHOWN] for known in self._alphabet[max(0, place - _NEAR) : place + _NEAR]]
        beside = self._alphabet[max(0, place - 2) : place + 1]
        return difflib.get_close_matches(unknown[:_SHOWN], around, n=3, cutoff=0.5) or beside

    def _jobs(self, request: _Wanted, users: Sequence[UserClicks], where: Sequence[str]) -> list[Job]:
        if request.k > self.limits.k:
            raise ValueError(f"k: expected at most {self.limits.k}, got {short(request.k)}")
        for name in ("allow", "deny"):
            self.check_ids(name, getattr(request, name) or ())
        allow, deny, out, diversity = self._allow(request), frozenset(request.deny), [], self._diversity(request)
        for place, user in zip(where, users, strict=True):
            check_size(f"{place}clicks", user.clicks, self.limits.clicks)
            self.check_ids(f"{place}clicks", user.clicks)
            self.check_ids(f"{place}candidates", user.candidates or ())
            check_size(f"{place}profile", user.profile or (), _SHOWABLE)
            if user.user is not None and (user.clicks or user.profile is not None):
                raise ValueError(f"{place}user: expected clicks and a profile, or a user, got both")
            candidates = None if user.candidates is None else frozenset(user.candidates)
            filters = Filters(request.exclude_seen, allow, deny, candidates, diversity)
            kinds = self._kinds(f"{place}kinds", user)
            out.append(Job(tuple(user.clicks), request.k, filters, user.user, user.profile, request.because, kinds))
        return out

    def _kinds(self, name: str, user: UserClicks) -> tuple[str, ...] | None:
        """The kinds of a user's events; refused where there are not as many as clicks, or one is not known."""
        if user.kinds is None:
            return None
        check_size(name, user.kinds, self.limits.clicks)
        kind_codes([user.kinds], np.array([len(user.clicks)]), self.attributes.catalog.kinds)
        return tuple(user.kinds)

    def _diversity(self, request: _Wanted) -> float | tuple[tuple[str, int], ...] | None:
        """A weight, or columns and how many items of each category."""
        asked = request.diversity
        if not isinstance(asked, dict):
            if asked is not None and not self.attributes.catalog.modalities:
                raise ValueError("diversity: the items have no features; expected at most how many by attribute")
            return asked
        check_size("diversity", asked, _SHOWABLE)
        return tuple((self.attributes.known("diversity", name), most) for name, most in asked.items())

    def _allow(self, request: _Wanted) -> frozenset[str] | None:
        """The ids that a list may hold; None for all."""
        check_size("filter", request.filter or (), _SHOWABLE)
        parts = [] if request.allow is None else [frozenset(request.allow)]
        for name, values in (request.filter or {}).items():
            check_size(f"filter.{printable(name, _SHOWN)}", values, self.limits.ids)
            parts.append(self.attributes.allowed(name, frozenset(values)))
        return None if not parts else parts[0] if len(parts) == 1 else frozenset.intersection(*parts)


def check_size(name: str, what: Collection[Any], most: int) -> None:
    """Refuse too much.

    Raises:
        ValueError: if there is more than ``most``.
    """
    if len(what) > most:
        raise ValueError(f"{name}: expected at most {most}, got {len(what)}")


def short(value: object) -> str:
    """A value as an error repeats it."""
    text = printable(str(value), _SHOWN)
    return f"'{text}'" if isinstance(value, str) else text


def check_key(key: str) -> None:
    """Refuse what is no name for a request.

    Raises:
        ValueError: if it is empty, too long or not printable.
    """
    if not key.strip() or len(key) > _KEY or not key.isprintable():
        raise ValueError(f"Idempotency-Key: expected 1 to {_KEY} printable characters, got {short(key)}")
