"""What the trackers of a run share: a run at the tracker that ends with the job, and that a resumed job finds again."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alignlab.system.disk import write_text


class Tracker(ABC):
    """A logger that is told the results, and that the job ends."""

    @abstractmethod
    def end(self, *, summary: Mapping[str, Any], artifacts: Mapping[str, Iterable[Path]], succeeded: bool) -> None:
        """Log the results and end the run at the tracker; called on rank 0 only.

        Args:
            summary: Final values by name, nested or not.
            artifacts: Files and folders by their kind (``config``, ``model``), which need not exist.
            succeeded: Whether the run is shown as finished or as failed.
        """


def stored(path: Path, make: Callable[[], str], is_known: Callable[[str], bool] = lambda name: True) -> str:
    """The name of the run at a tracker from a file of its folder; a new one is made and stored if there is none.

    Args:
        path: The file.
        make: Makes a new name.
        is_known: Whether the tracker still knows the stored name.
    """
    if path.is_file() and is_known(name := path.read_text(encoding="utf-8")):
        return name
    write_text(path, make())
    return path.read_text(encoding="utf-8")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested mapping that are no mappings, by their path: ``initial_metrics/val/loss``."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def facts(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says besides the last value of each metric, as ``summary/NAME``; without what is None."""
    other = {name: value for name, value in summary.items() if name != "metrics"}
    return {name: value for name, value in leaves(other, "summary/") if value is not None}


def is_number(value: Any) -> bool:
    """Whether a value is a number, which a truth value is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
