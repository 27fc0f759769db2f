"""External ids and their codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec.data.containers import bare, plain, unknown_id

Ints = NDArray[np.int64]


class Vocabulary:
    """External ids (strings) and their codes: the i-th id has code i + 1, and 0 is padding.

    Args:
        ids: the external ids, each once.
        what: what the ids name; used in messages.

    Raises:
        ValueError: if an id appears twice, or is no text: empty, or with half a character (a lone
            surrogate), which no file and no answer can hold.

    Example:
        >>> v = Vocabulary(["B004", "B017"], what="item")
        >>> v.encode(["B017"]).tolist(), v.decode([1]), len(v), v.size
        ([2], ['B004'], 2, 3)
        >>> v.encode(["B018"])
        Traceback (most recent call last):
        ...
        ValueError: unknown item id 'B018' (at position 0); nearest known ids: 'B017', 'B004'
    """

    def __init__(self, ids: Iterable[str], what: str = "item") -> None:
        self.ids: tuple[str, ...] = tuple(ids)
        self.what = what
        check_text(self.ids, f"{what} id")
        self._code = {name: code for code, name in enumerate(self.ids, start=1)}
        if len(self._code) != len(self.ids):
            twice = next(name for code, name in enumerate(self.ids, 1) if self._code[name] != code)
            raise ValueError(f"{what} id {twice!r} appears more than once in the vocabulary")
        if "" in self._code:
            raise ValueError(f"{what} id '' is empty (at position {self._code[''] - 1}); give every {what} an id")

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self._code

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.ids == other.ids

    def __hash__(self) -> int:
        return hash(self.ids)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} {self.what} ids)"

    @property
    def size(self) -> int:
        """Rows of a table indexed by code: the ids and the padding row."""
        return len(self.ids) + 1

    def encode(self, ids: Sequence[str]) -> Ints:
        """Codes of external ids, (len(ids),) int64.

        Args:
            ids: in any container that has an order.

        Raises:
            ValueError: if an id is not known or no string; names it and the nearest known ids.
        """
        ids = plain(ids, f"{self.what} ids")
        try:
            return np.fromiter(map(self._code.__getitem__, ids), dtype=np.int64, count=len(ids))
        except (KeyError, TypeError):
            names = [bare(name) for name in ids]
        if any(not isinstance(name, str) or name not in self._code for name in names):
            unknown_id(names, self._code, self.what)
        return self.encode(names)

    def decode(self, codes: Iterable[int]) -> list[str]:
        """External ids of codes.

        Raises:
            ValueError: if a code is 0 (padding) or past the end.
        """
        out = []
        for code in codes:
            if not 1 <= int(code) <= len(self.ids):
                raise ValueError(f"{self.what} code {int(code)} is outside 1..{len(self.ids)}")
            out.append(self.ids[int(code) - 1])
        return out


def check_text(texts: Sequence[Any], what: str) -> None:
    r"""Refuse what no file and no answer can hold.

    Raises:
        ValueError: if one is no string, or holds half of a surrogate pair.

    Example:
        >>> check_text(["B004", "B\ud800"], "item id")
        Traceback (most recent call last):
        ...
        ValueError: item id 'B\ud800' holds a lone surrogate, half a character (at position 1); decode...
    """
    try:
        "".join(texts).encode()
    except (TypeError, UnicodeEncodeError):
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                kind = type(text).__name__
                raise ValueError(f"{what} {text!r} is not a string but {kind} (at position {position})") from None
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                told = f"{what} {text!r} holds a lone surrogate, half a character (at position {position})"
                raise ValueError(f"{told}; decode its bytes as UTF-8") from None
