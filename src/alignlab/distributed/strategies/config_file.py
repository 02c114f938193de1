"""Import of DeepSpeed JSON files, including their settings of optimizer, schedule, precision and batch size.

DeepSpeed's own sections (``zero_optimization``, ``aio``, …) go to ``strategy.config``. Settings for which alignlab has
its own key are written to that key. If another value was typed for it, the run is refused and both values are shown. A
key typed under ``strategy.config`` replaces that of the file. ``"auto"`` keeps alignlab's setting.
"""

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from alignlab.distributed.strategies.accelerator import prefer_cpu_without_cuda
from alignlab.errors import InputError, nearest, raise_all

log = logging.getLogger(__name__)

OPTIMIZERS = {
    "adamw": "torch.optim.AdamW",
    "adam": "torch.optim.AdamW",  # DeepSpeed's Adam decays weights as AdamW does unless adam_w_mode is false
    "sgd": "torch.optim.SGD",
    "adagrad": "torch.optim.Adagrad",
    "lion": "bitsandbytes.optim.Lion",
}
"""Optimizer class for DeepSpeed's ``optimizer.type`` in lower case."""

SCHEDULERS = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")

OURS = {
    "gradient_clipping": "trainer.gradient_clip_val",
    "train_batch_size": "data.global_batch_size",
    "train_micro_batch_size_per_gpu": "data.batch_size_per_device",
    "steps_per_checkpoint": "checkpoint.every_n_steps",
}
"""Values of a file that become settings of alignlab."""

SECTIONS = ("optimizer", "scheduler", "activation_checkpointing", "gradient_accumulation_steps")
"""Other sections that become settings of alignlab, or follow from them."""

LEFT_OUT = ("wall_clock_breakdown",)
"""Timers of DeepSpeed's own loop, which fail in another one; every run logs the seconds of its steps."""

_NAMES = """
zero_optimization fp16 bf16 bfloat16 amp torch_autocast data_types aio steps_per_print memory_breakdown
dump_state log_level flops_profiler tensorboard wandb csv_monitor comet comms_logger monitor_config timers
disable_python_gc communication_data_type seq_parallel_communication_data_type prescale_gradients
sparse_gradients gradient_predivide_factor gradient_allreduce_op disable_allgather
managed_gradient_accumulation zero_allow_untested_optimizer zero_force_ds_cpu_optimizer dataloader_drop_last
checkpoint nebula autotuning elasticity hybrid_engine pipeline data_efficiency curriculum_learning compile
compression_training sparse_attention progressive_layer_drop eigenvalue weight_quantization tensor_parallel
expert_parallel sequence_parallel_size datastates graph_harvesting comment _comment
"""
KNOWN = {*OURS, *SECTIONS, *LEFT_OUT, *_NAMES.split()}
"""Names at the top of DeepSpeed files; others are taken for misspelt, which DeepSpeed would ignore."""

Config = dict[str, Any]


def take_over(config: Mapping[str, Any], file: Mapping[str, Any], typed: set[str]) -> Config:
    """Apply a DeepSpeed file to a composed config.

    Args:
        config: Composed config as plain containers; ``strategy`` is a DeepSpeed strategy.
        file: Content of the JSON file.
        typed: Dotted keys and groups that the user typed.

    Returns:
        A new config with the file's settings and ``strategy.config_file`` null.

    Raises:
        InputError: A typed setting contradicts the file, or the file has an unsupported setting; reports all together.
    """
    config, faults = copy.deepcopy(dict(config)), []
    kept = {key: value for key, value in file.items() if key not in (*OURS, *SECTIONS, *LEFT_OUT)}
    if left_out := [key for key in LEFT_OUT if file.get(key) is True]:
        log.warning(
            "%s of %s is left out: the seconds of every step are logged as train/step_seconds",
            ", ".join(left_out),
            config["strategy"]["config_file"],
        )
    faults += [*_unknown_names(config["strategy"]["config_file"], file), *_impossible_totals(file)]
    faults += _stage_faults(config["strategy"], file)
    own = config["strategy"]["config"]
    chosen = {key: _at(own, key) for key in (name.removeprefix("strategy.config.") for name in typed) if _has(own, key)}
    config["strategy"] |= {"config": merged(own, without_auto(kept)), "config_file": None}
    for key, value in chosen.items():
        _put(config["strategy"]["config"], key, value)
    file = merged(file, {key: value for key, value in config["strategy"]["config"].items() if key in ("fp16", "bf16")})
    for key, value, said in settings(file, faults):
        ours = _at(config, key) if _has(config, key) else None
        if key == "optimizer._target_" and ours != value and not _typed(key, typed):
            config["optimizer"] = {name: _at(config, f"optimizer.{name}") for name in _typed_of("optimizer", typed)}
            config["optimizer"]["_partial_"] = True
        if _typed(key, typed) and ours != value:
            faults.append(_contradiction(key, ours, value, said))
        else:
            _put(config, key, value)
    raise_all(faults)
    return config


def settings(file: Mapping[str, Any], faults: list[InputError]) -> Iterator[tuple[str, Any, str]]:
    """Translate a file to settings of alignlab.

    Args:
        file: Content of the JSON file.
        faults: Errors of unsupported settings are appended.

    Yields:
        Dotted key of alignlab, value, and the file's setting for messages.
    """
    yield from _optimizer(file.get("optimizer"), faults)
    yield from _scheduler(file.get("scheduler"), file.get("optimizer"), faults)
    for section, precision in {"fp16": "16-mixed", "bf16": "bf16-mixed"}.items():
        if file.get(section, {}).get("enabled") is True:
            yield "trainer.precision", precision, f"{section}.enabled"
    if True in (file.get("activation_checkpointing") or {}).values():
        yield "model.gradient_checkpointing", True, "activation_checkpointing"
    for section, key in OURS.items():
        if file.get(section, "auto") != "auto":
            yield key, file[section] or None, section


def _optimizer(section: Mapping[str, Any] | None, faults: list[InputError]) -> Iterator[tuple[str, Any, str]]:
    if section is None:
        return
    kind, params = str(section["type"]), without_auto(section.get("params", {}))
    if kind.lower() not in OPTIMIZERS:
        asked = f"strategy.config_file with optimizer.type={kind}"
        why = "this optimizer type is not supported"
        faults.append(InputError(asked, why, f"{nearest(kind, OPTIMIZERS)} Or delete the section and type optimizer="))
        return
    if params.pop("adam_w_mode", True) is False or (params.pop("torch_adam", False) and kind.lower() == "adam"):
        target = "torch.optim.Adam"
    else:
        target = OPTIMIZERS[kind.lower()]
    yield "optimizer._target_", target, f"optimizer.type={kind}"
    for name, value in params.items():
        yield f"optimizer.{name}", value, f"optimizer.params.{name}"


def _scheduler(
    section: Mapping[str, Any] | None, optimizer: Mapping[str, Any] | None, faults: list[InputError]
) -> Iterator[tuple[str, Any, str]]:
    if section is None:
        return
    kind, params = section["type"], without_auto(section.get("params", {}))
    if kind not in SCHEDULERS:
        asked = f"strategy.config_file with scheduler.type={kind}"
        instead = f"{nearest(kind, SCHEDULERS)} Or delete the section and type scheduler=cosine"
        faults.append(InputError(asked, "this scheduler type is not supported", instead))
        return
    rate = (optimizer or {}).get("params", {}).get("lr")
    node = {
        "_target_": f"{__name__}.warmup",
        "_partial_": True,
        "min_lr": params.get("warmup_min_lr", 0.0),
        "max_lr": params.get("warmup_max_lr", rate if rate != "auto" else None),
        "warmup_steps": params.get("warmup_num_steps", 1000),
        "kind": params.get("warmup_type", "log"),
        "total_steps": params.get("total_num_steps") if kind == "WarmupDecayLR" else None,
    }
    if kind == "WarmupCosineLR":
        node = {
            "_target_": f"{__name__}.warmup_cosine",
            "_partial_": True,
            "min_ratio": params.get("warmup_min_ratio", 0.0),
            "end_ratio": params.get("cos_min_ratio", 0.0001),
            "warmup_steps": params.get("warmup_num_steps", 1000),
            "kind": params.get("warmup_type", "log"),
            "total_steps": params.get("total_num_steps"),
        }
    yield "scheduler", node, f"scheduler.type={kind}"


Rise = Literal["log", "linear"]
"""Whether a rate rises with the logarithm of the step or linearly."""


def warmup(
    optimizer: Optimizer,
    *,
    num_training_steps: int,
    min_lr: float,
    max_lr: float | None,
    warmup_steps: int,
    kind: Rise,
    total_steps: int | None,
) -> LambdaLR:
    """DeepSpeed's ``WarmupLR``, or ``WarmupDecayLR`` with ``total_steps``.

    Args:
        optimizer: Optimizer whose learning rate is scheduled.
        num_training_steps: Unused.
        min_lr: Learning rate of the first step.
        max_lr: Learning rate after the warm-up; ``None`` for that of the optimizer.
        warmup_steps: Optimizer steps of the warm-up.
        kind: How the rate rises.
        total_steps: Step at which the rate has decayed to ``min_lr``; ``None`` for no decay.
    """
    steps = max(2, warmup_steps)

    def share(step: int) -> float:
        if step < steps:
            return _risen(step, steps, kind)
        return 1.0 if total_steps is None else max(0.0, (total_steps - step) / max(1, total_steps - steps))

    base = optimizer.param_groups[0]["lr"]
    top = base if max_lr is None else max_lr
    return LambdaLR(optimizer, lambda step: (min_lr + (top - min_lr) * share(step)) / base)


def warmup_cosine(
    optimizer: Optimizer,
    *,
    num_training_steps: int,
    min_ratio: float,
    end_ratio: float,
    warmup_steps: int,
    kind: Rise,
    total_steps: int | None,
) -> LambdaLR:
    """DeepSpeed's ``WarmupCosineLR``: shares of the optimizer's rate.

    Args:
        optimizer: Optimizer whose learning rate is scheduled.
        num_training_steps: Optimizer steps of the run.
        min_ratio: Share of the first step.
        end_ratio: Share at the end.
        warmup_steps: Optimizer steps of the warm-up.
        kind: How the rate rises.
        total_steps: Step at which the rate has decayed; ``None`` for the last one of the run.
    """
    steps = max(2, warmup_steps)
    decay = max(1, (total_steps or num_training_steps) - steps)

    def share(step: int) -> float:
        if step < steps:
            return min_ratio + (1 - min_ratio) * _risen(step, steps, kind)
        return end_ratio + (1 - end_ratio) * (1 + math.cos(math.pi * min(1.0, (step - steps + 1) / decay))) / 2

    return LambdaLR(optimizer, share)


def _risen(step: int, steps: int, kind: Rise) -> float:
    return math.log(step + 1) / math.log(steps) if kind == "log" else step / steps


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Config:
    """Merge two nested configs; values of the second replace those of the first."""
    both = {key for key in below.keys() & above.keys() if isinstance(below[key], dict) and isinstance(above[key], dict)}
    return {**below, **above, **{key: merged(below[key], above[key]) for key in both}}


def without_auto(config: Mapping[str, Any]) -> Config:
    """Remove the values ``auto``, with which a file leaves a setting to the trainer."""
    plain = {key: without_auto(value) if isinstance(value, dict) else value for key, value in config.items()}
    return {key: value for key, value in plain.items() if value != "auto"}


def _unknown_names(path: str, file: Mapping[str, Any]) -> Iterator[InputError]:
    """Names that DeepSpeed does not know, at the top and in ``zero_optimization``."""
    prefer_cpu_without_cuda()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # takes seconds

    fields = DeepSpeedZeroConfig.model_fields
    zero = {*fields, *(field.alias for field in fields.values() if field.alias)}
    sections = {"": (file, KNOWN), "zero_optimization.": (file.get("zero_optimization", {}), zero)}
    for place, (section, known) in sections.items():
        for name in section:
            if name not in known:
                asked = f"strategy.config_file={path} with {place}{name}"
                yield InputError(asked, "DeepSpeed has no setting of that name", nearest(name, known))


def _impossible_totals(file: Mapping[str, Any]) -> Iterator[InputError]:
    """Batch sizes that no number of processes multiplies to the total."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    total, micro, accumulation = (file.get(name, "auto") for name in names)
    parts = [part for part in (micro, accumulation) if part != "auto"]
    if total == "auto" or not parts or not all(isinstance(size, int) and size > 0 for size in (total, *parts)):
        return
    if total % math.prod(parts):
        asked = f"strategy.config_file with train_batch_size={total}"
        why = f"it is no multiple of {' × '.join(map(str, parts))} rows, so no number of devices gives it"
        yield InputError(
            asked, why, f"Correct it there; {total - total % math.prod(parts) or math.prod(parts)} would do"
        )


def _stage_faults(strategy: Mapping[str, Any], file: Mapping[str, Any]) -> Iterator[InputError]:
    ours = strategy["config"]["zero_optimization"]["stage"]
    theirs = file.get("zero_optimization", {}).get("stage", ours)
    if theirs != ours:
        asked = f"strategy={strategy['_target_'].rpartition('.')[2]}"
        why = f"it is ZeRO stage {ours}, {strategy['config_file']} has zero_optimization.stage={theirs}"
        yield InputError(asked, why, f"Type strategy=deepspeed_z{theirs}")


def _contradiction(key: str, ours: Any, theirs: Any, said: str) -> InputError:
    shown = lambda value: value.get("_target_") if isinstance(value, dict) else value  # noqa: E731
    why = f"the DeepSpeed file has {said}, which means {key}={shown(theirs)}"
    return InputError(f"{key}={shown(ours)}", why, f"Leave {key} out, or change {said.partition('=')[0]} in the file")


def _typed(key: str, typed: set[str]) -> bool:
    """Whether the user typed the key, or chose the option of its group."""
    group = key.partition(".")[0]
    return key in typed or (key in (f"{group}._target_", group) and group in typed)


def _typed_of(group: str, typed: set[str]) -> list[str]:
    return [key.partition(".")[2] for key in typed if key.startswith(f"{group}.")]


def _has(config: Any, key: str) -> bool:
    head, _, rest = key.partition(".")
    return isinstance(config, Mapping) and head in config and (not rest or _has(config[head], rest))


def _at(config: Mapping[str, Any], key: str) -> Any:
    head, _, rest = key.partition(".")
    return _at(config[head], rest) if rest else config[head]


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    head, _, rest = key.partition(".")
    if rest:
        config[head] = dict(config.get(head) or {})
        _put(config[head], rest, value)
    else:
        config[head] = value
