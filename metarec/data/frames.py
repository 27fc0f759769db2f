"""Frames -> vocabularies, catalogue and codes, the way atomic files go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from metarec.data.attributes import ATTRIBUTES
from metarec.data.catalog import Catalog
from metarec.data.columns import Asked, Columns
from metarec.data.encodings import Categories, Numbers
from metarec.data.events import Events, read_events
from metarec.data.frame_items import Items, features_of, read_items
from metarec.data.frame_rows import FORM, FrameRows, day_of, is_iso, kinds_of, whole_seconds
from metarec.data.frame_source import Source, find_column, open_source
from metarec.data.profiles import Profiles
from metarec.data.vocabulary import Vocabulary

CALL = "Dataset.from_frame"
USER = (
    *("userid", "user", "customerid", "customer", "clientid", "visitorid", "visitor", "memberid", "reviewerid"),
    *("accountid", "personid", "uid", "sessionid"),
)
"""What columns of users are called, in lower case and letters alone, the likeliest first."""
ITEM = (
    *("itemid", "item", "productid", "product", "articleid", "article", "movieid", "filmid", "songid", "trackid"),
    *("bookid", "isbn", "asin", "sku", "newsid", "videoid", "gameid", "contentid", "goodsid", "iid"),
)


@dataclass(frozen=True)
class Named:
    """What the caller says of the columns; None where the names of the columns are to tell."""

    user: str | None
    item: str | None
    time: str | None
    title: str | None
    attributes: Mapping[str, str | None]
    profile: Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """What the caller says of the rows of clicks; see ``Dataset.from_frame``."""

    positive: Mapping[str, float]
    ignore: Any
    weight: str | None
    kind: str | None
    target: str | None


def read_frames(
    clicks: Any,
    items: Any,
    users: Any,
    features: Mapping[str, Any],
    named: Named,
    said: Said,
) -> dict[str, Any]:
    """The fields of a data set; see ``Dataset.from_frame``."""
    source, asked = _open_clicks(clicks, named, said)
    rows = Clicks(source, asked)
    known = _items_of(items, rows.asked.item, named, features)
    events, day = rows.in_unit(rows.events(known))
    events, others = events.apart(rows.columns)
    modalities, lost = features_of(features, events.items, known, (asked.item, *ITEM[:2]))
    encodings, learned = ({}, {}) if known is None else known.encodings(events.items)
    warm = np.zeros(events.items.size, dtype=np.bool_)
    warm[events.item] = True
    if known is not None:
        known.warn_if_apart(events.items, events.item, "item")
    attributes = {} if known is None else known.attributes(events.items)
    return {
        "users": events.users,
        "catalog": Catalog(
            events.items, modalities | learned, attributes, encodings=encodings, kinds=others.names if others else ()
        ),
        "user": events.user,
        "item": events.item,
        "time": events.time,
        "weight": events.weight,
        "warm": warm,
        "name": _name(Path(clicks)) if isinstance(clicks, str | Path) else "data",
        "dropped": {**events.dropped, **({} if known is None else known.dropped), **lost},
        "day": day,
        "others": others,
        "profiles": _profiles_of(users, events.users, asked.user, named),
    }


def _open_clicks(clicks: Any, named: Named, said: Said) -> tuple[Source, Asked]:
    """The table of clicks, and what the caller says of its columns."""
    source = open_source(clicks, "clicks")
    asked = Asked(
        named.time,
        said.positive,
        said.ignore,
        find_column(source, named.user, USER, "user", CALL),
        find_column(source, named.item, ITEM, "item", CALL),
        CALL,
        "time",
        FORM,
        said.weight,
        said.kind,
        said.target,
    )
    if said.kind is not None:
        find_column(source, said.kind, (), "kind", CALL)
    if named.time is not None:
        find_column(source, named.time, (), "time", CALL)
    if not len(source.head):
        raise ValueError(f"{source.name}: no rows, only the columns {list(source.columns)[:20]}")
    return source, asked


def read_profiles(users: Any, encodings: Mapping[str, Any], key: str | None = None) -> dict[Any, dict[str, Any]]:
    """What a frame or file of users tells of each: user -> column -> value, as a model with these encodings is told.

    Args:
        users: as for ``Dataset.from_frame``.
        encodings: by column; ``model.profile``.
        key: the column of ids; found by its name if there is none of that.

    Raises:
        ValueError: if a column is missing, or an id stands twice.

    Example:
        >>> from metarec.data.encodings import Numbers
        >>> read_profiles(pl.DataFrame({"user_id": ["ann", "bob"], "age": [31, None]}), {"age": Numbers((20.0, 60.0))})
        {'ann': {'age': 31}, 'bob': {'age': None}}
    """
    table = read_items(open_source(users, "users"), key or USER[0], USER, None, dict.fromkeys(encodings), "user")
    ids = table.ids.cast(pl.Int64).to_list() if table.whole_numbers else table.ids.to_list()
    cells = zip(*(table.learned[name][0].to_list() for name in encodings), strict=True)
    return {name: dict(zip(encodings, row, strict=True)) for name, row in zip(ids, cells, strict=True)}


def _profiles_of(users: Any, vocabulary: Vocabulary, key: str, named: Named) -> Profiles | None:
    """What the table of users says, if there is one."""
    if (users is None) != (not named.profile):
        lacking = "users=, a frame with these columns" if users is None else "profile=, columns of users= to learn from"
        raise ValueError(f"profile: expected {lacking}, got none")
    if users is None:
        return None
    given = {name: how for name, how in named.profile.items() if isinstance(how, Categories | Numbers)}
    if given and len(given) < len(named.profile):
        raise ValueError(f"profile: expected encodings of all of {list(named.profile)}, or of none, got {list(given)}")
    separators = {name: how if how is None or isinstance(how, str) else None for name, how in named.profile.items()}
    table = read_items(open_source(users, "users"), key, USER, None, separators, "user")
    if table.whole_numbers != vocabulary.whole_numbers:
        raise ValueError(
            f"{table.name}: ids of users are text in one place and whole numbers in the other; make both the same"
        )
    table.warn_if_apart(vocabulary, np.arange(1, vocabulary.size), "user")
    encodings, made = table.encodings(vocabulary, given)
    return Profiles(encodings, next(iter(made.values())).features)


def _items_of(items: Any, key: str, named: Named, features: Mapping[str, Any]) -> Items | None:
    """The table of items, if there is one."""
    if items is None and named.attributes:
        raise ValueError(f"attributes: expected items=, a frame with the columns {list(named.attributes)}, got none")
    if named.attributes and ATTRIBUTES in features:
        raise ValueError(f"features: {ATTRIBUTES!r} is the modality that attributes= makes; give yours another name")
    return None if items is None else read_items(open_source(items, "items"), key, ITEM, named.title, named.attributes)


def _name(path: Path) -> str:
    """That of a file without its ending, or of the folder that a pattern is of."""
    return path.parent.name if "*" in path.name else path.name.partition(".")[0]


class Clicks:
    """The rows of a table of clicks.

    Args:
        source: the table.
        asked: what the caller says of its columns.
    """

    def __init__(self, source: Source, asked: Asked) -> None:
        self.source, self.asked, head = source, asked, source.head
        self.types = kinds_of(head)
        self.iso = frozenset(column.name for column in head if is_iso(column))
        first = FrameRows(source.name, self.types, head, self.iso)
        self.columns = Columns(first, asked)
        self.missing = dict.fromkeys(self.columns.needed[: 3 if self.columns.time else 2], 0)
        self.missing |= dict.fromkeys([*asked.positive, *asked.weights, *asked.kinds], 0)

    def events(self, items: Items | None) -> Events:
        """All clicks as codes.

        Raises:
            ValueError: if a value is not what its column should hold, or ids of items are of two types.
        """
        user, item = (whole_numbers(self.source.head[name]) for name in (self.asked.user, self.asked.item))
        if items is not None and items.whole_numbers != item:
            kinds = {True: "whole numbers", False: "text"}
            raise ValueError(
                f"{items.name}: ids of items are {kinds[items.whole_numbers]}, but in {self.source.name} they are "
                f"{kinds[item]}; make both the same"
            )
        known = [] if items is None else [items.ids]
        events = read_events(self.source.name, self.columns, self._blocks(), known, (user, item))
        missing = {f"rows without {name}": count for name, count in self.missing.items() if count}
        unread = {"columns that are not read": len(self.columns.unread)} if self.columns.unread else {}
        return replace(events, dropped={**missing, **events.dropped, **unread})

    def _blocks(self) -> Iterator[FrameRows]:
        """The rows in which nothing is missing; the others are counted."""
        start = kept = 0
        for frame in self.source.blocks(self.columns.needed):
            block = FrameRows(self.source.name, self.types, frame, self.iso, start)
            start += len(frame)
            self._check_ids(frame)
            there: NDArray[np.bool_] = np.ones(len(frame), dtype=np.bool_)
            for name in self.missing:
                filled = block.filled(name)
                self.missing[name] += int((there & ~filled).sum())
                there &= filled
            kept += int(there.sum())
            yield block.filter(there)
        if not kept:
            raise ValueError(f"{self.source.name}: in each of {start:,} rows something is missing: {self.missing}")

    def _check_ids(self, frame: pl.DataFrame) -> None:
        """See that ids are of the type of the first rows, which a column of objects without values does not tell."""
        for name in (self.asked.user, self.asked.item):
            kind, first = frame[name].dtype, self.source.head[name].dtype
            if kind != pl.Object and kind.is_numeric() != first.is_numeric():
                raise ValueError(
                    f"{self.source.name}: column {name!r} is {first} in the first rows, and {kind} as a whole; make it "
                    "all text, or all whole numbers"
                )

    def in_unit(self, events: Events) -> tuple[Events, float | None]:
        """The same, and how many units of its times are a day, if the type of the column says it."""
        if self.columns.time is None:
            return events, 0.0
        if self.columns.time in self.iso:
            time, day = whole_seconds(events.time)
            return replace(events, time=time), day
        return events, day_of(self.source.head[self.columns.time])


def whole_numbers(column: pl.Series) -> bool:
    """Whether ids of a column are whole numbers."""
    return column.dtype.is_numeric()
