"""Hostile requests of less than a mebibyte: the processor time that each takes from the service, and how it ends.

Usage::

    python benchmarks/hostile.py --out hostile.json

A server is started as ``metarec serve --allow-changes`` starts it. Each kind of request is sent a few times over a
connection of its own. The time is that of the whole process of the server, by the system's account of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from clients import post, told
from machine import add_numbers, command_line, stamp
from service import served

import metarec as mr
from metarec.files import write_json

MIB = (1 << 20) - 64  # of the largest body that is read
ALLOWED = 0.5  # seconds that no request may take


def filled(start: str, part: str | Callable[[int], str], end: str) -> bytes:
    """A body of as many parts as go in, between a start and an end."""
    parts: list[str] = []
    size, number = len(start) + len(end), 0
    while True:
        text = part if isinstance(part, str) else part(number)
        size += len(text.encode()) + 1
        if size > MIB:
            return f"{start}{','.join(parts)}{end}".encode()
        parts.append(text)
        number += 1


def bodies() -> dict[str, tuple[str, bytes]]:
    """Paths and bodies by kind."""
    one, many, add = "/recommend", "/recommend/users", "/items/add"
    vectors = '{"ids":[],"vectors":{'
    return {
        "numbers for clicks": (one, filled('{"clicks":[', "1", "]}")),
        "nulls for allow": (one, filled('{"clicks":[],"allow":[', "null", "]}")),
        "lists for candidates": (one, filled('{"clicks":[],"candidates":[', "[]", "]}")),
        "objects for deny": (one, filled('{"clicks":[],"deny":[', "{}", "]}")),
        "unknown ids": (one, filled('{"clicks":[', lambda n: f'"{n}"', "]}")),
        "unknown fields": (one, filled('{"clicks":[],', lambda n: f'"{n}":1', "}")),
        "one field, many times": (one, filled('{"clicks":[],', '"k":1', "}")),
        "one long id": (one, b'{"clicks":["%b"]}' % (b"x" * (MIB - 20))),
        "one long field": (one, b'{"%b":1}' % (b"\\u001b" * (MIB // 6 - 9))),
        "long numbers": (one, filled('{"clicks":[],"k":[', "9" * 4300, "]}")),
        "a longer number": (one, b'{"clicks":[],"k":%b}' % (b"9" * (MIB - 30))),
        "a long fraction": (one, b'{"clicks":[],"k":0.%b}' % (b"3" * (MIB - 30))),
        "great exponents": (one, filled('{"clicks":[],"k":[', "1e999999999", "]}")),
        "brackets": (one, b"[" * MIB),
        "many nests": (one, filled('{"clicks":[', "[" * 500 + "]" * 500, "]}")),
        "no JSON": (one, b"\xff" * MIB),
        "escapes": (one, b'{"clicks":["%b"]}' % (b"\\ud800" * (MIB // 6 - 9))),
        "empty users": (many, filled('{"users":[', "{}", "]}")),
        "users of no clicks": (many, filled('{"users":[', '{"clicks":[]}', "]}")),
        "users who are numbers": (many, filled('{"users":[', "1", "]}")),
        "users of ill-typed clicks": (many, filled('{"users":[', '{"clicks":[1]}', "]}")),
        "users of unknown fields": (many, filled('{"users":[{"clicks":[],', lambda n: f'"{n}":1', "}]}")),
        "numbers for vectors": (add, filled(vectors, lambda n: f'"{n}":1', "}}")),
        "numbers for rows": (add, filled(vectors + '"text":{', lambda n: f'"{n}":1', "}}}")),
        "strings in a row": (add, filled(vectors + '"text":{"a":[', '"x"', "]}}}")),
        "rows of nobody": (add, filled(vectors + '"text":{', lambda n: f'"{n}":[1]', "}}}")),
        "a long row": (add, filled('{"ids":["a"],"vectors":{"text":{"a":[', "1.5", "]}}}")),
        "rows of infinity": (add, filled(vectors + '"text":{"a":[', "1e999", "]}}}")),
        "new ids of control characters": (add, filled('{"vectors":{},"ids":[', '"\\u0000"', "]}")),
        "new ids": (add, filled('{"vectors":{},"ids":[', lambda n: f'"new{n}"', "]}")),
        "numbers for titles": (add, filled('{"ids":[],"vectors":{},"attributes":{"title":[', "1", "]}}")),
        "columns": (add, filled('{"ids":[],"vectors":{},"attributes":{', lambda n: f'"{n}":[]', "}}")),
        "numbers to remove": ("/items/remove", filled('{"ids":[', "1", "]}")),
    }


def requests() -> dict[str, bytes]:
    """Whole requests by kind: all bodies, and what is no body."""
    line = b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    chunks = line + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 150_000 + b"0\r\n\r\n"
    return {
        **{name: post(content, path) for name, (path, content) in bodies().items()},
        "chunks of one byte": chunks,
        "many headers": b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a:\r\n" * 4000 + b"\r\n",
        "a long query": b"GET /health?" + b"a&" * 8000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        "one request after the other": b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n" * 100,
    }


def cpu(process: int) -> float:
    """Seconds of processor time that a process has had."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(port: int, process: int, sent: Mapping[str, bytes], times: int) -> dict[str, dict[str, Any]]:
    """What each kind costs once, and the status and size of its first answer."""
    out = {}
    for name, content in sent.items():
        before = cpu(process)
        for _ in range(times):
            status, size = asyncio.run(told(port, content))
        out[name] = {"cpu_seconds": (cpu(process) - before) / times, "status": status, "answer_bytes": size}
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, send, write the JSON."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="the JSON file")
    add_numbers(parser, {"times": (5, "that each request is sent")})
    options = parser.parse_args(arguments)
    started = argparse.Namespace(threads=1, read_timeout=10.0, more=["--allow-changes"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        mr.save(mr.MML.build(mr.datasets.planted(users=60, items=40), mr.MMLConfig(dim=8)), path)
        with served(path, started) as (port, server):
            found = measured(port, server.pid, requests(), options.times)
    worst = max(found, key=lambda name: found[name]["cpu_seconds"])
    slow = [name for name, figures in found.items() if figures["cpu_seconds"] > ALLOWED]
    result = {"requests": found, "worst": worst, "slow": slow, "times": options.times, **stamp(torch.device("cpu"))}
    write_json(options.out, result)
    print(json.dumps({name: [*figures.values()] for name, figures in found.items()}, indent=1))
    print(f"worst: {worst}, {found[worst]['cpu_seconds']:.3f} s; slow: {slow or 'none'}; written to {options.out}")


if __name__ == "__main__":
    main()
