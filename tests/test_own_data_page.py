"""What docs/own_data.md shows is run: a shop of categories and prices, and the two lines of the command line."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from metarec.__main__ import main
from optional import imported

DOCS = Path(__file__).parents[1] / "docs"
FRAMES = DOCS / "data" / "frames"


@pytest.mark.skipif(imported("pandas") is None, reason="without pandas")
def test_a_new_product_of_the_category_that_somebody_likes_comes_first() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "categories.py"],
        env={**os.environ, "PYTHONPATH": str(DOCS.parent), "OMP_NUM_THREADS": "1"},
        cwd=DOCS / "examples",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│ 0 ")]
    assert len(rows) == 10 and "Milk jug" in rows[0]


def test_two_lines_make_a_list_for_each_customer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = (DOCS / "own_data.md").read_text(encoding="utf-8").partition("```bash\n")[2].partition("\n```")[0]
    for name in ("orders", "products"):
        pl.read_csv(FRAMES / f"{name}.csv").write_parquet(tmp_path / f"{name}.parquet")
    monkeypatch.chdir(tmp_path)
    lines = block.splitlines()
    assert [line.split()[:2] for line in lines] == [["metarec", "fit"], ["metarec", "recommend"]]
    for line in lines:
        main(shlex.split(line)[1:])
    orders, products = (pl.read_parquet(f"{name}.parquet") for name in ("orders", "products"))
    lists = pl.read_parquet("lists.parquet").join(products, left_on="item", right_on="product_id")
    assert set(lists["user"].to_list()) == set(orders["customer_id"].to_list())
    assert lists["title"].equals(lists["name"])
    assert not len(lists.join(orders, left_on=["user", "item"], right_on=["customer_id", "product_id"]))
