"""Every notebook that is there was run, is compared when run again, is of a readable size, and guards the package.

`make notebooks` runs them and compares their outputs; here stands what nbval does not see: that there are outputs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from minivllava.assignments.notebook import HIDDEN, has_exercises, parts, read_notebook, replace_region, source

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
SANITIZE = ROOT / "tests" / "nbval_sanitize.cfg"
CHAPTERS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
EVERY = sorted(NOTEBOOKS.rglob("*.ipynb"))
EVERY = [path for path in EVERY if ".ipynb_checkpoints" not in path.parts]
NOT_COMPARED = {"nbval-ignore-output", "nbval-skip", "raises-exception"}
DIFFICULTY = re.compile(r"[●○]{3}|\b(easy|middling|hard)\b")

each_notebook = pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in read_notebook(path)["cells"] if cell["cell_type"] == "code"]


def tags(cell: dict) -> set[str]:
    return set(cell["metadata"].get("tags", []))


def prose(path: Path) -> str:
    return "\n".join(source(cell) for cell in read_notebook(path)["cells"] if cell["cell_type"] == "markdown")


def is_image(output: dict) -> bool:
    return "image/png" in output.get("data", {})


def is_text(output: dict) -> bool:
    """Whether nbval has something to compare."""
    return output["output_type"] == "stream" or bool(set(output.get("data", {})) - {"image/png", "image/jpeg"})


# what is stored


@each_notebook
def test_it_was_run_once_from_top_to_bottom(path):
    counts = [cell["execution_count"] for cell in code_cells(path) if source(cell).strip()]
    assert counts == list(range(1, len(counts) + 1)), "run it again: make execute NOTEBOOKS=..."


@each_notebook
def test_no_error_and_no_warning_is_stored(path):
    for cell in code_cells(path):
        for output in cell["outputs"]:
            expected = "raises-exception" in tags(cell)
            assert output["output_type"] != "error" or expected, f"{output.get('ename')} in {source(cell)[:60]!r}"
            assert output.get("name") != "stderr", f"stderr: {''.join(output['text'])[:200]}"


@each_notebook
def test_outputs_are_stored_and_compared(path):
    """A stripped notebook passes nbval without comparing anything."""
    cells = [cell for cell in code_cells(path) if source(cell).strip()]
    compared = [c for c in cells if any(is_text(output) for output in c["outputs"]) and not tags(c) & NOT_COMPARED]
    ignored = [c for c in cells if tags(c) & NOT_COMPARED or re.search(r"^\s*#\s*NBVAL_", source(c), re.MULTILINE)]
    assert len(compared) >= 0.3 * len(cells), f"{len(compared)} of {len(cells)} code cells are really compared"
    assert len(ignored) <= 0.3 * len(cells), f"{len(ignored)} of {len(cells)} code cells are left out"
    prints = [c for c in cells if re.search(r"^print\(", source(c), re.MULTILINE)]
    assert all(c["outputs"] for c in prints), "a cell that prints has no stored output"


@each_notebook
def test_it_is_small_and_portable(path):
    assert path.stat().st_size < 1_000_000
    notebook = read_notebook(path)
    assert notebook["nbformat"] == 4 and notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        assert "id" in cell, "save it with nbformat 4.5: every cell has an id"
        assert not {"execution", "ExecuteTime"} & set(cell["metadata"]), "time stamps: run with record_timing=False"
        for output in cell.get("outputs", []):
            assert not {"text/javascript", "application/javascript"} & set(output.get("data", {})), "static only"
            assert not any("widget" in kind for kind in output.get("data", {})), "no widgets: plain progress or none"


@each_notebook
def test_each_image_is_followed_by_a_printed_line(path):
    cells = code_cells(path)
    for number, cell in enumerate(cells):
        images = [i for i, output in enumerate(cell["outputs"]) if is_image(output)]
        if images:
            below = cells[number + 1]["outputs"] if number + 1 < len(cells) else []
            after = cell["outputs"][images[-1] + 1 :] or below
            said = after and after[0].get("name") == "stdout"
            assert said, f"say in one printed line what the image shows: {source(cell)[-200:]!r}"


# what is written


@each_chapter
def test_a_chapter_can_be_read_in_one_go(path):
    cells = [cell for cell in code_cells(path) if source(cell).strip()]
    assert len(cells) <= 25, f"{len(cells)} code cells"
    for cell in cells:
        lines = replace_region(source(cell), HIDDEN, None, path.name).strip().split("\n")
        assert len(lines) <= 15, f"{len(lines)} lines: {lines[0]!r} ..."


@each_chapter
def test_a_chapter_has_images(path):
    images = sum(is_image(output) for cell in code_cells(path) for output in cell["outputs"])
    assert images >= 4, f"{images} figures"


@each_chapter
def test_a_chapter_says_what_it_is_for_and_what_it_needs(path):
    text = prose(path)
    assert re.match(r"# \d\d\b", text), "the title begins with the chapter's number"
    start = text[:2500].lower()
    assert "you will be able to" in start
    assert len(re.findall(r"^- ", start[: start.index("| | |")], re.MULTILINE)) == 3, "three things one can do after it"
    for row in ("needs", "time on cpu", "time on gpu", "seed", "paper"):
        assert re.search(rf"^\|\s*{row}\s*\|", start, re.MULTILINE), f"the table lacks a row {row!r}"
    assert "**Where this differs from" in text, "say where this differs from Video-LLaVA"


@each_chapter
def test_a_chapter_ends_with_what_was_found_in_numbers(path):
    """Numbers in it, and per cents are those of a stored output, so that they do not outlive it."""
    (found,) = re.findall(r"^## What we found$(.*?)^\*\*Where this differs", prose(path), re.MULTILINE | re.DOTALL)
    found = re.sub(r"\(the paper:.*?\)", "", found, flags=re.DOTALL)
    assert len(re.findall(r"\d+", found)) >= 2, "what was found, with numbers"
    printed = "".join(
        "".join(output["text"])
        for cell in code_cells(path)
        for output in cell["outputs"]
        if output["output_type"] == "stream"
    )
    for number in re.findall(r"(\d+(?:\.\d+)?) %", found):
        said = re.search(rf"(?<![\d.]){re.escape(number)} ?%", printed) or number in ("1",)  # 1 %: chance of 100
        assert said, f"{number} % stands in no stored output"


@each_chapter
def test_a_chapter_names_the_next_one(path):
    place = CHAPTERS.index(path)
    (after,) = re.findall(r"^\*\*Next:\*\*(.*)", prose(path), re.MULTILINE)
    assert place + 1 == len(CHAPTERS) or f"({CHAPTERS[place + 1].name})" in after


@pytest.mark.parametrize("path", [p for p in CHAPTERS if p.stem[:2] in ("03", "06", "08", "10")], ids=lambda p: p.stem)
def test_where_results_are_loaded_a_little_is_trained_too(path):
    """A cell that always trains asserts that the loss fell, and says so."""
    texts = {source(cell): "".join("".join(o.get("text", "")) for o in cell["outputs"]) for cell in code_cells(path)}
    fell = [code for code, text in texts.items() if re.search(r"loss.*f[ae]ll.*True", text)]
    assert any("assert" in code for code in fell), "no cell asserts that the loss fell"


@each_chapter
def test_a_chapter_has_exercises_with_difficulty_and_minutes(path):
    headers = re.findall(r"^#+ .*Exercise \d.*$", prose(path), re.MULTILINE)
    assert 3 <= len(headers) <= 4, headers
    cells = [source(cell) for cell in read_notebook(path)["cells"] if cell["cell_type"] == "markdown"]
    hinted = [text for text in cells if re.search(r"^#+ .*Exercise \d", text, re.MULTILINE) and "<details>" in text]
    assert len(hinted) == len(headers), "each exercise has a hint that is folded away"
    for header in headers:
        assert DIFFICULTY.search(header) and re.search(r"\b\d+ min", header), header
    roles = [part.role for part in parts(read_notebook(path), path.name)]
    assert roles.count("answer") >= len(headers), "each exercise has a SOLUTION region"
    assert roles.count("test") >= len(headers), "each exercise is followed by a check"


@each_notebook
def test_links_lead_to_files(path):
    for target in re.findall(r"\]\((?!https?:|#|attachment:)([^)#\s]+)", prose(path)):
        assert (path.parent / target).exists(), f"{target} is not there"


@each_notebook
def test_exercises_come_out_of_the_student_copy(path):
    notebook = read_notebook(path)
    if has_exercises(notebook):
        from minivllava.assignments.assign import CODE_STUB, student_copy

        copied = student_copy(notebook, path)
        assert CODE_STUB.split("\n")[1] in "".join(source(cell) for cell in copied["cells"])


# results and rules


RESULTS = sorted(p for p in (ROOT / "data/results").glob("*.json") if not p.stem.startswith(("bench", "port")))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_that_notebooks_load_are_of_the_present_configuration(path):
    result = json.loads(path.read_text())
    assert result.get("config_hash") == present_hash(result), f"{path.name} is out of date: make it again"


def present_hash(result: dict) -> str:
    """The hash that a result of this kind has now: of a study's arms, or of a whole preset."""
    if "study" in result:
        from minivllava.ablations.parts import Parts
        from minivllava.ablations.results import config_hash
        from minivllava.ablations.runner import grid
        from minivllava.ablations.settings import base_settings
        from minivllava.ablations.study import load_study

        study = load_study(result["study"])
        parts_folder = Parts(ROOT / "data/results/parts", ROOT / "runs/ablations", "cpu", progress=False)
        return config_hash(study, grid(study.settings(base_settings(result["preset"])), 1, parts_folder.fingerprint))
    from minivllava.ablations.settings import digest
    from minivllava.presets import preset

    return digest(preset(result["preset"]))


def test_every_sanitize_rule_loads():
    plugin = pytest.importorskip("nbval.plugin")
    text = SANITIZE.read_text(encoding="ascii")
    rules = plugin.get_sanitize_patterns(text)
    assert len(rules) == text.count("\nregex:") == text.count("\nreplace:") >= 5
    for pattern, replacement in rules:
        assert replacement.strip() and not re.search(pattern, replacement)


@pytest.mark.parametrize(
    "one, other, alike",
    [
        ("<object at 0x7f52a1b0>", "<object at 0x7f52ffff>", True),
        ("<Figure size 900x300 with 2 Axes>", "<Figure size 640x480>", True),
        ("took 3.2 s", "took 11 s", True),
        ("took 3 min, 12.5 samples/s", "took 4 minutes, 80 samples/s", True),
        ("torch 2.13.0+cpu", "torch 2.14.1", True),
        ("loss 3.21", "loss 3.22", False),
        ("12 frames", "13 frames", False),
        ("accuracy 80 %", "accuracy 81 %", False),
        ("shape (1, 16, 128)", "shape (1, 17, 128)", False),
        ("True", "False", False),
    ],
)
def test_what_the_rules_forgive(one, other, alike):
    rules = pytest.importorskip("nbval.plugin").get_sanitize_patterns(SANITIZE.read_text())

    def cleaned(text):
        for pattern, replacement in rules:
            text = re.sub(pattern, replacement, text)
        return text

    assert (cleaned(one) == cleaned(other)) is alike


def test_make_compares_all_notebooks_strictly():
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile[makefile.index("\nnotebooks:") :].split("\n\n")[0]
    sanitize = f"--nbval-sanitize-with={SANITIZE.relative_to(ROOT)}"
    for option in ("-p tests.nbval_stderr ", "--nbval ", "--nbval-current-env", "--nbval-cell-timeout=", sanitize):
        assert option in recipe, option
    assert "--nbval-lax" not in makefile
    listed = subprocess.run(["make", "-pn", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    (variable,) = re.findall(r"^NOTEBOOKS := (.*)$", listed, re.MULTILINE)
    assert sorted(variable.split()) == sorted(str(path.relative_to(ROOT)) for path in EVERY)


def test_a_failed_cell_shows_its_stderr(tmp_path):
    notebook = nbformat.v4.new_notebook()
    code = "import sys\nprint('un' + 'heard', file=sys.stderr)"
    notebook.cells = [nbformat.v4.new_code_cell(code, execution_count=1)]
    nbformat.write(notebook, tmp_path / "loud.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.nbval_stderr", "--nbval",
               "--nbval-current-env", f"--rootdir={tmp_path}", str(tmp_path / "loud.ipynb")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "unheard" in done.stdout, done.stdout


# a change in the package turns a notebook red

MUTANTS = {
    "attention scale": (
        "models/layers.py",
        "F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)",
        "F.scaled_dot_product_attention(query, key, value, is_causal=self.causal, scale=1 / query.shape[-1])",
        "01_*.ipynb",
    ),
    "label mask": (
        "data/conversation.py",
        "labels += new if learned else [IGNORE] * len(new)",
        "labels += [IGNORE] * len(new[:1]) + new[1:] if learned else [IGNORE] * len(new)",
        "04_*.ipynb",
    ),
    "temporal attention": (
        "models/vision.py",
        "x = x + self.temporal_attention(self.temporal_norm(x))",
        "self.temporal_attention(self.temporal_norm(x))",
        "02_*.ipynb",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_change_in_the_package_turns_a_notebook_red(name, tmp_path):
    file, old, new, pattern = MUTANTS[name]
    found = sorted(NOTEBOOKS.glob(pattern))
    if not found:
        pytest.skip(f"there is no notebook {pattern} yet")
    shutil.copytree(ROOT / "minivllava", tmp_path / "minivllava", ignore=shutil.ignore_patterns("__pycache__"))
    text = (tmp_path / "minivllava" / file).read_text()
    assert text.count(old) == 1, f"{file} no longer says {old!r}: change the mutant with it"
    (tmp_path / "minivllava" / file).write_text(text.replace(old, new))
    (tmp_path / "data").symlink_to(ROOT / "data")
    (tmp_path / "notebooks").mkdir()
    shutil.copy(found[0], tmp_path / "notebooks")
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env",
        "--nbval-cell-timeout=120", f"--nbval-sanitize-with={SANITIZE}", f"--rootdir={tmp_path}", "-q",
        str(tmp_path / "notebooks" / found[0].name),
    ]  # fmt: skip
    # the suite's backend draws no figure in a notebook
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    closing = done.stdout.strip().split("\n")[-1]
    failed, passed = (int((re.search(rf"(\d+) {word}", closing) or [0, 0])[1]) for word in ("failed", "passed"))
    assert done.returncode == 1 and failed, f"nothing noticed: {done.stdout[-2000:]}"
    assert passed, f"all cells failed, so it is not the change: {done.stdout[-2000:]}"
