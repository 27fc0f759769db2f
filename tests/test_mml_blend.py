"""The whole recipe: what it is made of, that it is what the benchmark compares, and that it reads nothing late."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from metarec.data import split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.recipes import MMLConfig, Popularity, mml_blend

QUICK = MMLConfig(dim=8, layers=1, warmup_epochs=1, generator_epochs=1, fusion_epochs=1)
DATA = planted(users=120, items=40)
UP, DOWN = split_by_time(DATA, at=PLANTED_SPLIT)
DAY = PLANTED_SPLIT / 250


def test_it_is_made_of_what_the_benchmark_blends() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from quality_scorers import recipes_of_blends

    found = mml_blend(UP, QUICK, live=DATA, day=DAY, sasrec_epochs=1)
    recipes = recipes_of_blends([name for name in found.methods if name.startswith("MML ")], UP.catalog.modalities)
    assert list(found.methods) == list(recipes["live MML blend"][0])
    assert found.information == "live" and not found.weight[0].eq(0).any()


def test_without_live_counts_it_reads_nothing_after_the_split() -> None:
    torch.manual_seed(1)
    first = mml_blend(UP, QUICK, sasrec_epochs=1)
    torch.manual_seed(2)  # the seed is an argument, not the state of the moment
    second = mml_blend(UP, QUICK, sasrec_epochs=1)
    assert first.information == "upstream" and first.fitted_until == UP.time.max() < DOWN.time.min()
    one, two = (evaluate(method, DOWN, k=(5,)) for method in (first, second))
    assert np.array_equal(one.rank, two.rank)


def test_items_without_features_are_blended_too() -> None:
    bare = replace(UP, catalog=replace(UP.catalog, modalities={}))
    found = mml_blend(bare, QUICK, day=DAY, sasrec_epochs=1)
    assert list(found.methods)[:2] == ["MML id", "SASRec id"]


def test_it_learns_a_planted_world() -> None:
    better = MMLConfig(dim=16, layers=1, lr=5e-3, users_per_batch=32, warmup_epochs=4, epochs=4, fusion_epochs=1)
    data = planted(users=300, items=40, adaptation=0.0)
    up, down = split_by_time(data, at=PLANTED_SPLIT)
    found = mml_blend(up, better, day=DAY, sasrec_epochs=6)
    ours, floor = (evaluate(method, down, k=(5,)).metrics["recall@5"] for method in (found, Popularity(up)))
    assert ours.mean > floor.mean + 3 * (ours.se + floor.se)
