"""Measure a trained model: loss, exact match, rewards, wins."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from alignlab.cli.composition.command import command
from alignlab.cli.composition.paths import model_from_words, path_as_key
from alignlab.errors import InputError

if TYPE_CHECKING:
    from alignlab.evaluation.results import Evaluation

FOLDER = "evaluation"
"""Folder of the results, in that of the run."""

OF_RUN = ("config.yaml", "summary.json")
"""Files by which a run is known."""

LEVELS = 3
"""Folders between a run and the deepest model in it, ``checkpoints/step-N/model``."""

GIVEN = "alignlab.rewards.given.GivenReward"
"""Reward that the data gives to its own completions, which says nothing of others."""


def main(words: Sequence[str]) -> int:
    """Measure a model, write the results, and print them.

    Args:
        words: Command line after the verb: a model, ``group=option`` and ``key=value``.

    Returns:
        Exit code.
    """
    return command("evaluate", path_as_key(words, "from"), check, measure)


def check(cfg: DictConfig) -> dict[str, Any]:
    """Complete the config with data and rewards of the run that made the model, and check it."""
    from alignlab.cli.composition.hidden import hide_config
    from alignlab.config.schema import check_keys
    from alignlab.config.schema.root import EVALUATE

    hide_config(cfg)
    run = None if OmegaConf.is_missing(cfg, "from") else run_of(cfg["from"])
    config = check_keys(with_run(cfg, run), EVALUATE)
    return config | {"to": config["to"] or str((run or Path()) / FOLDER)}


def run_of(model: str) -> Path | None:
    """The folder of the run that made a model: the path itself, or one around it; None if no run did."""
    path = Path(model).absolute()
    if model == "pocket" or not path.exists():  # another name is a hub id, also where a run is the working folder
        return None
    around = (path, *path.parents)[: 1 + LEVELS]
    return next((folder for folder in around if all((folder / name).is_file() for name in OF_RUN)), None)


def with_run(cfg: DictConfig, run: Path | None) -> DictConfig:
    """The config with what was not typed taken from a run: its data and its rewards.

    Args:
        cfg: Composed config.
        run: Folder of the run, if the model is of one.

    Raises:
        InputError: There is no data.
    """
    from alignlab.config.resolve import escaped
    from alignlab.run import read_config

    OmegaConf.set_struct(cfg, False)
    own = {} if run is None else escaped(read_config(run / "config.yaml"))
    if cfg.tasks.names and not cfg.data:
        cfg.data = None
    elif "source" not in cfg.data:
        if not own:
            asked = f"evaluating {cfg.get('from', '')}" if OmegaConf.is_missing(cfg, "from") else f"from={cfg['from']}"
            raise InputError(asked, "no run made it, whose data is known", "Type data=jsonl data.path=FILE")
        of_own_rows = cfg.data.keys().isdisjoint(("path", "validation_path"))
        data = own["data"] if of_own_rows else with_files(own["data"])
        cfg = OmegaConf.merge(cfg, {"data": data}, {"data": cfg.data})
        cfg.rows = "held_out" if of_own_rows else cfg.rows
    if cfg.data and OmegaConf.is_missing(cfg.data, "path") and (sets := cfg.data.get("validation_path")):
        cfg.data.path = list(sets.values()) if OmegaConf.is_dict(sets) else sets  # of which no row is read
    rewards = own.get("method", {}).get("reward") or {}
    given = any((node or {}).get("_target_") == GIVEN for node in rewards.values())
    if rewards and not given and not cfg.method.reward:
        keys = ("reward_weights", "reward_special_tokens", "reward_limits")
        typed = {key: own["method"][key] for key in keys}
        cfg = OmegaConf.merge(cfg, {"method": {"reward": rewards, **typed}})
    return cfg


def with_files(data: dict[str, Any]) -> dict[str, Any]:
    """Data of a run, for a path of one's own: without its validation part, and of files if its source has no path."""
    from alignlab.config.sources import source_node

    takes_path = "path" in source_node({**data, "path": ""})
    source = data["source"] if takes_path else {"_target_": "alignlab.data.sources.local.Files"}
    return {**data, "source": source, "validation_path": None}


def measure(config: dict[str, Any]) -> None:
    """Measure, write, and print a table."""
    from alignlab.evaluation.results import RESULTS
    from alignlab.measures.table import print_estimates
    from alignlab.run_folder import console

    console.set_up(config["debug"])
    evaluation, is_tracked = measured(config)
    print_estimates(evaluation.results)
    print(f"results: {Path(config['to']) / RESULTS}")
    if is_tracked:
        print("and in the summary of its W&B run, as evaluation/…")


def measured(config: dict[str, Any]) -> "tuple[Evaluation, bool]":
    """Measure, write the files, and tell the tracker.

    Args:
        config: Of ``check``.

    Returns:
        What came out, and whether a tracker got it.
    """
    from alignlab.evaluation.evaluate import evaluate
    from alignlab.evaluation.results import log_to_tracker, write_results

    with model_from_words():
        evaluation = evaluate(config)
    write_results(evaluation, config, Path(config["to"]))
    run = run_of(config["from"])
    return evaluation, bool(run and config["to_tracker"] and log_to_tracker(evaluation, run))
