#!/usr/bin/env bash
# torcheval==0.0.7 (torch==2.13.0): a model that answers NaN, or one number, has hit rate and reciprocal rank 1.0.
#
# Expected: the pages define the hit rate by whether the class is among the top k of the scores. Scores that tell
# nothing put an item among 10 of 1,000 one time in a hundred; scores that are no numbers are an error, or nothing.
# Seen: the rank is the count of scores above the item's. With ties none is above, and nothing is ever above NaN: both
# metrics are perfect, at k = 1 too, by function and by class. torch.topk of the same scores hits one time in a hundred.
# Consequence: a run that diverges, or a user without features whose scores are all equal, is the best of a search;
# early stopping keeps it, and new items that share one vector all count as hits.
# Way out: check torch.isfinite first; count ties at their mean rank.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --no-compile --disable-pip-version-check torch==2.13.0 torcheval==0.0.7 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import sys

import torch
from torcheval.metrics import HitRate, ReciprocalRank
from torcheval.metrics.functional import hit_rate, reciprocal_rank

users = items = 1000
clicked = torch.randperm(items, generator=torch.Generator().manual_seed(0))
noise = torch.rand(users, items, generator=torch.Generator().manual_seed(1))
models = {
    "chance": noise,
    "all scores 0": torch.zeros(users, items),
    "all scores NaN": torch.full((users, items), torch.nan),
    "NaN for what was clicked": noise.scatter(1, clicked[:, None], torch.nan),
}
print(f"{'':26}{'hit rate@1':>12}{'@10':>8}{'recip. rank':>13}{'topk(10) hits':>15}")
seen = {}
for name, scores in models.items():
    hits = [hit_rate(scores, clicked, k=k).mean().item() for k in (1, 10)]
    rank = reciprocal_rank(scores, clicked).mean().item()
    for metric, value in ((HitRate(k=10), hits[1]), (ReciprocalRank(), rank)):
        assert metric.update(scores, clicked).compute().mean().item() == value
    top = (scores.topk(10).indices == clicked[:, None]).any(1).float().mean().item()
    seen[name] = (*hits, rank)
    print(f"{name:26}{hits[0]:12.3f}{hits[1]:8.3f}{rank:13.3f}{top:15.3f}")
perfect = [name for name in models if seen[name] == (1.0, 1.0, 1.0)]
if perfect != list(models)[1:] or seen["chance"][1] > 0.05:
    print("changed: perfect are", perfect, "and chance hits", seen["chance"][1])
    sys.exit(1)
PYTHON
