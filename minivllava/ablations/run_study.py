"""A study from its settings to its page: which cells it has and which are known, the missing ones, the results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minivllava.ablations.parts import Parts
from minivllava.ablations.questions import write_answers
from minivllava.ablations.results import finished_cells, shared_cells, summarise, whole_seeds, write_results
from minivllava.ablations.runner import Cell, grid, run_grid, write_cell
from minivllava.ablations.settings import Settings
from minivllava.ablations.study import Study


@dataclass(frozen=True)
class StudyRun:
    """A study, where its results go, its cells, and those that are finished already."""

    study: Study
    out: Path
    cells: list[Cell]
    before: dict[str, dict]  # cells of its results file, by key
    known: dict[str, dict]  # those, and other studies' cells in the same folder

    @property
    def read(self) -> int:
        """How many of its cells are read from results, not computed."""
        return len({cell.key for cell in self.cells} & self.known.keys())

    @property
    def replaces(self) -> bool:
        """Whether its results file is of other settings or parts, so that nothing of it is used."""
        return bool(self.before) and not {cell.key for cell in self.cells} & self.before.keys()

    @property
    def seeds(self) -> int:
        return len({cell.seed for cell in self.cells})


def prepare(study: Study, settings: Settings, seeds: int, parts: Parts, out: Path) -> StudyRun:
    """The cells of a study with at least `seeds` seeds: as many as its results in `out` have, if those are more, so
    that no seed which was shown is dropped. Raises DataError for results that cannot be read."""
    arms = study.settings(settings)
    before = finished_cells(out / f"{study.name}.json")
    cells = grid(arms, max(seeds, whole_seeds(arms, parts.fingerprint, before)), parts.fingerprint)
    return StudyRun(study, out, cells, before, shared_cells(out) | before)


def compute(run: StudyRun, parts: Parts, processes: int | None = None) -> dict[str, dict]:
    """Every cell's result by its key; computes those that are not finished. Cells of its results file that are of other
    settings than today's go into the store: nothing that was computed is lost when that file is written anew.

    processes: how many share the work; by default 1, and one for each seed on a GPU.
    """
    for key in run.before.keys() - {cell.key for cell in run.cells}:
        write_cell(parts.store, run.before[key])
    if processes is None:
        processes = run.seeds if parts.device.type == "cuda" else 1
    return run_grid(run.cells, parts, processes, run.known)


def publish(run: StudyRun, found: dict[str, dict], preset: str, options: Sequence[str] = ()) -> tuple[dict, Path]:
    """Writes the results' JSON, figure and page, and the answers to the questions that the study bears on.

    options: as in `summarise`. Returns (results, file of the page).
    """
    results = summarise(run.study, preset, run.cells, found, options)
    file = write_results(results, run.out)
    if run.study.questions:
        write_answers(run.out)
    return results, file
