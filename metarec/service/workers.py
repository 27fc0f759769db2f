"""Several processes that answer on one port, each with the whole model."""

from __future__ import annotations

import contextlib
import logging
import logging.config
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

import torch
from prometheus_client import multiprocess

from metarec.service.build import Build
from metarec.service.server import listening, log_config, make_server, name_of, run

_LOG = logging.getLogger("metarec.service")
_PAUSE = 1.0  # seconds before a worker that has died is replaced
_SPAWN = multiprocessing.get_context("spawn")


class Workers:
    """Processes that each build an application and serve it on a socket of their own, of one address.

    The system spreads the connections over them. One that dies is replaced, and who has connected to it meanwhile waits
    for its successor.

    Args:
        build: makes the application, in each of them.
        places: their sockets.
    """

    def __init__(self, build: Build, places: list[socket.socket]) -> None:
        self._build, self._places = build, places
        self._running: dict[int, SpawnProcess] = {}
        self._begun: dict[int, Any] = {}  # by place, the end of a pipe through which its process says that it serves
        self._stopping = threading.Event()

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM.

        Raises:
            ChildProcessError: if a process cannot begin to serve; its own message is in the log.
        """
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for place in range(len(self._places)):
                self._start(place)
            for begun in self._begun.values():
                self._await(begun)
            while not self._stopping.is_set():
                self._replace()
        finally:
            for process in self._running.values():
                process.terminate()
            for process in self._running.values():
                process.join()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping.set()

    def _start(self, place: int) -> None:
        self._begun[place], here = _SPAWN.Pipe(duplex=False)
        threads = max(1, torch.get_num_threads() // len(self._places))
        given = (self._build, self._places[place], threads, here)
        process = _SPAWN.Process(target=_work, args=given, name=f"metarec-{place}")
        process.start()
        here.close()
        self._running[place] = process

    def _await(self, begun: Any) -> None:
        """Wait until a process serves."""
        while not self._stopping.is_set():
            if begun in wait([begun], _PAUSE):
                with contextlib.suppress(EOFError):
                    begun.recv()
                    return
                raise ChildProcessError("a worker could not begin to serve; the log says why")

    def _replace(self) -> None:
        """Replace the processes that have died."""
        ended = wait([process.sentinel for process in self._running.values()], _PAUSE)
        for place, process in list(self._running.items()):
            if process.sentinel in ended and not self._stopping.is_set():
                process.join()
                multiprocess.mark_process_dead(process.pid)  # type: ignore[no-untyped-call]
                _LOG.error("worker %d ended with status %s; starting another", place, process.exitcode)
                time.sleep(_PAUSE)
                self._start(place)


def _work(build: Build, place: socket.socket, threads: int, ready: Any) -> None:
    """What each process does."""
    logging.config.dictConfig(log_config("INFO"))
    torch.set_num_threads(threads)
    try:
        server = make_server(build(), build.limits)
    except (OSError, ValueError, TypeError) as error:
        _LOG.error("%s", error)
        sys.exit(2)
    ready.send(os.getpid())
    parent = multiprocessing.parent_process()

    def follow() -> None:
        """Stop when the first process is gone, however it ended."""
        if parent is not None:
            parent.join()
        server.should_exit = True

    threading.Thread(target=follow, daemon=True).start()
    run(server, place)


def serve_workers(build: Build, workers: int, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve with several processes until SIGINT or SIGTERM.

    Args:
        build: makes the application, in each process.
        workers: how many processes.
        host: address to listen on.
        port: 0 takes a free one, which the log names.

    Raises:
        OSError: if the address or the journal cannot be had.
        ChildProcessError: if a process cannot begin to serve.
        ValueError: if there is no such port, or the journal is damaged or of another model.
    """
    if journal := build.open_journal():
        journal.close()  # it is there, and whole
    logging.config.dictConfig(log_config("INFO"))
    with _places(host, port, workers) as places, tempfile.TemporaryDirectory(prefix="metarec-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # the counts of all processes are shown together
        _LOG.info("listening on %s with %d workers, documented under /docs", name_of(places[0]), workers)
        Workers(build, places).run()


@contextlib.contextmanager
def _places(host: str, port: int, count: int) -> Iterator[list[socket.socket]]:
    """Listening sockets of one address, which nobody else has."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(listening(host, port))
        if not hasattr(socket, "SO_REUSEPORT"):
            yield [first] * count
            return
        address = first.getsockname()[:2]
        first.close()
        yield [stack.enter_context(listening(*address, shared=True)) for _ in range(count)]
