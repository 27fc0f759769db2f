"""MovieTweetings: real interactions with text and image features, shipped with the library."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files

from metarec.data.atomic import load_atomic
from metarec.data.dataset import Dataset


def movietweetings(modalities: Sequence[str] = ("text", "image")) -> Dataset:
    """What 6,737 people rated in tweets between 2013-02-28 and 2013-11-06: 100,241 ratings of 4,235 films.

    Users have at least 4 ratings and films at least 2. ``time`` is the moment of the tweet in unix seconds, int64,
    UTC; the rating's value is not kept. ``data.catalog.attributes`` holds ``title`` and ``genres``; item ids are IMDb
    numbers. Modality ``text`` (384 columns) is all-MiniLM-L6-v2 of title, year, genres and plot summary, of unit
    length; ``image`` (256 columns) is EfficientNet-Lite0 of the poster, of unit length before its PCA.

    Source: S. Dooms, T. De Pessemier, L. Martens, "MovieTweetings: a movie rating dataset collected from Twitter",
    Workshop on Crowdsourcing and Human Computation for Recommender Systems, CrowdRec at RecSys 2013. Cite it when
    you use the data. Licence: MIT; the file LICENSE beside the data holds it.

    Args:
        modalities: those that are read.

    Returns:
        All interactions; ``split_by_time`` makes the upstream and downstream sides.

    Raises:
        FileNotFoundError: if there is no such modality.

    Example:
        >>> data = movietweetings()
        >>> data
        Dataset(movietweetings: 100,241 interactions, 6,737 users, 4,235 items, modalities ['image', 'text'])
        >>> data.catalog.attributes["title"][data.catalog.items.encode(["0133093"])[0] - 1]
        'The Matrix (1999)'
    """
    with as_file(files("metarec.datasets") / "files" / "movietweetings") as folder:
        return load_atomic(folder, modalities=modalities, ignore=("rating",))
