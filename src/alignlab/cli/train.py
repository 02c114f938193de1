"""Train a model, as python train.py does."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from alignlab.cli.composition.command import command
from alignlab.cli.composition.compose import SearchPath, typed_words
from alignlab.config import schema
from alignlab.config.schema.root import SECTIONS
from alignlab.errors import InputError
from alignlab.system.paths import typed_path

if TYPE_CHECKING:
    from alignlab.cli.sweep.sweep import Sweep


def main(words: Sequence[str]) -> int:
    """Run a training, sweep (``-m``) or show its config (``--cfg job``, ``--help``); ``--from RUN`` repeats a run.

    Args:
        words: Command line after the verb.

    Returns:
        Exit code.
    """
    from alignlab.cli.sweep.sweep import Sweep
    from alignlab.distributed.ranks import first_error_only, ranks, without_rank_flag

    words, run_to_repeat = take_from(without_rank_flag(words) if ranks() else words)
    SearchPath.run_to_repeat = run_to_repeat
    sweep, root = Sweep(), "repeat" if run_to_repeat else "train"
    with first_error_only(), sweep:
        code = command(root, words, partial(check, sweep), partial(train, sweep), SECTIONS)
    return sweep.exit_code or code


def take_from(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """Remove ``--from RUN`` from the words; return the other words and the run's folder.

    Raises:
        InputError: The folder holds no ``config.yaml``, or was not given.
    """
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--from=") else [word])]
    if "--from" not in words:
        return words, None
    at = words.index("--from")
    run = Path(typed_path(words[at + 1], "--from").resolve() if at + 1 < len(words) else "RUN")
    if not (run / "config.yaml").is_file():
        raise InputError(f"--from {run}", "there is no config.yaml in it", "Name a run folder, such as runs/sft/…")
    return words[:at] + words[at + 2 :], run


def check(sweep: Sweep, cfg: DictConfig) -> dict[str, Any]:
    """Check the config against the schema and for settings that cannot be combined; return it resolved.

    If a launcher has started the ranks, the numbers of devices and nodes become the launcher's. A sweep records a
    refused job.
    """
    from alignlab.cli.composition.options import with_losses
    from alignlab.run_folder.location import refuse_for_sweep

    if is_sweep() and cfg.overwrite:
        why = "the jobs of a sweep resume those of an earlier one in their folders"
        raise InputError("overwrite=true with --multirun", why, "Leave it out, or name another run_dir=")
    if is_sweep() and cfg.run_dir is not None:
        refuse_for_sweep(Path(cfg.run_dir), f"run_dir={cfg.run_dir}")
    try:
        return checked(cfg, HydraConfig.get().overrides.task if HydraConfig.initialized() else ())
    except InputError as error:
        if is_sweep():
            sweep.refused(cfg.run_dir)
        explained = with_losses(error, OmegaConf.select(cfg, "method._target_"))
        if explained is error:
            raise
        raise explained from error


def checked(cfg: DictConfig, words: Sequence[str]) -> dict[str, Any]:
    """Check a composed config, and return it resolved.

    Args:
        cfg: Composed config; secrets in it are replaced by references.
        words: Overrides as typed; a DeepSpeed file must not contradict them.
    """
    from alignlab.cli.composition.deepspeed_file import take_over_file
    from alignlab.cli.composition.hidden import hide_config
    from alignlab.config import compat
    from alignlab.distributed.ranks import settle

    hide_config(cfg)
    config = schema.check(cfg, change=partial(take_over_file, words=words))
    devices, num_nodes = settle(config["trainer"]["devices"], config["trainer"]["num_nodes"])
    config |= {"trainer": config["trainer"] | {"devices": devices, "num_nodes": num_nodes}}
    compat.check(config)
    return config


def train(sweep: Sweep, config: dict[str, Any]) -> Any:
    """Run the job, by itself or as a job of a sweep."""
    from alignlab import run

    return sweep.run(config) if is_sweep() else run.fit(config, typed_command())


def typed_command() -> str:
    """The command line of this training as text for a shell; secrets in it are references."""
    repeated = ["--from", str(SearchPath.run_to_repeat)] if SearchPath.run_to_repeat else []
    return shlex.join(["alignlab", "train", *repeated, *typed_words(HydraConfig.get().overrides.task)])


def is_sweep() -> bool:
    """Whether Hydra runs a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
