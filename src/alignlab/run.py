"""One training run, from its config to its folder."""

import logging
from functools import partial
from pathlib import Path

import lightning
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict
from transformers import PreTrainedTokenizerBase

from alignlab.errors import InputError
from alignlab.methods.base import Method
from alignlab.models.export import logits, save, verify
from alignlab.parts import Config, make_method, make_trainer, name_of, open_model_and_data
from alignlab.training import console, launch
from alignlab.training.card import result_card
from alignlab.training.log_file import captured
from alignlab.training.loggers import close_loggers
from alignlab.training.plots import draw
from alignlab.training.ranks import agree, first_on_each_machine, own_rank, ranks
from alignlab.training.record import Summary
from alignlab.training.run_folder import RunFolder, make_run_folder, refuse_changes

log = logging.getLogger(__name__)


def fit(cfg: DictConfig) -> Path:
    """Train as configured, in this process, in new ones for the devices, or with the ranks that are there already.

    Args:
        cfg: Composed and checked.

    Returns:
        The run's folder.
    """
    num_processes = 1
    if ranks() is not None:
        config, folder = agree(partial(prepare, cfg))
    else:
        trainer = OmegaConf.to_container(cfg.trainer, resolve=True)
        num_processes = launch.num_local_processes(trainer["devices"], trainer["accelerator"])
        launch.refuse_other_machines(trainer["num_nodes"], num_processes)
        config, folder = prepare(cfg)
    try:
        if num_processes > 1:
            launch.launch(train, config, folder, num_processes=num_processes)
        else:
            train(config, folder)
    except InputError:
        folder.discard()
        raise
    return folder.path


def prepare(cfg: DictConfig) -> tuple[Config, RunFolder]:
    """Make the run's folder, locked, and write the config into it; once per job. Every rank gets both."""
    config: Config = OmegaConf.to_container(cfg, resolve=True)
    method = name_of(config["method"]["_target_"])
    try:
        folder = make_run_folder(config, method=method, run_dir=config["run_dir"], resume=config["resume"])
    except OSError as error:
        raise InputError(f"run_dir={config['run_dir']}", str(error), "Give a folder that can be written") from error
    if folder.checkpoint and folder.config.exists():
        refuse_changes(OmegaConf.to_container(OmegaConf.load(folder.config)), config)
    with open_dict(cfg):
        cfg.run_dir = str(folder.path)  # before interpolations are resolved for good
    folder.write_config(OmegaConf.to_yaml(cfg, resolve=True))
    return OmegaConf.to_container(cfg, resolve=True), folder


def train(config: Config, folder: RunFolder) -> None:
    """Make model, data, method and trainer; train; write the result, check it, and show what came of it."""
    rank = own_rank()  # before anything asks whether it speaks for the job
    console.set_up(config["debug"])
    lightning.seed_everything(config["seed"], verbose=False)
    with captured(folder.log, rank):
        for note in folder.notes:
            log.info(note)
        with first_on_each_machine() as is_first:
            config["data"]["fresh"] = config["data"]["fresh"] and is_first
            model, data = open_model_and_data(config)
        method = make_method(config, model, data)
        trainer, summary = make_trainer(config, folder, data)
        try:
            state = folder.checkpoint and folder.checkpoint.state
            trainer.fit(method, datamodule=data, ckpt_path=state, weights_only=True)
            write_model(method, data.tokenizer, folder, summary)
        finally:
            finish(trainer, summary, folder)


def write_model(method: Method, tokenizer: PreTrainedTokenizerBase, folder: RunFolder, summary: Summary) -> None:
    """Write ``model/`` and compare what was written with the live model; only then is the run done.

    Every rank calls it, since shards are gathered together; rank 0 writes.
    """
    summary.status = "failed"
    example = {"input_ids": torch.arange(5, 13, device=method.policy.device)[None]}
    expected = method.spread.forward(logits, method.policy, example)
    weights = method.spread.full_state_dict(method.policy)
    if method.trainer.is_global_zero:
        save(method.policy, tokenizer, folder.model, weights)
        difference = verify(folder.model, method.policy, example, weights, expected)
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
