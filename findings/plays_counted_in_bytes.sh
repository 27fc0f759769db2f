#!/usr/bin/env bash
# scipy==1.17.1 with implicit==0.7.3: the 128th play of a favourite turns it into what the listener dislikes most.
#
# Expected: rows (user, item, 1) make a matrix of counts, since SciPy's page says that duplicates are summed; ones in a
# byte are plenty for ones. implicit takes counts as confidence, and its page keeps negative values for dislikes.
# Seen: the sum is kept in the byte too: 127 plays are 127, 128 are -128, 256 are a stored zero. Even .sum() of the
# rows, an int64, comes out 256 too low. implicit turns the counts into float32 and raises nothing: the favourite is now
# disliked with confidence 128, with a score of nought and below items that the listener never touched.
# Consequence: only the most faithful users of the most loved items are hit, so means hardly move, and int8 is what
# memory-saving loaders (ones of a byte, downcast columns) hand over.
# Way out: ones in float32 or int32 before the matrix is built; a check that no count is below 1.
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
from scipy.sparse import coo_matrix

# Sixty listeners in two crowds, 8 of 20 songs each, once; one of them plays a favourite again and again.
rng = np.random.default_rng(0)
plays = [(user, item + 20 * (user % 2)) for user in range(60) for item in rng.choice(20, 8, replace=False)]
fan, favourite = 0, plays[0][1]


def place_of_favourite(times: int, kind: type) -> tuple[float, float, int, int]:
    users, items = zip(*plays, *[(fan, favourite)] * (times - 1))
    rows = coo_matrix((np.ones(len(users), kind), (users, items)), shape=(60, 40))
    total = int(rows.sum())
    counts = rows.tocsr()
    model = AlternatingLeastSquares(factors=8, random_state=0, num_threads=1, use_gpu=False)
    model.fit(counts, show_progress=False)
    ids, _ = model.recommend(fan, counts[fan], N=40, filter_already_liked_items=False)
    score = float(model.user_factors[fan] @ model.item_factors[favourite])
    return float(counts[fan, favourite]), score, ids.tolist().index(favourite) + 1, len(users) - total


print(f"{'plays':>5} {'data':8}{'stored as':>10}{'score':>8}{'place of 40':>13}{'missing in .sum()':>19}")
seen = {}
for times in (127, 128, 200):
    for kind in (np.int8, np.int32):
        count, score, place, missing = seen[times, kind.__name__] = place_of_favourite(times, kind)
        print(f"{times:5} {kind.__name__:8}{count:10.0f}{score:8.3f}{place:13}{missing:19}")
counts = {case: count for case, (count, *_) in seen.items()}
stated = {"wrapped": counts[128, "int8"] == -128 and counts[200, "int8"] == -56 and counts[127, "int8"] == 127}
stated["right in 32 bits"] = all(counts[times, "int32"] == times for times in (127, 128, 200))
for case, (_, score, place, missing) in seen.items():
    disliked = case in {(128, "int8"), (200, "int8")}
    stated[case] = (place > 15 and score < 0.3) if disliked else (place <= 8 and score > 0.8)
    stated[case, "sum"] = missing == (256 if disliked else 0)
if not all(stated.values()):
    print("changed:", [what for what, holds in stated.items() if not holds])
    sys.exit(1)
PYTHON
