"""What an example may read of its user's history, against loops over its clicks."""

from __future__ import annotations

import torch

from metarec.functional.histories import readable, seen_items
from metarec.types import Examples

ITEMS = 7
HISTORY = [[3, 1, 3, 6], [5, 2, 0, 0], [0, 0, 0, 0]]
POSITION = [[0, 2, 3], [1, 0, 1], [0, 0, 0]]
CLICKS = Examples(
    torch.tensor(HISTORY),
    torch.tensor(POSITION),
    torch.ones(3, 3, dtype=torch.int64),
    torch.ones(3, 3, 1, dtype=torch.int64),
    torch.ones(3, 3),
)


def test_an_example_reads_the_clicks_up_to_its_position():
    expected = [[[column <= last for column in range(4)] for last in row] for row in POSITION]
    assert readable(CLICKS).tolist() == expected


def test_seen_items_are_those_it_reads_and_never_the_padding():
    found = seen_items(CLICKS, ITEMS)
    assert found.dtype == torch.bool
    for user, history in enumerate(HISTORY):
        for example, last in enumerate(POSITION[user]):
            read = set(history[: last + 1]) - {0}
            assert {item for item in range(ITEMS) if found[user, example, item]} == read
