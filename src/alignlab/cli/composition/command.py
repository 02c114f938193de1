"""A verb that composes a config: Hydra's command line (``-m``, ``--cfg``, ``--help``, …) with our error messages."""

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

from alignlab.cli.composition.compose import ERRORS, ROOT, compose, no_such_flag, page, prepare, refusal
from alignlab.cli.composition.hidden import hide_words
from alignlab.cli.composition.refusals import parse
from alignlab.config.schema import Config, Sections, refuse_misspelt
from alignlab.errors import InputError
from alignlab.system.credentials import masked
from alignlab.system.processes import leaving_on_signals


def command(
    config_name: str,
    words: Sequence[str],
    check: Callable[[DictConfig], Config],
    job: Callable[[Config], Any],
    sections: Sections | None = None,
) -> int:
    """Compose a config and run one job with it, or the jobs of a sweep.

    Args:
        config_name: Name of the root config in ``conf``.
        words: Command line after the verb.
        check: Checks a composed config, and returns it resolved, as plain containers.
        job: Runs a job with the checked config.
        sections: Sections of the schema, whose keys are checked before torch is imported; None if the config gets
            further keys first.

    Returns:
        Exit code: 2 if a job of a sweep was refused, else 0.

    Raises:
        InputError: The command line does not compose, or its one job was refused.
    """
    flags = _read_flags(words, config_name)
    if flags.help:
        print(page(config_name, flags.config_dir))
        return 0
    options = list(words)
    for word in flags.overrides:
        options.remove(word)  # Hydra expects all overrides together
    flags.overrides = hide_words(flags.overrides)
    if flags.cfg:
        import_slowly()
        check(compose(flags.overrides, config_name, flags.config_dir))
    overrides = prepare(flags.overrides, config_name, flags.config_dir)
    jobs = _Jobs(check, job, sections, overrides)
    entry = hydra.main(str(ROOT / "conf"), config_name, "1.3")(jobs.run)
    try:
        with _process([*options, *overrides]):
            entry()
    except ERRORS as error:
        if jobs.crashed:
            raise
        raise refusal(error, flags.overrides, config_name, flags.config_dir) from error
    if jobs.refused and not jobs.sweep:
        raise jobs.refused[0]
    return 2 if jobs.refused else 0


def fixed_keys(words: Sequence[str]) -> frozenset[str]:
    """Keys of the overrides that are the same in every job of a sweep, in the spelling that Hydra gives to its jobs."""
    parsed = filter(None, map(parse, words))
    return frozenset(override.get_key_element() for override in parsed if not override.is_sweep_override())


class _Jobs:
    """The function that Hydra calls for each job. It stores refusals; Hydra would print its own lines about them."""

    def __init__(
        self,
        check: Callable[[DictConfig], Config],
        job: Callable[[Config], Any],
        sections: Sections | None,
        overrides: Sequence[str],
    ):
        self.check, self.job, self.sections, self.overrides = check, job, sections, overrides
        self.fixed = fixed_keys(overrides)
        self.refused: list[InputError] = []
        self.crashed = self.sweep = False

    def run(self, cfg: DictConfig) -> Any:
        """Check and run a job; in a sweep the other jobs run even if one is refused."""
        self.crashed, self.sweep = True, HydraConfig.get().mode == RunMode.MULTIRUN
        result = None
        if self.sweep:
            print(f"job {HydraConfig.get().job.num}: {self._name_job(HydraConfig.get())}", flush=True)
        try:
            if not self.sweep and self.sections is not None:
                refuse_misspelt(cfg, self.sections, self.overrides)
            import_slowly()
            result = self.job(self.check(cfg))
        except InputError as error:
            self.refused.append(error)
            if self.sweep:
                refuse(error, debug=cfg.debug)
        self.crashed = False
        return result

    def _name_job(self, hydra_cfg: Any) -> str:
        """Reduce ``hydra.job.override_dirname`` to the overrides that differ between jobs, and return it."""
        words = hydra_cfg.overrides.task
        own = [word.lstrip("+") for word in words if word.partition("=")[0] not in self.fixed]
        with read_write(hydra_cfg):
            hydra_cfg.job.override_dirname = " ".join(own)
        return hydra_cfg.job.override_dirname


def refuse(error: InputError, debug: bool) -> int:
    """Print a refusal as one paragraph; with ``debug``, raise it for its traceback. Returns exit code 2."""
    if debug:
        raise error
    text = masked(str(error))
    print(f"Refused. {text}" if "\n" not in text else f"Refused, for these reasons:\n{text}", file=sys.stderr)
    return 2


def import_slowly() -> None:
    """Import what trains, and torch with it, which takes seconds; a signal ends the process without cleaning up."""
    with leaving_on_signals(while_importing=True):
        from alignlab import run  # noqa: F401


def _read_flags(words: Sequence[str], config_name: str) -> Any:
    parser = get_args_parser()
    flags, unknown = parser.parse_known_intermixed_args(list(words))
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        raise no_such_flag(unknown, known, config_name)
    return flags


@contextmanager
def _process(words: Sequence[str]):
    """Set up the process for Hydra: the words in ``sys.argv``, and errors raised instead of printed."""
    before, sys.argv = sys.argv, [sys.argv[0], *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
