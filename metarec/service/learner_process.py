"""The process that learns on beside a service, and what keeps it running."""

from __future__ import annotations

import json
import logging
import logging.config
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait

import torch

from metarec.files import write_json
from metarec.service.build import Build
from metarec.service.handover import Lesson, status_of
from metarec.service.journal import JournalError
from metarec.service.learner import Learner
from metarec.service.server import log_config

_LOG = logging.getLogger("metarec.service")
_SPAWN = multiprocessing.get_context("spawn")
_PAUSE = 1.0  # seconds before a learner that has ended is started again; twice as long each time, up to a minute
_TOLD = 2  # exit status of a learner that has said itself why it ends


def learn_on(build: Build) -> None:
    """What the process of a learner does: a step, a pause, until the process that started it is gone.

    Args:
        build: of the service, with ``learn``.

    Raises:
        SystemExit: if it cannot go on; its status says why.
    """
    logging.config.dictConfig(log_config("INFO"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    os.nice(5)
    try:
        _learn(build, build.learn or 0.0)
    except (OSError, ValueError, TypeError, RuntimeError, JournalError) as error:
        _LOG.error("learning on: %s", error)
        write_json(status_of(build.learned), {"status": "failed", "why": str(error)})
        raise SystemExit(_TOLD) from error


def _learn(build: Build, every: float) -> None:
    learner = Learner(build)
    while True:
        began = time.monotonic()
        _say(build, "learning", learner.lesson)
        learner.step()
        _say(build, "waiting", learner.lesson)
        time.sleep(max(0.0, every - (time.monotonic() - began)))


def _say(build: Build, status: str, lesson: Lesson) -> None:
    said = {"status": status, "version": lesson.version, "number": lesson.number, "learned": lesson.learned}
    write_json(status_of(build.learned), said)


def _end_with_parent() -> None:
    """End at once when the process that started this one is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


@contextmanager
def learning(build: Build) -> Iterator[None]:
    """Keep a learner running meanwhile, if the service is to have one; one that ends is started again.

    Args:
        build: of the service.
    """
    if build.learn is None:
        yield
        return
    stopping = threading.Event()
    keeper = threading.Thread(target=_keep, args=(build, stopping), name="metarec-keeper", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stopping.set()
        keeper.join()


def _keep(build: Build, stopping: threading.Event) -> None:
    """Start learners, one after the other, and say in the status how each ended."""
    ended = 0
    while not stopping.is_set():
        process = _SPAWN.Process(target=learn_on, args=(build,), name="metarec-learner", daemon=True)
        process.start()
        while not stopping.is_set() and not wait([process.sentinel], 0.2):
            pass
        if stopping.is_set():
            process.terminate()
        process.join()
        if stopping.is_set():
            return
        ended += 1
        _LOG.error("the learner ended with status %s; starting another", process.exitcode)
        said = {"status": "crashed", "why": f"the learner ended with status {process.exitcode}"}
        if process.exitcode == _TOLD:
            with suppress(OSError, ValueError):
                said = json.loads(status_of(build.learned).read_text())
        write_json(status_of(build.learned), {**said, "ended": ended})
        stopping.wait(min(60.0, _PAUSE * 2 ** min(ended - 1, 6)))
