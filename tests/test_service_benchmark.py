"""The load test runs, finds every answer right, and would notice a wrong one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import metarec as mr
from tiny import TWO_LEARNERS, UP

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "service.py"


@pytest.fixture(scope="module")
def model():
    return mr.MML.build(UP, TWO_LEARNERS)


@pytest.fixture
def service(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import service

    return service


def test_a_small_run(model, tmp_path):
    mr.save(model, tmp_path / "model.safetensors")
    out = tmp_path / "service.json"
    command = [sys.executable, SCRIPT, "--model", tmp_path / "model.safetensors", "--out", out]
    sizes = [
        "--clients",
        "1",
        "4",
        "--requests",
        "24",
        "--users",
        "6",
        "--clicks",
        "6",
        "--k",
        "4",
        "--bad",
        "4",
        "--read-timeout",
        "1",
    ]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command), *sizes], env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [level["clients"] for level in result["levels"]] == [1, 4]
    for level in [*result["levels"], result["abuse"]["good"]]:
        assert level["right"] == level["requests"] == 24 and level["wrong"] == level["lost"] == 0
        assert 0 < level["p50_ms"] <= level["p99_ms"]
    assert result["abuse"]["health"] == "200"
    assert all(sum(result["abuse"][kind].values()) == 4 for kind in ("garbage", "oversized", "slow"))
    assert {"commit", "machine", "date", "threads", "settings"} <= set(result)


def test_a_wrong_answer_is_noticed(model, service):
    questions = service.ask_directly(mr.Recommender(model), users=2, clicks=6, k=4)
    right, other = ([{"id": i, "score": s} for i, s in list(q.scores.items())[:4]] for q in questions)
    assert not questions[0].wrong({"items": right})
    assert questions[0].wrong({"items": other})
    assert questions[0].wrong({"items": right[:3]})
    assert questions[0].wrong({"items": [right[1], right[0], *right[2:]]})
    assert questions[0].wrong({"items": [{**right[0], "id": "nothing"}, *right[1:]]})


def test_pairs_of_builds_and_kills_are_added_to_the_file(model, tmp_path):
    mr.save(model, tmp_path / "model.safetensors")
    out = tmp_path / "service.json"
    out.write_text('{"levels": []}', encoding="utf-8")
    command = [sys.executable, ROOT / "benchmarks" / "service_pairs.py", "--out", out, "--before", ROOT]
    command += [
        "--model",
        tmp_path / "model.safetensors",
        "--clients",
        4,
        "--requests",
        24,
        "--rounds",
        1,
        "--users",
        6,
    ]
    command += ["--clicks", 6, "--k", 4, "--kills", 1, "--label", "tiny"]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command)], env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["levels"] == [] and result["wrong"] == 0
    assert result["kills"]["tried"] == 1 and result["kills"]["lost"] == result["kills"]["doubled"] == 0
    own = result["models"]["tiny"]
    for name in ("requests_per_cpu_second", "ratio_to_before", "p99_ms"):
        assert result[name] == own[name] > 0
    [both] = own["pairs"]["rounds"]
    assert own["ratio_to_before"] == pytest.approx(
        both["now"]["requests_per_cpu_second"] / both["before"]["requests_per_cpu_second"]
    )
    assert {"commit", "machine", "before", "clients"} <= set(own["pairs"])
