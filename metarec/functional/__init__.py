"""Pure tensor functions: losses, attention, fusion, nearest items, ranking metrics, segment sums."""

from metarec.functional.attention import attend, causal_attention, merge_heads, rows, split_heads
from metarec.functional.fusion import fuse, standardise
from metarec.functional.losses import bpr, sampled_softmax, softmax, softmax_among, weighted_mean
from metarec.functional.neighbours import nearest_items
from metarec.functional.ranking import mrr_at, ndcg_at, ranks, recall_at, top_k
from metarec.functional.scaling import standardise_features
from metarec.functional.segments import segment_max, segment_mean, segment_sum

__all__ = [
    "attend",
    "bpr",
    "causal_attention",
    "fuse",
    "merge_heads",
    "mrr_at",
    "ndcg_at",
    "nearest_items",
    "ranks",
    "recall_at",
    "rows",
    "sampled_softmax",
    "segment_max",
    "segment_mean",
    "segment_sum",
    "softmax",
    "softmax_among",
    "split_heads",
    "standardise",
    "standardise_features",
    "top_k",
    "weighted_mean",
]
