#!/usr/bin/env bash
# implicit==0.7.3 with scipy==1.17.1: a click that was held out by writing a zero is still a click.
#
# Expected: train[user, item] = 0 takes the click out, as a matrix with a zero there says; the item may be recommended
# again. recommend() says that it leaves out items which the user rated in training.
# Seen: SciPy keeps the place with a zero in it, and implicit goes by places, not by values. The held-out item is
# filtered out as already liked, so no method can ever hit it: precision, MAP and NDCG are exactly 0 for every model.
# SciPy itself calls the two matrices equal.
# Consequence: an evaluation of nothing but misses, and in serving a click that a user withdrew still hides the item.
# Way out: train.eliminate_zeros() after writing zeros.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --no-compile --disable-pip-version-check implicit==0.7.3 numpy==2.4.6 scipy==1.17.1
export OPENBLAS_NUM_THREADS=1
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import sys

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.evaluation import ranking_metrics_at_k
from implicit.nearest_neighbours import CosineRecommender
from scipy.sparse import csr_matrix

# Sixty users in two crowds; each clicked 8 of the 20 items of the crowd, and one of them is held out.
rng = np.random.default_rng(0)
clicks = np.zeros((60, 40), np.float32)
for user, row in enumerate(clicks):
    row[rng.choice(20, 8, replace=False) + 20 * (user % 2)] = 1
held = [int(rng.choice(np.flatnonzero(row))) for row in clicks]
test = csr_matrix((np.ones(60, np.float32), (range(60), held)), shape=clicks.shape)
zeros = csr_matrix(clicks)
for user, item in enumerate(held):
    zeros[user, item] = 0
removed = zeros.copy()
removed.eliminate_zeros()
assert (zeros != removed).nnz == 0  # to SciPy they are the same matrix
print(f"clicks in training {removed.nnz}, places stored {zeros.nnz}")

seen = {}
for name, build in {
    "ALS": lambda: AlternatingLeastSquares(factors=8, random_state=0, num_threads=1, use_gpu=False),
    "item kNN": lambda: CosineRecommender(K=20, num_threads=1),
}.items():
    for form, train in (("zeros stored", zeros), ("zeros removed", removed)):
        model = build()
        model.fit(train, show_progress=False)
        metrics = ranking_metrics_at_k(model, train, test, K=10, show_progress=False, num_threads=1)
        seen[name, form] = {metric: metrics[metric] for metric in ("precision", "map", "ndcg")}
        print(f"{name:9} {form:14}" + "".join(f"{metric:>11} {metrics[metric]:.3f}" for metric in seen[name, form]))
lost = all(value == 0 for (_, form), figures in seen.items() for value in figures.values() if form == "zeros stored")
found = all(value > 0.1 for (_, form), figures in seen.items() for value in figures.values() if form == "zeros removed")
if not (lost and found and zeros.nnz == removed.nnz + 60):
    print("changed: stored zeros are no longer taken for clicks, or the figures without them are not above 0.1")
    sys.exit(1)
PYTHON
