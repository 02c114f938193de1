"""Changes of a command that lower its memory, the cheapest first: each is tried by a new estimate."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from alignlab.config import compat
from alignlab.config.target import locate
from alignlab.errors import InputError
from alignlab.estimate.build import Models
from alignlab.estimate.cards import Hardware
from alignlab.estimate.estimate import Estimate, estimate

Config = Mapping[str, Any]

MAX_SHOWN = 3

LORA = {"_target_": "peft.LoraConfig", "r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
NF4 = {"_target_": "transformers.BitsAndBytesConfig", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}
ZERO_3 = {"stage": 3, "reduce_bucket_size": 20_000_000, "sub_group_size": 20_000_000}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
"""What the options of ``conf/`` with these names set, as far as memory depends on it."""

_ZERO = "alignlab.distributed.strategies.zero.deepspeed_z3"


class Change(NamedTuple):
    """A change of a command.

    Args:
        words: What to type.
        costs: What it costs.
        config: The changed config.
    """

    words: str
    costs: str
    config: Config


def smaller_micro_batches(config: Config, hardware: Hardware) -> Iterator[Change]:
    """Fewer rows at a time."""
    costs = "the same result from more passes"
    yield from _halved(config, "data", "batch_size_per_device", costs)


def smaller_sampling(config: Config, hardware: Hardware) -> Iterator[Change]:
    """Fewer completions at a time."""
    if config["rollout"] is not None and "batch_size" in config["rollout"]:
        yield from _halved(config, "rollout", "batch_size", "more time to sample")


def checkpointing(config: Config, hardware: Hardware) -> Iterator[Change]:
    """Activations computed twice."""
    if not config["model"].get("gradient_checkpointing"):
        costs = "a third more computation"
        yield _changed(config, "model.gradient_checkpointing=true", costs, model={"gradient_checkpointing": True})


def precomputed_reference(config: Config, hardware: Hardware) -> Iterator[Change]:
    """The reference scored before training."""
    if config["method"].get("precompute_reference") is False:
        words = "method.precompute_reference=true"
        yield _changed(config, words, "a pass over the rows before training", method={"precompute_reference": True})


def mixed_precision(config: Config, hardware: Hardware) -> Iterator[Change]:
    """Computation in 16 bits."""
    if config["trainer"]["precision"] == "32-true" and hardware.card is not None:
        costs = "rounding in products; faster"
        yield _changed(config, "trainer.precision=bf16-mixed", costs, trainer={"precision": "bf16-mixed"})


def shards(config: Config, hardware: Hardware) -> Iterator[Change]:
    """Weights, gradients and optimizer state divided among ranks."""
    if hardware.number > 1:
        costs = "weights are sent in each pass"
        fsdp = {"_target_": "alignlab.distributed.strategies.fsdp.fsdp", "param_dtype": None}
        yield Change("strategy=fsdp", costs, {**config, "strategy": fsdp})
        if config["trainer"]["precision"] == "bf16-mixed":  # which keeps every converted weight for the backward
            words = "strategy=fsdp strategy.param_dtype=bfloat16 trainer.precision=32-true"
            trainer, fsdp = {**config["trainer"], "precision": "32-true"}, {**fsdp, "param_dtype": "bfloat16"}
            yield Change(words, costs, {**config, "strategy": fsdp, "trainer": trainer})
        zero = {"_target_": _ZERO, "config": {"zero_optimization": ZERO_3}}
        yield Change("strategy=deepspeed_z3", costs, {**config, "strategy": zero})


def small_state(config: Config, hardware: Hardware) -> Iterator[Change]:
    """Optimizer state in 8 bits."""
    if config["optimizer"]["_target_"] == "torch.optim.AdamW":
        changed = {"_target_": "bitsandbytes.optim.AdamW8bit"}
        yield _changed(config, "optimizer=adamw_8bit", "rounding in the optimizer's averages", optimizer=changed)


def offloading(config: Config, hardware: Hardware) -> Iterator[Change]:
    """Weights and optimizer in host memory."""
    if hardware.card is not None:
        node = {"_target_": _ZERO, "config": {"zero_optimization": {**ZERO_3, **OFFLOAD}}}
        yield Change("strategy=deepspeed_z3_offload", "a much slower step", {**config, "strategy": node})


def adapters(config: Config, hardware: Hardware) -> Iterator[Change]:
    """An adapter trained instead of the weights."""
    if config["peft"] is None and "path" in config["model"]:
        yield Change("peft=lora", "an adapter is trained, not the weights", {**config, "peft": LORA})
        node = {**LORA, "quantization": NF4}
        yield Change("peft=qlora", "an adapter is trained, on weights rounded to 4 bits", {**config, "peft": node})


CHANGES: tuple[Callable[[Config, Hardware], Iterator[Change]], ...] = (
    *(smaller_micro_batches, smaller_sampling, checkpointing, precomputed_reference, mixed_precision, shards),
    *(small_state, offloading, adapters),
)
"""From the changes that keep the result to those that change what is trained."""


def cheapest_changes(
    config: Config, models: Models, hardware: Hardware, limit: int, mfu: float
) -> list[tuple[Change, Estimate]]:
    """The cheapest changes by which a process needs at most so much memory; if no single one does, some together.

    Args:
        config: Checked and resolved.
        models: Of the run's data.
        hardware: What it runs on.
        limit: Bytes that a process may have.
        mfu: As for ``estimate``.

    Returns:
        At most ``MAX_SHOWN`` changes with their estimates; none if all together are not enough.
    """
    found: list[tuple[Change, Estimate]] = []
    for ways in CHANGES:
        for change in ways(config, hardware):
            after = _tried(change, models, hardware, mfu)
            if after is not None and after.memory.peak <= limit:
                found.append((change, after))
                break
        if len(found) == MAX_SHOWN:
            return found
    return found or _together(config, models, hardware, limit, mfu)


def _together(
    config: Config, models: Models, hardware: Hardware, limit: int, mfu: float
) -> list[tuple[Change, Estimate]]:
    """Change after change, each if it lowers the memory, until it is enough."""
    words: list[str] = []
    before = estimate(config, models, hardware, mfu).memory.peak
    for ways in CHANGES:
        tried = [(change, _tried(change, models, hardware, mfu)) for change in ways(config, hardware)]
        lower = [(change, after) for change, after in tried if after is not None and after.memory.peak < before]
        if not lower:
            continue
        change, after = next((one for one in lower if one[1].memory.peak <= limit), min(lower, key=_peak))
        words, config, before = [*words, change.words], change.config, after.memory.peak
        if before <= limit:
            return [(Change(" ".join(words), "together", config), after)]
    return []


def _peak(one: tuple[Change, Estimate]) -> int:
    return one[1].memory.peak


def _tried(change: Change, models: Models, hardware: Hardware, mfu: float) -> Estimate | None:
    """The estimate after a change; ``None`` if the change cannot be combined with the rest of the command."""
    try:
        compat.check(change.config)
        locate(change.config["optimizer"]["_target_"])
        return estimate(change.config, models, hardware, mfu)
    except InputError:
        return None


def _halved(config: Config, section: str, key: str, costs: str) -> Iterator[Change]:
    number = config[section][key]
    while number > 1:
        number //= 2
        yield _changed(config, f"{section}.{key}={number}", costs, **{section: {key: number}})


def _changed(config: Config, words: str, costs: str, **sections: dict[str, Any]) -> Change:
    return Change(words, costs, {**config, **{name: {**config[name], **keys} for name, keys in sections.items()}})
