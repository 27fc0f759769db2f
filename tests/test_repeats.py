"""How many interactions are repeats, and how many merely stand twice in the file: against a loop over the rows."""

from pathlib import Path

import numpy as np
import pytest

from metarec.data import Catalog, Dataset, Vocabulary, load_atomic, split_by_time, split_time
from metarec.data.examples import leave_last_out
from metarec.datasets import movietweetings


def made(user, item, time):
    order = np.lexsort((time, user))
    user, item, time = (np.asarray(column)[order] for column in (user, item, time))
    people = Vocabulary([f"u{i}" for i in range(1, max([*user.tolist(), 1]) + 1)], "user")
    catalog = Catalog(Vocabulary(f"i{i}" for i in range(1, max([*item.tolist(), 1]) + 1)))
    return Dataset(people, catalog, user, item, time, np.ones(catalog.size, dtype=bool))


def counted(data):
    """Duplicates and repeats, row by row."""
    seen, had, duplicates, repeats = set(), set(), 0, 0
    for row in zip(data.user.tolist(), data.item.tolist(), data.time.tolist(), strict=True):
        duplicates += row in seen
        repeats += row not in seen and row[:2] in had
        seen.add(row)
        had.add(row[:2])
    return duplicates, repeats / max(len(seen), 1)


@pytest.mark.parametrize("seed", range(20))
def test_repeats_and_duplicates_as_a_loop_counts_them(seed):
    rng = np.random.default_rng(seed)
    rows, times = int(rng.integers(0, 200)), int(rng.integers(1, 60))
    time = rng.integers(0, times, rows)
    data = made(rng.integers(1, 6, rows), rng.integers(1, 9, rows), time / 2 if seed % 2 else time)
    duplicates, share = counted(data)
    assert data.duplicates == duplicates
    assert data.repeat_share == pytest.approx(share)


def test_a_doubled_row_is_no_repeat():
    once = made([1, 1, 2], [1, 2, 1], [3, 4, 5])
    twice = made([1, 1, 1, 2], [1, 2, 2, 1], [3, 4, 4, 5])
    assert (once.repeat_share, once.duplicates) == (0.0, 0)
    assert (twice.repeat_share, twice.duplicates) == (0.0, 1)


def test_every_interaction_is_on_a_side_or_counted():
    data = movietweetings()
    up, down = split_by_time(data, split_time(data))
    counted = sum(n for part in (up, down) for what, n in part.dropped.items() if what.startswith("interactions "))
    assert len(up) + len(down) == 68_030 and len(up) + len(down) + counted == len(data) == 100_241
    for part in (up, down):
        assert all(what in repr(part) and str(n) in repr(part) for what, n in part.dropped.items())


def test_clicks_that_are_cut_off_are_counted():
    data = made([1, 1, 1, 2], [1, 2, 3, 1], [1, 2, 3, 4])
    once = leave_last_out(data, 1, least=1)
    assert (len(once), once.dropped) == (2, {"interactions cut off": 2})
    assert leave_last_out(once, 1, least=1).dropped == {"interactions cut off": 3}
    assert leave_last_out(data, 0, least=1).dropped == {}


def test_doubled_rows_of_a_file_are_counted_over_all_its_blocks(tmp_path: Path):
    rows = [f"u{row % 50}\ti{row % 7}\t{row // 100}" for row in range(5_000)]
    (tmp_path / "d.inter").write_text("\n".join(["user_id:token\titem_id:token\ttime:float", *rows, *rows[:60]]))
    data = load_atomic(tmp_path)
    assert data.duplicates == len(rows) + 60 - len(set(rows))
    assert f"{data.duplicates:,} of them duplicates" in repr(data)
