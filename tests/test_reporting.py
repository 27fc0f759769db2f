"""The record of a run: round trip, messages about broken files, nothing half-written, tables over runs."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarec.files import replace_file
from metarec.report import Report
from metarec.reporting import compare_runs, load_results, plot_results, write_results

EXAMPLE = Path(__file__).parents[1] / "examples" / "print_results.py"


def make_report(*rank: float, cold: int = 1, k: tuple[int, ...] = (5, 10)) -> Report:
    """The first ``cold`` users have cold targets."""
    users = np.arange(1, len(rank) + 1)
    return Report(users, users, np.array(rank), users <= cold, k=k)


def write_run(folder: Path, dataset: str, reports: dict[str, Report], **changes: Any) -> Path:
    run: dict[str, Any] = {
        "dataset": dataset,
        "split": {"at": 10},
        "counts": {"users": 4, "dropped": 1},
        "seed": 7,
        "seconds": {"id": 1.5},
    }
    write_results(folder / "results.json", reports, **{**run, **changes})
    return folder


def test_a_run_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a" / "b", "toy", {"popularité": make_report(1, 2, 20, 4), "one": make_report(3)})
    run = load_results(folder)
    assert run == load_results(folder / "results.json")
    assert {key: run[key] for key in ("dataset", "split", "counts", "seed", "seconds")} == {
        "dataset": "toy",
        "split": {"at": 10},
        "counts": {"users": 4, "dropped": 1},
        "seed": 7,
        "seconds": {"id": 1.5},
    }
    assert run["users"] == {"popularité": {"all": 4, "cold_items": 1}, "one": {"all": 1, "cold_items": 1}}
    assert run["methods"]["popularité"]["recall@5"] == {"mean": 0.75, "se": 0.25}
    assert run["methods"]["popularité"]["mrr@10"]["mean"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 4)
    assert run["cold_items"]["popularité"]["ndcg@5"] == {"mean": 1.0, "se": None}  # one user has no standard error
    assert run["versions"]["torch"] == torch.__version__
    assert run["versions"]["python"] == platform.python_version()
    assert set(run["versions"]) == {"python", "metarec", "torch", "numpy", "polars"}
    assert run["machine"]["cores"] == os.cpu_count()
    assert run["machine"]["device"] == "cpu"
    assert [path.name for path in folder.iterdir()] == ["results.json"]


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_run(tmp_path, "toy", {"m": make_report(1)}, split={"at": object()})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_run(tmp_path, "toy", {"m": make_report(1)}, seconds={"id": float("nan")})
    assert list(tmp_path.iterdir()) == []
    write_run(tmp_path, "old", {"m": make_report(1)})

    def interrupted(file: Path, content: bytes) -> int:
        with file.open("wb") as out:
            out.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_run(tmp_path, "new", {"m": make_report(1)})
    assert load_results(tmp_path)["dataset"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_new_file_replaces_the_old_one(tmp_path: Path) -> None:
    replace_file(tmp_path / "x", b"old")
    replace_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_broken_file_is_named_with_its_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"results\.json: .*give.* run's folder"):
        load_results(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
        load_results(tmp_path / "nowhere")
    file = write_run(tmp_path, "toy", {"m": make_report(1)}) / "results.json"
    good = json.loads(file.read_text())
    for text, message in (
        ("", "not a JSON file"),
        (file.read_text()[:-20], "not a JSON file"),
        ("[1]", r"it lacks \['dataset', "),
        (json.dumps({k: v for k, v in good.items() if k not in ("seed", "methods")}), r"lacks \['seed', 'methods'\]"),
        (json.dumps({**good, "methods": {"m": {"mrr@10": 0.5}}}), r"methods\.m\.mrr@10: .*object"),
        (json.dumps({**good, "cold_items": {"m": {"mrr@10": {"mean": 1}}}}), r"cold_items\.m\.mrr@10: expected an"),
        (json.dumps({**good, "methods": 3}), r"methods: .*object.* 3"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            load_results(tmp_path)
        assert str(file) in str(caught.value)


def three_runs(folder: Path) -> list[Path]:
    """Two seeds of one data set, one run of another with one method more."""
    return [
        write_run(folder / "1", "b", {"pop": make_report(1, 100), "mml": make_report(1, 1)}),
        write_run(folder / "2", "b", {"pop": make_report(100, 100), "mml": make_report(2, 2)}, seed=8),
        write_run(folder / "3", "a", {"pop": make_report(2, 2), "new": make_report(4)}, split={}),
    ]


def test_runs_are_one_line_per_data_set(tmp_path: Path) -> None:
    runs = three_runs(tmp_path)
    # b, pop: runs of 0.5 and 0, mean 0.25, sd 0.354, se 0.25; one run keeps its standard error over users
    assert compare_runs(runs).splitlines() == [
        "mrr@10",
        "dataset  split  runs  pop        mml        new",
        "a        -      1     .500±.000  -          .250±-",
        "b        at=10  2     .250±.250  .750±.250  -",
    ]
    assert compare_runs(runs[:1], method="pop").splitlines() == [
        "pop",
        "dataset  split  runs  recall@5   recall@10  mrr@5      mrr@10     ndcg@5     ndcg@10",
        "b        at=10  1     .500±.500  .500±.500  .500±.500  .500±.500  .500±.500  .500±.500",
    ]


def test_runs_of_another_split_stand_alone(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(at), "b", {"m": make_report(1)}, split={"at": at}) for at in (10, 20)]
    assert [line.split()[:3] for line in compare_runs(runs).splitlines()[2:]] == [
        ["b", f"at={at}", "1"] for at in (10, 20)
    ]


def test_an_unknown_metric_or_method_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    runs = three_runs(tmp_path)
    with pytest.raises(ValueError, match=r"metric 'mrr@11'; .*\['mrr@10', 'mrr@5', 'ndcg@10'"):
        compare_runs(runs, metric="mrr@11")
    with pytest.raises(ValueError, match=r"method 'x'; .*\['mml', 'new', 'pop'\]"):
        compare_runs(runs, method="x")
    with pytest.raises(ValueError, match="no run was given"):
        compare_runs([])


def test_the_command_prints_the_same_table(tmp_path: Path) -> None:
    runs = [str(run) for run in three_runs(tmp_path)]

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        root = str(EXAMPLE.parents[1])
        environment = {**os.environ, "PYTHONPATH": root, "PYTHONIOENCODING": "utf-8"}
        return subprocess.run(
            [sys.executable, str(EXAMPLE), *arguments],
            capture_output=True,
            encoding="utf-8",
            env=environment,
            check=False,
        )

    assert command(*runs, "--metric", "recall@5").stdout == compare_runs(runs, metric="recall@5") + "\n"
    failed = command(str(tmp_path / "none"))
    assert failed.returncode == 1
    assert failed.stderr.startswith("print_results: ")
    assert "no such file" in failed.stderr and "Traceback" not in failed.stderr
    assert "--method" in command("--help").stdout


def test_the_picture_is_a_png_that_shows_every_metric(tmp_path: Path) -> None:
    reports = {"pop": make_report(1, 20, 3), "mml": make_report(1, 1, 2), "alone": make_report(2, cold=0)}
    file = tmp_path / "deep" / "results.png"
    plot_results(file, reports, {"text": [0.7, 0.5], "fusion": [3.0] * 40}, k=5)
    with Image.open(file) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert image.width > 1000
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):  # recall, MRR, NDCG are all drawn
        assert (pixels == colour).all(1).sum() > 100
    plot_results(tmp_path / "alone.png", reports, {})
    with Image.open(tmp_path / "alone.png") as image:
        assert image.width < 1000  # no room is kept for losses


def test_a_picture_needs_reports_with_its_k(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics at k=10, \['m'\] lack it"):
        plot_results(tmp_path / "x.png", {"m": make_report(1, k=(5,))}, {})
    with pytest.raises(ValueError, match=r"none .*lack"):
        plot_results(tmp_path / "x.png", {}, {})
    assert list(tmp_path.iterdir()) == []


def test_runs_with_other_settings_are_lines_of_their_own(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / str(n), "d", {"m": make_report(n)}, seed=n, settings={"preset": preset})
        for n, preset in ((1, "x"), (2, "y"), (4, "x"))
    ]
    assert load_results(runs[1])["settings"] == {"preset": "y"}
    _, header, *rows = compare_runs(runs).splitlines()
    assert header.split() == ["dataset", "split", "runs", "m"]
    assert [row.split() for row in rows] == [
        ["d", "at=10,preset=x", "2", ".625±.375"],  # the mean of 1 and 1/4
        ["d", "at=10,preset=y", "1", ".500±-"],
    ]


def test_a_report_as_a_frame_has_every_metric_of_every_slice() -> None:
    report = make_report(1, 2, 20, 4)
    rows = {(row["slice"], f"{row['metric']}@{row['k']}"): row for row in report.to_frame().iter_rows(named=True)}
    expected = {"all": report.metrics, **report.slices}
    assert set(rows) == {(part, name) for part, metrics in expected.items() for name in metrics}
    for (part, name), row in rows.items():
        metric = expected[part][name]
        assert (row["mean"], row["se"]) == tuple(metric.to_dict().values())
        assert row["users"] == {"all": 4, "cold": 1, "warm": 3, "repeated": 0, "new": 4}[part]
