"""DeepSpeed JSON files as users bring them: what they say of optimizer, schedule, precision and batch is taken over.

DeepSpeed's own sections (``zero_optimization``, ``aio``, …) go to ``strategy.config``. What is a setting of ours goes
where ours stands, unless something else was typed there: then both values are shown and the run is refused. A key typed
under ``strategy.config`` is the same key as the file's and wins. ``"auto"`` leaves a setting to ours.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from alignlab.errors import InputError, nearest, raise_all

OPTIMIZERS = {
    "adamw": "torch.optim.AdamW",
    "adam": "torch.optim.AdamW",  # DeepSpeed's Adam decays weights as AdamW does unless adam_w_mode is false
    "sgd": "torch.optim.SGD",
    "adagrad": "torch.optim.Adagrad",
    "lion": "bitsandbytes.optim.Lion",
}
"""DeepSpeed's ``optimizer.type`` in lower case: what it is here."""

SCHEDULERS = ("WarmupLR", "WarmupDecayLR")

OURS = ("optimizer", "scheduler", "gradient_clipping", "train_batch_size", "train_micro_batch_size_per_gpu")
"""Sections of a file that become settings of ours."""

Config = dict[str, Any]


def take_over(config: Mapping[str, Any], file: Mapping[str, Any], typed: set[str]) -> Config:
    """A composed config with a DeepSpeed file taken over.

    Args:
        config: Composed, plain; ``strategy`` is one of DeepSpeed's.
        file: Content of the JSON file.
        typed: Dotted keys, and groups, that the user gave.

    Returns:
        A new config, ``strategy.config_file`` null, the file's sections in their places.

    Raises:
        InputError: What was typed contradicts the file, or the file asks for what does not exist here; all together.
    """
    config, faults = copy.deepcopy(dict(config)), []
    kept = {key: value for key, value in file.items() if key not in OURS and key != "gradient_accumulation_steps"}
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
    """Settings of ours that a file speaks of.

    Args:
        file: Content of the JSON file.
        faults: Gets what cannot be translated.

    Yields:
        Our dotted key, the value, and where the file says so.
    """
    yield from _optimizer(file.get("optimizer"), faults)
    yield from _scheduler(file.get("scheduler"), file.get("optimizer"), faults)
    for section, precision in {"fp16": "16-mixed", "bf16": "bf16-mixed"}.items():
        if file.get(section, {}).get("enabled") is True:
            yield "trainer.precision", precision, f"{section}.enabled"
    ours = {
        "gradient_clipping": "trainer.gradient_clip_val",
        "train_batch_size": "data.global_batch_size",
        "train_micro_batch_size_per_gpu": "data.batch_size_per_device",
    }
    for section, key in ours.items():
        if file.get(section, "auto") != "auto":
            yield key, file[section] or None, section


def _optimizer(section: Mapping[str, Any] | None, faults: list[InputError]) -> Iterator[tuple[str, Any, str]]:
    if section is None:
        return
    kind, params = str(section["type"]), without_auto(section.get("params", {}))
    if kind.lower() not in OPTIMIZERS:
        asked = f"strategy.config_file with optimizer.type={kind}"
        why = "there is no translation of it"
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
        faults.append(InputError(asked, "there is no translation of it", instead))
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
    yield "scheduler", node, f"scheduler.type={kind}"


def warmup(
    optimizer: Optimizer,
    *,
    num_training_steps: int,
    min_lr: float,
    max_lr: float | None,
    warmup_steps: int,
    kind: Literal["log", "linear"],
    total_steps: int | None,
) -> LambdaLR:
    """DeepSpeed's ``WarmupLR``, and ``WarmupDecayLR`` where ``total_steps`` is given.

    Args:
        optimizer: What it drives.
        num_training_steps: Not needed.
        min_lr: Rate of the first step.
        max_lr: Rate after the warm-up; None: that of the optimizer.
        warmup_steps: Optimizer steps from one to the other.
        kind: Rise with the logarithm of the step, or in a line.
        total_steps: Step at which the rate has fallen to ``min_lr`` again; None: it stays.
    """
    steps = max(2, warmup_steps)
    rises: dict[str, Callable[[int], float]] = {
        "log": lambda step: math.log(step + 1) / math.log(steps),
        "linear": lambda step: step / steps,
    }

    def share(step: int) -> float:
        if step < steps:
            return rises[kind](step)
        return 1.0 if total_steps is None else max(0.0, (total_steps - step) / max(1, total_steps - steps))

    base = optimizer.param_groups[0]["lr"]
    top = base if max_lr is None else max_lr
    return LambdaLR(optimizer, lambda step: (min_lr + (top - min_lr) * share(step)) / base)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Config:
    """Two trees as one; leaves of the second win."""
    both = {key for key in below.keys() & above.keys() if isinstance(below[key], dict) and isinstance(above[key], dict)}
    return {**below, **above, **{key: merged(below[key], above[key]) for key in both}}


def without_auto(tree: Mapping[str, Any]) -> Config:
    """The tree without leaves that say ``auto``, with which such files leave a setting to the trainer."""
    plain = {key: without_auto(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in plain.items() if value != "auto"}


def _stage_faults(strategy: Mapping[str, Any], file: Mapping[str, Any]) -> Iterator[InputError]:
    ours = strategy["config"]["zero_optimization"]["stage"]
    theirs = file.get("zero_optimization", {}).get("stage", ours)
    if theirs != ours:
        asked = f"strategy={strategy['_target_'].rpartition('.')[2]}"
        why = f"it is ZeRO stage {ours}, {strategy['config_file']} says zero_optimization.stage={theirs}"
        yield InputError(asked, why, f"Type strategy=deepspeed_z{theirs}")


def _contradiction(key: str, ours: Any, theirs: Any, said: str) -> InputError:
    shown = lambda value: value.get("_target_") if isinstance(value, dict) else value  # noqa: E731
    why = f"the DeepSpeed file says {said}, which is {key}={shown(theirs)}"
    return InputError(f"{key}={shown(ours)}", why, f"Leave {key} out, or change {said.partition('=')[0]} in the file")


def _typed(key: str, typed: set[str]) -> bool:
    """Whether the user gave the key, or chose the option that it belongs to."""
    group = key.partition(".")[0]
    return key in typed or (key in (f"{group}._target_", group) and group in typed)


def _typed_of(group: str, typed: set[str]) -> list[str]:
    return [key.partition(".")[2] for key in typed if key.startswith(f"{group}.")]


def _has(tree: Any, key: str) -> bool:
    head, _, rest = key.partition(".")
    return isinstance(tree, Mapping) and head in tree and (not rest or _has(tree[head], rest))


def _at(tree: Mapping[str, Any], key: str) -> Any:
    head, _, rest = key.partition(".")
    return _at(tree[head], rest) if rest else tree[head]


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    head, _, rest = key.partition(".")
    if rest:
        tree[head] = dict(tree.get(head) or {})
        _put(tree[head], rest, value)
    else:
        tree[head] = value
