"""Inventories of other projects' pages, as far as this site links to them: short texts, so that a build needs no net.

Each line is ``NAME DOMAIN:ROLE URI``, the URI under the project's address on the first line; ``$`` stands for the name.
"""

import zlib
from pathlib import Path


def mapping(sources: Path, out: Path) -> dict[str, tuple[str, str]]:
    """What intersphinx wants: project -> its address and the inventory made from ``sources/PROJECT.txt``."""
    out.mkdir(exist_ok=True)
    found = {}
    for source in sorted(sources.glob("*.txt")):
        address, *lines = source.read_text(encoding="utf-8").splitlines()
        path = out / f"{source.stem}.inv"
        path.write_bytes(inventory(source.stem, lines))
        found[source.stem] = (address, str(path))
    return found


def inventory(project: str, lines: list[str]) -> bytes:
    """An inventory in Sphinx' format, version 2."""
    head = (
        f"# Sphinx inventory version 2\n# Project: {project}\n# Version:\n# The remainder is compressed using zlib.\n"
    )
    rows = [f"{name} {role} 1 {uri} -" for name, role, uri in (line.split() for line in lines)]
    return head.encode() + zlib.compress("\n".join([*rows, ""]).encode())
