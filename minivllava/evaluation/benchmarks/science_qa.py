"""ScienceQA: multiple choice, with and without an image; the paper reports those with one (SQA-I in Table 3).

    ROOT/llava_test_CQM-A.json     [{"id", "image" (only some), "conversations": [question, "The answer is A."]}]
    ROOT/images/test/ID/image.png
    ROOT/problems.json, ROOT/pid_splits.json      the official questions: {"choices", "answer", "image"}; splits

Answers: JSON lines {"question_id", "text"}. The letter of a reply, in this order: the reply is a letter A to E and
nothing else, no space or line break; it begins with a letter and ". "; "The answer is X" stands in it exactly once,
with any character after X but a line break. No letter, or one that is no choice, is wrong: so is "A." by itself.
Source: github haotian-liu/LLaVA, llava/eval/{model_vqa_science,eval_science_qa}.py.
"""

import re
from pathlib import Path

from minivllava.errors import DataError
from minivllava.evaluation.metrics import percent, wilson
from minivllava.evaluation.predictions import (
    Problems,
    Question,
    Row,
    by_id,
    find,
    join,
    need,
    read_json,
    read_rows,
    text_of,
)

LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTERS = "ABCDE"


def questions(root: Path, images_only: bool = False) -> list[Question]:
    """LLaVA's question file; `images_only` leaves out what is asked without an image."""
    problems = Problems()
    file = need(root, "llava_test_CQM-A.json", "llava_test_*.json")
    folder = need(root, "images/test", "test", "images")
    found = []
    for name, row in by_id(read_rows(file, problems), problems).items():
        turns = row.values.get("conversations")
        asked = turns[0].get("value") if isinstance(turns, list) and turns and isinstance(turns[0], dict) else None
        if not isinstance(asked, str):
            problems.add(f"{row.where}: 'conversations' must begin with a question {{'from', 'value'}}")
            continue
        prompt = asked.replace("<image>", "").strip() + LETTER
        image = row.values.get("image")
        if image and not isinstance(image, str):
            problems.add(f"{row.where}: 'image' must be the path of one")
        elif image or not images_only:
            media = ("image", folder / image) if image else None
            shown = f"<image>\n{prompt}" if image else prompt
            found.append(Question(name, prompt, media, {"question_id": name, "prompt": shown}))
    problems.check()
    return found


def truth_file(root: Path) -> Path | None:
    """The official problems, if it is told which of them are the test; or LLaVA's questions, which hold the answers."""
    official = find(root, "problems.json") if find(root, "pid_splits.json") else None
    return official or find(root, "llava_test_CQM-A.json", "llava_test_*.json", "problems.json")


def letter(reply: str) -> str | None:
    """The option a reply chooses, by the rules above; None if it names none."""
    if reply in tuple(LETTERS):
        return reply
    if reply[:1] in tuple(LETTERS) and reply[1:3] == ". ":
        return reply[0]
    said = re.findall(r"The answer is ([A-Z]).", reply)  # as the original: the point is any character
    return said[0] if len(said) == 1 and said[0] in LETTERS else None


def score(
    questions_file: Path, answers_file: Path, problems: Problems, truth: Path | None = None,
    images_only: bool = False,
) -> dict:  # fmt: skip
    """Accuracy over all questions and over those with an image ("IMG"); how many replies name no letter.

    questions_file: problems.json (its test split, by pid_splits.json beside it, if there is one) or LLaVA's
    questions. images_only: answers to the other questions are not needed, and not scored.
    """
    truths = _truths(truth or questions_file, problems)
    wanted = {name: row for name, row in truths.items() if row.values["image"] or not images_only}
    answers = by_id(read_rows(answers_file, problems), problems)
    rest = {name for name in answers if name in truths and name not in wanted}
    joined = join(wanted, {n: row for n, row in answers.items() if n not in rest}, problems, answers_file)
    said = {name: letter(text_of(row, problems) or "") if row else None for name, row in joined.items()}
    problems.check()
    hits = {name: said[name] == wanted[name].values["letter"] for name in joined}
    illustrated = [hit for name, hit in hits.items() if wanted[name].values["image"]]
    everything = list(hits.values())
    kinds = {"IMG accuracy": illustrated} if images_only else {"accuracy": everything, "IMG accuracy": illustrated}
    return {
        "n": len(hits),
        "metrics": {kind: percent(sum(of), len(of)) for kind, of in kinds.items()},
        "intervals": {kind: wilson(sum(of), len(of)) for kind, of in kinds.items()},
        "groups": {},
        "notes": [f"{sum(choice is None for choice in said.values()):,} replies name no letter and count as wrong."]
        + ([f"{len(rest):,} answers are to questions without an image and are not scored."] if rest else []),
    }


def _truths(file: Path, problems: Problems) -> dict[str, Row]:
    """Rows of "letter" and "image" (bool) by problem id."""
    rows = by_id(read_rows(file, problems, keyed="id"), problems)
    if all("choices" in row.values for row in rows.values()):
        if (splits := find(file.parent, "pid_splits.json")) is not None:
            card = read_json(splits)
            if not isinstance(card, dict) or not isinstance(card.get("test"), list):
                raise DataError(f"{splits} has no list 'test' of problem ids: download it again.")
            test = set(map(str, card["test"]))
            for name in sorted(test - rows.keys()):
                problems.add(f"{splits}: test names the problem {name}, which {file} does not hold")
            rows = {name: row for name, row in rows.items() if name in test}
        read = _official
    else:
        read = _llava
    truths = {}
    for name, row in rows.items():
        answer = read(row)
        if answer is None:
            problems.add(f"{row.where}: no true answer: 'choices' and 'answer', or LLaVA's 'The answer is X.'")
        else:
            truths[name] = Row({"letter": answer, "image": bool(row.values.get("image"))}, row.where)
    return truths


def _official(row: Row) -> str | None:
    choices, answer = row.values.get("choices"), row.values.get("answer")
    fits = isinstance(choices, list) and isinstance(answer, int) and 0 <= answer < min(len(choices), len(LETTERS))
    return LETTERS[answer] if fits else None


def _llava(row: Row) -> str | None:
    turns = row.values.get("conversations")
    last = turns[-1] if isinstance(turns, list) and turns else None
    return letter(str(last["value"])) if isinstance(last, dict) and "value" in last else None
