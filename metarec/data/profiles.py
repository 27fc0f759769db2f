"""Profiles of users: what is known of them before they click, as feature rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metarec.data.attributes import encoded
from metarec.data.containers import plain
from metarec.data.encodings import Encoding


@dataclass(frozen=True, eq=False)
class Profiles:
    """What is known of the users of a data set.

    Attributes:
        encodings: by column, how its values become features, those of users who come later too.
        features: (U, P) rows by user code; 0 for padding and for users of whom nothing is known.

    Raises:
        ValueError: if there are not as many columns as the encodings have.

    Example:
        >>> import torch
        >>> from metarec.data.encodings import Categories
        >>> Profiles({"sex": Categories(("f", "m"))}, torch.eye(3, 4)).features.shape
        torch.Size([3, 4])
    """

    encodings: Mapping[str, Encoding]
    features: Tensor

    def __post_init__(self) -> None:
        columns = sum(encoding.dim for encoding in self.encodings.values())
        if self.features.ndim != 2 or self.features.shape[1] != columns:
            raise ValueError(f"profiles: expected features (U, {columns}), got {tuple(self.features.shape)}")


def profile_rows(encodings: Mapping[str, Encoding], given: Any, users: int) -> Tensor:
    """Profiles of B users as they are told -> (B, P).

    Args:
        encodings: of the model, by column.
        given: a mapping from column to value for each user, or None; columns may be missing.
        users: B.

    Raises:
        ValueError: if there are not so many, a column is unknown, or a value is no number where numbers are.

    Example:
        >>> from metarec.data.encodings import Categories
        >>> profile_rows({"sex": Categories(("f", "m"))}, [{"sex": "m"}, {"sex": "x"}, {}, None], 4).tolist()
        [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    if not encodings:
        raise ValueError("profile: the model reads no profiles; fit it on data with users= and profile=")
    given = plain(given, "adapt: profile")
    if len(given) != users:
        raise ValueError(f"adapt: profile: expected one for each of {users} users, got {len(given)}")
    for user, told in enumerate(given):
        if told is not None and not isinstance(told, Mapping):
            raise ValueError(
                f"profile: expected a mapping such as {{{next(iter(encodings))!r}: ...}}, got {told!r:.80}"
            )
        if told is not None and (unknown := [name for name in told if name not in encodings]):
            raise ValueError(
                f"user {user}: profile: unknown column {unknown[0]!r:.80}; the model has {list(encodings)}"
            )
    cells = {name: [None if told is None else told.get(name) for told in given] for name in encodings}
    try:
        return encoded(encodings, cells).features[1:]
    except ValueError as problem:
        raise ValueError(f"profile: {problem}") from None
