"""The service where the process may open few files: it accepts less, says so once, and recovers."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from metarec import MML, save
from service_helpers import ask, deaf, rest, until
from tiny import TWO_LEARNERS, UP


@contextmanager
def serving(path: Path, files: int | None = None) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """The command as it is typed, where it may open so many files; its port, and its log."""
    log = path.with_suffix(".log")
    limited = None if files is None else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    command = [sys.executable, "-m", "metarec", "serve", str(path), "--port", "0"]
    with (
        log.open("wb") as out,
        subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=out, preexec_fn=limited) as server,
    ):
        try:
            found: list[str] = []
            until(lambda: found.extend(re.findall(r"listening on http://127\.0\.0\.1:(\d+)", log.read_text())) or found)
            until(lambda: "startup complete" in log.read_text())
            yield server, int(found[0]), log
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save(MML.build(UP, TWO_LEARNERS), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_few_file_descriptors(file: Path) -> None:
    with serving(file, files=100) as (process, port, log), ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(150)]
        status, answer = ask(port, "/health")
        assert status == 503 and "ulimit -n" in answer["problem"]  # too many are open, or one more was just refused
        assert len(os.listdir(f"/proc/{process.pid}/fd")) < 100
        for client in clients:
            client.close()
        until(lambda: ask(port, "/health")[0] == 200)
        assert ask(port, "/recommend", {"clicks": ["item1", "item2"], "k": 3})[0] == 200
        lines = [line for line in log.read_text().splitlines() if line.startswith("WARNING")]
    assert [line for line in lines if "100 files" in line] == lines[:1]
    assert len([line for line in lines if "refusing some" in line]) == 1
    assert len(lines) < 10 and "Traceback" not in log.read_text()


def test_no_file_descriptor_at_all_for_a_while(file: Path) -> None:
    with serving(file) as (process, port, log):
        client = HTTPConnection("127.0.0.1", port)
        client.request("GET", "/health")
        assert json.load(client.getresponse())["status"] == "ok"
        before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        waiting = deaf(port, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        until(lambda: "Too many open files" in log.read_text())
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
        answer = rest(waiting)
        assert b"Too many open files" in answer or answer.startswith(b"HTTP/1.1 200 ")
        until(lambda: ask(port, "/health")[0] == 200)
        client.close()
    text = log.read_text()
    assert text.count("cannot accept connections") == 1 and "Traceback" not in text


def test_too_few_files_to_serve_at_all(file: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    command = [sys.executable, "-m", "metarec", "serve", str(file), "--port", "0"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], preexec_fn=limited, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert "metarec serve: the process may open 40 files" in done.stderr
    assert "Traceback" not in done.stderr
