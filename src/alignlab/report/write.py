"""Write the report of some runs into a folder: a page, a text and pictures."""

from collections.abc import Sequence
from pathlib import Path

from alignlab.errors import InputError
from alignlab.report.markdown import draw_curves, markdown
from alignlab.report.page import GENERATOR, page
from alignlab.report.records import Record
from alignlab.report.results import Ranked, rank, ranking_metric
from alignlab.report.settings import differing, pooled
from alignlab.system.disk import write_text

PAGE, TEXT = "report.html", "report.md"


def write_report(records: Sequence[Record], folder: Path, metric: str | None = None) -> tuple[list[Ranked], str]:
    """Write ``report.html``, ``report.md`` and the pictures of the latter.

    Args:
        records: Runs, of ``read_records``.
        folder: Created if needed; an earlier report in it is replaced.
        metric: Metric that ranks; ``None`` for the first of ``results.RANKING`` that there is.

    Returns:
        The settings ranked, and the metric.

    Raises:
        InputError: No run has the metric, or the folder holds other files of these names.
    """
    name, mode = ranking_metric(records, metric)
    refuse_other(folder)
    columns = differing(records)
    ranking = rank(pooled(records, columns), name, mode)
    text = page(records, columns, ranking, name, mode)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PAGE, text)
        pictures = draw_curves(ranking, folder)
        write_text(folder / TEXT, markdown(records, columns, ranking, name, mode, pictures))
    except OSError as error:
        raise InputError(f"to={folder}", f"it cannot be written: {error}", "Name another folder") from error
    return ranking, name


def refuse_other(folder: Path) -> None:
    """Refuse a folder that has files in it, but no report.

    Args:
        folder: Where the report is to be written.

    Raises:
        InputError: It is not a folder, or holds something else.
    """
    if not folder.exists():
        return
    asked, instead = f"to={folder}", "Name another folder"
    if not folder.is_dir():
        raise InputError(asked, "it is not a folder", instead)
    page = folder / PAGE
    is_report = page.is_file() and GENERATOR.encode() in page.read_bytes()[:500]
    if any(folder.iterdir()) and not is_report:
        raise InputError(asked, "it holds files, and no earlier report", instead)
