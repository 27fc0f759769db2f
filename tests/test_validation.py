"""How validation users' clicks are ranked, against a loop over users."""

import math

import pytest
import torch

from metarec.recipes.validation import ranked
from score_tables import EVERY, ITEMS, Table, users


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("among", ["all", "some"])
def test_ndcg_of_the_lists_of_some_items(among: str, exclude_seen: bool) -> None:
    batch, table = users(60), Table(3, EVERY)
    items = None if among == "all" else torch.arange(ITEMS + 1) % 4 < 2
    found = ranked(table, batch.chunks(7), items=items, exclude_seen=exclude_seen)
    expected = {}
    for row, user in enumerate(batch.user.tolist()):
        clicks = [item for item in batch.query.history[row].tolist() if item]
        target = int(batch.query.target[row, 0])
        if exclude_seen and target in clicks:
            continue
        score = table.table[clicks[-1]]
        rivals = [
            item
            for item in range(1, ITEMS + 1)
            if item != target and (items is None or items[item]) and not (exclude_seen and item in clicks)
        ]
        rank = 1 + sum(float(score[item]) > float(score[target]) for item in rivals)
        expected[user] = 1 / math.log2(1 + rank) if rank <= 10 else 0.0
    assert found.user.tolist() == list(expected)
    torch.testing.assert_close(found.ndcg, torch.tensor(list(expected.values()), dtype=torch.float64))
