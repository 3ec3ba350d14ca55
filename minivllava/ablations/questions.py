"""The ten questions and what the finished studies answer: one table, written anew after every study."""

import json
from pathlib import Path

from minivllava.ablations.results import claim_text, difference
from minivllava.ablations.study import METRICS
from minivllava.files import write_text

QUESTIONS = {
    1: ("How does a unified representation help the language model, against separate encoders?",
        "one image encoder after another, beside the same video encoder", ("alignment",)),
    2: ("Why two stages?", "with and without each stage; then with a longer stage 2", ("stages", "stages-long")),
    3: ("What in the architecture beats InstructBLIP and mPLUG-Owl?",
        "their learned queries in place of the projector", ("projector",)),
    4: ("What limited Video-ChatGPT?", "its pooling in place of all tokens; frames, and attention over them",
        ("projector", "time", "time-long")),
    5: ("What do the ablations say with and without each component?", "encoders, joint training, layers",
        ("alignment", "joint", "layer")),
    6: ("How is hallucination measured, and does unification or joint training reduce it?",
        "POPE: is there such a thing, half yes, half no; accuracy, F1 and how often it says yes", ("hallucination",)),
    7: ("Which ratio of pictures to clips; is there a plateau?", "seven ratios of a fixed total", ("ratio",)),
    8: ("Pictures alone against clips alone: is there transfer?", "each alone and both, own number and same total",
        ("joint",)),
    9: ("Does a larger language model gain alike on both?", "four sizes, each a quarter of the next", ("scale",)),
    10: ("Can further modalities join?", "depth maps, bound to text or not, without and with a little tuning",
         ("modality",)),
}  # fmt: skip


def write_answers(folder: Path) -> Path:
    """Writes folder/QUESTIONS.md from the results files that lie there. Returns it."""
    results = {}
    for study in sorted({study for *_, studies in QUESTIONS.values() for study in studies}):
        file = folder / f"{study}.json"
        if file.exists():
            results[study] = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        "# The ten questions", "",
        "Answers from the finished studies: differences in points with their 95 % intervals, and the paper's where it "
        "has that experiment. What is undecided may be true and too small to see with these seeds; and of all these "
        "intervals one in twenty misses the truth by chance: trust those least that end near zero. Written by "
        "`minivllava ablate`.", "",
        "| | question | asked how | answer at this scale | figure | how sure |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for number, (question, how, studies) in QUESTIONS.items():
        there = [results[study] for study in studies if study in results]
        figures = " ".join(f"[{study['study']}]({study['study']}.md)" for study in there)
        sure = "<br>".join(confidence(study, number) for study in there)
        open_ = [f"`{study}`" for study in studies if study not in results]
        said = answer(there, number) + (f" Not run yet: {', '.join(open_)}." if there and open_ else "")
        lines.append(f"| {number} | {question} | {how} | {said} | {figures} | {sure} |")
    path = folder / "QUESTIONS.md"
    write_text(path, "\n".join(lines) + "\n")
    return path


def answer(studies: list[dict], question: int) -> str:
    """Two sentences: what the studies show, and what they do not."""
    said: dict[str, list[str]] = {"agrees": [], "disagrees": [], "undecided": [], "not asked": []}
    for results in studies:
        labels = {arm["name"]: arm["label"] for arm in results["arms"]}
        for claim in claims_of(results, question):
            paper = f", the paper's {claim['points']:+.1f}" if claim["points"] is not None else ""
            where = f"{METRICS[claim['metric']]}: {difference(claim)}{paper}"
            said[claim["verdict"]].append(f"{claim_text(claim, labels)} ({where})")
    if not any(said.values()):
        return "not run yet"
    shown = f"Shown: {'; '.join(said['agrees'])}." if said["agrees"] else "No claim is shown at this scale."
    contrary = f"shown to be otherwise: {'; '.join(said['disagrees'])}" if said["disagrees"] else ""
    open_ = f"undecided: {'; '.join(said['undecided'])}" if said["undecided"] else ""
    rest = "; ".join(filter(None, (contrary, open_)))
    return f"{shown} {rest[:1].upper() + rest[1:] or 'None is contradicted, none is left open'}."


def claims_of(results: dict, question: int) -> list[dict]:
    """The claims of a study that bear on a question: those that name it, or none."""
    return [claim for claim in results["claims"] if not claim["questions"] or question in claim["questions"]]


def confidence(results: dict, question: int) -> str:
    """How many seeds and claims stand behind what a study says to a question."""
    verdicts = [claim["verdict"] for claim in claims_of(results, question)]
    counted = ", ".join(f"{verdicts.count(v)} {v}" for v in ("agrees", "disagrees", "undecided") if v in verdicts)
    return f"{len(results['seeds'])} seeds, preset `{results['preset']}`; claims: {counted or 'none'}"
