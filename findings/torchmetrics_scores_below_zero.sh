#!/usr/bin/env bash
# torchmetrics==1.9.0 (torch==2.13.0): four of its ranking metrics lose every item whose score is not above zero.
#
# Expected: a ranking metric depends on the order of the scores alone. The class pages say that any float output of a
# model will do, so logits, log-probabilities and probabilities of one model give one figure.
# Seen: MRR, MAP, Precision and Recall count a clicked item with a score of 0 or less as never retrieved, wherever it
# stands in the list. HitRate and NDCG of the same package do not: HitRate@2 is 1.0 where Recall@2 of one click is 0.0.
# Version 1.7.0 gave 0.75 for MRR in all three forms.
# Consequence: scores of recommenders are dot products or log_softmax. MRR and MAP of log-probabilities are 0.0 for a
# model that is right; of logits they fall with the number of users whose scores are low, so cold users look worst.
# Way out: hand in softmax or sigmoid of the scores.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --no-compile --disable-pip-version-check torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import sys

import torch
from torchmetrics.retrieval import (
    RetrievalHitRate,
    RetrievalMAP,
    RetrievalMRR,
    RetrievalNormalizedDCG,
    RetrievalPrecision,
    RetrievalRecall,
)

# Four users, four items, one click each: twice the best item, twice the second.
logits = torch.tensor(
    [[2.0, 1.0, 0.5, -1.0], [-0.5, -1.0, -2.0, -3.0], [1.0, -0.2, -1.0, -2.0], [3.0, 2.0, 1.0, 0.5]]
)
clicked = torch.zeros(4, 4, dtype=torch.bool)
clicked[range(4), [0, 0, 1, 1]] = True
users = torch.arange(4)[:, None].expand(4, 4)
forms = {"softmax": logits.softmax(1), "logits": logits, "log_softmax": logits.log_softmax(1)}
assert all(torch.equal(form.argsort(1), logits.argsort(1)) for form in forms.values())
metrics = {
    "MRR": (RetrievalMRR(), [0.75, 0.375, 0.0]),
    "MAP": (RetrievalMAP(), [0.75, 0.375, 0.0]),
    "Precision@2": (RetrievalPrecision(top_k=2), [0.5, 0.25, 0.0]),
    "Recall@2": (RetrievalRecall(top_k=2), [1.0, 0.5, 0.0]),
    "HitRate@2": (RetrievalHitRate(top_k=2), [1.0, 1.0, 1.0]),
    "NDCG@2": (RetrievalNormalizedDCG(top_k=2), [0.8155, 0.8155, 0.8155]),
}
print(f"{'same order, scores as':22}" + "".join(f"{form:>13}" for form in forms))
changed = []
for name, (metric, stated) in metrics.items():
    seen = [round(float(metric(scores, clicked, indexes=users)), 4) for scores in forms.values()]
    print(f"{name:22}" + "".join(f"{value:13.4f}" for value in seen))
    if seen != stated:
        changed.append(f"{name} {seen}, stated {stated}")
if changed:
    print("changed:", "; ".join(changed))
    sys.exit(1)
PYTHON
