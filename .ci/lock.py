"""Resolve every dependency afresh and rewrite the lock.

    make lock        or        python3.11 .ci/lock.py .ci/constraints.txt [TORCH]

Installs the project with all extras into a throwaway environment and writes what pip chose. Then asks, for
each newer Python, whether the packages compiled for one Python only have a wheel of that version there; where
one has not, the newest version that has takes its place behind an environment marker. torch keeps the version
of the old lock unless another is given: plain "newest" could bring gigabytes of CUDA packages.

Takes about 8 minutes.
"""

import json
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWER = "3.11", ("3.12", "3.13", "3.14", "3.15")
HEADER = """\
# Exact versions of the whole dependency tree with all extras. Written by `make lock`, not by hand.
# Resolved on Python {oldest}. Where a newer Python (looked up to {newest}) has no wheel of a pin, the newest
# version that has one follows, or else pip builds it from source there.
# What only macOS, Windows or a CUDA build of torch adds is not pinned.
"""


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(python: Path, torch: str) -> dict[str, str]:
    """Install everything with `python` and return {name: version}, without local parts such as "+cpu"."""
    for requirement in (["--upgrade", "pip"], [f"torch=={torch}"], ["--editable", f"{ROOT}[dev,quantize]"]):
        subprocess.run([python, "-m", "pip", "install", *requirement], check=True)
    freeze = [python, "-m", "pip", "freeze", "--all", "--exclude-editable"]
    lines = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout.splitlines()
    pins = dict(re.match(r"([^=]+)==([^+]+)", line).groups() for line in lines)
    return {normalise(name): version for name, version in pins.items() if name not in ("pip", "wheel")}


def compiled(environment: Path) -> set[str]:
    """Names of the packages installed in `environment` from wheels that fit one Python version only."""
    wheels = environment.glob("lib/python*/site-packages/*.dist-info/WHEEL")
    bound = [wheel for wheel in wheels if re.search(r"^Tag: cp\d+-cp", wheel.read_text(), re.MULTILINE)]
    return {normalise(wheel.parent.name.partition("-")[0]) for wheel in bound}


def adapt(python: Path, version: str, pins: dict[str, str], names: set[str]) -> dict[str, str]:
    """Return the pins for Python `version`: the same, but for those of `names` that have no wheel there."""
    adapted = dict(pins)
    for name in sorted(names & pins.keys()):
        options = ["--python-version", version, "--only-binary=:all:", "--json"]
        answer = subprocess.run(
            [python, "-m", "pip", "index", "versions", name, *options], capture_output=True, text=True
        )
        if answer.returncode and "No matching distribution" not in answer.stderr:
            sys.exit(f"pip could not look up {name}:\n{answer.stderr}")
        offers = json.loads(answer.stdout)["versions"] if answer.returncode == 0 else []
        if pins[name] not in offers:
            adapted[name] = offers[0] if offers else pins[name]
            action = f"takes {offers[0]}" if offers else "will be built from source"
            print(f"Python {version}: {name} {pins[name]} has no wheel, {action}")
    return adapted


def main(lock: Path, torch: str | None = None) -> None:
    running = "{}.{}".format(*sys.version_info)
    if running != OLDEST:
        sys.exit(
            f"The lock is resolved on the oldest supported Python, {OLDEST}, but this is {running}. "
            f"Name that one: make lock PYTHON=python{OLDEST}"
        )
    torch = torch or re.search(r"^torch==([^ ;\n]+)", lock.read_text(), re.MULTILINE).group(1)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        per_python = {OLDEST: resolve(python, torch)}
        for version in NEWER:
            pins = list(per_python.values())[-1]
            per_python[version] = adapt(python, version, pins, compiled(Path(folder)))

    lines = []
    for name in sorted(per_python[OLDEST]):
        since = {}  # pin: the first Python that takes it
        for version, pins in per_python.items():
            since.setdefault(pins[name], version)
        until = [*since.values(), None][1:]
        for (pin, start), end in zip(since.items(), until, strict=True):
            bounds = [f'python_version >= "{start}"'] if start != OLDEST else []
            bounds += [f'python_version < "{end}"'] if end else []
            lines.append(f"{name}=={pin}" + (f" ; {' and '.join(bounds)}" if bounds else ""))
    lock.write_text(HEADER.format(oldest=OLDEST, newest=NEWER[-1]) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
