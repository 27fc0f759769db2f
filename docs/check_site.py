"""What Sphinx does not check of the finished site: links arrive, pictures speak, public names have examples."""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import metarec


class Page(HTMLParser):
    """The links, anchors and pictures of one page.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.faults: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag in ("a", "link") and "href" in found:
            self.links.append(found["href"])
        if tag in ("img", "script") and "src" in found:
            self.links.append(found["src"])
        if tag == "img" and not found.get("alt") and "sidebar-logo" not in found.get("class", ""):
            self.faults.append(f"{self.path.name}: picture {found.get('src')} has no alt text")


def faults(site: Path) -> Iterator[str]:
    """All that is wrong, one line each."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    for page in pages.values():
        yield from page.faults
        for link in page.links:
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            file, anchor = urldefrag(unquote(link))
            target = (page.path.parent / file.partition("?")[0]).resolve() if file else page.path.resolve()
            if not target.exists():
                yield f"{page.path.name}: {link} leads nowhere"
            elif anchor and target in pages and anchor not in pages[target].anchors:
                yield f"{page.path.name}: {link} names no place of that page"
    reference = site / "_generated" / "api"
    for name in metarec.__all__:
        own = [reference / f"{name}.html"] if (reference / f"{name}.html").exists() else []
        places = own or reference.glob(f"metarec.{name}*.html")
        if not any("&gt;&gt;&gt;" in path.read_text(encoding="utf-8") for path in places):
            yield f"the public name {name} has no page with an example"


if __name__ == "__main__":
    found = list(faults(Path(sys.argv[1])))
    sys.exit("\n".join(found) if found else 0)
