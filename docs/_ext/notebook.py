"""The notebook as a page: ``examples/tour.ipynb`` with the outputs it was committed with; nothing runs again."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

NOTE = "\nThis page is `examples/tour.ipynb` as it ran; `make notebook` runs it.\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_page)
    return {"parallel_read_safe": True}


def write_page(app: Sphinx) -> None:
    """Write the page and its pictures."""
    source = Path(app.srcdir)
    cells = json.loads((source.parent / "examples" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    pictures = source / "_generated" / "tour"
    pictures.mkdir(parents=True, exist_ok=True)
    title, *rest = (page_part(cell, pictures) for cell in cells)
    heading, _, text = title.partition("\n")
    (source / "_generated" / "tour.md").write_text("\n\n".join([heading + "\n" + NOTE + text, *rest]), encoding="utf-8")


def page_part(cell: Mapping[str, Any], pictures: Path) -> str:
    """A cell in MyST's markdown; its pictures go to the folder."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return text
    return "\n\n".join([f"```python\n{text}\n```", *(output(found, cell, pictures) for found in cell["outputs"])])


def output(found: Mapping[str, Any], cell: Mapping[str, Any], pictures: Path) -> str:
    """What a cell printed, or drew."""
    if found["output_type"] == "stream":
        return f"```{{code-block}} text\n:class: output\n\n{''.join(found['text']).rstrip()}\n```"
    if "image/png" not in found.get("data", {}) or "alt" not in cell["metadata"]:
        raise ValueError(f"tour.ipynb, cell {cell['id']}: expected text, or a picture and the cell's metadata alt")
    (pictures / f"{cell['id']}.png").write_bytes(base64.b64decode("".join(found["data"]["image/png"])))
    return f"```{{image}} tour/{cell['id']}.png\n:alt: {cell['metadata']['alt']}\n:class: paper\n```"
