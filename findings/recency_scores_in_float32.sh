#!/usr/bin/env bash
# pytrec-eval-terrier==0.5.11 and ir-measures==0.4.3: scores two minutes apart are equal, and then item ids decide.
#
# Expected: a run gives each item a Python float, and items are ranked by it. "Most recently seen first" with the unix
# second as its score is such a run; it is the baseline that sequential models have to beat.
# Seen: scores are stored in 32 bits. Seconds of our years then step by 128; items seen within two minutes are ties, and
# ties go to the item id that comes last as text ("9" before "10"). Neither package says so in its pages. The same order
# as seconds since the user's first click, or as ranks, gives other figures.
# Consequence: in one session all items tie: the baseline's figure is one of item ids. Renumbering the catalogue moves
# reciprocal rank from 1.0 to 0.25 without touching a list. Ids of equal length that count up favour new items.
# Way out: hand in minus the rank as the score.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --no-compile --disable-pip-version-check \
  pytrec-eval-terrier==0.5.11 ir-measures==0.4.3 numpy==2.4.6 scipy==1.17.1
"$folder/env/bin/python" - <<'PYTHON'
import sys

import ir_measures
import pytrec_eval

# One session: four songs, twenty seconds apart; the one heard last is played next.
heard = [1_764_000_000 + 20 * step for step in range(4)]


def reciprocal_rank(ids: list[str], scores: list[float]) -> tuple[float, float]:
    clicked, run = {"user": {ids[-1]: 1}}, {"user": dict(zip(ids, map(float, scores)))}
    one = pytrec_eval.RelevanceEvaluator(clicked, {"recip_rank"}).evaluate(run)["user"]["recip_rank"]
    other = ir_measures.calc_aggregate([ir_measures.RR], clicked, run)[ir_measures.RR]
    return one, other


older_first, newer_first = ["11", "12", "13", "14"], ["14", "13", "12", "11"]
cases = {
    "unix seconds, ids rise with time": (reciprocal_rank(older_first, heard), 1.0),
    "unix seconds, ids fall with time": (reciprocal_rank(newer_first, heard), 0.25),
    "seconds since the first, ids fall": (reciprocal_rank(newer_first, [t - heard[0] for t in heard]), 1.0),
    "minus the rank, ids fall": (reciprocal_rank(newer_first, [-4, -3, -2, -1]), 1.0),
    "unix seconds, 9 and 10": (reciprocal_rank(["9", "10"], heard[:2]), 0.5),
}
print(f"{'reciprocal rank of the last one heard':40}pytrec_eval  ir_measures")
for case, (seen, _) in cases.items():
    print(f"{case:40}{seen[0]:11.2f}{seen[1]:13.2f}")
changed = {case: seen for case, (seen, stated) in cases.items() if seen != (stated, stated)}
if changed:
    print("changed:", changed)
    sys.exit(1)
PYTHON
