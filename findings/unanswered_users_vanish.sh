#!/usr/bin/env bash
# recommenders==1.2.1: users who got no list leave the mean of precision, recall and MAP, but stay in that of NDCG.
#
# Expected: a metric of a test is a mean over the users of the test; who gets no recommendation counts as zero. The
# pages of precision_at_k, recall_at_k and map_at_k say nothing else, and the four metrics take the same two tables.
# Seen: three of them average over users who are in both tables; NDCG over all who clicked. A method that answers one
# user of four has recall 1.0 and MAP 1.0 with NDCG 0.25 for the very same lists.
# Consequence: this is how cold start is met: a method that leaves out users it does not know is measured on those it
# knows. It beats a method that answers everybody, and the more users it drops, the better it looks.
# Way out: give users without a list a row with an item that does not exist, or divide by the users of the test.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip=("$folder/env/bin/pip" install -q --no-compile --disable-pip-version-check)
"${pip[@]}" pandas==2.3.3 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.8.0
"${pip[@]}" --no-deps recommenders==1.2.1 # its metrics need no more than these
"$folder/env/bin/python" - <<'PYTHON'
import sys

import pandas as pd
from recommenders.evaluation import python_evaluation as metrics

# Four users, a click each. User 1 is known; 2, 3 and 4 are new.
test = pd.DataFrame({"userID": [1, 2, 3, 4], "itemID": [10, 11, 12, 13], "rating": [1.0] * 4})


def lists(rows: list[tuple[int, int, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["userID", "itemID", "prediction"])


known = [(1, 10, 0.9), (1, 11, 0.8)]  # right
popular = [(user, item, score) for user in (2, 3, 4) for item, score in ((11, 0.9), (10, 0.8))]  # right for user 2
nothing = [(user, -1, 0.0) for user in (2, 3, 4)]
methods = {
    "answers user 1 alone": (lists(known), (0.5, 1.0, 1.0, 0.25)),
    "answers everybody": (lists(known + popular), (0.25, 0.5, 0.5, 0.5)),
    "an item nobody has for 2 to 4": (lists(known + nothing), (0.125, 0.25, 0.25, 0.25)),
}
names = ("precision_at_k", "recall_at_k", "map_at_k", "ndcg_at_k")
print(f"{'k = 2':32}" + "".join(f"{name:>16}" for name in names))
changed = {}
for method, (table, stated) in methods.items():
    seen = tuple(round(float(getattr(metrics, name)(test, table, k=2)), 4) for name in names)
    print(f"{method:32}" + "".join(f"{value:16.4f}" for value in seen))
    if seen != stated:
        changed[method] = seen
if changed:
    print("changed:", changed)
    sys.exit(1)
PYTHON
