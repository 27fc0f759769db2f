"""The directive ``picture``: what drawings, architecture and plots make, in a light and a dark version."""

from __future__ import annotations

from pathlib import Path

import architecture
import drawings
import plots
from docutils import nodes
from docutils.parsers.rst import Directive, directives
from sphinx.application import Sphinx

MAKERS = {**architecture.ARCHITECTURE, **drawings.DRAWINGS, **plots.PLOTS}
STYLES = {
    "light": {"ink": "#1b1b1b", "faint": "#8a8a8a", "paper": "#ffffff"},
    "dark": {"ink": "#e6e6e6", "faint": "#8a8a8a", "paper": "#131416"},
}


class Picture(Directive):
    """``{picture} NAME`` with ``:alt:``, what the picture shows in words; the content is its caption."""

    required_arguments = 1
    option_spec = {"alt": directives.unchanged_required}  # noqa: RUF012  docutils' own form
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Called by docutils."""
        name = self.arguments[0]
        if name not in MAKERS or "alt" not in self.options:
            raise self.error(f"picture {name!r}: expected :alt: and one of {sorted(MAKERS)}")
        figure = nodes.figure()
        for style in STYLES:
            uri = f"/_generated/pictures/{name}-{style}.svg"
            figure += nodes.image(uri=uri, alt=self.options["alt"], classes=[f"only-{style}"])
        caption = nodes.caption()
        text, _ = self.state.inline_text(" ".join(self.content), self.lineno)
        caption += text
        figure += caption
        return [figure]


def draw_all(app: Sphinx) -> None:
    """Draw every picture."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("Agg")
    folder = Path(app.srcdir) / "_generated" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for style, colours in STYLES.items():
        ink = colours["ink"]
        keys = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
        settings = dict.fromkeys(keys, ink) | {"svg.hashsalt": "metarec", "font.size": 10, "svg.fonttype": "path"}
        with mpl.rc_context(settings):
            for name, make in MAKERS.items():
                figure = make(colours)
                figure.savefig(
                    folder / f"{name}-{style}.svg", transparent=True, bbox_inches="tight", metadata={"Date": None}
                )
                plt.close(figure)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", draw_all)
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True}
