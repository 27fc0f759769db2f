"""What one request may ask for, and how much may wait."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds that keep one client from taking the service away from the others.

    Attributes:
        body_bytes: of a request; more is answered with 413.
        clicks: of one user; more is answered with 422, as are the next three.
        users: of one request.
        k: of one list.
        ids: in each of allow, deny and candidates, and items added or removed at once.
        waiting: users whose answer is not there yet; a request beyond it is answered with 429.
        seconds: from a request's arrival to its answer; later it is 503.
        read_seconds: for a client to send its headers (else it is hung up on), and again for its body (else 408).
        write_seconds: for a client to take its answer; else it is hung up on.
        held_bytes: of all bodies that are not answered yet; a request beyond it is answered with 429. Again of all
            answers that their clients have not taken yet; beyond it, who has kept one waiting longest is hung up on.
        connections: open at once; one more is answered with 503, and ``/health`` says what the matter is. Fewer
            where the process may not open so many files.

    Raises:
        ValueError: if one is not positive, or is infinite.

    Example:
        >>> Limits(k=0)
        Traceback (most recent call last):
        ...
        ValueError: Limits: k must be more than 0, got 0
    """

    body_bytes: int = 1 << 20
    clicks: int = 1000
    users: int = 256
    k: int = 1000
    ids: int = 10_000
    waiting: int = 1024
    seconds: float = 10.0
    read_seconds: float = 10.0
    write_seconds: float = 30.0
    held_bytes: int = 1 << 26
    connections: int = 1024

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            if not 0 < getattr(self, name) < math.inf:
                what = "finite and more than 0" if getattr(self, name) == math.inf else "more than 0"
                raise ValueError(f"Limits: {name} must be {what}, got {getattr(self, name)}")
