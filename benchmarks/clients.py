"""What clients say over a socket, the well-behaved and the others."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
from collections.abc import Sequence


def post(content: bytes, path: str = "/recommend", *headers: str) -> bytes:
    """A request, by default for recommendations."""
    head = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", *headers]
    return "\r\n".join([*head, f"content-length: {len(content)}", "", ""]).encode() + content


def port_of(server: subprocess.Popen[str]) -> int:
    """The port that a server which has just been started names in its log.

    Raises:
        RuntimeError: if it does not start, with its log.
    """
    lines = []
    for line in server.stderr or ():
        lines.append(line)
        if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    raise RuntimeError(f"the server did not start:\n{''.join(lines)}")


async def answer(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Status and body of one response."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    body = await reader.readexactly(int(length[1])) if length else await reader.read()
    return head.split(b" ", 2)[1].decode(), body


async def got(port: int, path: str) -> tuple[str, str]:
    """Status and body of a GET."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    status, body = await answer(reader)
    writer.close()
    return status, body.decode()


async def told(port: int, content: bytes) -> tuple[str, int]:
    """Status and size of the first answer to some bytes, however they are taken."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(content)
        status, body = await answer(reader)
    except (OSError, asyncio.IncompleteReadError):
        return "hung up", 0
    finally:
        writer.close()
    return status, len(body)


async def garbage(port: int, seed: int) -> str:
    """Random bytes, or a request that has had some of its bytes changed."""
    rng = random.Random(seed)
    content = bytearray(post(b'{"clicks": [], "k": 5}') if seed % 2 else rng.randbytes(rng.randint(1, 4000)))
    for _ in range(seed % 7):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return await _outcome(port, [bytes(content)], then=2)


async def oversized(port: int, seed: int) -> str:
    """A body, or headers, of some megabytes."""
    if seed % 2:
        return await _outcome(port, [post(b"x" * (2 << 20))], then=5)
    return await _outcome(port, [b"GET /health HTTP/1.1\r\nx: ", *[b"y" * 65536] * 32], then=5)


async def slow(port: int, seed: int) -> str:
    """Headers, or a body, that come byte by byte and never end."""
    whole = b"POST /recommend HTTP/1.1\r\nhost: x\r\n" + (b"content-length: 99\r\n\r\n" if seed % 2 else b"")
    return await _outcome(port, [whole, *[b"x"] * 60], pause=0.25, then=1)


async def _outcome(port: int, parts: Sequence[bytes], *, pause: float = 0.0, then: float) -> str:
    """What the service does: answers with a status, hangs up, or waits for more until the client gives up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            if pause:
                await asyncio.sleep(pause)
        head = await asyncio.wait_for(reader.read(64), then)
    except TimeoutError:
        return "waited for more"
    except OSError:
        head = b""
    finally:
        writer.close()
    return head.split(b" ", 2)[1].decode() if head.startswith(b"HTTP/1.1 ") else "hung up"
