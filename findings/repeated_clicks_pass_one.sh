#!/usr/bin/env bash
# recommenders==1.2.1 and RecTools==0.19.0: a user who clicks an item again lifts NDCG, MAP and precision above the top.
#
# Expected: a list's figure depends on which items were clicked, and NDCG and MAP end at 1 (docstrings of recommenders
# give 0 and 1 as bounds). Neither asks for test clicks without repeats, and their splitters hand repeats on.
# Seen: both join lists and test clicks row by row. Three clicks on one item are three hits at one place of the list:
# NDCG@2 3.26 and MAP@2 2.0 (recommenders), NDCG@2 1.23 (RecTools), precision doubled in both. Nothing is raised or
# warned of. MAP and MRR of RecTools do not move, so two figures of one table disagree about the data.
# Consequence: logs of music, groceries or places are mostly repeats. Methods that name what users come back to gain
# most, and a figure that stays below 1 because only some users repeat looks sound.
# Way out: drop repeats of (user, item) from the test before measuring.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip=("$folder/env/bin/pip" install -q --no-compile --disable-pip-version-check)
"${pip[@]}" RecTools==0.19.0 pandas==2.3.3 numpy==1.26.4 scipy==1.17.1 scikit-learn==1.8.0
"${pip[@]}" --no-deps recommenders==1.2.1 # its metrics need no more than these
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import sys

import pandas as pd
from rectools import metrics
from recommenders.evaluation.python_evaluation import map_at_k, ndcg_at_k, precision_at_k, recall_at_k

# Two users, lists of two; the first place is right for both. User 1 clicked item 10 three times.
lists = pd.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [10, 11, 12, 11], "rank": [1, 2, 1, 2]})
once = pd.DataFrame({"user_id": [1, 2], "item_id": [10, 12]})
again = pd.DataFrame({"user_id": [1, 1, 1, 2], "item_id": [10, 10, 10, 12]})

names = {"user_id": "userID", "item_id": "itemID", "rank": "prediction"}
scored = lists.assign(rank=1.0 / lists["rank"]).rename(columns=names)
first = {"NDCG@2": ndcg_at_k, "MAP@2": map_at_k, "Precision@2": precision_at_k, "Recall@2": recall_at_k}
seen = {}
for name, metric in first.items():
    tests = (clicks.assign(rating=1.0).rename(columns=names) for clicks in (once, again))
    seen[f"recommenders {name}"] = tuple(round(float(metric(test, scored, k=2)), 4) for test in tests)
for name in ("NDCG", "MAP", "Precision", "MRR"):
    metric = getattr(metrics, name)(k=2)
    seen[f"RecTools {name}@2"] = tuple(round(float(metric.calc(lists, clicks)), 4) for clicks in (once, again))

print(f"{'':26}{'each once':>10}{'repeated':>10}")
for name, (before, after) in seen.items():
    print(f"{name:26}{before:10.4f}{after:10.4f}")
stated = {
    "recommenders NDCG@2": (1.0, 3.2592),
    "recommenders MAP@2": (1.0, 2.0),
    "recommenders Precision@2": (0.5, 1.0),
    "recommenders Recall@2": (1.0, 1.0),
    "RecTools NDCG@2": (0.6131, 1.2263),  # its ideal list has k hits, whatever was clicked
    "RecTools MAP@2": (1.0, 1.0),
    "RecTools Precision@2": (0.5, 1.0),
    "RecTools MRR@2": (1.0, 1.0),
}
if seen != stated:
    print("changed:", {name: seen[name] for name in seen if seen[name] != stated[name]})
    sys.exit(1)
PYTHON
