"""The items as a frozen value."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Self

from metarec.data.attributes import ATTRIBUTES
from metarec.data.encodings import Encoding
from metarec.data.vocabulary import Vocabulary, check_text
from metarec.types import Modality


@dataclass(frozen=True)
class Catalog:
    """The items: their ids, their modality features and, where the item file gives them, their attributes.

    Attributes:
        items: the item vocabulary.
        modalities: name -> Modality, rows in the order of the vocabulary.
        attributes: column name -> one string per item id (``""`` where missing), e.g. titles.
        hidden: ids of items that are not to be recommended any more.
        encodings: of the attributes that make the modality ``attributes``, by column: how their values become features,
            those of items added later too.
        kinds: names of the kinds of events with the items, the one that is predicted first; none where all are clicks.

    Raises:
        ValueError: if a modality or attribute does not have one row per item, a value of an attribute is no text, a
            hidden id is not known, or the encodings do not have as many columns as the modality.

    Example:
        >>> catalog = Catalog(Vocabulary(["B004", "B017"]), attributes={"title": ["Alien", "Heat"]})
        >>> catalog.size, catalog.attributes["title"][catalog.items.encode(["B017"])[0] - 1]
        (3, 'Heat')
    """

    items: Vocabulary
    modalities: Mapping[str, Modality] = field(default_factory=dict)
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    hidden: frozenset[Any] = frozenset()
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, modality in self.modalities.items():
            if len(modality.present) != self.items.size:
                raise ValueError(f"modality {name!r} has {len(modality.present)} rows, expected {self.items.size}")
        for name, column in self.attributes.items():
            if len(column) != len(self.items):
                raise ValueError(f"attribute {name!r} has {len(column)} values, expected {len(self.items)}")
            if not isinstance(self.attributes, MappingProxyType):  # those of another catalogue were checked there
                check_text(column, f"attribute {name!r}")
        columns = sum(encoding.dim for encoding in self.encodings.values())
        if columns and self[ATTRIBUTES].dim != columns:
            raise ValueError(f"modality {ATTRIBUTES!r} has {self[ATTRIBUTES].dim} columns, its encodings {columns}")
        if self.hidden:  # the codes of millions of ids take their time
            self.items.encode(list(self.hidden))
        object.__setattr__(self, "modalities", MappingProxyType(dict(self.modalities)))
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))
        object.__setattr__(self, "encodings", MappingProxyType(dict(self.encodings)))

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        """How :mod:`copy` and :mod:`pickle` make another one."""
        parts = dict(self.modalities), dict(self.attributes), self.hidden, dict(self.encodings), self.kinds
        return type(self), (self.items, *parts)

    def __getitem__(self, modality: str) -> Modality:
        if modality not in self.modalities:
            raise ValueError(f"the catalogue has no modality {modality!r}; it has {sorted(self.modalities)}")
        return self.modalities[modality]

    @property
    def size(self) -> int:
        """I, the rows of any item table: the items and the padding row."""
        return self.items.size

    def add_items(self, added: Catalog) -> Catalog:
        """A catalogue with more items at its end; this one, and the codes of its items, stay as they are.

        Args:
            added: modalities and attributes that it does not have are missing for its items.

        Raises:
            ValueError: if an id is in both, or ``added`` has a modality that this one lacks or of another width.

        Example:
            >>> more = Catalog(Vocabulary("ab")).add_items(Catalog(Vocabulary("c")))
            >>> more.items.ids, more.size
            (('a', 'b', 'c'), 4)
        """
        known: tuple[Catalog, Catalog] | None = vars(added).get("_behind")
        if known is None or known[0] is not self:  # several models of one catalogue take the same items in
            known = self, self._followed_by(added)
            object.__setattr__(added, "_behind", known)
        return known[1]

    def _followed_by(self, added: Catalog) -> Catalog:
        for name, modality in added.modalities.items():
            if modality.dim != self[name].dim:
                raise ValueError(f"modality {name!r}: expected {self[name].dim} columns, got {modality.dim}")
        out, more = type(self).__new__(type(self)), len(added.items)
        modalities = {name: own.followed_by(added.modalities.get(name), more) for name, own in self.modalities.items()}
        attributes = {n: (*own, *added.attributes.get(n, [""] * more)) for n, own in self.attributes.items()}
        changed = {"modalities": MappingProxyType(modalities), "attributes": MappingProxyType(attributes)}
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        vars(out).update({**own, "items": self.items.followed_by(added.items), **changed})
        return out  # of two that were checked

    def grown(self, added: Catalog) -> Catalog:
        """Deprecated: :meth:`add_items`."""
        warnings.warn("Catalog.grown() is now add_items()", DeprecationWarning, stacklevel=2)
        return self.add_items(added)
