"""What is shipped: the wheel and the source archive, and what importing the former loads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import metarec

ROOT = Path(__file__).parents[1]
FOLDERS = ("metarec", "tests", "examples", "benchmarks", "docs")
MADE = ("__pycache__", "*.so", "_generated", "_build", ".hypothesis")
BUILD = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


def committed(top: Path) -> set[str]:
    """The files of the package, as they are committed."""
    files = (path for path in (top / "metarec").rglob("*") if path.is_file())
    return {str(p.relative_to(top)) for p in files if "__pycache__" not in p.parts and p.suffix != ".so"}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel and a source archive, made from a copy without what was built, and without a C compiler."""
    top = tmp_path_factory.mktemp("package")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, top / "source" / folder, ignore=shutil.ignore_patterns(*MADE))
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, top / "source")
    found = {}
    for kind in ("wheel", "sdist"):
        command = [sys.executable, "-W", "error::DeprecationWarning", "-c", BUILD, f"build_{kind}", str(top)]
        environment = {"PATH": "/usr/bin:/bin", "CC": "false"}
        done = subprocess.run(command, cwd=top / "source", capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert "Deprecat" not in done.stderr
        found[kind] = top / done.stdout.splitlines()[-1]
    return found


def test_the_wheel_holds_the_package_and_nothing_else(shipped: dict[str, Path]) -> None:
    with zipfile.ZipFile(shipped["wheel"]) as wheel:
        names = set(wheel.namelist())
    notes = {name for name in names if ".dist-info/" in name}
    sources = {name for name in names - notes if not name.endswith(".so")}
    assert sources == {name for name in committed(ROOT) if not name.endswith((".c", ".h"))}
    assert {"metarec/py.typed", "metarec/datasets/files/movietweetings/LICENSE"} <= sources
    assert {name.rpartition("/")[2] for name in notes} >= {"LICENSE", "METADATA", "entry_points.txt"}
    assert shipped["wheel"].stat().st_size < 8_000_000


def test_the_source_archive_builds_the_same_package(shipped: dict[str, Path]) -> None:
    with tarfile.open(shipped["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert committed(ROOT) <= names
    assert {"pyproject.toml", "setup.py", "constraints.txt", "LICENSE", "CITATION.cff", "CONTRIBUTING.md"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".so", ".pyc"))]


def test_the_metadata(shipped: dict[str, Path]) -> None:
    with zipfile.ZipFile(shipped["wheel"]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("METADATA"))
        found = message_from_string(wheel.read(name).decode())
        commands = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert (found["Name"], found["Version"]) == ("metarec", metarec.__version__)
    assert (found["License-Expression"], found.get_all("License-File")) == ("MIT", ["LICENSE"])
    assert found["Requires-Python"] == ">=3.11"
    classifiers = found.get_all("Classifier", [])
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(classifiers)
    assert "Typing :: Typed" in classifiers and not [line for line in classifiers if "License" in line]
    assert {"serve", "encoders", "export", "demo", "docs", "dev"} <= set(found.get_all("Provides-Extra", []))
    assert "metarec = metarec.__main__:main" in commands
    assert "license: MIT" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_what_is_needed_to_build_knows_the_licence_expression() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    assert build["requires"] == ["setuptools>=77"], "the first that knows license_expression"


def test_the_wheel_alone_imports_little_and_says_its_version(shipped: dict[str, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(shipped["wheel"]) as wheel:
        wheel.extractall(tmp_path)
    opened = (
        "import sys, torch; before = set(sys.modules); files = []\n"
        "sys.addaudithook(lambda event, about: files.append(str(about[0])) if event == 'open' else None)\n"
        "import metarec\n"
        "print(metarec.__file__)\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before if '.' in name or name == 'metarec'})\n"
        "print(*[file for file in files if 'movietweetings' in file and not file.endswith(('.py', '.pyc'))])"
    )
    done = subprocess.run([sys.executable, "-c", opened], cwd=tmp_path, capture_output=True, text=True, check=True)
    place, loaded, data = done.stdout.split("\n")[:3]
    assert Path(place).is_relative_to(tmp_path)
    assert set(loaded.split()) - set(sys.stdlib_module_names) <= {"metarec", "torch", "numpy"}
    assert data == "", "the embedded data are read when they are asked for"
    told = subprocess.run([sys.executable, "-m", "metarec", "--version"], cwd=tmp_path, capture_output=True, check=True)
    assert told.stdout.decode().splitlines()[0] == f"metarec {metarec.__version__}"
