"""A verb whose words make a config: Hydra's command line (``-m``, ``--cfg``, ``--help``, …) with our refusals."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, read_write

from alignlab.cli.composition.compose import ERRORS, ROOT, compose, prepare, refusal
from alignlab.cli.composition.hidden import hide_words
from alignlab.errors import InputError, nearest
from alignlab.system.credentials import masked

Config = dict[str, Any]


def command(
    config_name: str, words: Sequence[str], check: Callable[[DictConfig], Config], job: Callable[[Config], Any]
) -> int:
    """Compose a config and run one job with it, or a sweep of them.

    Args:
        config_name: Root in ``conf``.
        words: Command line after the verb.
        check: Refuses what is wrong with a composed config; gives it resolved, as plain containers.
        job: What to do with that.

    Returns:
        Exit code: 2 where a job of a sweep was refused, else 0.

    Raises:
        InputError: The command line does not compose, or its one job was refused.
    """
    flags = _read_flags(words)
    options = list(words)
    for word in flags.overrides:
        options.remove(word)  # Hydra wants its overrides in one piece
    flags.overrides = hide_words(flags.overrides)
    if flags.cfg:
        check(compose(flags.overrides, config_name, flags.config_dir))
    overrides = prepare(flags.overrides, config_name, flags.config_dir)
    jobs = _Jobs(check, job, frozenset(overrides))
    entry = hydra.main(str(ROOT / "conf"), config_name, "1.3")(jobs.run)
    try:
        with _process([*options, *overrides]):
            entry()
    except ERRORS as error:
        if jobs.crashed:
            raise
        raise refusal(error, flags.overrides, flags.config_dir) from error
    if jobs.refused and not jobs.sweep:
        raise jobs.refused[0]
    return 2 if jobs.refused else 0


class _Jobs:
    """What Hydra calls for each job. A refusal is kept, because Hydra would print lines of its own about it."""

    def __init__(
        self, check: Callable[[DictConfig], Config], job: Callable[[Config], Any], typed: frozenset[str] = frozenset()
    ):
        self.check, self.job, self.typed = check, job, typed
        self.refused: list[InputError] = []
        self.crashed = self.sweep = False

    def run(self, cfg: DictConfig) -> Any:
        """Check and run; in a sweep a refused job does not keep the others from running."""
        self.crashed, self.sweep = True, HydraConfig.get().mode == RunMode.MULTIRUN
        result = None
        if self.sweep:
            print(f"job {HydraConfig.get().job.num}: {self._set_apart(HydraConfig.get())}", flush=True)
        try:
            result = self.job(self.check(cfg))
        except InputError as error:
            self.refused.append(error)
            if self.sweep:
                refuse(error, debug=cfg.debug)
        self.crashed = False
        return result

    def _set_apart(self, hydra_cfg: Any) -> str:
        """Leave in ``hydra.job.override_dirname`` only what is not the same for all jobs."""
        own = [word.lstrip("+") for word in hydra_cfg.overrides.task if word not in self.typed]
        with read_write(hydra_cfg):
            hydra_cfg.job.override_dirname = " ".join(own)
        return hydra_cfg.job.override_dirname


def refuse(error: InputError, debug: bool) -> int:
    """Print a refusal as one paragraph; with ``debug``, raise it for its traceback. Returns exit code 2."""
    if debug:
        raise error
    said = masked(str(error))
    print(f"Refused. {said}" if "\n" not in said else f"Refused, for these reasons:\n{said}", file=sys.stderr)
    return 2


def _read_flags(words: Sequence[str]) -> Any:
    parser = get_args_parser()
    flags, unknown = parser.parse_known_intermixed_args(list(words))
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        raise InputError(" ".join(unknown), "there is no such flag", nearest(unknown[0], known))
    return flags


@contextmanager
def _process(words: Sequence[str]):
    """The process as Hydra wants it: the words in ``sys.argv``, and errors raised instead of printed."""
    before, sys.argv = sys.argv, [sys.argv[0], *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
