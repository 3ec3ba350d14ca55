"""From finished cells to what is read: NAME.json, NAME.png, NAME.md.

The JSON holds every cell of every seed. A study that runs again takes finished cells from it where their keys are
those of today's settings and parts, so shipped results are kept until something they follow from has changed.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from minivllava.ablations.parts import Parts
from minivllava.ablations.records import POPE
from minivllava.ablations.runner import Cell, grid, is_cell
from minivllava.ablations.settings import Settings, base_settings, cell_key, digest
from minivllava.ablations.statistics import bootstrap_interval, paired_differences, t_interval, verdict
from minivllava.ablations.study import METRICS, Claim, Study, load_study, score_of, study_names
from minivllava.errors import DataError
from minivllava.files import replacing, write_json, write_text
from minivllava.provenance import environment

POPE_SETTINGS = tuple(name.rpartition("/")[2] for name in POPE)


def summarise(
    study: Study, preset: str, cells: list[Cell], found: dict[str, dict], options: Sequence[str] = ()
) -> dict:
    """All of a study's results as JSON types: what was asked, every cell, means and intervals, claims and verdicts.

    found: results by key, one for each cell. options: of the command, beside preset and seeds. Raises DataError if
    a result is missing: no seed is ever left out.
    """
    missing = [f"{cell.arm} seed {cell.seed}" for cell in cells if found.get(cell.key) is None]
    if missing:
        raise DataError(f"{study.name} lacks {', '.join(missing)}: run it again, which computes what is missing.")
    arms = []
    for arm in study.arms:
        its = {cell.seed: found[cell.key] for cell in cells if cell.arm == arm.name}
        baselines = {view: {} for result in its.values() for view in result["baselines"]}
        for view in baselines:
            read = {m: lambda c, v=view, m=m: score_of(c["baselines"][v], m) for m in study.metrics}
            baselines[view] = {m: _summary(its, of) for m, of in read.items()}
        arms.append({
            "name": arm.name,
            "label": arm.label or arm.name,
            "changes": list(arm.set),
            "metrics": {m: _summary(its, lambda c, m=m: score_of(c["metrics"], m)) for m in study.metrics},
            "baselines": baselines,
        })  # fmt: skip
    return {
        "study": study.name,
        "title": study.title,
        "about": study.about.strip(),
        "questions": list(study.questions),
        "preset": preset,
        "command": study.file or study.name,
        "options": list(options),
        "metrics": list(study.metrics),
        "reference": study.reference,
        "config_hash": config_hash(study, cells),
        "seeds": sorted({cell.seed for cell in cells}),
        "made_with": environment(),
        "arms": arms,
        "claims": [_judged(claim, cells, found) for claim in study.claims],
        "cells": [{**found[cell.key], "arm": cell.arm} for cell in cells],
    }


def config_hash(study: Study, cells: list[Cell]) -> str:
    """The hash of what a study compares and claims, whatever its seeds: a result with another one is out of date."""
    claims = [(claim.metric, claim.better, claim.than, claim.direction, claim.within) for claim in study.claims]
    return digest(study.metrics, claims, sorted((cell.arm, cell.key) for cell in cells if cell.seed == 0))


def is_current(results: dict, parts: Parts) -> bool:
    """Whether results follow from today's study, settings and shipped parts: else they should be made again."""
    study = load_study(results["study"])
    cells = grid(study.settings(base_settings(results["preset"])), 1, parts.fingerprint)
    return config_hash(study, cells) == results["config_hash"]


def _summary(its: dict[int, dict], read: Callable[[dict], float | None]) -> dict | None:
    """`values` by seed, their `mean` and 95 % bootstrap `interval`; None if a seed has no such score."""
    values = {seed: read(result) for seed, result in sorted(its.items())}
    if any(value is None for value in values.values()):
        return None
    mean = sum(values.values()) / len(values)
    return {"values": values, "mean": mean, "interval": bootstrap_interval(list(values.values()))}


def _judged(claim: Claim, cells: list[Cell], found: dict[str, dict]) -> dict:
    """A claim with its paired differences, their mean, 95 % t interval, and the verdict.

    In a world so small that nobody was asked for that score, there are none, and the verdict is "not asked".
    """
    better, than = (
        {cell.seed: score_of(found[cell.key]["metrics"], claim.metric) for cell in cells if cell.arm == arm}
        for arm in (claim.better, claim.than)
    )
    judged = {"differences": {}, "mean": None, "interval": None, "verdict": "not asked"}
    if None not in (*better.values(), *than.values()):
        differences = paired_differences(better, than)
        interval = t_interval(list(differences.values()))
        judged = {
            "differences": differences,
            "mean": sum(differences.values()) / len(differences),
            "interval": interval,
            "verdict": verdict(claim.direction, interval, claim.within),
        }
    return asdict(claim) | judged


def finished_cells(file: Path) -> dict[str, dict]:
    """The cells of a results file by key; none if there is no such file. Raises DataError for a broken one."""
    if not file.exists():
        return {}
    try:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        if not all(map(is_cell, cells)):
            raise ValueError("some of its cells are not whole")
        return {cell["key"]: cell for cell in cells}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no results file ({error!r}): move it away, or give another --out.") from error


def shared_cells(folder: Path) -> dict[str, dict]:
    """The cells of all studies whose results lie in a folder, by key: studies share cells, such as the base arm's."""
    return {key: cell for name in study_names() for key, cell in finished_cells(folder / f"{name}.json").items()}


def whole_seeds(arms: dict[str, Settings], weights: str, known: dict[str, dict]) -> int:
    """For how many seeds, counted from 0, every arm has a finished cell among the known ones."""
    seeds = 0
    while all(cell_key(settings, seeds, weights) in known for settings in arms.values()):
        seeds += 1
    return seeds


def write_results(results: dict, folder: Path) -> Path:
    """Writes NAME.json, NAME.png and NAME.md. Returns the page."""
    from minivllava.figures.style import chart_png

    name = results["study"]
    write_json(folder / f"{name}.json", results)
    with replacing(folder / f"{name}.png") as part:
        part.write_bytes(chart_png(study_chart(results)))
    write_text(folder / f"{name}.md", page(results))
    return folder / f"{name}.md"


def study_chart(results: dict):
    """Results as a figure: every seed of every arm, every claim's difference, its verdict, and the paper's."""
    from minivllava.figures.studies import study_figure

    return study_figure(results, METRICS, [difference(claim) for claim in results["claims"]])


# the page


def page(results: dict) -> str:
    """A study as a page of markdown: what was asked, the figure, the paper beside ours, every seed."""
    seeds, metrics = results["seeds"], results["metrics"]
    labels = {arm["name"]: in_table(arm["label"]) for arm in results["arms"]}
    cells = results["cells"]
    minutes = sum(cell["seconds"] for cell in {c["key"]: c for c in cells}.values()) / 60
    made = {
        name: "; ".join(sorted({str(cell["made_with"][name])[:length] for cell in cells}))
        for name, length in (("machine", None), ("commit", 10), ("torch", None))
    }
    lines = [
        f"# {results['title']}", "", results["about"], "", f"![{results['title']}]({results['study']}.png)", "",
        f"*Dots: seeds {_listed(seeds)}. Above, the mean of each arm and its 95 % bootstrap interval, which is too "
        "narrow with few seeds (of five seeds, it holds the truth in about 85 of 100 cases, not in 95). Below, "
        "differences between arms on the same seed, their mean and its 95 % paired t interval: claims are judged by "
        "this one.*", "",
    ]  # fmt: skip
    if results["claims"]:
        lines += ["| claim | on | the paper | here | verdict |", "|---|---|---|---|---|"]
        lines += [_claim_row(claim, labels) for claim in results["claims"]]
        lines += [""]
    lines += [
        "Scores in per cent: mean, [95 % bootstrap interval], (every seed).", "",
        f"| arm | {' | '.join(METRICS[m] for m in metrics)} |", "|---" * (1 + len(metrics)) + "|",
    ]  # fmt: skip
    for arm in results["arms"]:
        label = labels[arm["name"]]
        lines.append(f"| **{label}** | {' | '.join(score(arm['metrics'][m]) for m in metrics)} |")
        for view, scores in arm["baselines"].items():
            if not any(scores.values()):
                continue
            lines.append(f"| {label}: {view} | {' | '.join(score(scores[m]) for m in metrics)} |")
    if "pope/f1" in metrics:
        lines += ["", *_pope_rows(results)]
    command = [
        "minivllava ablate",
        shlex.quote(results.get("command", results["study"])),
        "--preset",
        results["preset"],
        "--seeds",
        str(len(seeds)),
    ]
    command += map(shlex.quote, results.get("options", []))
    counts = ", ".join(f"{count} {name}" for name, count in cells[0]["n"].items())
    lines += [
        "",
        f"Preset `{results['preset']}`, {len(seeds)} seed(s); questions: {counts}. A seed draws the projector's start "
        "and the order of the data; encoders, language model and world are the same for all seeds. "
        f"{minutes:.0f} minutes of cells in all, on {made['machine']}. Commit {made['commit']}, torch "
        f"{made['torch']}, configuration {results['config_hash']}.",
        "",
        f"Made by `{' '.join(command)}`.",
    ]
    return "\n".join(lines) + "\n"


def _pope_rows(results: dict) -> list[str]:
    """POPE's three figures for each of its settings, the mean over seeds."""
    lines = ["POPE by its settings: accuracy, F1, yes-ratio; means over seeds.", ""]
    lines += [f"| arm | {' | '.join(POPE_SETTINGS)} |", "|---" * (1 + len(POPE_SETTINGS)) + "|"]
    for arm in results["arms"]:
        its = [cell["metrics"] for cell in results["cells"] if cell["arm"] == arm["name"]]
        told = []
        for setting in POPE_SETTINGS:
            values = [[scores.get(f"pope/{setting}{tail}") for scores in its] for tail in ("", "/f1", "/yes")]
            told.append("" if None in sum(values, []) else ", ".join(f"{fmean(of):.1f}" for of in values))
        lines.append(f"| {in_table(arm['label'])} | {' | '.join(told)} |")
    return lines


def _claim_row(claim: dict, labels: dict[str, str]) -> str:
    paper = claim["paper"] or f"(no such experiment) {claim['expected']}"
    return (
        f"| {claim_text(claim, labels)} | {METRICS[claim['metric']]} | {in_table(paper)} | {difference(claim)} "
        f"| **{claim['verdict']}** |"
    )


def in_table(text: str) -> str:
    """A text that no column of a markdown table ends in."""
    return text.replace("|", "\\|")


def claim_text(claim: dict, labels: dict[str, str]) -> str:
    """ "united beats MAE", or "united equals CLIP within 2 points"."""
    better, than = labels[claim["better"]], labels[claim["than"]]
    if claim["direction"] == "=":
        return f"{better} equals {than} within {claim['within']:g} points"
    return f"{better} beats {than}"


def difference(claim: dict) -> str:
    """ "+4.1 [2.0, 6.2]" points."""
    if claim["mean"] is None:
        return "not asked"
    if claim["interval"] is None:
        return f"{claim['mean']:+.1f} ({'one seed' if len(claim['differences']) == 1 else 'all seeds alike'})"
    low, high = claim["interval"]
    return f"{claim['mean']:+.1f} [{low:+.1f}, {high:+.1f}]"


def score(summary: dict | None, values: bool = True) -> str:
    """ "56.1 [55.0, 57.3] (55.4, 56.8)": mean, interval and, unless left out, every seed."""
    if summary is None:
        return ""
    text = f"{summary['mean']:.1f}"
    text += f" [{summary['interval'][0]:.1f}, {summary['interval'][1]:.1f}]" if summary["interval"] else ""
    return text + (f" ({', '.join(f'{value:.1f}' for value in summary['values'].values())})" if values else "")


def _listed(seeds: list[int]) -> str:
    return f"0 to {seeds[-1]}" if seeds == list(range(len(seeds))) and len(seeds) > 1 else ", ".join(map(str, seeds))
