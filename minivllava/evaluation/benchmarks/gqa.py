"""GQA: compositional questions with one short answer (the paper's Table 3).

    ROOT/llava_gqa_testdev_balanced.jsonl          LLaVA's questions {"question_id", "image", "text"}
    ROOT/data/testdev_balanced_questions.json      {id: {"question", "imageId", "answer", "isBalanced", "types", ...}}
    ROOT/data/images/

Predictions: the official [{"questionId", "prediction"}], compared as they are, or LLaVA's JSON lines
{"question_id", "text"}; final points are dropped and capitals lowered (scripts/convert_gqa_for_eval.py).
Source: eval.py of gqadataset.org.
"""

from collections import defaultdict
from pathlib import Path

from minivllava.evaluation.benchmarks.vqa import SHORT, llava_questions
from minivllava.evaluation.metrics import percent, wilson
from minivllava.evaluation.predictions import Problems, Question, Row, by_id, find, join, need, read_rows, text_of

TRUTH = ("data/testdev_balanced_questions.json", "testdev_balanced_questions.json", "*_questions.json")


def questions(root: Path) -> list[Question]:
    """LLaVA's question file where ROOT has it, else the official one."""
    folder = need(root, "data/images", "images")
    listed = find(root, "llava_gqa_testdev_balanced.jsonl", "llava_gqa_*.jsonl")
    if listed is not None:
        return llava_questions(listed, folder)
    problems = Problems()
    found = []
    for name, row in by_id(read_rows(need(root, *TRUTH), problems, keyed="question_id"), problems).items():
        question, image = (text_of(row, problems, (field,)) for field in ("question", "imageId"))
        if question is not None and image is not None:
            path = folder / f"{image}.jpg"
            found.append(Question(name, question + SHORT, ("image", path), {"question_id": name}))
    problems.check()
    return found


def truth_file(root: Path) -> Path | None:
    """The official questions, which hold the answers."""
    return find(root, *TRUTH)


def score(questions_file: Path, answers_file: Path, problems: Problems, truth: Path | None = None) -> dict:
    """Exact match over the balanced questions, as eval.py prints it: accuracy, binary, open, by type; distribution.

    open questions are those of the structural type "query". distribution: how far the answers' frequencies are from
    the true ones' (chi square within each group of questions, over 100; lower is better). Predictions for
    unbalanced questions are allowed and not scored. Validity, plausibility and consistency need further files.
    """
    if truth is None and questions_file.suffix == ".jsonl":
        truth = need(questions_file.parent, *TRUTH)
    asked = by_id(read_rows(truth or questions_file, problems, keyed="question_id"), problems)
    known = {name for name, row in asked.items() if text_of(row, problems, ("answer",)) is not None}
    answers = by_id(read_rows(answers_file, problems, keyed="question_id"), problems)
    balanced = {name: row for name, row in asked.items() if row.values.get("isBalanced", True)}
    rest = {name for name in answers if name in asked and name not in balanced}
    answers = {name: row for name, row in answers.items() if name not in rest}
    for row in balanced.values():
        for field in ("types", "groups"):
            if row.values.get(field) and not isinstance(row.values[field], dict):
                problems.add(f"{row.where}: {field!r} is no object of names")
        if not isinstance(_object(row, "groups").get("global"), str | None):
            problems.add(f"{row.where}: 'groups' has no text in 'global'")
    joined = join(balanced, answers, problems, answers_file)
    predicted = {name: prediction(row, problems) if row else "" for name, row in joined.items()}
    problems.check()

    balanced = {name: balanced[name] for name in joined if name in known}
    hits = {name: predicted[name] == row.values["answer"] for name, row in balanced.items()}
    groups: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for name, row in balanced.items():
        types = _object(row, "types")
        if "structural" in types:
            groups["answer"]["open" if types["structural"] == "query" else "binary"].append(hits[name])
        for field in ("structural", "semantic"):
            if field in types:
                groups[field][str(types[field])].append(hits[name])
    kinds = groups.pop("answer", {})
    right = sum(hits.values())
    return {
        "n": len(hits),
        "metrics": {
            "accuracy": percent(right, len(hits)),
            **{kind: percent(sum(kinds[kind]), len(kinds[kind])) for kind in sorted(kinds)},
            "distribution": _distribution(balanced, predicted),
        },
        "intervals": {"accuracy": wilson(right, len(hits))},
        "groups": {
            f"{field} type": {k: {"n": len(v), "accuracy": percent(sum(v), len(v))} for k, v in sorted(of.items())}
            for field, of in groups.items()
        },
        "notes": [f"{len(rest):,} predictions are for unbalanced questions and are not scored."] if rest else [],
    }


def _object(row: Row, field: str) -> dict:
    value = row.values.get(field)
    return value if isinstance(value, dict) else {}


def prediction(row: Row, problems: Problems) -> str:
    """What eval.py compares: "prediction" as it is, or LLaVA's "text" without final points and in lower case."""
    if "prediction" in row.values:
        return text_of(row, problems, ("prediction",)) or ""
    return (text_of(row, problems) or "").rstrip(".").lower()


def _distribution(asked: dict[str, Row], predicted: dict[str, str]) -> float | None:
    true: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    said: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, row in asked.items():
        group = _object(row, "groups").get("global")
        if isinstance(group, str):
            true[group][row.values["answer"]] += 1
            said[group][predicted[name]] += 1
    total = weighted = 0.0
    for group, counts in true.items():
        size = sum(counts.values())
        weighted += size * sum((said[group][answer] - n) ** 2 / n for answer, n in counts.items())
        total += size
    return weighted / total / 100 if total else None


def submission(answers: dict[str, str]) -> list[dict]:
    """[{"questionId", "prediction"}], what eval.py and the server read."""
    return [{"questionId": name, "prediction": text.rstrip(".").lower()} for name, text in answers.items()]
