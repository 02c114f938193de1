"""A training run: make its folder, train, and write the model."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignlab.assemble import (
    Config,
    check_sources,
    in_words,
    make_method,
    make_trainer,
    make_writer,
    open_model_and_data,
)
from alignlab.callbacks.card import kept_weights, result_card
from alignlab.callbacks.export_trial import ModelWriter
from alignlab.callbacks.summary import Summary
from alignlab.config.monitors import check_monitors
from alignlab.config.resolve import as_yaml, escaped, with_run_dir
from alignlab.config.sources import data_sets, source_node
from alignlab.distributed import launch
from alignlab.distributed.ranks import agree, first_on_each_machine, own_rank, ranks
from alignlab.errors import InputError, RunError
from alignlab.estimate.exhausted import explain, is_exhausted
from alignlab.methods.base import Method
from alignlab.models.export import ExportError, write_card
from alignlab.models.model_card import CardFacts, model_card
from alignlab.run_folder import console
from alignlab.run_folder.changes import refuse_changes, shown
from alignlab.run_folder.choice import make_run_folder
from alignlab.run_folder.environment import write_environment
from alignlab.run_folder.folder import RunFolder
from alignlab.run_folder.log import captured
from alignlab.run_folder.loggers import close_loggers
from alignlab.run_folder.naming import name_of
from alignlab.run_folder.plots import draw
from alignlab.run_folder.wandb_run import offline_runs, sync_command
from alignlab.system.credentials import masked
from alignlab.system.disk import disk_fault

log = logging.getLogger(__name__)


def fit(config: Config, command: str | None = None) -> Path:
    """Train in this process, in one new process per device, or as a rank of a job that a launcher has started.

    Args:
        config: Composed, checked and resolved config.
        command: The command line, for the card of the model; None if it is not known.

    Returns:
        The run's folder.
    """
    job, num_processes = ranks(), 1
    if job is not None:
        config, folder = agree(partial(prepare, config, job.num_ranks))
    else:
        trainer = config["trainer"]
        num_processes = launch.num_local_processes(trainer["devices"], trainer["accelerator"])
        launch.refuse_other_machines(trainer["num_nodes"], num_processes)
        config, folder = prepare(config, num_processes)
    try:
        if num_processes > 1:
            launch.launch(train, config, folder, command, num_processes=num_processes)
        else:
            train(config, folder, command)
    except InputError:
        if own_rank() == 0:
            folder.discard()
        raise
    finally:
        folder.unlock()
    if own_rank() == 0 and folder.status != "done":
        why = f"its processes ended without an error at status {folder.status}: something in them called exit"
        raise RunError(f"the run in {folder.path}", why, "Look at its train.log; resume=auto resumes it")
    return folder.path


def prepare(config: Config, num_ranks: int) -> tuple[Config, RunFolder]:
    """Make and lock the run's folder, and write the config to it; called once per job.

    Errors that can be found without reading weights or rows are raised before the folder is made.

    Args:
        config: Composed, checked and resolved config.
        num_ranks: Number of processes that will train.

    Returns:
        The config with its run folder, and the folder.
    """
    method = name_of(config["method"]["_target_"])
    check_monitors(config)
    check_sources(config)
    try:
        where = {key: config[key] for key in ("run_dir", "resume", "overwrite")}
        folder = make_run_folder(config, method=method, **where)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in a path
        raise InputError(f"run_dir={config['run_dir']}", str(error), "Give a folder that can be written") from error
    try:
        folder = compare_config(folder, config, num_ranks)
    except InputError:
        folder.discard()
        raise
    config = with_run_dir(config, str(folder.path)) | {"run_dir": str(folder.path)}
    with explain_disk_errors(folder.path):
        folder.remove_leftovers()
        folder.write_config(as_yaml(config))
        write_environment(folder.path)
    return config, folder


def compare_config(folder: RunFolder, config: Config, num_ranks: int) -> RunFolder:
    """Compare the config with that of the run to resume, and note the changes of a branch. Returns the folder.

    Raises:
        InputError: A change is not compatible with the state of the checkpoint.
    """
    path, notes, changes = folder.origin / "config.yaml", list(folder.notes), []
    if path.is_file():
        changes = refuse_changes(read_config(path), escaped(config), is_branch=folder.is_branch)
    elif folder.checkpoint:
        notes.append(f"There is no {path}, so the config of the checkpoint was not compared")
    num_ranks_before = folder.checkpoint.world_size if folder.checkpoint else num_ranks
    if num_ranks_before != num_ranks:
        if not folder.is_branch:
            why = f"{num_ranks_before} wrote the checkpoint, and another number would not give bit-identical results"
            instead = f"Start {num_ranks_before}, or type run_dir=NEW for a branch"
            raise InputError(f"resuming with {num_ranks} processes", why, instead)
        changes.append(f"processes={num_ranks} (was {num_ranks_before})")
    if folder.is_branch and changes:
        notes.append(f"In this branch {shown(changes)}")
    return replace(folder, notes=tuple(notes))


def read_config(path: Path) -> Config:
    """Read the config of a run.

    Raises:
        InputError: The file is damaged.
    """
    try:
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        return dict(OmegaConf.to_container(OmegaConf.load(path)))
    except (OSError, ValueError, TypeError, yaml.YAMLError, OmegaConfBaseException) as error:
        why = f"it cannot be read ({' '.join(str(error).split())[:200]})"
        raise InputError(str(path), why, "Restore the file, or start a new run with another run_dir=") from error


def train(config: Config, folder: RunFolder, command: str | None) -> None:
    """Build data, method and trainer, train, write and check the model, and show the results."""
    rank = own_rank()  # first, because it also sets the rank of rank_zero_only
    console.set_up(config["debug"])
    lightning.seed_everything(config["seed"], verbose=False)
    with explain_disk_errors(folder.path), captured(folder.log, rank):
        for note in folder.notes:
            log.info(note)
        with first_on_each_machine() as is_first:
            fresh = config["data"]["fresh"] and is_first
            model, data = open_model_and_data(config | {"data": config["data"] | {"fresh": fresh}})
        method = make_method(config, model, data)
        trainer, summary = make_trainer(config, folder, data)
        try:
            state = folder.checkpoint and folder.checkpoint.state
            trainer.fit(method, datamodule=data, ckpt_path=state, weights_only=True)
            card = make_card(config, folder.path.name, command, summary)
            write_model(method, make_writer(config, data), folder, summary, card)
        except Exception as error:
            summary.status = "failed"
            if is_exhausted(error):
                raise explain(config, data, error) from error
            raise
        finally:
            finish(trainer, method, summary, folder)


def make_card(config: Config, name: str, command: str | None, summary: Summary) -> str:
    """Write the model card of a run that has trained.

    Args:
        config: The resolved config.
        name: Name of the run.
        command: The command line; None if it is not known.
        summary: With the results.
    """
    facts, loss = summary.facts, config["method"].get("loss") or {}
    data = data_sets(source_node(config["data"]))
    details = {
        "loss": name_of(loss["_target_"]) if "_target_" in loss else ", ".join(loss),
        "optimizer": in_words(config),
        "strategy": facts["strategy"],
        "steps": f"{summary.steps:,}",
        "kept": kept_weights(**summary.best.facts()) if summary.best and summary.best.kept else "",
        "seed": facts["seed"],
    }
    card = CardFacts(
        name=name,
        base=facts["model"],
        adapter=facts["peft"],
        method=facts["method"],
        data=", ".join(data),
        hub_data=tuple(name for name, is_on_hub in data.items() if is_on_hub),
        command=command,
        details={key: value for key, value in details.items() if value != ""},
        before=held_out(summary.initial_metrics),
        after=held_out(summary.metrics),
    )
    return masked(model_card(card))


def held_out(metrics: Mapping[str, float]) -> dict[str, float]:
    """Only the metrics of held-out rows."""
    return {name: value for name, value in metrics.items() if name.startswith("val/")}


@contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of a full or failed disk, from any library, into a ``RunError``.

    Raises:
        RunError: In place of the exception.
    """
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        why = disk_fault(error, folder)
        if why is None:
            raise
        instead = "Free space or mount it again; then resume=auto resumes from the newest complete checkpoint"
        raise RunError(f"the run in {folder}", why, instead) from error


def write_model(method: Method, writer: ModelWriter, folder: RunFolder, summary: Summary, card: str) -> None:
    """Write ``model/`` with the last weights, or with the best if the run kept them; the run is then done.

    All ranks must call this to gather the weights; rank 0 writes, and compares the logits with those of the weights.
    """
    best = summary.best
    try:
        if best is not None and best.kept is not None:
            difference = best.publish(method, folder.model)
        else:
            difference = writer.write_and_compare(method, folder.model)
        if method.trainer.is_global_zero:
            write_card(folder.model, card)
    except ExportError as error:
        instead = "The trained weights are in checkpoints/; resume=auto writes and compares the model again"
        raise RunError(f"the model in {folder.model}", str(error), instead) from error
    log.debug("%s reopened: logits differ by %.2g at most", folder.model, difference)
    method.trainer.strategy.barrier()
    summary.status = "done"


@rank_zero_only
def finish(trainer: lightning.Trainer, method: Method, summary: Summary, folder: RunFolder) -> None:
    """Draw the curves, write the summary, show the results, and close the loggers."""
    facts = summary.facts
    title = f"{folder.path.name} · {facts['method']} · {'/'.join(Path(facts['model']).parts[-2:])}"
    plots = draw(folder.metrics, folder.plots, title=title, own_metrics=method.own_metrics)
    results = summary.write(summary.status)
    if summary.status == "done":
        files = [folder.model, folder.metrics, folder.summary, *plots[:1]]
        upload = sync_command(offline_runs(folder.path))
        console.show(result_card(results, folder=folder.path, files=files, upload=upload))
    artifacts = {"config": [folder.config, *plots], "model": [folder.model]}
    close_loggers(trainer.loggers, summary=results, artifacts=artifacts, succeeded=summary.status == "done")
