"""A submission's answers in the frame of the source notebook: the list of cells that the grader runs.

Set-up and tests always come from the source. Of the submission count the answers, found by their grade_id or
their cell id, and all cells that the student added; a deleted or changed test makes no difference.
"""

from dataclasses import asdict, dataclass, field

from minivllava.assignments.notebook import UNGRADED, Part, parts, source


@dataclass
class Step:
    """One cell to run."""

    kind: str  # "given", "answer", "extra" or "test"
    name: str
    source: str
    points: int = 0
    question: str = ""  # of tests: what the student reads in the table
    answers: list[str] = field(default_factory=list)  # of tests: names of the answer cells they judge
    reference: str = ""  # of answers: the source's own solution, to go on with when this one fails
    missing: bool = False  # of answers: the submission has no such cell


def merge(original: dict, submission: dict, where: str) -> list[dict]:
    """The steps that grade `submission` against the source notebook `original`, as JSON."""
    framework = parts(original, where)
    known = {part.name: part for part in framework}
    by_id = {part.cell["id"]: part.name for part in framework if "id" in part.cell}
    answers: dict[str, str] = {}
    extras: dict[str, list[str]] = {"": []}
    anchor, seen = "", set()
    for cell in submission["cells"]:
        metadata = cell.get("metadata", {}).get("nbgrader", {})
        name = metadata.get("grade_id") if isinstance(metadata, dict) else None
        name = name if name in known else by_id.get(cell.get("id"))
        if name is not None and name not in seen:
            seen.add(name)
            anchor = name
            if known[name].role == "answer" and cell["cell_type"] == "code":
                answers[name] = source(cell)
        elif cell["cell_type"] == "code" and source(cell).strip():
            extras.setdefault(anchor, []).append(source(cell))
    steps: list[Step] = []
    add_extras(steps, extras[""], "the start")
    last = max((n for n, part in enumerate(framework) if part.role == "test"), default=-1)
    for part in framework[: last + 1]:  # what comes after judges nothing
        if part.cell["cell_type"] == "code":
            steps += _step(part, steps, answers)
        add_extras(steps, extras.get(part.name, []), part.name)
    return [asdict(step) for step in steps]


def _step(part: Part, before: list[Step], answers: dict[str, str]) -> list[Step]:
    text = source(part.cell)
    if part.role == "given":
        skipped = UNGRADED in part.cell.get("metadata", {}).get("tags", [])
        return [] if skipped else [Step("given", part.name, text)]
    if part.role == "answer":
        return [Step("answer", part.name, answers.get(part.name, ""), reference=text, missing=part.name not in answers)]
    judged: list[str] = []
    for step in reversed(before):  # the answers since the tests of the question before
        if step.kind == "test" and judged:
            break
        judged += [step.name] if step.kind == "answer" else []
    return [Step("test", part.name, text, part.points, part.name.removesuffix("-check"), judged[::-1])]


def add_extras(steps: list[Step], sources: list[str], after: str):
    """Puts cells that the student added behind the cell they stood behind."""
    steps += [Step("extra", f"added after {after}", text) for text in sources]
