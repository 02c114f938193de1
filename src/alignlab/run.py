"""One training run, from its config to its folder."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning
import torch
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import PreTrainedTokenizerBase

from alignlab.assemble import Config, check_sources, make_method, make_trainer, name_of, open_model_and_data
from alignlab.callbacks.card import result_card
from alignlab.callbacks.summary import Summary
from alignlab.config.resolve import as_yaml, escaped, with_run_dir
from alignlab.distributed import launch
from alignlab.distributed.ranks import agree, first_on_each_machine, own_rank, ranks
from alignlab.errors import InputError, RunError
from alignlab.methods.base import Method
from alignlab.models.export import ExportError, logits, save, verify
from alignlab.run_folder import console
from alignlab.run_folder.changes import refuse_changes, shown
from alignlab.run_folder.choice import make_run_folder
from alignlab.run_folder.folder import RunFolder
from alignlab.run_folder.log import captured
from alignlab.run_folder.loggers import close_loggers
from alignlab.run_folder.plots import draw
from alignlab.system.disk import disk_fault

log = logging.getLogger(__name__)


def fit(config: Config) -> Path:
    """Train as configured, in this process, in new ones for the devices, or with the ranks that are there already.

    Args:
        config: Composed, checked and resolved.

    Returns:
        The run's folder.
    """
    place, num_processes = ranks(), 1
    if place is not None:
        config, folder = agree(partial(prepare, config, place.num_ranks))
    else:
        trainer = config["trainer"]
        num_processes = launch.num_local_processes(trainer["devices"], trainer["accelerator"])
        launch.refuse_other_machines(trainer["num_nodes"], num_processes)
        config, folder = prepare(config, num_processes)
    try:
        if num_processes > 1:
            launch.launch(train, config, folder, num_processes=num_processes)
        else:
            train(config, folder)
    except InputError:
        if own_rank() == 0:
            folder.discard()
        raise
    finally:
        folder.unlock()
    if own_rank() == 0 and folder.status != "done":
        why = f"its processes ended without an error at status {folder.status}: something in them called exit"
        raise RunError(f"the run in {folder.path}", why, "Look at train.log there; resume=auto goes on with it")
    return folder.path


def prepare(config: Config, num_ranks: int) -> tuple[Config, RunFolder]:
    """Make the run's folder, locked, and write the config into it; once per job. Every rank gets both.

    What can be refused without reading weights or rows is refused before the folder is made.

    Args:
        config: Composed, checked and resolved.
        num_ranks: Processes that will train.
    """
    method = name_of(config["method"]["_target_"])
    check_sources(config)
    try:
        folder = make_run_folder(config, method=method, run_dir=config["run_dir"], resume=config["resume"])
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in a path
        raise InputError(f"run_dir={config['run_dir']}", str(error), "Give a folder that can be written") from error
    try:
        folder = compared(folder, config, num_ranks)
    except InputError:
        folder.discard()
        raise
    config = with_run_dir(config, str(folder.path)) | {"run_dir": str(folder.path)}
    with explain_disk_errors(folder.path):
        folder.remove_leftovers()
        folder.write_config(as_yaml(config))
    return config, folder


def compared(folder: RunFolder, config: Config, num_ranks: int) -> RunFolder:
    """The folder, once it is sure that the run goes on as what it was; of a branch it notes what differs.

    Raises:
        InputError: Something differs that the state of a checkpoint does not fit.
    """
    path, notes, changes = folder.origin / "config.yaml", list(folder.notes), []
    if path.is_file():
        changes = refuse_changes(read_config(path), escaped(config), is_branch=folder.is_branch)
    elif folder.checkpoint:
        notes.append(f"There is no {path}, so the config that the checkpoint was written with was not compared")
    wrote = folder.checkpoint.world_size if folder.checkpoint else num_ranks
    if wrote != num_ranks:
        if not folder.is_branch:
            why = f"{wrote} wrote the checkpoint, and with another number the run would not be the same bit for bit"
            instead = f"Start {wrote}, or type run_dir=NEW for a branch"
            raise InputError(f"resuming with {num_ranks} processes", why, instead)
        changes.append(f"processes={num_ranks} (was {wrote})")
    if folder.is_branch and changes:
        notes.append(f"In this branch {shown(changes)}")
    return replace(folder, notes=tuple(notes))


def read_config(path: Path) -> Config:
    """The config that a run was started with.

    Raises:
        InputError: The file is damaged.
    """
    try:
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        return dict(OmegaConf.to_container(OmegaConf.load(path)))
    except (OSError, ValueError, TypeError, yaml.YAMLError, OmegaConfBaseException) as error:
        why = f"it cannot be read ({' '.join(str(error).split())[:200]})"
        raise InputError(str(path), why, "Put the file back, or start anew with another run_dir=") from error


def train(config: Config, folder: RunFolder) -> None:
    """Make model, data, method and trainer; train; write the result, check it, and show what came of it."""
    rank = own_rank()  # before anything asks whether it speaks for the job
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
            write_model(method, data.tokenizer, folder, summary)
        except Exception:
            summary.status = "failed"
            raise
        finally:
            finish(trainer, summary, folder)


@contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Tell in one paragraph that a disk is full or gone, whichever of the libraries met it.

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
        instead = "Make room or mount it again; then resume=auto goes on from the newest whole checkpoint"
        raise RunError(f"the run in {folder}", why, instead) from error


def write_model(method: Method, tokenizer: PreTrainedTokenizerBase, folder: RunFolder, summary: Summary) -> None:
    """Write ``model/`` and compare what was written with the live model; only then is the run done.

    Every rank calls it, since shards are gathered together; rank 0 writes.
    """
    example = {"input_ids": torch.arange(5, 13, device=method.policy.device)[None]}
    expected = method.sharding.forward(logits, method.policy, example)
    weights = method.sharding.full_state_dict(method.policy)
    if method.trainer.is_global_zero:
        save(method.policy, tokenizer, folder.model, weights)
        try:
            difference = verify(folder.model, method.policy, example, weights, expected)
        except ExportError as error:
            instead = "The trained weights are in checkpoints/; resume=auto writes and compares the model once more"
            raise RunError(f"the model in {folder.model}", str(error), instead) from error
        log.debug("%s reopened: logits differ by %.2g at most", folder.model, difference)
    method.trainer.strategy.barrier()
    summary.status = "done"


@rank_zero_only
def finish(trainer: lightning.Trainer, summary: Summary, folder: RunFolder) -> None:
    """Draw the curves, write what came of the run, show it, and end the trackers' runs."""
    plots = draw(folder.metrics, folder.plots)
    results = summary.write(summary.status)
    if summary.status == "done":
        places = [folder.model, folder.metrics, folder.summary, *plots[:1]]
        console.show(result_card(results, folder=folder.path, files=places))
    artifacts = [folder.config, folder.model, *plots]
    close_loggers(trainer.loggers, summary=results, artifacts=artifacts, succeeded=summary.status == "done")
