"""The reference: one page per module and one per public name, written from the package itself at each build.

A public name is described on its own page; everything else of a module on the module's page. A cross-reference may name
a thing by any path that Python itself would import it by.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc.mock import mock
from sphinx.pycode import ModuleAnalyzer

import metarec

MOCKED = ["triton"]  # for the kernels of metarec.meta.gpu
GROUPS = {  # heading -> the packages of the library whose public names stand under it
    "Data": ("data",),
    "Parts": ("nn",),
    "Meta-learning": ("meta",),
    "Recipes": ("recipes",),
    "Evaluation": ("evaluation", "report"),
    "Serving": ("recommender", "serving", "io"),
    "What passes between them": ("types", "examples", "model", "wrapped", "scoring"),
}
PUBLIC = [name for name in metarec.__all__ if not inspect.ismodule(getattr(metarec, name))]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", plain_words, priority=400)
    return {"parallel_read_safe": True}


def write_pages(app: Sphinx) -> None:
    """Write the pages, each only where it has changed, so that Sphinx reads again what it must."""
    folder = Path(app.srcdir) / "_generated" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    pages = {name: public_page(name) for name in PUBLIC} | {name: module_page(name) for name in modules()}
    for path in folder.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    (folder.parent / "public.txt").write_text(overview(), encoding="utf-8")


def overview() -> str:
    """Every public name with the first line of its docstring, under the headings of ``GROUPS``."""
    heading = {package: group for group, packages in GROUPS.items() for package in packages}
    lines: dict[str, list[str]] = {group: [f".. rubric:: {group}", ""] for group in GROUPS}
    for name in PUBLIC:
        thing = getattr(metarec, name)
        summary = re.sub(r":\w+:`(?:~[\w.]*\.)?([^`]+)`", r"``\1``", (inspect.getdoc(thing) or "").partition("\n")[0])
        lines[heading[thing.__module__.split(".")[1]]] += [f":doc:`/_generated/api/{name}`", f"   {summary}", ""]
    return "\n".join(line for group in lines.values() for line in group)


def modules() -> list[str]:
    """Every module of the package that does not hide behind an underscore, packages first."""
    found = [info.name for info in pkgutil.walk_packages(metarec.__path__, "metarec.")]
    return ["metarec", *sorted(name for name in found if "._" not in name)]


def public_page(name: str) -> str:
    """The page of ``metarec.NAME``."""
    thing = getattr(metarec, name)
    home = thing.__module__
    return "\n".join(
        [
            title(name),
            f"Write ``mr.{name}`` after ``import metarec as mr``. Defined in :mod:`{home}`.",
            "",
            *directive(f"metarec.{name}", thing),
        ]
    )


def module_page(name: str) -> str:
    """A module's docstring, links to what of it is public, and all else that it defines."""
    parts = [title(name), f".. automodule:: {name}", ""]
    children = [other for other in modules() if other.rpartition(".")[0] == name]
    if children:
        parts += [".. toctree::", "   :maxdepth: 1", "", *(f"   {child}" for child in children), ""]
    if name == "metarec":
        return "\n".join(parts)
    module = load(name)
    public = [own for own in PUBLIC if getattr(metarec, own).__module__ == name]
    if public:
        links = ", ".join(f":doc:`{own}`" for own in public)
        parts += [f"Public names of this module, each on its own page: {links}.", ""]
    exported = [own for own in getattr(module, "__all__", []) if hasattr(getattr(module, own), "__module__")]
    exported = [own for own in exported if not defined_in(module, own)]
    if exported:
        links = ", ".join(f":py:obj:`~{path(getattr(module, own))}`" for own in exported)
        parts += [f"Exports {links}.", ""]
    for own, thing in vars(module).items():
        if not own.startswith("_") and own not in public and defined_in(module, own):
            parts += directive(f"{name}.{own}", thing)
    constants = [own for place, own in ModuleAnalyzer.for_module(name).find_attr_docs() if not place]
    parts += [f".. autodata:: {name}.{own}\n" for own in constants]
    return "\n".join(parts)


def title(text: str) -> str:
    """A heading."""
    return f"{text}\n{'=' * len(text)}\n"


def directive(dotted: str, thing: Any) -> list[str]:
    """The directive that describes a class or a function."""
    if inspect.isclass(thing):
        return [f".. autoclass:: {dotted}", "   :members:", "   :special-members: __call__", ""]
    return [f".. autofunction:: {dotted}", ""]


def load(name: str) -> ModuleType:
    """A module; what only some machines have is mocked, as autodoc does."""
    with mock(MOCKED):
        return importlib.import_module(name)


def defined_in(module: ModuleType, name: str) -> bool:
    """Whether a class or function has its home in this module."""
    thing = getattr(module, name)
    return (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__ == module.__name__


def path(thing: Any) -> str:
    """Where something is described."""
    if inspect.ismodule(thing):
        return str(thing.__name__)
    home, name = thing.__module__, getattr(thing, "__qualname__", "")
    return f"metarec.{name}" if name in PUBLIC and getattr(metarec, name) is thing else f"{home}.{name}"


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Node) -> nodes.Node | None:
    """The description of what a name imports, or of the only thing so called, where a docstring uses another name."""
    target, here = node.get("reftarget", ""), ".".join(filter(None, [node.get("py:module"), node.get("py:class")]))
    if node.get("refdomain") != "py":
        return None
    home = getattr(imported(here), "__module__", None)
    objects = env.domains.python_domain.objects
    for dotted in [target, *(f"{place}.{target}" for place in (node.get("py:module"), here, home) if place)]:
        described = description(dotted)
        if described in objects:
            return link(app, node, described, content)
    same = [name for name, entry in objects.items() if name.endswith(f".{target}") and not entry.aliased]
    return link(app, node, same[0], content) if len(same) == 1 else None


def description(dotted: str) -> str | None:
    """The name that what ``dotted`` imports is described under, if it is of this package."""
    owner, _, name = dotted.rpartition(".")
    thing, around = imported(dotted), imported(owner)
    if thing is None or not str(getattr(around, "__module__", getattr(around, "__name__", ""))).startswith("metarec"):
        return None
    if inspect.isclass(around):
        return f"{path(around)}.{name}"
    return path(thing) if hasattr(thing, "__module__") else None


def link(app: Sphinx, node: pending_xref, name: str, content: nodes.Node) -> nodes.Node:
    """A link to what is described as ``name``."""
    entry = app.env.domains.python_domain.objects[name]
    uri = app.builder.get_relative_uri(node["refdoc"], entry.docname)
    return nodes.reference("", "", content, internal=True, refuri=f"{uri}#{entry.node_id}", reftitle=name)


def plain_words(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from reading words before a colon as a type, at the start of a property and under ``Returns``."""
    start = 0 if what in ("property", "data") else lines.index("Returns:") + 1 if "Returns:" in lines else len(lines)
    end = next((i for i in range(start, len(lines)) if not lines[i].strip()), len(lines))
    lines[start:end] = [re.sub(r"^([^`:]+): ", r"\1, ", line) for line in lines[start:end]]


def imported(dotted: str) -> Any:
    """What ``a.b.c.d`` is, or None."""
    if not dotted.startswith("metarec."):
        return None
    thing: Any = metarec
    for part in dotted.split(".")[1:]:
        thing = getattr(thing, part, None)
        if thing is None:
            return None
    return thing
