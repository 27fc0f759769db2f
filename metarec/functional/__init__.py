"""Pure tensor functions: losses, attention, fusion, nearest items, ranking metrics, segment sums."""

from metarec.functional.attention import causal_attention, merge_heads, split_heads
from metarec.functional.fusion import fuse, standardise
from metarec.functional.losses import bpr, sampled_softmax, softmax, weighted_mean
from metarec.functional.neighbours import nearest_items

__all__ = [
    "bpr",
    "causal_attention",
    "fuse",
    "merge_heads",
    "nearest_items",
    "sampled_softmax",
    "softmax",
    "split_heads",
    "standardise",
    "weighted_mean",
]
