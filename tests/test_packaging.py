"""What is built from these sources: wheel and sdist are complete, and install and run outside the clone."""

from __future__ import annotations

import email.message
import email.parser
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    """The output of Python with these arguments, outside the clone unless ``cwd`` is in it."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**own, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder), cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(packages: Path) -> Path:
    return next(packages.glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(name).decode())


def list_wheel(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return sorted(archive.namelist())


def test_the_wheel_installs_and_runs_outside_the_clone(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel), cwd=elsewhere)
    environment = {"PYTHONPATH": str(site)}
    code = "import art_robust_plugins as p; print(p.__file__); print(p.__version__); p.Evaluator"
    place, version = run("-c", code, cwd=elsewhere, environment=environment).splitlines()
    assert Path(place).is_relative_to(site)
    said = run(str(site / "bin" / "art-robust"), "--version", cwd=elsewhere, environment=environment)
    assert said.split()[-1] == version == PROJECT["version"]


def test_the_wheel_holds_the_package_and_what_it_reads(wheel: Path) -> None:
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "art_robust_plugins").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    held = set(list_wheel(wheel))
    assert {name for name in held if ".dist-info/" not in name} == sources
    assert {"art_robust_plugins/py.typed", "art_robust_plugins/experiments/recipes/digits.toml"} <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_the_sdist_builds_the_same_wheel(packages: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(next(packages.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    sources = next(tmp_path.iterdir())
    assert {"tests", "docs", "benchmarks", "constraints.txt", "tox.ini"} <= {path.name for path in sources.iterdir()}
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again"), cwd=sources)
    assert list_wheel(next((tmp_path / "again").glob("*.whl"))) == list_wheel(wheel)


def test_links_and_pictures_of_the_description_lead_somewhere_from_an_index(metadata: email.message.Message) -> None:
    description = str(metadata.get_payload())
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", description)
    links = re.findall(r"\]\(([^)]*)\)", description)
    assert pictures
    assert len(links) > 30
    assert all(address.startswith("https://raw.githubusercontent.com/") for address in pictures)
    assert all(re.match(r"https://|#", address) for address in links)
    for address in links:
        path = re.search(r"/art-robust-plugins/(?:blob/)?main/([^#]+)", address)
        assert path is None or (ROOT / path[1]).exists()


def test_the_metadata_say_where_the_project_is(metadata: email.message.Message) -> None:
    labels = {value.split(", ")[0] for value in metadata.get_all("Project-URL", [])}
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= labels
    assert metadata["License-Expression"] == "MIT"
    versions = re.findall(r"Python :: (3\.\d+)", str(metadata.get_all("Classifier")))
    assert versions == ["3.10", "3.11", "3.12", "3.13"]


def test_the_version_is_the_same_everywhere(metadata: email.message.Message) -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert metadata["Version"] == PROJECT["version"] == cited[1]


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    text = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([a-z0-9-]+)==([\d.]+)$", text, re.MULTILINE))
    stated = [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]
    bounds = dict(re.findall(r"^([a-z0-9-]+)[>=]=([\d.]+)", "\n".join(stated), re.MULTILINE))
    assert len(bounds) > 12

    def release(version: str) -> list[int]:
        numbers = [int(number) for number in version.split(".")]
        return numbers + [0] * (3 - len(numbers))

    assert {name: release(version) for name, version in pinned.items()} == {
        name: release(version) for name, version in bounds.items()
    }
