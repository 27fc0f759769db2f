"""External ids and their codes."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.containers import bare, plain, unknown_id
from metarec.files import pack_strings, unpack_strings

Ints = NDArray[np.int64]
Id = str | int
"""What an id may be: text, or a whole number."""
WHOLE = re.compile("0|-?[1-9][0-9]*")


class Vocabulary:
    """External ids and their codes: the i-th id has code i + 1, and 0 is padding.

    The ids are all text, or all whole numbers, and come back as they were given.

    Args:
        ids: the external ids, each once.
        what: what the ids name; used in messages.

    Raises:
        ValueError: if an id appears twice, is neither text nor a whole number, or not what the first one is; or if it
            is empty, or has half a character (a lone surrogate), which no file and no answer can hold.

    Example:
        >>> v = Vocabulary(["B004", "B017"], what="item")
        >>> v.encode(["B017"]).tolist(), v.decode([1]), len(v), v.size
        ([2], ['B004'], 2, 3)
        >>> v.encode(["B018"])
        Traceback (most recent call last):
        ...
        ValueError: unknown item id 'B018' (at position 0); nearest known ids: 'B017', 'B004'
        >>> Vocabulary([7, 12]).decode([2])
        [12]
    """

    def __init__(self, ids: Iterable[Id], what: str = "item") -> None:
        self.ids = _bare(tuple(ids))
        self.what, self._length = what, len(self.ids)
        self._column: Any = None
        if not self.whole_numbers:
            check_text(self.ids, f"{what} id")
        distinct = set(self.ids)
        if len(distinct) != len(self.ids):
            twice = next(name for code, name in enumerate(self.ids, 1) if self._code[name] != code)
            raise ValueError(f"{what} id {twice!r} appears more than once in the vocabulary")
        if "" in distinct:
            raise ValueError(f"{what} id '' is empty (at position {self.ids.index('')}); give every {what} an id")

    @classmethod
    def of_column(cls, column: Any, what: str, *, whole_numbers: bool) -> Self:
        """Of a polars column of distinct texts, which become ids when they are first asked for.

        Those of a million users, which hardly anybody asks for, take a quarter of the memory until then.
        """
        out = cls.__new__(cls)
        out.what, out._length, out._column, out.whole_numbers = what, len(column), column, whole_numbers
        return out

    @classmethod
    def of_texts(cls, texts: Sequence[str], what: str = "item", *, whole_numbers: bool = False) -> Self:
        """Of ids as text; ``whole_numbers`` says that they are such.

        Raises:
            ValueError: if one is not the usual form of a whole number, or as for any vocabulary.
        """
        if not whole_numbers:
            return cls(texts, what)
        odd = next((text for text in texts if not WHOLE.fullmatch(text)), None)
        if odd is not None:
            raise ValueError(f"{what} id {odd!r} is not a whole number")
        return cls(map(int, texts), what)

    def followed_by(self, more: Vocabulary) -> Self:
        """These ids and others after them; the codes of these stay.

        Raises:
            ValueError: if an id is in both, or some are text and others whole numbers.
        """
        same = self.whole_numbers == more.whole_numbers or not len(more)
        if not len(self) or not same or any(name in self for name in more.ids):
            return type(self)((*self.ids, *more.ids), self.what)  # which says what is wrong
        out = type(self).__new__(type(self))
        out.ids, out.whole_numbers = (*self.ids, *more.ids), self.whole_numbers
        out.what, out._length, out._column = self.what, len(out.ids), None
        out._code = {**self._code, **dict(zip(more.ids, range(self.size, out.size), strict=True))}
        return out

    @cached_property
    def ids(self) -> tuple[Any, ...]:
        """The ids, in the order of their codes."""
        return tuple(map(int if self.whole_numbers else str, self._column.to_list()))

    def __len__(self) -> int:
        return self._length

    def __contains__(self, name: object) -> bool:
        return name in self._code

    def has_all(self, ids: Iterable[Id]) -> bool:
        """Whether all of some ids are known."""
        return self._code.keys() >= set(ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.ids == other.ids

    def __hash__(self) -> int:
        return hash(self.ids)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} {self.what} ids)"

    @cached_property
    def _code(self) -> Mapping[Any, int]:
        """The code of each id: made when it is first looked for, as most users of large data never are."""
        return {name: code for code, name in enumerate(self.ids, start=1)}

    @cached_property
    def whole_numbers(self) -> bool:
        """Whether the ids are whole numbers, and not text."""
        return bool(self.ids) and set(map(type, self.ids)) == {int}

    @cached_property
    def checksums(self) -> NDArray[np.int64]:
        """(n + 1,) by code, of the ids as text: of an id the same in any vocabulary."""
        return np.array([0, *(zlib.crc32(text.encode()) for text in self.texts)], dtype=np.int64)

    @property
    def texts(self) -> Sequence[str]:
        """The ids as text, for files."""
        return list(map(str, self.ids)) if self.whole_numbers else self.ids

    @property
    def size(self) -> int:
        """Rows of a table indexed by code: the ids and the padding row."""
        return self._length + 1

    def encode(self, ids: Sequence[Id]) -> Ints:
        """Codes of external ids, (len(ids),) int64.

        Args:
            ids: in any container that has an order.

        Raises:
            ValueError: if an id is not known, or text where ids are numbers, or the other way round; names it and the
                nearest known ids.
        """
        ids = plain(ids, f"{self.what} ids")
        try:
            return np.fromiter(map(self._code.__getitem__, ids), dtype=np.int64, count=len(ids))
        except (KeyError, TypeError):
            names = [bare(name) for name in ids]
        if any(not isinstance(name, Id) or name not in self._code for name in names):
            unknown_id(names, self._code, self.what)
        return self.encode(names)

    def decode(self, codes: Iterable[int]) -> list[Any]:
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


def _bare(ids: tuple[Any, ...]) -> tuple[Any, ...]:
    """Ids without the wrapping of numpy's and Arrow's scalars."""
    return ids if set(map(type, ids)) <= {str, int} else tuple(map(bare, ids))


def pack_ids(name: str, ids: Sequence[Id]) -> dict[str, Tensor]:
    """Ids, all text or all whole numbers, as tensors of a file, whose names say which.

    Example:
        >>> sorted(pack_ids("items", [7, 12]))
        ['items.numbers.bytes', 'items.numbers.ends']
    """
    return pack_strings(f"{name}.numbers" if ids and type(ids[0]) is int else name, list(map(str, ids)))


def unpack_ids(name: str, tensors: Mapping[str, Tensor], what: str = "item") -> Vocabulary:
    """The ids that :func:`pack_ids` put away.

    Raises:
        KeyError, ValueError: if these are not such tensors, or the ids make no vocabulary.
    """
    numbers = f"{name}.numbers.bytes" in tensors
    return Vocabulary.of_texts(
        unpack_strings(f"{name}.numbers" if numbers else name, tensors), what, whole_numbers=numbers
    )


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
