"""How Sphinx builds the site: ``make docs``. Warnings are errors, and nothing is fetched from the network."""

import doctest
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

import inventories  # noqa: E402  in _ext, as the extensions below are
import list_tables  # noqa: E402
import portable_tables  # noqa: E402
import reference  # noqa: E402
import tables  # noqa: E402

import metarec  # noqa: E402

project = "metarec"
author = "metarec authors"
copyright = author  # noqa: A001
release = version = metarec.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "reference",
    "formulas",
    "executed",
    "pictures",
    "notebook",
]
root_doc = "index"
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_ext", "_generated/tables", "data", "examples", "inventories"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
html_math_renderer = "mathml"
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_mock_imports = reference.MOCKED
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
doctest_test_doctest_blocks = ""  # the examples of the docstrings run under pytest, `make doctest`
doctest_default_flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

intersphinx_mapping = inventories.mapping(DOCS / "inventories", DOCS / "_generated")

nitpicky = True
nitpick_ignore = [("py:exc", "torch.OutOfMemoryError")]  # has no page
nitpick_ignore_regex = [
    (r"py:class", r"metarec\.[\w.]+\.(S|T|R|C|Batch|Number|_\w+)"),  # type variables and private classes have no page
    # What metarec.service is made of, and what checks the fields of its requests.
    (r"py:(class|exc)", r"(annotated_types|argparse|asyncio|fastapi|httptools|pydantic|socket|starlette|uvicorn)\..*"),
    (r"py:class", r"prometheus_client\..*"),
    (
        r"py:class",
        r"Ge|Le|Header|types\.Annotated|FailFast|FieldInfo|NoneType|PydanticUndefined|metarec\.service\.requests\._\w+",
    ),
    (
        r"py:class",
        r"Ints|Part|numpy\.(int32|integer)|torch\.optim\.(adam\.Adam|optimizer\.Optimizer)"
        r"|torch\.distributed\.device_mesh\.DeviceMesh",
    ),  # a path that has no page, and types
    (
        r"py:class",
        r"(collections\.abc\.Mapping|dict|tuple|list\[dict)\[[~\w.]+",
    ),  # Sphinx cuts `float | dict[str, float]` so
]

html_theme = "furo"
html_title = "metarec"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
templates_path: list[str] = []


def setup(app: object) -> None:
    """Called by Sphinx: write what pages include."""
    for made in (tables, portable_tables, list_tables):
        made.write(DOCS / "_generated" / "tables")
