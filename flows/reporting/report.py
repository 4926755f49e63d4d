"""The report: one HTML file about a refinement, a comparison, a run or a dataset, made from the store alone.

It opens from the disk, needs no network, and contains everything that it shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage.disk import seal, write_whole
from storage.errors import Prerequisite
from storage.store import Store

from ..labelling import check_labels, score_by_readers
from ..runtime import Report, silent
from ..simulation import Named

PICTURES = 1_600
"""Default number of pictures of single steps in one report."""
_STATES = 1_500  # points of the state space with a label at most; without one as `report/states.sql` has it


@dataclass(frozen=True)
class Written:
    """A written report."""

    path: Path
    bytes: int
    dataset_id: str
    comparison_id: str | None
    labels: int
    episodes: int  # in the viewer
    pictures: int


def write_report(
    store: Store,
    name: str | None = None,
    *,
    out: Path | None = None,
    pictures: int = PICTURES,
    env_id: Named | None = None,
    report: Report = silent,
) -> Written:
    """Write the report of what a name means; replaces an older one.

    Args:
        store: the store.
        name: id of a refinement, comparison, run or dataset, or its beginning; the newest comparison when None.
        out: the file; `reports/<id>.html` of the store when None.
        pictures: pictures of single steps at most; 0 renders nothing.
        env_id: the dataset's environment, if the user has to name it.
        report: shown the progress.

    Raises:
        BadInput: if the name fits nothing, or several.
        Prerequisite: if the store is empty, or the extra `plots` is not installed.
    """
    try:
        from . import charts, episodes, facts, page
    except ImportError as error:
        raise Prerequisite(
            f"A report needs Altair, vl-convert and Pillow ({error}).", "pip install 'trajnote[plots]'"
        ) from error
    with store.catalog.read():
        about = facts.find_subject(store, name)
        known = facts.gather_facts(store, about)
        found = facts.load_labels(store, known)
        visited = facts.sample_states(store, about.dataset_id) if found else []
        checkups = check_labels(store, about.dataset_id, about.run_ids) if found else []
        gold = score_by_readers(store, about.dataset_id, about.run_ids)
    limits = episodes.Limits(pictures=pictures)
    viewer = episodes.build_viewer(
        store, known, found, limits, units=facts.units_shown(store, known), env_id=env_id, report=report
    )
    states = facts.state_rows(found, visited, len(viewer.components), _STATES)
    context = page.tell(known, found, checkups, gold)
    drawn = charts.draw_all(known, found, checkups=checkups, components=viewer.components, states=states)
    content = seal(page.render_page(context, drawn, viewer, library=page.vega_bundle()).encode())
    path = out or store.reports_dir / f"{about.name}.html"
    write_whole(path, content)
    return Written(
        path, len(content), about.dataset_id, about.comparison_id, len(found), len(viewer.entries), viewer.picture_count
    )
