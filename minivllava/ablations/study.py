"""Studies: small TOML files that say what is compared, on what, and what the paper found.

title       one line
about       what it shows and how to read it
questions   which of the ten questions it helps to answer
base        changes that all arms share
reference   the arm that also shows the baselines; the first by default
metrics     the scores shown, of METRICS
include     names of studies, or TOML files beside this one, whose arms join with what their base sets, unless one
            here is equal; no field may be set by their base and by this one
[[arms]]    name, label, set (changes to the base)
[[claims]]  metric, better, than: the direction that the paper found, or that is expected; paper (its words);
            points (its difference); direction "+" (by default) or "=" (equal within `within` points);
            questions, where it helps to answer only some of the study's
"""

import re
import tomllib
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from minivllava.ablations.settings import Settings
from minivllava.data.build import evaluation_only
from minivllava.errors import ConfigError, check_choice
from minivllava.fields import check_types
from minivllava.overrides import from_dict, override

METRICS = {
    "image": "images",
    "video": "clips",
    "order": "clips, order of frames",
    "video/order": "clips, order of two events",
    "pope": "POPE accuracy",
    "pope/random": "POPE random",
    "pope/popular": "POPE popular",
    "pope/adversarial": "POPE adversarial",
    "pope/f1": "POPE F1",
    "pope/yes": "POPE yes-ratio",
    "depth": "depth maps",
    "video-image": "clips less images",
}


def score_of(scores: dict[str, float], metric: str) -> float | None:
    """A cell's score, or the difference of two; None if nobody was asked for it."""
    found = [scores.get(name) for name in metric.split("-")]
    return None if None in found else found[0] - sum(found[1:])


@dataclass(frozen=True)
class Arm:
    """One way to build or train the model."""

    name: str
    label: str = ""  # as tables and figures call it; by default the name
    set: tuple[str, ...] = ()

    __post_init__ = check_types


@dataclass(frozen=True)
class Claim:
    """That one arm scores better than another, or equal to it, and who says so."""

    metric: str
    better: str
    than: str
    direction: str = "+"  # or "=": equal within `within` points
    within: float = 2.0
    paper: str = ""  # what the paper says; empty if it has no such experiment
    points: float | None = None  # its difference, better - than, in points
    expected: str = ""  # why this direction is expected where the paper is silent
    questions: tuple[int, ...] = ()  # which it helps to answer; by default all of its study's

    __post_init__ = check_types


@dataclass(frozen=True)
class Study:
    """A question put to several arms."""

    name: str
    title: str
    about: str = ""
    questions: tuple[int, ...] = ()
    arms: tuple[Arm, ...] = ()
    metrics: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    base: tuple[str, ...] = ()
    reference: str = ""
    include: tuple[str, ...] = ()
    file: str = ""  # of a study of one's own, as it was named

    __post_init__ = check_types

    def settings(self, start: Settings) -> dict[str, Settings]:
        """Each arm's settings, by its name; start: `base_settings` of a preset."""
        base = override(start, *self.base)
        # layers count from the end, so that "the middle" is another number in every preset
        middle = -1 - base.model.image.layers // 2
        arms = {
            arm.name: override(base, *(text.replace("{middle}", str(middle)) for text in arm.set)) for arm in self.arms
        }
        for name, its in arms.items():
            if evaluation_only(its.world) != evaluation_only(base.world):
                raise ConfigError(
                    f"{self.name}: the arm {name!r} is asked about another world: put `world.` into base."
                )
            if (its.stage1.seed, its.stage2.seed) != (base.stage1.seed, base.stage2.seed):
                raise ConfigError(f"{self.name}: the arm {name!r} sets a seed: --seeds says which ones a study has.")
        return arms | {self.reference: replace(arms[self.reference], baselines=True)}


def study_names() -> list[str]:
    """The studies that come with the package, in the order of the paper's tables and of the ten questions."""
    order = ("alignment", "alignment-long", "joint", "joint-long", "ratio", "stages", "stages-long", "projector",
             "time", "time-long", "hallucination", "hallucination-long", "scale", "layer", "modality")  # fmt: skip
    found = {file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml")}
    return [name for name in order if name in found] + sorted(found - set(order))


def load_study(name: str | Path, including: tuple = ()) -> Study:
    """The study called `name`, or the one in a TOML file of your own. including: the files that include it.

    Raises ConfigError, listing the names there are, or naming the file and what is wrong with it.
    """
    own = str(name).endswith(".toml")
    if not own:
        check_choice("study", str(name), [*study_names(), "a .toml file of your own"])
    file = Path(name) if own else _folder() / f"{name}.toml"
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig" if own else "utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): name a study's TOML file.") from error
    if file in including:
        raise ConfigError(f"{file} includes itself: take that name out of `include`.")
    study = _checked(values, Path(name).stem if own else str(name), file, (*including, file))
    if own and study.name in study_names():
        raise ConfigError(f"{file} is called as a study of the package: give the file another name, or set `name`.")
    return replace(study, file=str(name)) if own else study


def _folder():
    return files("minivllava.ablations") / "studies"


def _checked(values: dict, name: str, where: Path, including: tuple) -> Study:
    try:
        study = from_dict(Study, {"name": name} | values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    for other in study.include:
        included = load_study(where.parent / other if other.endswith(".toml") else other, including)
        both = sorted(_fields(study.base) & _fields(included.base))
        if both:
            raise ConfigError(
                f"{where}: {', '.join(both)} is set by its base and by that of {other}, whose arms would get both: "
                "take it out of the base here, and put it into `set` of the arms here that are to have it."
            )
        there = {arm.set for arm in study.arms}
        joining = [replace(arm, set=(*included.base, *arm.set)) for arm in included.arms]
        study = replace(study, arms=(*study.arms, *(arm for arm in joining if arm.set not in there)))
    if not study.arms:
        raise ConfigError(f"{where}: it has no arms.")
    study, claims = replace(study, reference=study.reference or study.arms[0].name), study.claims
    names = [arm.name for arm in study.arms]
    problems = ["an arm has no name"] if "" in names else []
    problems += [f"the arm {name!r} is there twice" for name in sorted(set(names)) if names.count(name) > 1]
    problems += ["it names no metrics"] if not study.metrics else []
    claimed = [arm for claim in claims for arm in (claim.better, claim.than)]
    problems += [f"there is no arm {arm!r}" for arm in (study.reference, *claimed) if arm not in names]
    asked = [*study.metrics, *(claim.metric for claim in claims)]
    problems += [f"there is no metric {metric!r}" for metric in asked if metric not in METRICS]
    problems += [f"a direction is {c.direction!r}, not '+' or '='" for c in claims if c.direction not in ("+", "=")]
    problems += [f"a claim compares {claim.better!r} with itself" for claim in claims if claim.better == claim.than]
    problems += [f"within is {claim.within}: use points from 0 up" for claim in claims if claim.within < 0]
    labels = [arm.label or arm.name for arm in study.arms]
    problems += [f"two arms are called {label!r}" for label in sorted(set(labels)) if labels.count(label) > 1]
    if not re.fullmatch(r"[\w-]+", study.name) or study.name.lower() == "questions":
        problems.append(f"its name is {study.name!r}: use letters, digits, - and _, and not that of QUESTIONS.md")
    odd = sorted({number for numbers in (study.questions, *(c.questions for c in claims)) for number in numbers})
    problems += [f"there is no question {number}, only 1 to 10" for number in odd if not 1 <= number <= 10]
    if problems:
        raise ConfigError(f"{where}: {'; '.join(problems)}.")
    return study


def _fields(changes: tuple[str, ...]) -> set[str]:
    """The fields that changes set or multiply."""
    return {change.partition("=")[0].removesuffix("*") for change in changes}
