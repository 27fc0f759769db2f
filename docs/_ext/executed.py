"""The directive ``executed``: a file of ``docs/examples`` and what it prints, run at every build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError


class Executed(Directive):
    """``{executed} NAME.py``: the file, then its output. A file that fails, or warns, fails the build."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Called by docutils."""
        env = self.state.document.settings.env
        path = Path(env.srcdir) / "examples" / self.arguments[0]
        env.note_dependency(str(path))
        code = path.read_text(encoding="utf-8")
        output = run_example(path)
        shown = nodes.literal_block(output, output, language="text", classes=["output"])
        return [nodes.literal_block(code, code, language="python"), nodes.paragraph(text="It prints:"), shown]


def run_example(path: Path) -> str:
    """What a file prints, on one thread and with warnings as errors."""
    root = path.parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    command = [sys.executable, "-W", "error", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=path.parent, check=False)
    if done.returncode:
        raise ExtensionError(f"{path.name} failed:\n{done.stderr}")
    return done.stdout.rstrip()


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("executed", Executed)
    return {"parallel_read_safe": True}
