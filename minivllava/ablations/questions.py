"""The ten questions and what the finished studies answer: one page, written again after every study.

questions.toml holds the questions, and each answer in two sentences, with the verdicts that it was written for. Where
today's verdicts are others, or a study has not run, the page leaves the claims to speak for themselves.
"""

import json
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from minivllava.ablations.results import claim_text, difference
from minivllava.ablations.study import METRICS
from minivllava.errors import ConfigError
from minivllava.fields import check_types
from minivllava.files import write_text
from minivllava.overrides import from_dict

SIGNS = {"+": "agrees", "-": "disagrees", "?": "undecided"}


@dataclass(frozen=True)
class Question:
    """A question, how the studies put it, its answer in two sentences, and what speaks against trusting that."""

    question: str
    how: str
    verdicts: dict[str, str]  # study -> the SIGNS of its claims that bear on the question
    answer: str
    doubt: str = ""

    __post_init__ = check_types

    @property
    def studies(self) -> tuple[str, ...]:
        return tuple(self.verdicts)


@cache
def _file() -> dict:
    return tomllib.loads((Path(__file__).parent / "questions.toml").read_text(encoding="utf-8"))


@cache
def questions() -> dict[int, Question]:
    """The ten questions by number. Raises ConfigError for one that is not whole."""
    found = {int(name): entry for name, entry in _file().items() if name.isdigit()}
    try:
        return {number: from_dict(Question, entry) for number, entry in found.items()}
    except ConfigError as error:
        raise ConfigError(f"questions.toml: {error}") from error


def write_answers(folder: Path) -> Path:
    """Writes folder/QUESTIONS.md from the results files that lie there. Returns it."""
    results = {}
    for study in sorted({study for question in questions().values() for study in question.studies}):
        file = folder / f"{study}.json"
        if file.exists():
            results[study] = json.loads(file.read_text(encoding="utf-8"))
    lines = ["# The ten questions", "", _file()["introduction"].strip().replace("{asked}", _asked(results))]
    for number, question in questions().items():
        lines += ["", f"## {number}. {question.question}", "", *_section(number, question, results)]
    path = folder / "QUESTIONS.md"
    write_text(path, "\n".join(lines) + "\n")
    return path


def _asked(results: dict[str, dict]) -> str:
    """How many questions of each kind all seeds are asked, by a study that asks about images and clips."""
    counts = (
        cell["n"] for study in results.values() for cell in study["cells"] if {"image", "video"} <= cell["n"].keys()
    )
    n = next(counts, None)
    if n is None:
        return ""
    return (
        f" ({n['image']} about images, {n['video']} about clips, {n.get('order', 0)} of them about order, "
        f"{n.get('pope', 0)} of POPE)"
    )


def _section(number: int, question: Question, results: dict[str, dict]) -> list[str]:
    there = [results[study] for study in question.studies if study in results]
    missing = ", ".join(f"`{study}`" for study in question.studies if study not in results)
    said = answer(number, results)
    lines = [f"*Asked how:* {question.how}", "", said or "No answer was written for these results: see the claims."]
    if missing:
        lines += ["", f"Not run yet: {missing}."]
    if not there:
        return lines
    lines += ["", f"![{there[0]['title']}]({there[0]['study']}.png)", ""]
    lines += ["| study | claim | on | here | the paper | verdict |", "|---|---|---|---|---|---|"]
    for study in there:
        labels = {arm["name"]: arm["label"] for arm in study["arms"]}
        for claim in claims_of(study, number):
            paper = "" if claim["points"] is None else f"{claim['points']:+.1f}"
            lines.append(
                f"| [{study['study']}]({study['study']}.md) | {claim_text(claim, labels)} | {METRICS[claim['metric']]} "
                f"| {difference(claim)} | {paper} | **{claim['verdict']}** |"
            )
    sure = "; ".join(f"{study['study']}: {confidence(study, number)}" for study in there)
    doubt = _filled(question.doubt, number, results) if said else ""
    return [*lines, "", f"*How sure:* {sure}. {doubt}".rstrip()]


def answer(number: int, results: dict[str, dict]) -> str | None:
    """The answer to a question with its numbers; None unless all studies that it speaks of have run, at the size and
    with the verdicts that it was written for. Raises ConfigError if it names a claim that no study makes."""
    question = questions()[number]
    for study, signs in question.verdicts.items():
        if study not in results or not _as_written_for(results[study]):
            return None
        found = [claim["verdict"] for claim in claims_of(results[study], number)]
        if found != [SIGNS[sign] for sign in signs]:
            return None
    return _filled(question.answer, number, results)


def _as_written_for(study: dict) -> bool:
    """Answers speak of this many seeds, and of steps and scores at this size."""
    return (study["preset"], len(study["seeds"]), study.get("options", [])) == ("tiny", 5, [])


def _filled(text: str, number: int, results: dict[str, dict]) -> str:
    """A text of questions.toml, with each {study/metric/better/than} the difference and interval of that claim."""
    said = {
        f"{study}/{claim['metric']}/{claim['better']}/{claim['than']}": difference(claim)
        for study in questions()[number].studies
        for claim in results[study]["claims"]
    }

    def number_of(match: re.Match) -> str:
        if match[1] not in said:
            raise ConfigError(f"The answer to question {number} names the claim {match[1]}, which no study makes.")
        return said[match[1]]

    return re.sub(r"\{(.+?)\}", number_of, " ".join(text.split()))


def claims_of(results: dict, question: int) -> list[dict]:
    """The claims of a study that bear on a question: those that name it, or none."""
    return [claim for claim in results["claims"] if not claim["questions"] or question in claim["questions"]]


def confidence(results: dict, question: int) -> str:
    """How many seeds and claims stand behind what a study says to a question."""
    verdicts = [claim["verdict"] for claim in claims_of(results, question)]
    counted = ", ".join(f"{verdicts.count(v)} {v}" for v in SIGNS.values() if v in verdicts)
    return f"{len(results['seeds'])} seeds, preset `{results['preset']}`, {counted or 'no claims'}"
