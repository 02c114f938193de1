"""Write the report of some runs into a folder: a page, a text and pictures."""

import re
from collections.abc import Sequence
from pathlib import Path

from alignlab.errors import InputError
from alignlab.report.markdown import draw_curves, markdown
from alignlab.report.page import GENERATOR, page
from alignlab.report.records import Record
from alignlab.report.results import Results, results_of
from alignlab.system.disk import write_text

PAGE, TEXT = "report.html", "report.md"


def write_report(records: Sequence[Record], folder: Path, metric: str | None) -> Results:
    """Write ``report.html``, ``report.md`` and the pictures of the latter.

    Args:
        records: Runs, of ``read_records``.
        folder: Created if needed; an earlier report in it is replaced.
        metric: Metric that ranks; ``None`` for the first of ``results.RANKING`` that there is.

    Returns:
        What it shows.

    Raises:
        InputError: No run has the metric, or the folder holds anything but an earlier report.
    """
    results = results_of(records, metric)
    refuse_other(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PAGE, page(results))
        pictures = draw_curves(results.ranking, folder)
        write_text(folder / TEXT, markdown(results, pictures))
    except OSError as error:
        raise InputError(f"to={folder}", f"it cannot be written: {error}", "Name another folder") from error
    return results


def refuse_other(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier report.

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
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in _files_of_report(folder))
    if foreign:
        raise InputError(asked, f"it holds files that are not of an earlier report: {', '.join(foreign[:3])}", instead)


def _files_of_report(folder: Path) -> set[str]:
    """Names of the files of the report in a folder: the page, the text, and the pictures that the text shows."""
    page, text = folder / PAGE, folder / TEXT
    if not (page.is_file() and GENERATOR.encode() in page.read_bytes()[:500]):
        return set()
    shown = re.findall(r"^!\[.*\]\((.+\.png)\)$", text.read_text(encoding="utf-8"), re.M) if text.is_file() else []
    return {PAGE, TEXT, *shown}
