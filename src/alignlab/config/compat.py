"""Combinations of settings that do not work, refused before any weight is loaded.

A rule is listed only if the combination was observed to fail, or its library documents that it fails. Combinations that
work are not refused, even if they are not useful.
"""

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from alignlab.config.sources import source_node
from alignlab.distributed.launch import num_local_processes
from alignlab.errors import InputError, raise_all


class Config:
    """Read-only view of a plain config by dotted key; None for keys that do not exist."""

    def __init__(self, plain: Mapping[str, Any]):
        self.plain = plain

    def __getitem__(self, key: str) -> Any:
        value: Any = self.plain
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


class Rule(NamedTuple):
    """A combination of settings that does not work.

    Args:
        keys: Keys to show with their values.
        when: Whether a config has the combination.
        because: Why it does not work.
        instead: What to type instead.
    """

    keys: tuple[str, ...]
    when: Callable[[Config], bool]
    because: str
    instead: str


def check(plain: Mapping[str, Any], rows: tuple[Rule, ...] | None = None) -> None:
    """Raise an error with all rules that a config breaks.

    Args:
        plain: Resolved config as plain containers.
        rows: Rules; ``ROWS`` by default.

    Raises:
        InputError: The config breaks one or more rules.
    """
    config = Config(plain)
    broken = [_refusal(row, config) for row in (ROWS if rows is None else rows) if row.when(config)]
    raise_all([*broken, *_callbacks(config["callbacks"] or {})])


OWN_STEPS = "a method makes its optimizer steps itself, as planned, and this callback acts on Lightning's own"
CALLBACKS = {
    "StochasticWeightAveraging": (OWN_STEPS, "Leave it out"),
    "GradientAccumulationScheduler": (OWN_STEPS, "Type data.global_batch_size= and data.batch_size_per_device="),
    "BatchSizeFinder": ("batches are planned before the run", "Type data.batch_size_per_device="),
    "LearningRateFinder": ("the optimizer is built from the config", "Type -m optimizer.lr=1e-5,1e-4 to compare rates"),
    "BackboneFinetuning": ("a method has no backbone; what is trained is chosen by peft", "Type peft=lora"),
    "ModelPruning": ("it removes weights that checkpoints and the saved model need", "Leave it out"),
    "RichProgressBar": ("a run has a progress bar of its own", "Type callbacks.progress=null too"),
    "TQDMProgressBar": ("a run has a progress bar of its own", "Type callbacks.progress=null too"),
}
"""Lightning's callbacks that fail here: why, and what to do instead."""


def _callbacks(nodes: Mapping[str, Any]) -> list[InputError]:
    """Refusals of callbacks that cannot work; a progress bar only beside the run's own."""
    targets = {name: str((node or {}).get("_target_", "")) for name, node in nodes.items()}
    named = [(name, target, target.rpartition(".")[2]) for name, target in targets.items()]
    found = [one for one in named if one[1].startswith(("lightning.", "pytorch_lightning.")) and one[2] in CALLBACKS]
    if not targets.get("progress"):
        found = [one for one in found if not one[2].endswith("ProgressBar")]
    return [InputError(f"callbacks.{name}._target_={target}", *CALLBACKS[kind]) for name, target, kind in found]


def _refusal(row: Rule, config: Config) -> InputError:
    asked = " ".join(f"{key}={_shown(config[key])}" for key in row.keys)
    return InputError(asked, row.because, row.instead)


def _shown(value: Any) -> Any:
    """A value as text; a node is shown by its target."""
    value = value.get("_target_", value) if isinstance(value, Mapping) else value
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


def _is(config: Config, key: str, *names: str) -> bool:
    """Whether the target of a node has one of the names."""
    return str(config[f"{key}._target_"]).rpartition(".")[2] in names


def _on_cpu(config: Config) -> bool:
    accelerator = config["trainer.accelerator"]
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def _lacks(package: str) -> bool:
    return find_spec(package) is None


NARROW_WEIGHTS = ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16")
"""Precisions with which Lightning casts the whole module."""

SOURCE_KEYS = {"path": None, "format": "auto", "columns": {}, "validation_path": None}
"""Keys of ``data`` that only its source uses, with their defaults."""


def _unread(key: str) -> Rule:
    """A key of ``data`` that is set, but that the source does not use."""
    return Rule(
        (f"data.{key}", "data.source"),
        lambda c: c[f"data.{key}"] != SOURCE_KEYS[key] and c["data.source"] and key not in source_node(c["data"]),
        "this source does not use it",
        "Type data=jsonl for files, or leave it out",
    )


def _has_asynchronous_io() -> bool:
    from alignlab.distributed.strategies.zero import has_asynchronous_io

    return has_asynchronous_io()


def _is_offloaded(config: Config) -> bool:
    """Whether the optimizer's master weights are in host memory."""
    return config["strategy.config.zero_optimization.offload_optimizer.device"] in ("cpu", "nvme")


def _engine_precision(config: Config) -> str | None:
    """The precision of DeepSpeed's own config, as the prefix of the trainer's precision; None if it has none."""
    formats = {"fp16": "16", "bf16": "bf16"}
    return next((word for key, word in formats.items() if config[f"strategy.config.{key}.enabled"] is True), None)


TRUNCATION = {"top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
"""Sampling settings that change probabilities beyond the temperature, with the values that disable them."""


def _is_vllm(config: Config) -> bool:
    return _is(config, "rollout", "VLLMRollout")


def _is_truncated(config: Config) -> bool:
    return any(config[f"rollout.{name}"] != neutral for name, neutral in TRUNCATION.items())


def _is_plain_lora(config: Config) -> bool:
    further = any(config[f"peft.{key}"] for key in ("use_dora", "lora_bias", "modules_to_save"))
    return _is(config, "peft", "LoraConfig") and not further and config["peft.bias"] in (None, "none")


def _strategy(config: Config) -> str:
    return str(config["strategy._target_"]).rpartition(".")[2]


def _on_deepspeed(config: Config) -> bool:
    return _strategy(config).startswith("deepspeed")


def _is_single(config: Config) -> bool:
    return config["strategy._target_"] == "alignlab.distributed.strategies.ddp.single"


def _one_device(config: Config) -> bool:
    """Whether the trainer uses a single process."""
    devices, accelerator = config["trainer.devices"], config["trainer.accelerator"]
    return devices in (1, "1", [0]) or (devices == "auto" and num_local_processes(devices, accelerator) == 1)


def _deepspeed_row(section: str, ours: str, instead: str) -> Rule:
    """A section of DeepSpeed's config that is set elsewhere in the config."""
    return Rule(
        (f"strategy.config.{section}",),
        lambda c: _on_deepspeed(c) and c[f"strategy.config.{section}"] is not None,
        f"{ours} is set outside DeepSpeed's config, so that it is the same with every strategy",
        instead,
    )


ROWS: tuple[Rule, ...] = (
    *map(_unread, SOURCE_KEYS),
    Rule(
        ("init_from", "model.path"),
        lambda c: c["init_from"] is not None and c["model.path"] not in (None, "pocket", c["init_from"]),
        "both name the weights to start from",
        "Type one of them",
    ),
    Rule(
        ("strategy", "trainer.devices", "trainer.num_nodes"),
        lambda c: _is_single(c) and not (_one_device(c) and c["trainer.num_nodes"] in (None, 1)),
        "a single process trains on a single device",
        "Type strategy=ddp",
    ),
    Rule(
        ("trainer.precision",),
        lambda c: str(c["trainer.precision"]) in NARROW_WEIGHTS,
        "it also casts the model's rotary frequencies, which makes positions beyond a few hundred inexact",
        "Type trainer.precision=bf16-mixed, or model.dtype=bfloat16 with trainer.precision=32-true",
    ),
    Rule(
        ("trainer.accelerator",),
        lambda c: c["trainer.accelerator"] in ("tpu", "xla") and _lacks("torch_xla"),
        "it needs the package torch_xla, which is not installed",
        "Type trainer.accelerator=auto, or install torch_xla",
    ),
    Rule(
        ("peft.quantization.load_in_8bit", "strategy"),
        lambda c: _strategy(c) == "fsdp" and c["peft.quantization.load_in_8bit"] is True,
        "bitsandbytes keeps the scales of 8-bit weights on the weight object, which FSDP2 replaces by a shard",
        "Type peft=qlora (4 bits), or strategy=deepspeed_z3",
    ),
    Rule(
        ("optimizer", "strategy"),
        lambda c: _on_deepspeed(c) and _is(c, "optimizer", "Adafactor"),
        "it factors matrices by rows and columns, and ZeRO flattens all weights: it would become another optimizer",
        "Type strategy=ddp, or optimizer=adamw",
    ),
    Rule(
        ("optimizer", "strategy"),
        lambda c: _is(c, "optimizer", "Muon") and _on_deepspeed(c),
        "it makes matrices orthogonal, and ZeRO flattens all weights",
        "Type strategy=ddp or strategy=fsdp, or optimizer=adamw",
    ),
    Rule(
        ("optimizer",),
        lambda c: _is(c, "optimizer", "cpu_adamw") and _lacks("deepspeed"),
        "it is an optimizer of DeepSpeed, which is not installed",
        "Type pip install 'deepspeed>=0.19', or optimizer=adamw",
    ),
    Rule(
        ("optimizer", "strategy", "trainer.accelerator"),
        lambda c: _is(c, "optimizer", "cpu_adamw") and not (_on_cpu(c) or _is_offloaded(c)),
        "it updates weights in host memory, and these are on the accelerator",
        "Type strategy=deepspeed_z2_offload or strategy=deepspeed_z3_offload, or optimizer=adamw",
    ),
    Rule(
        ("optimizer", "strategy"),
        lambda c: _is(c, "optimizer", "cpu_adamw") and _strategy(c) == "fsdp",
        "it reads weights by their memory address, which shards of FSDP2 do not have; the process ends with SIGSEGV",
        "Type optimizer=adamw, or strategy=deepspeed_z3_offload",
    ),
    Rule(
        ("strategy",),
        lambda c: "nvme" in str(c["strategy.config.zero_optimization"]) and not _has_asynchronous_io(),
        "DeepSpeed reads and writes disks through libaio, whose header and library are not installed",
        "Install libaio (apt install libaio-dev), or type strategy=deepspeed_z3_offload",
    ),
    Rule(
        ("strategy.config.fp16.enabled", "strategy.config.bf16.enabled", "trainer.precision"),
        lambda c: _on_deepspeed(c) and _engine_precision(c) not in (None, str(c["trainer.precision"]).split("-")[0]),
        "DeepSpeed's config sets another precision than the trainer",
        "Type trainer.precision=bf16-mixed or 16-mixed, and leave the sections fp16 and bf16 to it",
    ),
    _deepspeed_row("optimizer", "the optimizer", "Type optimizer=adamw optimizer.lr=RATE"),
    _deepspeed_row("scheduler", "the schedule", "Type scheduler=cosine scheduler.warmup_steps=STEPS"),
    _deepspeed_row("gradient_clipping", "clipping", "Type trainer.gradient_clip_val=NORM"),
    _deepspeed_row("train_batch_size", "the batch size", "Type data.global_batch_size=ROWS"),
    _deepspeed_row("train_micro_batch_size_per_gpu", "the batch size", "Type data.batch_size_per_device=ROWS"),
    _deepspeed_row("gradient_accumulation_steps", "accumulation", "Type data.global_batch_size=ROWS"),
    Rule(
        ("peft", "data.packing"),
        lambda c: _is(c, "peft", "PrefixTuningConfig") and c["data.packing"],
        "the learned keys come before each row, so rows cannot be packed",
        "Type data.packing=false",
    ),
    Rule(
        ("peft.quantization",),
        lambda c: c["peft.quantization"] is not None and _lacks("bitsandbytes"),
        "it needs bitsandbytes, which is not installed",
        "Type pip install 'alignlab[qlora]', or peft=lora",
    ),
    Rule(
        ("trainer.precision", "trainer.accelerator"),
        lambda c: str(c["trainer.precision"]) in ("16", "16-mixed") and _on_cpu(c),
        "automatic mixed precision in float16 scales its gradients on CUDA only",
        "Type trainer.precision=bf16-mixed or trainer.precision=32-true",
    ),
    Rule(
        ("trainer.accumulate_grad_batches",),
        lambda c: c["trainer.accumulate_grad_batches"] not in (None, 1),
        "accumulation follows from the batch sizes, and each step is normalised by its own totals",
        "Type data.global_batch_size=ROWS_PER_STEP data.batch_size_per_device=ROWS_AT_ONCE",
    ),
    Rule(
        ("method.aggregation", "method.reward_kl_coef"),
        lambda c: c["method.aggregation"] == "normalize_then_sum" and bool(c["method.reward_kl_coef"]),
        "the KL penalty would be standardised like a separate reward, whatever its coefficient",
        "Type method.aggregation=sum_then_normalize, or method.kl_coef for a term of the loss",
    ),
    Rule(
        ("method.aggregation", "method.truncated"),
        lambda c: c["method.aggregation"] == "normalize_then_sum" and c["method.truncated"] == "penalise",
        "each reward is standardised, including the penalty, whatever method.truncation_penalty is",
        "Type method.aggregation=sum_then_normalize, or method.truncated=mask",
    ),
    Rule(
        ("rollout.temperature", *(f"rollout.{name}" for name in TRUNCATION)),
        lambda c: _is_vllm(c) and c["rollout.temperature"] not in (0, 1) and _is_truncated(c),
        "vLLM gives log-probs before temperature or after truncation, and training needs those in between",
        "Type rollout.temperature=1, or leave the others out, or rollout=hf",
    ),
    Rule(
        ("rollout.vllm_executable",),
        lambda c: (
            _is_vllm(c) and c["rollout.urls"] is None and not os.access(f"{c['rollout.vllm_executable']}", os.X_OK)
        ),
        "there is no such program, and rollout.urls names no server",
        "Type make vllm, or rollout.vllm_executable=PYTHON of an environment with vLLM, or rollout=hf",
    ),
    Rule(
        ("peft", "rollout"),
        lambda c: _is_vllm(c) and c["peft"] is not None and not _is_plain_lora(c),
        "vLLM supports only LoRA without DoRA, biases and further modules",
        "Type peft=lora, or rollout=hf",
    ),
    Rule(
        ("rollout", "method"),
        lambda c: c["rollout"] is not None and c["method.num_completions"] is None,
        "this method trains on data and does not sample",
        "Leave rollout out, or type method=grpo",
    ),
    Rule(
        ("rollout", "method.estimator"),
        lambda c: _is(c, "rollout", "GivenCompletions") and c["method.estimator"] == "remax",
        "its baseline is the greedy completion of the policy, which the data does not hold",
        "Type rollout=hf, or method.estimator=grpo",
    ),
    Rule(
        ("data.streaming", "method"),
        lambda c: bool(c["data.streaming"]) and c["method.num_completions"] is not None,
        "rollouts select prompts by index, so that a resumed run gets the same ones",
        "Type data.streaming=false",
    ),
    Rule(
        ("data.streaming", "method.precompute_reference"),
        lambda c: bool(c["data.streaming"]) and bool(c["method.precompute_reference"]),
        "rows of a stream are not known before training",
        "Type data.streaming=false, or method.precompute_reference=false",
    ),
    Rule(
        ("method.reference", "method.precompute_reference"),
        lambda c: c["method.reference"] in ("ema", "synchronised") and bool(c["method.precompute_reference"]),
        "this reference changes during training, so its log-probs cannot be computed before",
        "Type method.precompute_reference=false, or method.reference=initial",
    ),
    Rule(
        ("data.streaming", "data.order"),
        lambda c: c["data.streaming"] and c["data.order"] in ("by_length", "curriculum"),
        "a stream cannot be sorted: rows are read during training",
        "Type data.streaming=false, or data.order=shuffled (within a buffer) or data.order=as_is",
    ),
    Rule(
        ("data.order", "data.order_column"),
        lambda c: c["data.order"] == "curriculum" and c["data.order_column"] is None,
        "a curriculum sorts by a numeric column, and none is set",
        "Type data.order_column=COLUMN",
    ),
)
