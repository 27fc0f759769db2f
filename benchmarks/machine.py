"""What every benchmark needs: options, its machine and commit, how fast the machine can be, and a stopwatch."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
MATRIX = {"cpu": 1024, "cuda": 8192}  # rows and columns of the matrices whose product measures the matmul rate
COPIES = {"cpu": range(18, 29, 2), "cuda": range(20, 31, 2)}  # log2 of the bytes that measure the copy rate
COPIED = {"cpu": 1 << 28, "cuda": 1 << 34}  # bytes copied per sample, so that small copies are timed in numbers
SAMPLES = 3
WARM_UP = 2  # calls before those that count


class AtLeast(argparse.Action):
    """Refuses whole numbers that are too small.

    Args:
        option_strings: the option's names.
        dest: the attribute that it sets.
        least: the smallest number that is taken.
        options: what every action takes.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, least: int = 1, **options: Any) -> None:
        super().__init__(option_strings, dest, **{**options, "type": int})
        self.least = least

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Called by argparse."""
        smallest = min(values) if isinstance(values, list) else values
        if smallest < self.least:
            parser.error(f"{option} must be at least {self.least}, got {smallest}")
        setattr(namespace, self.dest, values)


def command_line(text: str | None) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it is written."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_numbers(
    parser: argparse.ArgumentParser, numbers: Mapping[str, tuple[int, str]], least: Mapping[str, int] | None = None
) -> None:
    """Options for whole numbers.

    Args:
        parser: gets them.
        numbers: name without dashes in front -> default and meaning.
        least: name -> the smallest that is taken, if not 1.
    """
    for name, (default, text) in numbers.items():
        told = f"{text} (default: {default})"
        smallest = (least or {}).get(name, 1)
        parser.add_argument(f"--{name}", action=AtLeast, least=smallest, default=default, metavar="N", help=told)


def add_machine_options(parser: argparse.ArgumentParser, device: str = "auto") -> None:
    """``--device``, which is parsed to a device, and ``--commit``."""
    told = f"cpu, cuda or auto (default: {device})"
    parser.add_argument("--device", type=_device, default=device, metavar="NAME", help=told)
    parser.add_argument("--commit", help="the commit that runs, where git cannot be asked")


def stamp(device: torch.device, given: str | None = None) -> dict[str, object]:
    """Which commit ran, where and when; ``given`` says the commit where git cannot."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"commit": given or commit(), "machine": describe(device), "date": date}


def place(machine: Mapping[str, Any]) -> str:
    """What ran a benchmark, in a few words: the processor, or the GPU."""
    return str(machine["cpu"] if machine["device"] == "cpu" else machine["device"])


def choose_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` takes a GPU where there is one.

    Raises:
        ValueError: if the name is of neither, or a GPU is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in MATRIX:
        raise ValueError(f"--device {name!r}: expected one of {['auto', *MATRIX]}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name!r}: torch {torch.__version__} finds no GPU here; use --device cpu")
    return torch.device(name)


def commit() -> str:
    """The commit that is checked out, with ``-dirty`` where tracked files differ from it; ``"unknown"`` without git."""
    question = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        answer = subprocess.run(question, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


def describe(device: torch.device) -> dict[str, object]:
    """The processor, its cores, the device and the versions that the speed depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """How long a call takes until the device has finished it."""
    _synchronise(device)
    start = time.perf_counter()
    function()
    _synchronise(device)
    return time.perf_counter() - start


def samples(
    functions: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, title: str
) -> dict[str, list[float]]:
    """Seconds of each function, ``repeats`` times in turns, so that what slows the machine slows them all.

    Each is called twice before, untimed: memory is allocated and kernels are chosen in the first call, CUDA graphs are
    recorded in the second.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    with tqdm(total=(WARM_UP + repeats) * len(functions), desc=title, unit="run") as bar:
        for turn in range(WARM_UP + repeats):
            for name, function in functions.items():
                bar.set_postfix_str(name if turn >= WARM_UP else f"{name}, warm-up")
                elapsed = seconds(function, device)
                if turn >= WARM_UP:
                    taken[name].append(elapsed)
                bar.update()
    return taken


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of one large float32 matrix product, the fastest of several."""
    size = MATRIX[device.type]
    a, b = torch.randn(2, size, size, device=device).unbind()
    return 2 * size**3 / _fastest(lambda: a @ b, device)


def copy_rates(device: torch.device) -> dict[int, float]:
    """Bytes/s read and written by copies of several sizes, from what caches hold to what only memory does."""
    rates = {}
    for power in COPIES[device.type]:
        size, times = 1 << power, COPIED[device.type] >> power
        source = torch.zeros(size // 4, device=device)
        target = torch.empty_like(source)

        def copy(source: torch.Tensor = source, target: torch.Tensor = target, times: int = times) -> None:
            for _ in range(times):
                target.copy_(source)

        rates[size] = 2 * size * times / _fastest(copy, device)
    return rates


def _device(name: str) -> torch.device:
    try:
        return choose_device(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _fastest(function: Callable[[], object], device: torch.device) -> float:
    function()
    return min(seconds(function, device) for _ in range(SAMPLES))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
