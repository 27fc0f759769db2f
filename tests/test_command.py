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
    version, *lines = done.stdout.splitlines()
    assert version == f"metarec {metarec.__version__}"
    assert [line.partition(": ")[0] for line in lines] == ["engine", "threads", "extras"]
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


def test_serve_gives_new_items_the_share_that_was_saved(tmp_path, monkeypatch):
    recommender = Recommender(metarec.MML.build(UP, TWO_LEARNERS), new_share=0.4)
    recommender.save(tmp_path / "whole.safetensors")
    served = []
    monkeypatch.setattr("metarec.service.serve", lambda app, **options: served.append(app.state.service.recommender))
    main(["serve", str(tmp_path / "whole.safetensors")])
    assert served[0].new_share == 0.4
    assert served[0].adapt(["item3"]).recommend(k=9) == recommender.adapt(["item3"]).recommend(k=9)


def test_what_cannot_be_served(file, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"cannot listen on 127\.0\.0\.1 port {port} .*choose another"):
            main(["serve", str(file), "--port", str(port)])


WRONG = {
    "no command": ([], "metarec: the following arguments are required: COMMAND"),
    "another command": (["x\x1b[31m"], r"metarec: argument COMMAND: invalid choice: 'x\x1b[31m'"),
    "no model": (["serve"], "metarec serve: the following arguments are required: model"),
    "an unknown option": (["serve", "MODEL", "--what\x1b"], r"metarec serve: unknown arguments: --what\x1b"),
    "a missing file": (["serve", "gone\x1b[31m"], r"metarec serve: gone\x1b[31m: no such file"),
    "a folder": (["serve", "."], "metarec serve: ."),
    "another file": (["serve", "junk"], "metarec serve: junk: "),
    "an empty file": (["serve", "empty"], "metarec serve: empty: "),
    "no file name": (["serve", "x\0y"], "metarec serve: "),
    "no CUDA": (
        ["serve", "MODEL", "--device", "cuda:99"],
        "metarec serve: argument --device: 'cuda:99' is not",
    ),
    "no device": (
        ["serve", "MODEL", "--device", "abacus"],
        "metarec serve: argument --device: 'abacus' is not",
    ),
    "no real device": (["serve", "MODEL", "--device", "meta"], "metarec serve: argument --device: 'meta' is not to be"),
    "an empty device": (["serve", "MODEL", "--device", ""], "metarec serve: argument --device: '' is not to be had"),
    "a large port": (["serve", "MODEL", "--port", "65536"], "metarec serve: argument --port: expected a number from 0"),
    "a negative port": (["serve", "MODEL", "--port", "-1"], "metarec serve: argument --port: expected a number from 0"),
    "a named port": (["serve", "MODEL", "--port", "http"], "metarec serve: argument --port: expected a number from 0"),
    "no host": (["serve", "MODEL", "--host", "a..b"], "metarec serve: cannot listen on a..b port 8000"),
    "somebody else's host": (["serve", "MODEL", "--host", "192.0.2.1"], "metarec serve: cannot listen on 192.0.2.1"),
    "a host that is none": (["serve", "MODEL", "--host", "\udcff"], r"metarec serve: cannot listen on \udcff port"),
    "nobody at once": (
        ["serve", "MODEL", "--max-batch", "0"],
        "metarec serve: argument --max-batch: expected",
    ),
    "half a user": (["serve", "MODEL", "--waiting", "1.5"], "metarec serve: argument --waiting: expected a number"),
    "no time": (
        ["serve", "MODEL", "--timeout", "0"],
        "metarec serve: argument --timeout: expected a number",
    ),
    "no number": (["serve", "MODEL", "--read-timeout", "nan"], "metarec serve: argument --read-timeout: expected"),
    "for ever": (["serve", "MODEL", "--write-timeout", "inf"], "metarec serve: argument --write-timeout: expected"),
    "no path": (["export", "MODEL"], "metarec export: the following arguments are required: path"),
    "a folder as a path": (["export", "MODEL", "."], "metarec export: . is a folder; name the file to write"),
    "nothing exported": (["export", "MODEL", "x", "--k", "0"], "metarec export: argument --k: expected a number"),
    "no model to export": (["export", "gone", "x"], "metarec export: gone: no such file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_and_status_2(file, tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    Path("junk").write_bytes(b"junk" * 99)
    Path("empty").touch()
    arguments, message = WRONG[case]
    with pytest.raises(SystemExit) as refused:
        main([str(file) if word == "MODEL" else word for word in arguments])
    said = capsys.readouterr()
    assert refused.value.code == 2 and said.out == ""
    assert said.err.startswith(message) and said.err.count("\n") == 1 and said.err.strip().isprintable()
    assert str(refused.value) == said.err.strip()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "junk"]


@pytest.mark.parametrize(("words", "extra"), [(["serve", "gone"], "serve"), (["export", "gone", "x"], "export")])
def test_without_its_extra_a_command_names_it(words, extra):
    code = (
        "import importlib.util as u, sys; sys.path.insert(0, 'tests')\n"
        "import metarec.__main__ as command; from metarec import MML; from tiny import UP, TWO_LEARNERS\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name.startswith(('fastapi', 'onnx')) else find(name, *rest)\n"
        "command.load = lambda path: MML.build(UP, TWO_LEARNERS)\n"
        "command.main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"metarec {words[0]}: ") and f"pip install 'metarec[{extra}]'" in done.stderr


def test_control_c_stops_without_a_traceback(file):
    with subprocess.Popen(command("serve", file, "--port", 0), cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        lines = []
        while "startup complete" not in (lines[-1] if lines else ""):
            lines.append(server.stderr.readline())
            assert lines[-1], lines
        server.send_signal(signal.SIGINT)
        rest = server.stderr.read()
    assert server.returncode == 0 and "Application shutdown complete" in rest and "Traceback" not in rest


def test_export(file, tmp_path):
    main(["export", str(file), str(tmp_path / "model.onnx"), "--k", "3"])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    codes, scores, weights = session.run(None, {"history": np.array([[3, 9]])})
    assert codes.shape == scores.shape == (1, 3) and weights.shape == (1, 2)
