"""A run's sizes from its config: the model is built as for training, but on tensors without data."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alignlab.assemble import make_model_source
from alignlab.config.build import build
from alignlab.config.target import locate
from alignlab.data.datamodule import DataModule
from alignlab.estimate.batches import plan_batches
from alignlab.estimate.cards import Hardware
from alignlab.estimate.live_bytes import MicroBatchBytes, WithoutData, micro_batch_bytes
from alignlab.estimate.memory import FLOAT32, Run
from alignlab.estimate.strategy import Division, division_of
from alignlab.estimate.weights import weights_of
from alignlab.models.adapters import attach
from alignlab.models.heads import Head
from alignlab.models.reference import OWN
from alignlab.models.scoring import MAX_LOGITS, SHARE_OF_GPU, last_hidden_state, sequence_scores, token_scores
from alignlab.optim.fused import FUSED
from alignlab.types.adapted import base_model, is_adapted
from alignlab.types.batch import MicroBatch

Config = Mapping[str, Any]

NARROW = torch.bfloat16
"""Dtype that stands for all of 16 bits."""

STATES: dict[str, tuple[float, int | None]] = {
    "AdamW": (2, None),
    "Adam": (2, None),
    "cpu_adamw": (2, FLOAT32),
    "AdamW8bit": (2, 1),
    "Lion": (1, FLOAT32),
    "Adagrad": (1, None),
    "Adafactor": (0, None),  # rows and columns
}
"""Numbers that an optimizer keeps per weight, and their bytes; ``None`` for those of the weight."""

UNKNOWN_STATE = (2, None)
"""Of another optimizer: taken to keep as much as AdamW."""


class Models:
    """Policies on tensors without data, and the memory of their micro-batches; each is made once.

    Args:
        data: Opened, with the number of steps of the run.
    """

    def __init__(self, data: DataModule):
        self.data, self.mode = data, WithoutData()
        self._policies: dict[str, nn.Module] = {}
        self._counts: dict[tuple[Any, ...], MicroBatchBytes] = {}

    def policy(self, config: Config, dtype: str | None = None) -> nn.Module:
        """The policy with its adapter, in train mode.

        Args:
            config: Checked and resolved.
            dtype: Dtype of its weights; ``None`` for that of the config.

        Raises:
            InputError: The model or its adapter cannot be built, as in training.
        """
        changed = {"dtype": dtype} if dtype else {}
        changed |= {"activation_offloading": False} if "activation_offloading" in config["model"] else {}
        config = {**config, "model": {**config["model"], **changed}}
        key = _key(config)
        if key not in self._policies:
            self._policies[key] = self._build(config)
        return self._policies[key]

    def _build(self, config: Config) -> nn.Module:
        source, tokenizer = make_model_source(dict(config)), copy.deepcopy(self.data.tokenizer)
        make = getattr(source, "without_weights", source.load_model)  # random weights are made without data as they are
        peft = {key: value for key, value in (config["peft"] or {}).items() if key != "quantization"}
        with self.mode:
            policy = make(tokenizer, head=locate(config["method"]["_target_"]).head)
            if peft and not is_adapted(policy):
                policy = attach(policy, build("peft", peft))
            return policy.train()

    def count(self, config: Config, policy: nn.Module, batch: MicroBatch, work: "MicroBatchWork") -> MicroBatchBytes:
        """Memory of a micro-batch.

        Args:
            config: Checked and resolved.
            policy: Of this config.
            batch: The micro-batch.
            work: What is computed with it.
        """
        key = (_key(config), next(policy.parameters()).dtype, batch.num_tokens, len(batch.labels), work)
        if key not in self._counts:
            score = partial(work.score, policy, batch)
            self._counts[key] = micro_batch_bytes(policy, score, self.mode, work.autocast)
        return self._counts[key]


def _key(config: Config) -> str:
    peft = {key: value for key, value in (config["peft"] or {}).items() if key != "quantization"}
    return json.dumps([config["model"], peft, config["init_from"], config["method"]["_target_"]])


@dataclass(frozen=True, kw_only=True)
class MicroBatchWork:
    """What is computed with a micro-batch.

    Args:
        head: Head of the policy.
        max_logits: Logits stored at once, in elements.
        samples: Whether the method samples, and wants entropies.
        scores_reference: Whether a reference scores it too.
        has_critic: Whether a critic of its own computes values.
        autocast: Dtype of automatic mixed precision; ``None`` for none.
    """

    head: Head
    max_logits: int
    samples: bool
    scores_reference: bool
    has_critic: bool
    autocast: torch.dtype | None

    def score(self, policy: nn.Module, batch: MicroBatch) -> Tensor:
        """Score a micro-batch with the policy, and with copies of it as reference and critic. Shape ``[]``."""
        if self.head == "reward":
            return sequence_scores(policy, batch).sum()
        scores = token_scores(policy, batch, self.max_logits, want=("entropies",) if self.samples else ())
        if self.scores_reference:
            with torch.no_grad():
                token_scores(policy, batch, self.max_logits)
        total = scores.logps.sum() + scores.entropies.sum()
        return total + last_hidden_state(policy, batch.inputs).sum() if self.has_critic else total


def build_run(config: Config, models: Models, hardware: Hardware) -> Run:
    """The sizes of a run.

    Args:
        config: Checked and resolved.
        models: Of the run's data.
        hardware: Cards, or main memory, with the number of processes.

    Raises:
        InputError: The model or its adapter cannot be built, as in training.
    """
    method, sampler, division = config["method"], config["rollout"] or {}, division_of(config["strategy"])
    precision = Precision.of(config, division)
    policy = models.policy(config)
    context = getattr(base_model(policy).config.get_text_config(), "max_position_embeddings", None)
    batches = plan_batches(config, models.data, hardware.number, context)
    sizes = weights_of(policy, (config["peft"] or {}).get("quantization"), NARROW if precision.casts else None)
    scores_reference = _needs_reference(method) and method.get("kl_coef", 1) != 0
    work = MicroBatchWork(
        head=locate(method["_target_"]).head,
        max_logits=int(SHARE_OF_GPU * hardware.card.num_bytes) // FLOAT32 if hardware.card else MAX_LOGITS,
        samples=config["rollout"] is not None,
        scores_reference=scores_reference,
        has_critic=_has_own_critic(method),
        autocast=NARROW if precision.is_automatic else None,
    )
    computes = models.policy(config, "bfloat16") if precision.casts or precision.gathers_narrow else policy
    state_numbers, state_itemsize = _state(config["optimizer"])
    whole_reference = _needs_reference(method) and (not is_adapted(policy) or method["reference"] not in OWN)
    return Run(
        policy=sizes,
        reference=sizes if whole_reference else None,
        adapter_copies=_adapter_copies(config, policy) if _needs_reference(method) else 0,
        critic=sizes if _has_own_critic(method) else None,
        batches=batches,
        micro_batch=models.count(config, computes, batches.largest, work),
        division=division,
        num_ranks=hardware.number,
        hardware=hardware,
        state_numbers=state_numbers,
        state_itemsize=state_itemsize,
        fuses=_fuses(config["optimizer"]),
        has_masters=precision.casts,
        gathered_share=0.5 if precision.gathers_narrow else 1.0,
        cache_itemsize=_cache_itemsize(sampler, policy, hardware),
        converted_itemsize=2 if sampler.get("dtype") in ("bfloat16", "float16") else 0,
        server_share=_server_share(sampler),
        recomputes=bool(config["model"].get("gradient_checkpointing")),
        offloads_activations=bool(config["model"].get("activation_offloading")),
        scores_reference=scores_reference,
        scores_before=_scores_before(method, precision.is_narrow),
        is_narrow=precision.is_narrow,
        saves_whole=not is_adapted(policy),
    )


class Precision(NamedTuple):
    """How 16 bits come into the computation.

    Args:
        is_automatic: Products are computed in 16 bits, and weights converted for each (autocast).
        casts: An engine casts all weights, and keeps float32 ones to update.
        gathers_narrow: Shards are gathered in 16 bits.
    """

    is_automatic: bool
    casts: bool
    gathers_narrow: bool

    @property
    def is_narrow(self) -> bool:
        """Whether products are computed in 16 bits."""
        return any(self)

    @classmethod
    def of(cls, config: Config, division: Division) -> "Precision":
        """The precision of a config."""
        is_mixed = str(config["trainer"]["precision"]) in ("bf16-mixed", "16-mixed", "16", "bf16")
        casts = is_mixed and division.engine == "zero"
        return cls(is_mixed and not casts, casts, config["strategy"].get("param_dtype") in ("bfloat16", "float16"))


def _needs_reference(method: Config) -> bool:
    """Whether a reference is there while the policy is trained."""
    if method.get("reference", "none") == "none" or method.get("precompute_reference"):
        return False
    return "num_completions" not in method or bool(method.get("kl_coef") or method.get("reward_kl_coef"))


def _adapter_copies(config: Config, policy: nn.Module) -> int:
    """Copies of an adapter for the reference: none where it is disabled, which a new one can be."""
    is_disabled = config["method"]["reference"] == "base" or (
        config["method"]["reference"] == "initial" and config["peft"] is not None
    )
    return 0 if not is_adapted(policy) or is_disabled or config["method"]["reference"] not in OWN else 1


def _has_own_critic(method: Config) -> bool:
    return method.get("critic", "shared") != "shared"


def _scores_before(method: Config, is_narrow: bool) -> int:
    """Passes over a rollout before it is trained on: for log-probs or values, and for a reference."""
    if "num_completions" not in method:
        return 0
    return int(is_narrow or "critic" in method) + int(bool(method["reward_kl_coef"]))


def _state(optimizer: Config) -> tuple[float, int | None]:
    name = str(optimizer["_target_"]).rpartition(".")[2]
    if name == "SGD":
        return (1 if optimizer.get("momentum") else 0), None
    return STATES.get(name, UNKNOWN_STATE)


def _fuses(optimizer: Config) -> bool:
    """Whether the optimizer's step makes no copies."""
    module, _, name = str(optimizer["_target_"]).rpartition(".")
    return module.startswith("bitsandbytes") or name in ("cpu_adamw", *(kind.__name__ for kind in FUSED))


def _cache_itemsize(sampler: Config, policy: nn.Module, hardware: Hardware) -> int:
    """Bytes of a cached number: as the weights that are sampled with, and float32 on a CPU."""
    if hardware.card is None:
        return FLOAT32
    return 2 if sampler.get("dtype") in ("bfloat16", "float16") else base_model(policy).dtype.itemsize


def _server_share(sampler: Config) -> float:
    starts = sampler.get("urls", True) is None and sampler.get("devices") is None
    return sampler.get("gpu_memory_fraction", 0.0) if starts else 0.0
