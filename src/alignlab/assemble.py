"""Build the objects of a run from its config: data, model, method, trainer."""

import copy
import logging
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignlab.callbacks.best_weights import BestWeights
from alignlab.callbacks.checkpoint import Checkpoint
from alignlab.callbacks.export_trial import ExportTrial, ModelWriter
from alignlab.callbacks.first_validation import LogFirstValidation
from alignlab.callbacks.precompute_reference import PrecomputeReference
from alignlab.callbacks.rollout import RolloutLifetime
from alignlab.callbacks.samples import SampleLog
from alignlab.callbacks.start_card import StartCard
from alignlab.callbacks.summary import Summary
from alignlab.callbacks.trace import Trace
from alignlab.callbacks.validate_at_end import ValidateAtEnd
from alignlab.config.build import build, build_all
from alignlab.config.monitors import mode_of_best
from alignlab.config.sources import source_node
from alignlab.config.target import locate
from alignlab.data.datamodule import DataModule
from alignlab.data.settings import LoadSettings, PlanSettings, TokenSettings
from alignlab.data.sources.mixture import set_row_kind
from alignlab.data.tokenise.templates import set_template
from alignlab.data.tokenise.texts import row_texts
from alignlab.distributed import launch
from alignlab.errors import InputError
from alignlab.methods.base import Factories, Method
from alignlab.models import critic, locations
from alignlab.models.adapters import attach, unadapted_layers
from alignlab.models.heads import Head, set_pad_token
from alignlab.models.load import refuse_damaged
from alignlab.models.reference import OWN
from alignlab.models.reward import find_reward_model, refuse_other_tokens
from alignlab.models.stopping import declared_stops
from alignlab.run_folder.folder import RunFolder
from alignlab.run_folder.naming import name_of
from alignlab.run_folder.storage import MODEL
from alignlab.types.adapted import base_model, is_adapted

log = logging.getLogger(__name__)

Settings = TypeVar("Settings")
Config = dict[str, Any]


def open_model_and_data(config: Config) -> tuple[Any, DataModule]:
    """Build the source of the weights, and the data module with tokenizer and chat template. Loads no weights yet."""
    source = build("data.source", source_node(config["data"]))
    set_row_kind(source, locate(config["method"]["_target_"]).row_kind)
    model = make_model_source(config)
    tokenizer = model.load_tokenizer(lambda: row_texts(source.rows("train")))
    template = set_template(tokenizer, config["data"]["chat_template"], config["data"]["chat_template_kwargs"])
    if template.announcement:
        log.info(template.announcement)
    return model, make_data(config, source, tokenizer)


def check_sources(config: Config) -> None:
    """Check that data and weights exist and are not damaged, before anything is built.

    Raises:
        InputError: Data or weights are missing or damaged.
    """
    set_row_kind(build("data.source", source_node(config["data"])), locate(config["method"]["_target_"]).row_kind)
    make_model_source(config)
    weights, reference = config["init_from"] or config["model"].get("path"), config["method"].get("reference")
    for path in (weights, None if reference in ("none", *OWN) else reference):
        if path is not None:
            refuse_damaged(locations.locate(path, config["model"].get("revision")))


def make_model_source(config: Config) -> Any:
    """Build the source of weights and tokenizer: ``init_from`` if given, else ``model.path`` or scratch."""
    node = model_node(config)
    return build("model", node) if config["init_from"] is None else pretrained(node, config["init_from"])


def model_node(config: Config) -> Config:
    """The node ``model``, without the model's own dropout if the method compares scores and no rate is set."""
    node, method = config["model"], locate(config["method"]["_target_"])
    switched_off = node.get("dropout", 0) is None and not method.keeps_dropout
    return {**node, "dropout": 0.0} if switched_off else node


def pretrained(node: Config, path: str) -> Any:
    """The source of other weights, with the settings of a node that do not belong to its own."""
    known = {key: value for key, value in node.items() if key in INIT_FROM_KEEPS}
    return build("model", {**PRETRAINED, **known, "path": path})


PRETRAINED = {"_target_": "alignlab.models.load.Pretrained", "revision": None, "trust_remote_code": False}
INIT_FROM_KEEPS = ("dtype", "attn_implementation", "gradient_checkpointing", "compile", "trust_remote_code", "dropout")
INIT_FROM_KEEPS += ("save_dtype", "activation_offloading")


def make_data(config: Config, source: Any, tokenizer: PreTrainedTokenizerBase) -> DataModule:
    """Build the data module: tokenise its rows, and compute the number of optimizer steps."""
    node, method = {**config["data"], "seed": config["seed"]}, locate(config["method"]["_target_"])
    data = DataModule(
        source=source,
        kind=method.row_kind,
        mismatched=method.needs_mismatched,
        tokenizer=tokenizer,
        tokens=pick(TokenSettings, node | what_is_computed(config, method)),
        plan=pick(PlanSettings, node),
        load=pick(LoadSettings, node),
    )
    passes = config["method"].get("num_iterations", 1)
    num_epoch_steps = data.num_epoch_steps and data.num_epoch_steps * passes
    data.num_steps = num_steps(num_epoch_steps, **pick_keys(config["trainer"], "max_steps", "max_epochs"))
    return data


def what_is_computed(config: Config, method: type[Method]) -> dict[str, Any]:
    """Settings of tokenisation that say what the method computes with."""
    return {
        "number_columns": number_columns(config, method),
        "weight_column": config["method"].get("weight_column"),
        "weighs_turns": method.weighs_turns,
    }


def number_columns(config: Config, method: type[Method]) -> tuple[str, ...]:
    """Numeric columns that every row must have: those of the method's settings, and that of a curriculum."""
    data = config["data"]
    names = [config["method"].get(setting) for setting in method.number_columns]
    names += [data["order_column"]] if data["order"] == "curriculum" else []
    return tuple(sorted({name for name in names if name is not None}))


def pick(kind: type[Settings], node: Config) -> Settings:
    """Build a settings dataclass from the keys of a node that are its fields."""
    return kind(**pick_keys(node, *(field.name for field in fields(kind))))


def pick_keys(node: Config, *keys: str) -> Config:
    """A node with only some of its keys."""
    return {key: node[key] for key in keys}


def num_steps(num_epoch_steps: int | None, max_steps: int, max_epochs: int | None) -> int:
    """Number of optimizer steps of the run: ``max_steps`` if given, else that of ``max_epochs`` epochs.

    Args:
        num_epoch_steps: Number of steps in an epoch; ``None`` for a stream.
        max_steps: Maximum number of steps; -1 for no limit.
        max_epochs: Maximum number of epochs; -1 or ``None`` for no limit.

    Raises:
        InputError: The run has no limit.
    """
    if max_steps >= 0:
        return max_steps
    if num_epoch_steps is not None and max_epochs is not None and max_epochs >= 0:
        return num_epoch_steps * max_epochs
    why = "the length of an epoch of a stream is not known" if num_epoch_steps is None else "nothing ends the run"
    asked = f"trainer.max_steps={max_steps} trainer.max_epochs={max_epochs}"
    raise InputError(asked, why, "Type trainer.max_steps=N")


def make_method(config: Config, model: Any, data: DataModule) -> Method:
    """Build the method, with factories of its policy, optimizer and scheduler."""
    factories = Factories(
        make_policy=partial(make_policy, config, model, data),
        open_model=partial(open_model, config, data),
        open_reward_model=partial(open_critic, config, data),
        make_optimizer=build("optimizer", config["optimizer"]),
        make_scheduler=build("scheduler", config["scheduler"]),
        gradient_clip_val=config["trainer"]["gradient_clip_val"],
        packing=config["data"]["packing"],
    )
    sampler = {} if config["rollout"] is None else {"sampler": build("rollout", config["rollout"])}
    method = build("method", config["method"], factories=factories, **sampler)
    data.rollout = method.rollout
    if method.rollout is not None:
        method.rollout.check_columns(data)
    return method


def make_policy(config: Config, model: Any, data: DataModule) -> nn.Module:
    """Load the policy, with its adapter if it has one."""
    peft = dict(config["peft"] or {})
    quantization = build("peft.quantization", peft.pop("quantization", None))
    head = locate(config["method"]["_target_"]).head
    policy = model.load_model(data.tokenizer, quantization, head=head)
    refuse_router_loss(policy.config.get_text_config(), getattr(model, "path", None))
    refuse_beyond_context(policy, data.longest_sequence, data.tokens.max_tokens_per_sequence)
    if data.rollout is not None and (limit := num_positions(policy)) is not None:
        data.rollout.sampler.check_context(data.train, data.tokenizer, limit)
    set_stop_tokens(policy, data)
    if not peft and policy.dtype in (torch.float16, torch.bfloat16):
        log.warning(
            "the weights train in %s, in which small updates are rounded off: see model.dtype=float32", policy.dtype
        )
    if peft and is_adapted(policy):
        return refuse_other_adapter(policy, peft)
    return attach(policy, build("peft", peft)) if peft else policy


def open_model(config: Config, data: DataModule, path: str, head: Head = "language_model") -> nn.Module:
    """Load other weights with the same tokenizer, and merge their adapter if they have one."""
    tokenizer = copy.deepcopy(data.tokenizer)  # a reward model chooses another pad token
    model = pretrained(model_node(config), path).load_model(tokenizer, head=head)
    is_quantised = getattr(base_model(model).config, "quantization_config", None) is not None
    if not is_adapted(model) or is_quantised:  # merged, a quantised base would be rounded anew
        return model
    return model.merge_and_unload()


def open_critic(config: Config, data: DataModule, path: str) -> nn.Module:
    """Load a reward model that reads the tokens of the policy.

    Raises:
        InputError: It has other tokens, or cannot be read.
    """
    asked = f"method.critic={path}"
    refuse_other_tokens(find_reward_model(path, asked, critic.INSTEAD), data.tokenizer, asked, critic.INSTEAD)
    try:
        return open_model(config, data, path, head="reward")
    except InputError as error:
        raise InputError(asked, error.why, critic.INSTEAD) from error


def set_stop_tokens(policy: nn.Module, data: DataModule) -> None:
    """Add the tokens that end the assistant's turns in training to the EOS tokens of the generation config.

    Sampling during training stops on all of them.

    A reward model does not generate; it gets a pad token that differs from them.
    """
    if not policy.can_generate():
        return set_pad_token(policy, data.tokenizer, data.stop_tokens)
    data.model_stop_tokens = declared_stops(policy)
    policy.generation_config.eos_token_id = data.stop_tokens


def refuse_other_adapter(policy: nn.Module, asked: Config) -> nn.Module:
    """Refuse a ``peft`` config that differs from the adapter that the weights already have. Returns the policy."""
    own = policy.active_peft_config.to_dict()
    other = [
        f"{key}={value}" for key, value in asked.items() if key in own and not same_setting(policy, own, key, value)
    ]
    if not asked["_target_"].endswith(type(policy.active_peft_config).__name__) or other:
        why = "the weights already have an adapter, which is trained further with its own settings"
        raise InputError(
            f"peft of {asked['_target_']} with {', '.join(other) or 'its settings'}", why, "Type peft=none"
        )
    return policy


def same_setting(policy: nn.Module, own: Config, key: str, value: Any) -> bool:
    """Whether a setting of an adapter is the one that it has; names of modules are a set, in any order."""
    if own[key] is None:
        return True
    if key == "target_modules" and value == "all-linear":
        return not unadapted_layers(policy)
    return set(own[key]) == set(value) if isinstance(value, list) else own[key] == value


def refuse_router_loss(config: Any, path: str | None) -> None:
    """Refuse a config that asks for a loss which balances the experts: no method adds it.

    Args:
        config: Of Transformers.
        path: Where the model with its config is; ``None`` for a model from scratch.
    """
    rate = getattr(config, "router_aux_loss_coef", None)
    if getattr(config, "output_router_logits", False) and rate:
        asked = f"router_aux_loss_coef={rate:g} with output_router_logits=true in the config of the model"
        instead = "Type model.config.output_router_logits=false"
        if path is not None:
            instead = f"Set output_router_logits to false in the config.json of {path}, or of a copy of it"
        raise InputError(asked, "the loss that balances the experts is not computed in training here", instead)


def num_positions(policy: nn.Module) -> int | None:
    """Maximum tokens of a sequence by the model's config; ``None`` if it names none."""
    return getattr(policy.config.get_text_config(), "max_position_embeddings", None)


def refuse_beyond_context(policy: nn.Module, longest: int, max_tokens_per_sequence: int) -> None:
    """Refuse sequences that are longer than the model's context.

    Args:
        policy: The model.
        longest: Number of tokens of the longest sequence.
        max_tokens_per_sequence: As typed.

    Raises:
        InputError: They are.
    """
    limit = num_positions(policy)
    if limit is not None and longest > limit:
        raise InputError(
            f"data.max_tokens_per_sequence={max_tokens_per_sequence}",
            f"the model has {limit} positions, and sequences may have {longest} tokens",
            f"Type data.max_tokens_per_sequence={limit}, and data.truncation= for rows that are longer",
        )


def adapter_name(peft: Config | None) -> str | None:
    """The word for an adapter: ``lora``, ``dora``, ``qlora``, ``ia3``; ``None`` without one."""
    if not peft:
        return None
    name = name_of(peft["_target_"]).removesuffix("_config")
    variants = {"dora": peft.get("use_dora"), "rslora": peft.get("use_rslora"), name: True}
    name = next(variant for variant, is_used in variants.items() if is_used)
    quantization = peft.get("quantization") or {}
    eight = "_8bit" if quantization.get("load_in_8bit") else ""
    return f"q{name}{eight}" if quantization else name


def make_trainer(config: Config, folder: RunFolder, data: DataModule) -> tuple[lightning.Trainer, Summary]:
    """Build Lightning's trainer with its callbacks and loggers, and the summary callback."""
    method = name_of(config["method"]["_target_"])
    model = config["init_from"] or config["model"].get("path", "scratch")
    facts = {
        "method": method,
        "model": model,
        "strategy": name_of(config["strategy"]["_target_"]),
        "peft": adapter_name(config["peft"]),
        "seed": config["seed"],
        "data": data.fingerprints,
    }
    lr = config["optimizer"].get("lr")
    card = StartCard(title=f"{method} · {model}", model=model, folder=folder, lr=lr, optimizer=in_words(config))
    writer = make_writer(config, data)
    best = make_best(config, folder, writer)
    summary = Summary(path=folder.summary, facts=facts, best=best)
    trial = ExportTrial(folder.model.with_name(".model.partial"), writer)
    checkpoint = make_checkpoint(config, folder, writer, best)
    chosen = build_all("callbacks", config["callbacks"])
    if data.rollout is not None:
        chosen["samples"] = SampleLog(path=folder.samples, first_step=folder.first_step)
        chosen["rollout"] = RolloutLifetime(data.rollout, folder.path)
    validation = [LogFirstValidation(), ValidateAtEnd()]
    keeps_best = [] if best is None else [best]
    node = {key: value for key, value in config["trainer"].items() if key != "gradient_clip_val"}
    traces = [Trace(folder.trace)] if node.get("profiler") == "torch" else []
    node = {**node, "profiler": None} if traces else node
    if node["deterministic"] is None:
        node["deterministic"] = not launch.uses_cuda(node["accelerator"])
    trainer = build(
        "trainer",
        {**node, "max_steps": data.num_steps, "max_epochs": -1},
        strategy=build("strategy", config["strategy"]),
        callbacks=[
            card,
            trial,
            *chosen.values(),
            *traces,
            PrecomputeReference(),
            *validation,
            *keeps_best,
            summary,
            checkpoint,
        ],
        logger=make_loggers(config, folder),
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in chosen.values()),
        use_distributed_sampler=False,
    )
    return trainer, summary


def make_writer(config: Config, data: DataModule) -> ModelWriter:
    """Build what writes the model, with the tokenizer of the data and ``model.save_dtype``."""
    name = config["model"].get("save_dtype")
    return ModelWriter(tokenizer=data.tokenizer, dtype=None if name is None else getattr(torch, name))


def make_best(config: Config, folder: RunFolder, writer: ModelWriter) -> BestWeights | None:
    """Build the callback that keeps the best weights; ``None`` if the run ends with its last ones."""
    metric = config["checkpoint"]["best"]
    if metric is None:
        return None
    mode = mode_of_best(config)
    return BestWeights(checkpoints=folder.checkpoints, metric=metric, mode=mode, writer=writer)


def make_checkpoint(config: Config, folder: RunFolder, writer: ModelWriter, best: BestWeights | None) -> Checkpoint:
    """Build the callback that saves checkpoints, with the best weights and its own as a model if they are asked for."""
    node = config["checkpoint"]
    additions = [] if best is None else [best.add_to]
    if node["also_model"]:
        additions.append(lambda method, checkpoint: writer.write(method, checkpoint / MODEL))
    rhythm = pick_keys(node, "every_n_steps", "every_n_epochs", "keep_last")
    return Checkpoint(folder=folder.checkpoints, **rhythm, additions=additions)


def in_words(config: Config) -> str:
    """Optimizer, peak learning rate, schedule and warm-up, for the start card; with β if the method has one."""
    lr, beta = config["optimizer"].get("lr"), config["method"].get("beta")
    warmup = config["scheduler"].get("warmup_steps")
    parts = [
        config["optimizer"]["_target_"].rpartition(".")[2],
        None if lr is None else f"learning rate {lr:g}",
        f"{name_of(config['scheduler']['_target_'])} schedule",
        f"warm-up {warmup:g} {'of the run' if warmup < 1 else 'steps'}" if warmup else None,
        None if beta is None else f"β {beta:g}",
    ]
    return ", ".join(filter(None, parts))


def make_loggers(config: Config, folder: RunFolder) -> list[Logger]:
    """Build the loggers, always with one for ``metrics.csv``, and log the config to them."""
    nodes = {"csv": {"_target_": "alignlab.run_folder.loggers.csv"}, **config["logger"]}
    loggers = list(build_all("logger", nodes, run_folder=folder).values())
    for logger in loggers:
        logger.log_hyperparams(config)
    return loggers
