"""The command ``metarec`` as it is typed."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import metarec
from metarec.__main__ import main
from metarec.recommender import Recommender
from service_helpers import ask
from tiny import TWO_LEARNERS, UP

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("command") / "model.safetensors"
    metarec.save(metarec.MML.build(UP, TWO_LEARNERS), path)
    return path


def command(*arguments):
    return [sys.executable, "-m", "metarec", *map(str, arguments)]


def test_version_and_help():
    done = subprocess.run(command("--version"), cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"metarec {metarec.__version__}\n"
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])


def test_serve_answers_until_it_is_told_to_stop(file):
    with subprocess.Popen(command("serve", file, "--port", 0), cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        lines = []
        while not (found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", lines[-1] if lines else "")):
            lines.append(server.stderr.readline())
            assert lines[-1], lines
        status, answer = ask(int(found[1]), "/recommend", {"clicks": ["item3", "item9"], "k": 4})
        server.send_signal(signal.SIGTERM)
        rest = server.stderr.read()
    expected = Recommender(metarec.load(file)).adapt(["item3", "item9"]).recommend(k=4)
    assert status == 200 and [item["id"] for item in answer["items"]] == [item.id for item in expected]
    assert server.returncode in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in rest and "Traceback" not in rest


def test_what_cannot_be_served(file, tmp_path):
    with pytest.raises(SystemExit, match=r"metarec serve: .*gone\.safetensors: no such file"):
        main(["serve", str(tmp_path / "gone.safetensors")])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"cannot listen on 127\.0\.0\.1 port {port} .*choose another"):
            main(["serve", str(file), "--port", str(port)])


def test_export(file, tmp_path):
    main(["export", str(file), str(tmp_path / "model.onnx"), "--k", "3"])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    codes, scores, weights = session.run(None, {"history": np.array([[3, 9]])})
    assert codes.shape == scores.shape == (1, 3) and weights.shape == (1, 2)
