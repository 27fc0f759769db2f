#!/usr/bin/env bash
# replay-rec==0.22.0: its split by time takes other clicks into the test when the same table comes as polars.
#
# Expected: TimeSplitter takes pandas, polars or Spark tables, and its page says that it splits by time; a share as the
# threshold finds the moment from which on clicks are tested. One table, one split, and no moment on both sides.
# Seen: with pandas the split is at a moment, ties included. With polars it is at a row number after sorting: clicks of
# one moment are torn apart, some are trained on and others tested, and which ones depends on the order of the rows.
# Consequence: where times are dates or rounded (purchases, ratings, public data sets) the two tests differ
# in size and in clicks, figures of two users of one library cannot be compared, and the split leaks within the moment.
# Way out: give the moment itself as the threshold, which all tables treat alike.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --no-compile --disable-pip-version-check \
  replay-rec==0.22.0 pandas==2.3.3 polars==1.44.2 numpy==2.4.6 scipy==1.17.1 pyarrow==23.0.1 scikit-learn==1.8.0
"$folder/env/bin/python" - <<'PYTHON'
import sys

import pandas as pd
import polars as pl
from replay.splitters import TimeSplitter

# Ten clicks on three days; six of them on day 2.
clicks = pd.DataFrame({"query_id": range(10), "item_id": range(10), "timestamp": [1, 1, 2, 2, 2, 2, 2, 2, 3, 3]})


def tested(table, threshold) -> list[int]:
    train, test = TimeSplitter(threshold).split(table)
    return sorted(test["query_id"].to_list())


share, moment = 0.4, 2
seen = {}
for order, rows in (("as written", clicks), ("reversed", clicks[::-1].reset_index(drop=True))):
    seen["pandas", order] = tested(rows, share)
    seen["polars", order] = tested(pl.from_pandas(rows), share)
for (table, order), users in seen.items():
    print(f"share {share}, {table}, rows {order:10}: {len(users)} clicks in the test, of users {users}")
by_moment = [tested(clicks, moment), tested(pl.from_pandas(clicks), moment)]
print(f"moment {moment}, pandas and polars: {len(by_moment[0])} and {len(by_moment[1])} clicks")

on_day_2 = set(clicks.query_id[clicks.timestamp == 2])
torn = on_day_2 & set(seen["polars", "as written"])
print(f"polars: of {len(on_day_2)} clicks of day 2, {len(torn)} are tested and {len(on_day_2) - len(torn)} trained on")
orders = ("as written", "reversed")
stated = {
    "pandas takes all of day 2": all(seen["pandas", order] == list(range(2, 10)) for order in orders),
    "polars takes four clicks": all(len(seen["polars", order]) == 4 for order in orders),
    "polars tears day 2 apart": 0 < len(torn) < len(on_day_2),
    "polars goes by the order of rows": seen["polars", "as written"] != seen["polars", "reversed"],
    "a moment is treated alike": by_moment[0] == by_moment[1] == list(range(2, 10)),
}
if not all(stated.values()):
    print("changed:", ", ".join(what for what, holds in stated.items() if not holds), "no longer")
    sys.exit(1)
PYTHON
