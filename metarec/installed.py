"""What of the library is in use on this machine: the engine for CPUs, its threads, the extras."""

from __future__ import annotations

import importlib.util

import torch

from metarec.meta.library import has_threads, library

EXTRAS = {  # extra -> the module by which it is known
    "learn2learn": "learn2learn",
    "scatter": "torch_scatter",
    "encoders": "sentence_transformers",
    "index": "faiss",
    "serve": "fastapi",
    "export": "onnx",
    "loggers": "wandb",
    "demo": "streamlit",
}


def in_use() -> str:
    """Engine, threads and extras, a line each.

    Example:
        >>> [line.partition(":")[0] for line in in_use().splitlines()]
        ['engine', 'threads', 'extras']
    """
    there = library() is not None
    gpu = f"{torch.cuda.get_device_name()}; on the CPU " if torch.cuda.is_available() else ""
    threads = torch.get_num_threads() if has_threads() or not there else 1
    found = [name for name, module in EXTRAS.items() if importlib.util.find_spec(module) is not None]
    lines = {
        "engine": f"{gpu}{'compiled kernel' if there else 'torch alone, without the compiled kernel'}",
        "threads": f"{threads} of {torch.get_num_threads()}" if threads < torch.get_num_threads() else str(threads),
        "extras": ", ".join(found) or "none",
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())
