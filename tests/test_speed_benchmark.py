"""benchmarks/speed_cpu.py: ratios are medians of paired sums, quality is paired by user, kept jobs are not redone."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("speed_cpu", BENCHMARKS / "speed_cpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job(seconds: dict[str, float], ranks: list[float]) -> str:
    taken = {name: {"cpu": cpu, "wall": 2 * cpu} for name, cpu in seconds.items()}
    return json.dumps({"seconds": taken, "ranks": {"weight fusion": ranks}})


def test_the_whole_from_jobs_that_were_done(speed: ModuleType, tmp_path: Path) -> None:
    for seed, faster in enumerate((2.0, 4.0, 5.0)):
        for build, by in (("before", 1.0), ("now", faster)):
            stages = {"load and build": 1.0, "text": 16.0 / by, "test": 3.0}
            (tmp_path / f"main_{build}_{seed}.json").write_text(job(stages, [1.0, 30.0, 2.0]), encoding="utf-8")
    for build, cpu in (("before", 8.0), ("now", 2.0)):
        (tmp_path / f"neighbours_{build}_500.json").write_text(job({"neighbours": cpu}, []), encoding="utf-8")
        (tmp_path / f"added_{build}_90.json").write_text(job({"first": cpu, "second": 2.0}, []), encoding="utf-8")
        for number, seconds in enumerate((cpu, 3 * cpu)):
            (tmp_path / f"short_{build}_{number}.json").write_text(job({"training": seconds}, []), encoding="utf-8")
    out = tmp_path / "speed.json"
    options = ["--before", str(tmp_path), "--keep", str(tmp_path), "--items", "500", "--recipes", "0"]
    speed.main([*options, "--out", str(out), "--commit", "abc"])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["main_job_ratio"] == pytest.approx((1 + 4 + 3) / 20)
    assert found["main_job_training_ratio"] == pytest.approx(0.25)
    assert found["build"] == {"500": 0.25}
    assert found["seconds"]["now"]["text"] == {"cpu": 4.0, "wall": 8.0}
    quality = found["ndcg@10"]["weight fusion"]
    assert quality["gain"] == 0 and quality["method"] == pytest.approx((1 + 1 / np.log2(3)) / 3)
    assert "added" not in found and "recipe_training_ratio" not in found
    options += ["--seeds", "0", "--items", "--added", "90", "--busy", "1"]
    speed.main([*options, "--out", str(out), "--commit", "later"])
    again = json.loads(out.read_text(encoding="utf-8"))
    assert again["main_job_ratio"] == found["main_job_ratio"] and again["build"] == {"500": 0.25}
    assert again["added"]["90"]["ratio"] == 0.4 and again["added"]["90"]["now"]["first"]["cpu"] == 2
    assert again["busy"]["now"] == {"alone": 2, "beside": 6, "ratio": 3}
    assert again["commit"] == "abc" and again["runs"]["added"]["commit"] == "later"
    assert found["commit"] == "abc" and out.with_suffix(".png").stat().st_size > 1000


def test_the_result_in_the_repository_has_both_builds() -> None:
    found = json.loads((BENCHMARKS / "results" / "speed_cpu.json").read_text(encoding="utf-8"))
    assert found["seconds"]["before"].keys() == found["seconds"]["now"].keys()
    assert found["main_job_training_ratio"] < 0.3 and found["build"]["20000"] < 0.7
    for method, gain in found["ndcg@10"].items():
        assert gain["gain_high"] > 0, method
