"""The house rules that no other tool keeps: layers, sizes, public names, one version, nothing heavy at import."""

import ast
import graphlib
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import metarec
from layers import LAYERS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "metarec"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [
    *MODULES,
    *(path for folder in ("tests", "examples", "benchmarks", "docs") for path in sorted((ROOT / folder).rglob("*.py"))),
    ROOT / "setup.py",
]


# The public names, by hand: adding or removing one is a decision, not an accident.
PUBLIC = {
    "AdaptiveFusion",
    "Catalog",
    "ColdItemGenerator",
    "Dataset",
    "EpisodeBatch",
    "EpisodeSampler",
    "Examples",
    "FeatureItems",
    "IdItems",
    "MML",
    "MMLConfig",
    "MetaLearner",
    "Method",
    "ModalityLearner",
    "Model",
    "Popularity",
    "Progress",
    "Recommender",
    "Report",
    "Scored",
    "SequenceEncoder",
    "UserState",
    "Vocabulary",
    "as_model",
    "datasets",
    "distributed",
    "evaluate",
    "fit",
    "functional",
    "load",
    "load_atomic",
    "recipes",
    "register",
    "save",
    "split_by_time",
    "split_time",
}


def imported(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in the file, as an absolute dotted name."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield ast.literal_eval(node.args[0])


def package_of(dotted: str) -> str | None:
    """The package of a metarec module: the part after the first dot."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "metarec" and len(parts) > 1 else None


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("path", [p for p in MODULES if p != PACKAGE / "__init__.py"], ids=name)
def test_layers(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert here in LAYERS, f"{name(path)}: a new package; give it a place in LAYERS and in the README"
    packages = {place for place in map(package_of, imported(path)) if place in LAYERS}
    assert packages <= LAYERS[here] | {here}
    assert "metarec" not in set(imported(path)) or packages, f"{name(path)} imports metarec/__init__.py"


def test_every_layer_exists() -> None:
    packages = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert packages - {"__init__", "__pycache__"} == set(LAYERS)


def test_learn2learn_is_imported_in_one_file() -> None:
    importers = [path for path in MODULES if any(module.split(".")[0] == "learn2learn" for module in imported(path))]
    assert len(importers) == 1
    assert importers[0].parent == PACKAGE / "meta"


def test_no_test_file_imports_another() -> None:
    """Nor does a script that one starts: what is shared is in a module without tests."""
    pattern = re.compile(r"""\b(?:from|import|import_module)\b[\s('"]+(?:tests\.|\.)*(test_\w+)""")
    for path in sorted((ROOT / "tests").glob("*.py")):
        wanted = pattern.findall(path.read_text(encoding="utf-8"))
        assert [module for module in wanted if (ROOT / "tests" / f"{module}.py").is_file()] == [], name(path)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("test_*.py")), ids=name)
def test_no_sentence_is_expected_of_a_message(path: Path) -> None:
    """Names and numbers are; five plain words in a row are prose, which may be written better any day."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "match":
            assert not re.search(r"(\b[a-z]+[ ,;]+){4}[a-z]+\b", ast.unparse(node.value)), f"line {node.value.lineno}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES if path.stem != "__init__"
    }
    graph = {name: set(imported(path)) & names.keys() - {name} for name, path in names.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("metarec.meta.ops") < order.index("metarec.meta.gpu") < order.index("metarec.meta.adapted")


def length(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """Lines of a definition without its docstring; for a class, without those of its methods too."""
    docs = [
        inner.body[0]
        for inner in ast.walk(node)
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(inner)
    ]
    return span(node) - sum(map(span, docs))


def span(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert length(node) <= 40, f"{node.name}, line {node.lineno}"
        elif isinstance(node, ast.ClassDef):
            assert length(node) <= 200, f"{node.name}, line {node.lineno}"


def test_complexity_is_bounded_by_ruff() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert "C90" in lint["select"]
    assert lint["mccabe"]["max-complexity"] <= 10
    waved = [name(path) for path in SOURCES if re.search(r"noqa.*(C90|ANN)", path.read_text(encoding="utf-8"))]
    assert set(waved) <= {name(Path(__file__))}


def test_import_loads_nothing_heavy_and_reads_no_data(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "metarec", ignore=shutil.ignore_patterns("files", "__pycache__"))
    # torch itself loads tqdm where it finds it, hence the difference.
    code = (
        "import sys, torch; torchs_own = set(sys.modules); import metarec; print(metarec.__file__); "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - torchs_own}))"
    )
    place, loaded = run(code, tmp_path).splitlines()
    assert Path(place).is_relative_to(tmp_path)
    assert "metarec" in loaded.split()
    heavy = "polars learn2learn torch_scatter torchvision gym scipy matplotlib tqdm"
    optional = "PIL timm sentence_transformers transformers fastapi uvicorn pydantic onnx onnxruntime streamlit"
    assert not {*heavy.split(), *optional.split()} & set(loaded.split())


def test_public_names() -> None:
    assert len(metarec.__all__) == len(set(metarec.__all__))
    assert set(metarec.__all__) == PUBLIC
    assert 20 <= len(PUBLIC) <= 36


@pytest.mark.parametrize("public", sorted(metarec.__all__))
def test_public_names_are_documented(public: str) -> None:
    thing = getattr(metarec, public)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        assert "__doc__" in vars(thing)
        assert not str(thing.__doc__).startswith(f"{public}("), "the docstring a dataclass writes for itself"


def test_one_version_and_setup_needs_no_torch_to_read_it() -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', '--version'];"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    assert run(code, ROOT).split()[-1] == metarec.__version__
    elsewhere = [path for path in MODULES if f'"{metarec.__version__}"' in path.read_text(encoding="utf-8")]
    assert elsewhere == [PACKAGE / "__init__.py"]


def test_the_lowest_releases_are_those_setup_allows() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    ranges = next(n.value for n in ast.walk(tree) if isinstance(n, ast.keyword) and n.arg == "install_requires")
    wanted = {line.replace(">=", "==") for line in ast.literal_eval(ranges) if not line.startswith("torch")}
    lowest = (ROOT / "requirements-lowest.txt").read_text(encoding="utf-8").splitlines()
    assert {line.removesuffix(".0") for line in lowest if not line.startswith("#")} == wanted


def test_learn2learn_is_real() -> None:
    import learn2learn

    assert learn2learn.algorithms.MAML


def test_the_extras_are_real() -> None:
    import torch_scatter

    assert torch_scatter.scatter_add
    skipped = [name(p) for p in SOURCES if p != Path(__file__) and "importorskip" in p.read_text(encoding="utf-8")]
    assert skipped == []


def test_no_fixture_has_the_name_of_a_plugins() -> None:
    theirs = {"benchmark", "mocker", "faker", "cov", "httpserver", "requests_mock", "event_loop", "snapshot", "page"}
    fixtures = {
        node.name
        for path in sorted((ROOT / "tests").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and any("fixture" in ast.unparse(d) for d in node.decorator_list)
    }
    assert len(fixtures) > 20 and not fixtures & theirs


def committed() -> list[Path]:
    top = [path for path in ROOT.iterdir() if path.is_file()]
    folders = [ROOT / folder for folder in (".ci", "metarec", "tests", "examples", "benchmarks", "docs", "findings")]
    inside = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    made = {"__pycache__", "_build", "_generated"}  # by running, building and compiling
    files = [path for path in [*top, *inside] if not made & set(path.parts) and path.suffix != ".so"]
    return [path for path in files if path.name != ".git"]


@pytest.mark.parametrize("place", ["/work" + "/", "/tmp" + "/w", "/root" + "/", "/opt" + "/", "/home" + "/"])
def test_no_machine_paths(place: str) -> None:
    assert [name(path) for path in committed() if place.encode() in path.read_bytes()] == []
