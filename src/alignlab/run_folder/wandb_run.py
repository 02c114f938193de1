"""Start of a W&B run: online if requested and possible, otherwise offline; wrong keys and names are refused."""

import logging
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignlab.errors import InputError
from alignlab.metrics import best_mode
from alignlab.run_folder.metrics_file import AXIS
from alignlab.system.paths import reason

log = logging.getLogger(__name__)

SECONDS_TO_BEGIN = 30.0
"""Timeout of the start of a W&B run, after which it starts offline; ``WANDB_INIT_TIMEOUT`` overrides it."""

SECONDS_TO_FINISH = 900.0
"""Timeout of uploads at the end of a run; ``WANDB_FINISH_TIMEOUT`` overrides it."""

REFUSED_BY_SERVER = re.compile(r"\berror 4(?!08|29)\d\d\b")
"""Matches errors in which W&B's server refuses: a wrong key, no such entity, no access to the project."""

OTHERWISE = "or logger.wandb.mode=offline and wandb sync later, or logger=none"


def begin(mode: str, **options: Any) -> Any:
    """Start a W&B run, or continue it if its id is known.

    Args:
        mode: ``online``, ``offline`` or ``disabled``.
        **options: Arguments of ``wandb.init``.

    Returns:
        The run.

    Raises:
        InputError: No user is logged in, or W&B refuses the key or a name.
    """
    import wandb as library
    from wandb.errors import CommError, Error

    try:
        return library.init(mode=mode, settings=_settings(library), **options)
    except CommError as error:
        if REFUSED_BY_SERVER.search(str(error)):
            why = f"the server refuses ({reason(error)})"
            raise InputError(_asked(mode), why, f"Type wandb login --relogin, {OTHERWISE}") from error
        seconds = _settings(library).init_timeout
        log.warning(
            "W&B cannot be reached within %g s (%s): this run is kept offline in %s; send it later with wandb sync",
            *(seconds, reason(error), options["dir"]),
        )
    except (Error, ValueError) as error:
        raise InputError(_asked(mode), reason(error), f"Correct it, {OTHERWISE}") from error
    library.teardown()  # W&B's service keeps the id of the run that it could not start
    return library.init(mode="offline", settings=_settings(library), **options)


def define(run: Any, name: str) -> None:
    """Define a metric before it is logged, so that a new project shows it well without a workspace of its own.

    It is drawn over ``progress/step``; a metric with a best value has that and its last one in the summary, as
    ``NAME.min`` or ``NAME.max`` and ``NAME.last``; the counters of progress get no charts.

    Args:
        run: The W&B run.
        name: Name of the metric.
    """
    if name == AXIS:
        run.define_metric(name, hidden=True)
    elif name.startswith("progress/"):
        run.define_metric(name, step_metric=AXIS, hidden=True)
    elif mode := best_mode(name):
        run.define_metric(name, step_metric=AXIS, summary=f"{mode},last")


def offline_runs(run_folder: Path) -> list[Path]:
    """Folders of W&B runs of a run that were kept offline, and that ``wandb sync`` has not sent.

    Args:
        run_folder: Folder of the run. A run that was resumed has several, which are sent as one.
    """
    folders = (path for path in (run_folder / "wandb").glob("offline-run-*") if path.is_dir())
    return sorted(path for path in folders if not any(path.glob("*.wandb.synced")))


def sync_command(folders: Iterable[Path]) -> str | None:
    """The command that sends W&B runs which were kept offline; None if there are none."""
    names = [str(folder) for folder in folders]
    return f"wandb sync {shlex.join(names)}" if names else None


def _asked(mode: str) -> str:
    return f"logger=wandb with mode={mode}"


def _settings(library: Any) -> Any:
    ours = {"init_timeout": SECONDS_TO_BEGIN, "finish_timeout": SECONDS_TO_FINISH}
    typed = {key: os.environ.get(f"WANDB_{key.upper()}") for key in ours}
    return library.Settings(quiet=True, **{key: typed[key] or seconds for key, seconds in ours.items()})
