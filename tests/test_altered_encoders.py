"""Encoders with random parts altered: every engine gives what a loop over users in plain torch gives."""

import json
import subprocess
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
EXAMPLES = 320


@pytest.fixture
def altered(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import altered_encoders

    return altered_encoders


@pytest.mark.parametrize("start", range(0, EXAMPLES, 40))
def test_altered_encoders_adapt_as_a_loop_over_users_does(altered, start):
    outcome = altered.run(range(start, start + 40))
    assert outcome["different"] == []
    assert outcome["tried"] > 35 and outcome["refused"] == 0


def test_every_alteration_and_every_encoder_of_the_list_is_tried(altered):
    import altering
    import own_encoders
    import torch

    told = " ".join(altering.altered(seed, torch.float64)[1] for seed in range(EXAMPLES))
    assert [name for name in (*altering.ALTERATIONS, *own_encoders.OWN, "copied") if name not in told] == []


def test_the_comparison_sees_what_is_different(altered, monkeypatch):
    from metarec.meta.vmap import VmapUsers

    step = VmapUsers.step
    monkeypatch.setattr(VmapUsers, "step", lambda self, loss, rate, second: step(self, loss, 1.001 * rate, second))
    assert altered.run(range(40))["differences"] > 3


def test_a_run_is_counted_and_dated_and_survives_a_crash(altered, tmp_path, monkeypatch):
    out = tmp_path / "altered.json"
    altered.main(["--examples", "6", "--each", "3", "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found.keys() == {"tried", "crashes", "differences", "refused", "different", "commit", "machine", "date"}
    assert found["tried"] >= 5 and found["crashes"] == found["differences"] == 0
    died = subprocess.CompletedProcess([], -11, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: died)
    counted = altered._apart(range(2))
    assert (counted["crashes"], counted["tried"]) == (2, 2) and "exit -11" in counted["different"][0]
