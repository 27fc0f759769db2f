"""Categories of items: the words of an attribute, such as genres, as numbers."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from metarec.data.catalog import Catalog

Ints = NDArray[np.int64]


def words_of(text: str) -> list[str]:
    """The words of an attribute, each once: between blanks, commas, semicolons and bars.

    Example:
        >>> words_of("War|Drama, War")
        ['War', 'Drama']
    """
    return list(dict.fromkeys(re.findall(r"[^\s,;|]+", text)))


def category_codes(catalog: Catalog, column: str, codes: Ints | None = None) -> Ints:
    """The words of items' attributes as numbers from 1.

    Args:
        catalog: the items.
        column: of ``catalog.attributes``.
        codes: (n,) item codes; all by default, 0 first.

    Returns:
        (n, W) int64, 0 where an item has fewer words; numbers mean the same within one call.

    Raises:
        ValueError: if the catalogue has no such column.

    Example:
        >>> from metarec.data import Vocabulary
        >>> catalog = Catalog(Vocabulary("abc"), attributes={"genres": ["War Drama", "", "Drama"]})
        >>> category_codes(catalog, "genres").tolist()
        [[0, 0], [2, 1], [0, 0], [1, 0]]
    """
    if column not in catalog.attributes:
        raise ValueError(f"{column!r} is no attribute of the catalogue, expected one of {sorted(catalog.attributes)}")
    texts = ["", *catalog.attributes[column]] if codes is None else _texts(catalog, column, codes)
    words = [words_of(text) for text in texts]
    number = {word: place for place, word in enumerate(sorted({word for own in words for word in own}), start=1)}
    out = np.zeros((len(words), max(map(len, words), default=0) or 1), dtype=np.int64)
    for row, own in zip(out, words, strict=True):
        row[: len(own)] = [number[word] for word in own]
    return out


def _texts(catalog: Catalog, column: str, codes: Ints) -> list[str]:
    values = catalog.attributes[column]
    return [values[code - 1] if code else "" for code in codes.tolist()]
