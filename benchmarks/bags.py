"""How fast a bag of an item's values is made: the mean of their embeddings, forward and backward.

Usage::

    python benchmarks/bags.py --device cuda --out benchmarks/results/bags_h100.json

As a product with the rows of an encoding, which is what a model does, and by gathering: natively, and by torch-scatter
where it is installed. Milliseconds, the median of several turns.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import add_machine_options, add_numbers, command_line, seconds, stamp
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from metarec.files import write_json
from metarec.functional import segment_mean

BAGS = [(4_235, 24, 3), (4_235, 512, 5), (100_000, 24, 3), (100_000, 512, 5)]  # items, values, values of an item
DIM, TURNS = 64, 7


def main(arguments: Sequence[str] | None = None) -> None:
    """Time all ways and write the JSON."""
    options = _parse(arguments)
    found = times_of_bags(options.bags, options.device)
    write_json(options.out, {"bags": found, "dim": DIM, **stamp(options.device, options.commit)})
    for one in found:
        print(one)


def times_of_bags(sizes: int, device: torch.device) -> list[dict[str, Any]]:
    """The first few of all sizes."""
    return [time_bag(*each, device=device) for each in tqdm(BAGS[:sizes], desc="bags")]


def time_bag(items: int, values: int, most: int, *, device: torch.device) -> dict[str, Any]:
    """Median milliseconds of the mean embedding of each item's values and its gradient, in turns."""
    draw = torch.Generator().manual_seed(0)
    count = torch.randint(1, 2 * most, (items,), generator=draw)
    index = torch.arange(items).repeat_interleave(count)
    code = torch.randint(0, values, (len(index),), generator=draw)
    weight = torch.randn(values, DIM, generator=draw).to(device).requires_grad_()
    ways = bags(index.to(device), code.to(device), items, values)
    upstream = torch.randn(items, DIM, generator=draw).to(device)

    def turn(way: Callable[[Tensor], Tensor]) -> None:
        weight.grad = None
        way(weight).backward(upstream)

    taken = {name: [seconds(partial(turn, way), device) for _ in range(TURNS)] for name, way in ways.items()}
    fast = {name: round(1000 * statistics.median(each[1:]), 3) for name, each in taken.items()}
    return {"items": items, "values": values, "values_of_all_items": len(index), "milliseconds": fast}


def bags(index: Tensor, code: Tensor, items: int, values: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways to average the embeddings (V, D) of each item's values, (I, D), by name.

    Args:
        index: (n,) the item that each value is of, ascending.
        code: (n,) the values.
        items: I.
        values: V.
    """
    count = torch.bincount(index, minlength=items)
    encoding = torch.zeros(items, values, device=index.device).index_put_(
        (index, code), 1 / count[index], accumulate=True
    )
    starts = F.pad(count.cumsum(0), (1, 0))
    out: dict[str, Callable[[Tensor], Tensor]] = {
        "product": lambda weight: encoding @ weight,
        "segment_mean": lambda weight: segment_mean(F.embedding(code, weight), index, items),
        "torch.nn.functional.embedding_bag": lambda weight: F.embedding_bag(code, weight, starts[:-1], mode="mean"),
    }
    if importlib.util.find_spec("torch_scatter"):
        scatter = importlib.import_module("torch_scatter")
        out["torch_scatter.scatter"] = lambda w: scatter.scatter(w[code], index, 0, dim_size=items, reduce="mean")
        out["torch_scatter.segment_csr"] = lambda w: scatter.segment_csr(w[code], starts, reduce="mean")
    return out


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    add_numbers(parser, {"bags": (len(BAGS), "sizes of bags that are timed")})
    add_machine_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
