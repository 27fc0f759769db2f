"""Atomic files -> vocabulary, interactions, catalogue -> Dataset -> split -> episodes."""

from metarec.data.atomic import find_modalities, load_atomic
from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.data.prefetch import prefetched
from metarec.data.sampler import EpisodeSampler
from metarec.data.split import split_by_time, split_time
from metarec.types import Modality

__all__ = [
    "Catalog",
    "Dataset",
    "EpisodeSampler",
    "Modality",
    "Vocabulary",
    "find_modalities",
    "load_atomic",
    "prefetched",
    "split_by_time",
    "split_time",
]
