"""pyproject.toml, the lock, environment.yml, Makefile and README say the same, and the tree stays tidy."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = {
    name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()
}
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
PINS = [
    Requirement(line)
    for line in (ROOT / ".ci/constraints.txt").read_text().splitlines()
    if not line.startswith("#")
]
TOP_LEVEL = {
    "notebooks",
    "minivllava",
    "data",
    "tests",
    "environment.yml",
    "README.md",
    "pyproject.toml",
    "Makefile",
    "LICENSE",
    "CITATION.cff",
}
MEGABYTE = 1_000_000


def named(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def tracked_files() -> list[Path]:
    """Files that git tracks and that are there, relative to the root; skips outside a checkout of this."""
    try:
        top = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        files = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, or no git")
    if Path(top.stdout.strip()).resolve() != ROOT:
        pytest.skip("inside the checkout of another project")
    return [Path(name) for name in files.stdout.split("\0") if name and (ROOT / name).is_file()]


def readme() -> str:
    path = ROOT / "README.md"
    if not path.exists():
        pytest.skip("no README.md yet")
    return path.read_text(encoding="utf-8")


def code_lines(markdown: str) -> Iterator[str]:
    """Lines of fenced blocks, without a `$` prompt, and inline code spans."""
    for block in re.findall(r"^```.*?\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE):
        yield from (line.strip().removeprefix("$ ") for line in block.splitlines())
    yield from re.findall(r"`([^`\n]+)`", markdown)


def imported_packages(folder: str) -> set[str]:
    """Names of the distributions that the Python files under `folder` import, anywhere in the file."""
    distribution = {"PIL": "pillow", "yaml": "pyyaml"}
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    own = {"minivllava", "tests", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    return {canonicalize_name(distribution.get(name, name)) for name in names - own - sys.stdlib_module_names}


def locked(python: str) -> dict[str, str]:
    """Versions that the lock gives on Python `python`, by name."""
    pins = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate({"python_version": python})]
    for pin in pins:
        assert re.fullmatch(r"==[0-9][^+*,]*", str(pin.specifier)), f"{pin}: not one exact public version"
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    assert len(versions) == len(pins), "a package is pinned twice"
    return versions


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14", "3.15"])
def test_the_lock_pins_every_dependency_within_its_range(python: str) -> None:
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    versions = locked(python)
    for requirement in CORE + [r for extra in EXTRAS.values() for r in extra if r.name != PROJECT["name"]]:
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} is not in the lock: run `make lock`"
        assert requirement.specifier.contains(versions[name]), f"{requirement}, locked to {versions[name]}"


def test_torch_is_locked_to_the_version_whose_cpu_build_the_course_uses() -> None:
    assert locked("3.11")["torch"] == "2.13.0"


def test_packages_that_break_beside_another_torch_build_are_never_required() -> None:
    everything = named(PINS + CORE + [r for extra in EXTRAS.values() for r in extra])
    assert not everything & {"torchvision", "torchaudio", "torchcodec"}


def test_decord_is_required_only_where_it_has_a_wheel() -> None:
    (decord,) = (requirement for requirement in CORE if requirement.name == "decord")
    platforms = {
        ("linux", "x86_64"): True,
        ("win32", "AMD64"): True,
        ("linux", "aarch64"): False,
        ("darwin", "arm64"): False,
        ("darwin", "x86_64"): False,
    }
    for (system, machine), expected in platforms.items():
        assert decord.marker.evaluate({"sys_platform": system, "platform_machine": machine}) is expected


def test_every_import_is_declared() -> None:
    optional = [requirement for extra in ("published", "quantize", "eval") for requirement in EXTRAS[extra]]
    assert imported_packages("minivllava") <= named(CORE + optional)
    assert imported_packages("tests") <= named(CORE + EXTRAS["test"])


def test_files_beside_the_code_are_installed_with_it() -> None:
    package = Path("minivllava")
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["minivllava"]
    installed = {path.relative_to(ROOT) for pattern in patterns for path in (ROOT / package).glob(pattern)}
    beside = {path for path in tracked_files() if path.is_relative_to(package) and path.suffix != ".py"}
    assert beside <= installed


def test_dev_is_all_other_extras() -> None:
    (everything,) = EXTRAS["dev"]
    assert everything.name == PROJECT["name"]
    assert everything.extras == set(EXTRAS) - {"dev", "quantize"}, "torchao warns wherever transformers is imported"


def test_environment_yml_asks_for_the_same_as_pyproject_and_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"][0] == "conda-forge"
    *conda, pip = environment["dependencies"]
    # Everything that has a version comes through pip and so from the lock.
    assert [re.match(r"[a-z0-9-]+", spec).group() for spec in conda] == ["python", "pip"]
    assert SpecifierSet(conda[0].removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    constraint, project = pip["pip"]
    assert (ROOT / constraint.removeprefix("-c ")).is_file()
    path, extras = re.fullmatch(r"-e (\.)\[([a-z,]+)\]", project).groups()
    assert set(extras.split(",")) <= set(EXTRAS)


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    paper = citation["preferred-citation"]
    assert paper["title"].startswith("Video-LLaVA:")
    assert "2311.10122" in str(paper["identifiers"])


def test_ci_runs_exactly_make_test() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert re.findall(r"^\s*(make [^\n|]*?) *(?:2>&1|\||$)", text, re.MULTILINE) == ["make test"]


def test_every_make_target_that_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "notebooks", "lint", "lock", "clean"} <= targets
    asked = {match.group(1) for line in code_lines(readme()) if (match := re.match(r"make ([a-z]+)", line))}
    assert {"demo", "test"} <= asked
    assert asked <= targets


def test_the_readme_installs_the_project_with_the_lock() -> None:
    of_the_project = re.compile(r"pip install .*[\s'\"]\.(\[|['\"]?$)")
    installs = [line for line in code_lines(readme()) if of_the_project.search(line)]
    assert all(".ci/constraints.txt" in line for line in installs), installs


def test_the_top_level_holds_only_known_names() -> None:
    names = {path.parts[0] for path in tracked_files()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_tracked_files_stay_small() -> None:
    sizes = {path: (ROOT / path).stat().st_size for path in tracked_files()}
    pretrained = {path for path in sizes if path.is_relative_to("data/pretrained")}
    assert [str(path) for path in sizes.keys() - pretrained if sizes[path] > 5 * MEGABYTE] == []
    assert sum(sizes[path] for path in pretrained) <= 12 * MEGABYTE


def test_no_tracked_text_names_a_machine_path_or_a_package_registry() -> None:
    folders = ("root", "work", "opt", r"home/\w+", r"Users/\w+", "tmp/(?:dev|bash_jobs|ipykernel)")
    hosts = ("pypi", "pythonhosted", r"download\.pytorch", r"registry\.npmjs", "anaconda", "prefix")
    machine_path = rf"(?<![\w.~$}})>-])/(?:{'|'.join(folders)})[/_]"
    registry = rf"\b(?:{'|'.join(hosts)})\.(?:org|com|dev)\b|--(?:extra-)?index-url|--find-link[s]"
    forbidden = re.compile(f"{machine_path}|{registry}")
    found = []
    for path in tracked_files():
        content = (ROOT / path).read_bytes()
        if b"\0" in content[:8192]:
            continue
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
            if forbidden.search(line):
                found.append(f"{path}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def package_map() -> list[str]:
    """Files and folders of the package's own README, relative to the package, in its order."""
    section = (ROOT / "minivllava" / "README.md").read_text(encoding="utf-8")
    listed, folder = [], ""
    for cell in re.findall(r"^\| (.+?) \|", section, re.MULTILINE):
        if heading := re.fullmatch(r"\*\*(.+)\*\*", cell):
            folder = heading[1] if heading[1].endswith("/") else ""
        listed += [folder + name for name in re.findall(r"`([^`]+)`", cell)]
    return listed


def test_the_readme_says_how_many_lines_the_model_has():
    wrappers = ("transformers_language.py", "transformers_vision.py")  # around `transformers`
    files = [path for path in (ROOT / "minivllava/models").glob("*.py") if path.name not in wrappers]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    said = re.findall(r"([\d,]+) lines", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(said) == {f"{lines:,}"}, f"README.md: models/ without {', '.join(wrappers)} has {lines:,} lines"


def test_the_packages_readme_maps_every_module_in_reading_order():
    """A module imports, when it is imported, only from those before it; `__init__` files gather what is theirs."""
    listed, package = package_map(), ROOT / "minivllava"

    def place(file: str) -> int | None:
        names = (i for i, name in enumerate(listed) if file == name or name.endswith("/") and file.startswith(name))
        return next(names, None)

    files = [path.relative_to(package).as_posix() for path in package.rglob("*.py") if path.name != "__init__.py"]
    assert not [file for file in files if place(file) is None], "these modules are not in minivllava/README.md"
    assert not [name for name in listed if not (package / name).exists()], "minivllava/README.md has these in vain"
    ahead = []
    for file in files:
        for node in ast.parse((package / file).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minivllava."):
                module = node.module.removeprefix("minivllava.").replace(".", "/")
                names = [f"{module}/{alias.name}.py" for alias in node.names] + [f"{module}.py"]
                imported = [place(name) for name in names if (package / name).exists()]
                ahead += [f"{file} imports {module}" for at in imported if at is not None and at > place(file)]
    assert not ahead
