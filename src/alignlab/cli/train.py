"""Train a model; the same as ``python train.py``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from alignlab.cli.composition.command import command
from alignlab.cli.composition.compose import SearchPath
from alignlab.errors import InputError


def main(words: Sequence[str]) -> int:
    """Run, sweep (``-m``) or show (``--cfg job``, ``--help``) a training; ``--from RUN`` repeats one.

    Args:
        words: Command line.

    Returns:
        Exit code.
    """
    words, run_to_repeat = take_from(words)
    SearchPath.run_to_repeat = run_to_repeat
    return command("repeat" if run_to_repeat else "train", words, check, train)


def take_from(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words without ``--from RUN``, and the run's folder.

    Raises:
        InputError: The folder holds no ``config.yaml``, or was not given.
    """
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--from=") else [word])]
    if "--from" not in words:
        return words, None
    at = words.index("--from")
    run = Path(words[at + 1]).resolve() if at + 1 < len(words) else Path("RUN")
    if not (run / "config.yaml").is_file():
        raise InputError(f"--from {run}", "there is no config.yaml in it", "Name a run folder, such as runs/sft/…")
    return words[:at] + words[at + 2 :], run


def check(cfg: DictConfig) -> None:
    """Refuse what is not in the schema, and what cannot run together."""
    from alignlab import compat, schema

    compat.check(schema.check(cfg))


def train(cfg: DictConfig) -> Any:
    """Run one job; the jobs of a sweep get folders of their own inside the one that was asked for."""
    from alignlab import run

    if cfg.run_dir is not None and HydraConfig.get().mode == RunMode.MULTIRUN:
        cfg.run_dir = str(Path(cfg.run_dir) / str(HydraConfig.get().job.num))
    return run.fit(cfg)
