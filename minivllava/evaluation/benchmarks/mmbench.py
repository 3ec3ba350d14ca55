"""MMBench: multiple choice with circular evaluation (the paper's Table 3).

    ROOT/mmbench_dev_20230712.tsv   index, question, hint, A, B, C, D, answer, category, l2-category, image (base64)

Circular evaluation: the file holds each question once more for every rotation of its options, as index + 1,000,000,
+ 2,000,000, ...; a question counts only if all of its passes are right. LLaVA's own rotations (--all-rounds:
"round_id", "options", "option_char" in the answers) count in the same way.

Answers: JSON lines {"question_id" or "index", "text" or "prediction"}. The letter of a reply, without a judge:
1. punctuation becomes spaces; exactly one of the options' letters stands alone, within the last five words: it;
2. a reply of at most twice the options' length contains the text of exactly one option (case aside): that one;
3. a letter alone in lower case (LLaVA's rule). Everything else counts as wrong, and is counted.
Sources: github open-compass/VLMEvalKit, vlmeval/utils/matching_util.py (1, 2) and dataset/utils/multiple_choice.py
(circles); github haotian-liu/LLaVA, llava/eval/{model_vqa_mmbench,eval_mmbench}.py (prompt, 3, rounds).
"""

import base64
from collections import defaultdict
from pathlib import Path
from string import ascii_uppercase

from minivllava.evaluation.benchmarks.science_qa import LETTER
from minivllava.evaluation.metrics import percent, wilson
from minivllava.evaluation.predictions import (
    TEXT_FIELDS,
    Problems,
    Question,
    Row,
    by_id,
    id_of,
    join,
    need,
    read_rows,
    text_of,
)

CIRCLE = 1_000_000
# what pandas reads as missing, as the original does; LLaVA adds any spelling of nan and none
MISSING = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL",
           "-NaN", "-nan", "n/a", "null"}  # fmt: skip
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def questions(root: Path) -> list[Question]:
    """Every row of the table, circular passes included, with its image's bytes."""
    problems = Problems()
    rows = by_id(read_rows(truth_file(root), problems), problems)
    found = []
    for name, row in rows.items():
        values = row.values
        hint = "" if is_missing(values.get("hint", "")) else values["hint"] + "\n"
        options = "".join(f"\n{letter}. {text}" for letter, text in options_of(row).items())
        prompt = f"{hint}{values.get('question', '')}{options}{LETTER}"
        image = values.get("image", "")
        if len(image) <= 64 and image in rows:  # newer tables give a repeated image's index in its place
            image = rows[image].values.get("image", "")
        try:
            data = base64.b64decode(image, validate=True)
        except ValueError:
            data = b""
        if data:
            found.append(Question(name, prompt, ("image", data), {"question_id": _number(name), "prompt": prompt}))
        else:
            problems.add(f"{row.where}: the image of {name} is no base64")
    problems.check()
    return found


def truth_file(root: Path) -> Path:
    """The table; a dev one holds the answers too."""
    return need(root, "mmbench_dev_*.tsv", "mmbench_*.tsv", "MMBench_*.tsv")


def truth_for_run(root: Path) -> Path | None:
    """The table if it holds answers; those of the test split are only on the server."""
    file = truth_file(root)
    return file if "answer" in read_rows(file, Problems())[0].values else None


def is_missing(value: str) -> bool:
    """Whether a cell of the table is empty in the eyes of pandas or LLaVA."""
    return value in MISSING or value.lower() in ("nan", "none")


def options_of(row: Row) -> dict[str, str]:
    """The options of a question by letter, up to the first missing one."""
    found = {}
    for letter in ascii_uppercase:
        if is_missing(row.values.get(letter, "")):
            break
        found[letter] = row.values[letter]
    return found


def letter(reply: str, options: dict[str, str]) -> str | None:
    """The option that a reply chooses, by the rules above; None if that is not plain."""
    if any(refusal in reply for refusal in REFUSALS):
        return None
    words = "".join(" " if mark in ".()[],:;!*#{}" else mark for mark in reply).split()
    named = [option for option in options if option in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and "Z" in words:
        return None
    if len(reply) <= 2 * sum(map(len, options.values())):
        meant = [option for option, text in options.items() if text.lower() in reply.lower()]
        if len(meant) == 1:
            return meant[0]
    alone = reply.strip().strip(".").strip().upper()
    return alone if alone in options else None


def score(questions_file: Path, answers_file: Path, problems: Problems, truth: Path | None = None) -> dict:
    """Circular accuracy, and the first pass's alone ("vanilla"); by category. n: distinct questions.

    Raises DataError for a table without answers: the test split is scored by its server.
    """
    asked = by_id(read_rows(truth or questions_file, problems), problems)
    for row in asked.values():
        if row.values.get("answer") not in options_of(row):
            problems.add(f"{row.where}: the answer {row.values.get('answer')!r} is none of its options; has it any?")
    rows = by_id(read_rows(answers_file, problems), problems, lambda row: _pass(row, problems))
    rounds: dict[str, dict[int, Row]] = defaultdict(dict)  # every pass that was answered, by the table's index
    for key, row in rows.items():
        name, _, number = key.partition(" round ")
        rounds[name][int(number or 0)] = row
    joined = join(asked, {n: next(iter(of.values())) for n, of in rounds.items()}, problems, answers_file)
    if any(len(of) > 1 for of in rounds.values()):
        for name in joined:
            for number in set(range(len(options_of(asked[name])))) - set(rounds[name]):
                problems.add(f"{answers_file}: no answer to round {number} of {name}")
    asked = {name: asked[name] for name in joined}
    passes = {n: [chosen(of, asked[n], problems) for _, of in sorted(rounds[n].items())] for n in asked}
    problems.check()

    circles: dict[str, list[bool]] = defaultdict(list)
    first: dict[str, str] = {}
    for name in sorted(asked, key=_order):
        circle = str(int(name) % CIRCLE) if name.isdigit() else name
        circles[circle] += [choice == asked[name].values["answer"] for choice in passes[name]] or [False]
        first.setdefault(circle, name)
    vanilla = {first[circle]: hits[0] for circle, hits in circles.items()}
    kinds = {"accuracy": vanilla}
    if any(len(hits) > 1 for hits in circles.values()):
        circular = {first[circle]: all(hits) for circle, hits in circles.items()}
        kinds = {"circular accuracy": circular, "vanilla accuracy": vanilla}
    unclear = sum(choice is None for choices in passes.values() for choice in choices)
    counted = next(iter(kinds))
    return {
        "n": len(circles),
        "metrics": {kind: percent(sum(of.values()), len(of)) for kind, of in kinds.items()},
        "intervals": {kind: wilson(sum(of.values()), len(of)) for kind, of in kinds.items()},
        "groups": {
            field: _grouped(field, counted, kinds[counted], asked)
            for field in ("l2-category", "category")
            if any(field in row.values for row in asked.values())
        },
        "notes": [f"{unclear:,} replies choose no option and count as wrong."],
    }


def _number(name: str) -> int | str:
    return int(name) if name.isdigit() else name


def _order(name: str) -> tuple[int, str]:
    """A key that sorts numbers by value, and everything else after them."""
    return (int(name), "") if name.isdigit() else (CIRCLE**2, name)


def _pass(row: Row, problems: Problems) -> str | None:
    name, number = id_of(row, problems), row.values.get("round_id", 0)
    return f"{name} round {number}" if name and isinstance(number, int) and number else name


def chosen(row: Row, question: Row, problems: Problems) -> str | None:
    """The letter, in the table's order of options, that one answer chooses; LLaVA's rounds show them rotated."""
    reply = text_of(row, problems, TEXT_FIELDS) or ""
    shown, letters = row.values.get("options"), row.values.get("option_char")
    if not isinstance(shown, list) or not isinstance(letters, list):
        return letter(reply, options_of(question))
    if len(shown) != len(letters):
        problems.add(f"{row.where}: {len(shown)} 'options' but {len(letters)} letters in 'option_char'")
        return None
    found = letter(reply, dict(zip(ascii_uppercase, map(str, shown), strict=False)))
    return letters[ascii_uppercase.index(found)] if found else None


def _grouped(field: str, kind: str, hits: dict[str, bool], asked: dict[str, Row]) -> dict:
    groups: dict[str, list[bool]] = defaultdict(list)
    for name, hit in hits.items():
        groups[asked[name].values.get(field, "")].append(hit)
    return {group: {"n": len(of), kind: percent(sum(of), len(of))} for group, of in sorted(groups.items())}


def submission(root: Path, answers: dict[str, str]) -> list[dict]:
    """Rows of the table to upload: the questions' text columns, with each prediction (LLaVA's columns)."""
    left_out = ("hint", "category", "source", "image", "comment", "l2-category")
    rows = by_id(read_rows(truth_file(root), Problems()), Problems())
    return [
        {column: value for column, value in row.values.items() if column not in left_out}
        | {"index": _number(name), "prediction": answers[name]}
        for name, row in rows.items()
        if name in answers
    ]
