"""The unit of times, told from their size: unix seconds, milli-, micro- and nanoseconds, or days since 1970."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metarec.data.warned import warn

Times = NDArray[np.int64] | NDArray[np.float64]

DAYS = {"seconds": 86_400.0, "milliseconds": 86_400e3, "microseconds": 86_400e6, "nanoseconds": 86_400e9}
"""Unit -> how many of them are a day."""
FIRST, LAST = 1_158, 48_611
"""Days since 1970 between which a time is taken for one of the calendar: 1973 to 2103."""
FIRST_DAY = 7_000
"""The first of them, 1989, where the times themselves are days: smaller numbers count rows or steps."""
SAMPLE = 10_000
"""Times that are looked at, evenly spread."""


def unit_of(value: float) -> str | None:
    """The unit in which a number is a time of the calendar; None if there is none.

    Example:
        >>> unit_of(1362062838), unit_of(1362062838000), unit_of(20130228)
        ('seconds', 'milliseconds', None)
    """
    return next((unit for unit, day in DAYS.items() if FIRST * day <= value <= LAST * day), None)


def told_day(time: Times) -> float:
    """How many units of these times are a day; 0 where they are no times of the calendar.

    Their median tells, so that a few odd times change nothing; days since 1970 have to be so all.

    Args:
        time: (n,) times in any order.

    Example:
        >>> told_day(np.array([1362062838, 1362062839])), told_day(np.array([15763.5, 15764.0])), told_day(np.arange(9))
        (86400.0, 1.0, 0.0)
    """
    if not len(time):
        return 0.0
    sample = np.sort(time[:: len(time) // SAMPLE + 1])
    unit = unit_of(float(sample[len(sample) // 2]))  # one of them, where the mean of two would be in no unit
    if unit is not None:
        return DAYS[unit]
    return 1.0 if time.min() >= FIRST_DAY and time.max() <= LAST else 0.0


def check_one_unit(time: Times, where: str) -> None:
    """Refuse times of which some are in another unit than most; warn of those that are in none.

    Args:
        time: (n,) times.
        where: what they are the times of, for messages.

    Raises:
        ValueError: if times of two units are mixed.
    """
    day = told_day(time)
    if day <= 1 or (FIRST * day <= time.min() and time.max() <= LAST * day):
        return
    unit = next(name for name, length in DAYS.items() if length == day)
    odd = time[(time < FIRST * day) | (time > LAST * day)]
    mixed = next((value for value in (odd.min(), odd.max()) if unit_of(value)), None)
    if mixed is not None:
        raise ValueError(
            f"{where}: most times are unix {unit}, but {len(odd)} are not, such as {mixed} ({unit_of(mixed)}); "
            f"write all of them in {unit}"
        )
    warn(
        f"{where}: most times are unix {unit}, but {len(odd)} lie outside 1973 to 2103, such as {odd[0]}; they are "
        "taken as they are: correct these rows, or leave them out"
    )


def check_times(time: Times, day: float | None, where: str) -> None:
    """Check the type of times and the length of a day.

    Args:
        time: (n,) times.
        day: how many units a day has, 0 or None.
        where: what they are the times of, for messages.

    Raises:
        ValueError: if they are not int64 or finite float64, or the length is negative or not finite.
    """
    kind = time.dtype
    if day is not None and not 0 <= day < float("inf"):
        raise ValueError(f"{where}: day must be how many units of time are a day, or 0, got {day}")
    if not np.issubdtype(kind, np.signedinteger) and kind != np.float64:
        raise ValueError(f"{where}: expected times as int64 or float64, got {kind}; convert them, e.g. to unix seconds")
    if kind == np.float64 and not np.isfinite(time).all():
        row = int(np.flatnonzero(~np.isfinite(time))[0])
        raise ValueError(f"{where}: the time of interaction {row} is {time[row]}, expected a finite number")
