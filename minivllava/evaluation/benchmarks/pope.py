"""POPE: does a model see objects that are not there? (the paper's Table 4)

    ROOT/coco/coco_pope_{random,popular,adversarial}.json   JSON lines {"question_id", "image", "text", "label"}
    ROOT/val2014/                                           COCO's images
    ROOT/llava_pope_test.jsonl                              if there: LLaVA's questions, with "category"

Answers: JSON lines with "question_id" and the reply in "text" (LLaVA) or "answer" (POPE); ids repeat in the three
label files, so answers to all of them also hold the "category", or are the answers to llava_pope_test.jsonl.

A reply counts by its first sentence (up to the first "."): without commas and split at spaces, it is no if one of
the pieces is exactly "No", "not" or "no", and yes if none is. So "NO", "none" and "no\\n" are yes.
Sources: github AoiDragon/POPE, evaluate.py; github haotian-liu/LLaVA, llava/eval/eval_pope.py.
"""

from collections import Counter
from pathlib import Path
from statistics import mean

from minivllava.errors import DataError
from minivllava.evaluation.benchmarks.vqa import SHORT
from minivllava.evaluation.metrics import wilson, yes_no
from minivllava.evaluation.predictions import (
    ID_FIELDS,
    Problems,
    Question,
    Row,
    by_id,
    find,
    id_of,
    join,
    need,
    read_rows,
    text_of,
)

RATES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def says_yes(reply: str) -> bool:
    """POPE's reading of a reply, the rule above."""
    words = reply.split(".")[0].replace(",", "").split(" ")
    return not any(word in ("No", "not", "no") for word in words)


def questions(root: Path) -> list[Question]:
    """The questions of llava_pope_test.jsonl where ROOT has it, else of all label files."""
    problems = Problems()
    listed = find(root, "llava_pope_test.jsonl")
    rows = by_id(read_rows(listed, problems), problems) if listed else labels(truth_file(root), problems)
    folder = need(root, "val2014", "images")
    found = []
    for key, row in rows.items():
        image, text = (text_of(row, problems, (field,)) for field in ("image", "text"))
        identity = {field: row.values[field] for field in ("question_id", "category") if field in row.values}
        if image is not None and text is not None:
            found.append(Question(key, text if listed else text + SHORT, ("image", folder / image), identity))
    problems.check()
    return found


def truth_file(root: Path) -> Path:
    """The folder of label files under ROOT, or ROOT itself."""
    return find(root, "coco") or need(root, "*pope_*.json").parent


def truth_for_run(root: Path) -> Path | None:
    """What `score` takes as the questions of a run over ROOT; None where LLaVA's questions lie without label files."""
    listed = find(root, "llava_pope_test.jsonl")
    return truth_file(root) if listed is None else listed if find(root, "coco") else None


def labels(path: Path, problems: Problems) -> dict[str, Row]:
    """Labelled questions of one label file or of a folder's, each with its "category" and "label" filled in.

    The key is the question id; where several files give the same ids, "category/id".
    """
    files = _label_files(path)
    if not files:
        raise DataError(f"{path} has no coco_pope_*.json: name POPE's folder of label files, or one of them.")
    rows = []
    for file in files:
        category = file.stem.partition("pope_")[2] or "all"
        for row in read_rows(file, problems):
            if str(row.values.get("label")).lower() in ("yes", "no"):
                rows.append(Row({"category": category} | row.values, row.where))
            else:
                problems.add(f"{row.where}: the label is {row.values.get('label')!r}, not yes or no")
    if len(files) == 1:
        return by_id(rows, problems)
    return by_id(rows, problems, lambda row: _in_category(row, problems))


def _label_files(path: Path) -> list[Path]:
    return sorted(path.glob("*pope_*.json")) if path.is_dir() else [path]


def _in_category(row: Row, problems: Problems) -> str | None:
    name = id_of(row, problems)
    if "category" not in row.values:
        problems.add(f"{row.where}: no category, and question ids repeat in the label files")
        return None
    return name and f"{row.values['category']}/{name}"


def score(questions_file: Path, answers_file: Path, problems: Problems, truth: Path | None = None) -> dict:
    """POPE's figures for each category, and their mean over the categories (the paper's tables give accuracy's).

    The interval of the accuracy is Wilson's, but not for as many trials as there are answers: the questions with the
    answer yes are the same in all three files. Where each is asked m times, n is Kish's effective sample size,
    (sum of m)^2 / (sum of m^2): 4088 for the 9000 answers. That questions share images is left out of account.

    questions_file: a label file, the folder of all three, or llava_pope_test.jsonl, whose labels are then found in
    `truth`, by default the folder coco beside it, by category, image and question.
    """
    rows = read_rows(answers_file, problems)
    if questions_file.suffix == ".jsonl" and "label" not in read_rows(questions_file, Problems(True))[0].values:
        asked = _labelled(questions_file, truth or questions_file.parent / "coco", problems)
        by_category = False
    else:
        asked = labels(questions_file, problems)
        by_category = len(_label_files(questions_file)) > 1
    notes = []
    if not by_category and not any(name in row.values for row in rows for name in ID_FIELDS):
        answers = _in_order(rows, asked, problems, answers_file)
        notes = ["No answer has an id: joined line by line, as POPE's script does; every line's question agrees."]
    else:
        answers = by_id(rows, problems, (lambda row: _in_category(row, problems)) if by_category else None)
    joined = join(asked, answers, problems, answers_file)
    replies = {name: (text_of(row, problems) or "") if row else None for name, row in joined.items()}
    problems.check()

    said: dict[str, list[bool]] = {}
    true: dict[str, list[bool]] = {}
    for name in joined:
        row = asked[name]
        label = str(row.values["label"]).lower() == "yes"
        # what is missing counts as wrong, whatever POPE would read into an empty reply
        said.setdefault(row.values["category"], []).append(
            says_yes(replies[name]) if replies[name] is not None else not label
        )
        true.setdefault(row.values["category"], []).append(label)
    groups = {category: yes_no(said[category], true[category]) for category in sorted(said)}
    means = {rate: _mean([figures[rate] for figures in groups.values()]) for rate in RATES}
    hits, n = sum(g["tp"] + g["tn"] for g in groups.values()), len(joined)
    times = Counter(_content(asked[name])[1:] for name in joined)  # each image and question
    distinct = n * n / sum(m * m for m in times.values()) if n else 0
    return {
        "n": n,
        "metrics": means,
        "intervals": {"accuracy": wilson(hits * distinct / n, distinct) if n else None},
        "groups": {"category": groups},
        "notes": notes,
    }


def _mean(values: list[float | None]) -> float | None:
    return mean(values) if values and None not in values else None


def _labelled(questions_file: Path, folder: Path, problems: Problems) -> dict[str, Row]:
    """LLaVA's questions with their labels, found by category, image and the first line of the question."""
    known = {_content(row): row.values["label"] for row in labels(folder, problems).values()}
    found = {}
    for name, row in by_id(read_rows(questions_file, problems), problems).items():
        if _content(row) in known:
            found[name] = Row(row.values | {"label": known[_content(row)]}, row.where)
        else:
            problems.add(f"{row.where}: {name} has no label in {folder} (category, image, question: {_content(row)})")
    return found


def _content(row: Row) -> tuple[str, str, str]:
    text = str(row.values.get("text")).partition("\n")[0].strip()
    return str(row.values.get("category")), str(row.values.get("image")), text


def _in_order(rows: list[Row], asked: dict[str, Row], problems: Problems, answers_file: Path) -> dict[str, Row]:
    """Answers in POPE's own format {"question", "answer"}, which has no ids: line by line, if the questions agree."""
    if len(rows) != len(asked):
        problems.add(f"{answers_file}: {len(rows):,} answers without ids to {len(asked):,} questions")
    for row, (name, question) in zip(rows, asked.items(), strict=False):
        said, true = row.values.get("question"), question.values.get("text")
        if not isinstance(said, str) or said.strip().lower() != str(true).strip().lower():
            problems.add(f"{row.where}: no id, and its question {said!r} is not that of {name}, {true!r}")
    return dict(zip(asked, rows, strict=False))
