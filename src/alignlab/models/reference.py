"""The reference policy that the trained policy is compared with, and how its weights are stored.

| ``method.reference`` | what it is | stored, for full weights | stored, with an adapter |
|---|---|---|---|
| ``initial`` | the policy at the start of training, with the adapter of an earlier stage | a frozen copy | nothing \
(the adapter is disabled) if it starts as the identity, else a frozen copy of the adapter |
| ``base`` | the weights without the adapter | a frozen copy | nothing (the adapter is disabled) |
| ``ema`` | a moving average of the policy (TR-DPO, arXiv 2404.09656, eq. 7) | a copy, and one in float32 if it has \
16 bits | a copy of the adapter, likewise |
| ``synchronised`` | a copy of the policy, renewed every few steps (TR-DPO, eq. 8) | a copy | a copy of the adapter |
| a path | other weights | these weights, frozen | these weights, frozen |
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alignlab.errors import InputError
from alignlab.models.adapters import GATED_BY
from alignlab.models.compiled import copied
from alignlab.types.adapted import is_adapted

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "reference"
"""Name of the frozen copy of an adapter."""

OWN = ("initial", "base", "ema", "synchronised")
"""References derived from the policy itself; any other word except ``none`` is a path."""

MOVING = ("ema", "synchronised")

GATED = ("LORA", "ADAPTION_PROMPT")
"""Adapters that have no effect while their gates are zero."""

KEEPS_BASE = ("gaussian", "orthogonal", "eva")
"""Words of ``init_lora_weights`` that leave the base as it is."""


class Reference(nn.Module):
    """A policy that is not trained, always in eval mode.

    Args:
        model: A separate model; ``None`` if the reference is the policy with another adapter or with none.
        adapter: Name of the policy's adapter to use; ``None`` for no adapter. Unused with a separate model.
        fingerprint: ``fingerprint`` of the weights when the reference was made.
    """

    def __init__(self, model: nn.Module | None, adapter: str | None, fingerprint: str):
        super().__init__()
        self.model = None if model is None else model.requires_grad_(False).eval()
        self.adapter, self.fingerprint = adapter, fingerprint
        self.float32_averages = nn.ParameterList()
        """Averages of the trained weights that the reference has in 16 bits; empty until ``average_in_float32``."""

    def train(self, mode: bool = True) -> "Reference":
        """Stay in eval mode."""
        return super().train(False)

    @contextmanager
    def scoring_model(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Give the reference model, without gradients; restore the policy on exit.

        Args:
            policy: The policy; if the reference is not separate, it is the policy with another adapter or without one.
        """
        if self.model is not None:
            with torch.no_grad():
                yield self.model
            return
        was_training = policy.training
        policy.eval()
        try:
            with torch.no_grad(), _switched(policy, self.adapter):
                yield policy
        finally:
            policy.train(was_training)

    @torch.no_grad()
    def move_towards(self, policy: nn.Module, share: float) -> None:
        """Move each weight towards the policy's by a share of their difference, shard by shard; 1 copies them.

        Weights with a float32 average are that average, rounded.
        """
        rounded = self._rounded(policy) if self.float32_averages else []
        averages = dict(zip(rounded, self.float32_averages, strict=True))
        for own, trained in self._pairs(policy):
            average = averages.get(own, own)
            _local(average).lerp_(_local(trained).to(average.dtype), share)
            if average is not own:
                _local(own).copy_(_local(average))
            if hasattr(own, "ds_tensor"):
                own.partition()  # ZeRO-3 keeps small weights gathered, and would score with what they were

    def average_in_float32(self, policy: nn.Module, copies: Callable[[list[nn.Parameter]], list[nn.Parameter]]) -> None:
        """Keep a float32 average beside each weight of 16 bits that moves. Does nothing when called again.

        In 16 bits a small share of a difference is rounded off, and the weight would never move.

        Args:
            policy: The policy.
            copies: Copies frozen weights in float32, sharded as they are.
        """
        if not self.float32_averages:
            self.float32_averages.extend(copies(self._rounded(policy)))

    def _rounded(self, policy: nn.Module) -> list[nn.Parameter]:
        """Weights of 16 bits that follow a trained weight."""
        return [own for own, trained in self._pairs(policy) if trained.requires_grad and own.dtype.itemsize == 2]

    def _pairs(self, policy: nn.Module) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
        if self.model is not None:
            return zip(self.model.parameters(), policy.parameters(), strict=True)
        return ((own, trained) for own, trained in _copied_tensors(policy))


def make_reference(policy: nn.Module, kind: str, load: Callable[[str], nn.Module]) -> Reference:
    """Make the reference of a policy that is not sharded and has not been trained in this run.

    Args:
        policy: With or without an adapter; gets a frozen copy of its adapter if the reference needs one.
        kind: ``initial``, ``base``, ``ema``, ``synchronised`` or a path.
        load: Loads weights from a path.

    Raises:
        InputError: The policy and the weights at a path have different vocabulary sizes.
    """
    if kind not in OWN:
        model = load(kind)
        _refuse_other_vocabulary(policy, model, kind)
        return Reference(model, None, fingerprint(model.state_dict()))
    adapted = is_adapted(policy)
    if adapted and kind == "base":
        _refuse_changed_base(policy)
    if adapted and _trained_in_base(policy):  # they would train along in a reference that is the policy itself
        return Reference(copied(policy), None, fingerprint(policy.state_dict()))
    if adapted and (kind == "base" or (kind == "initial" and _starts_as_identity(policy))):
        frozen = {name: tensor for name, tensor in policy.named_parameters() if not tensor.requires_grad}
        return Reference(None, None, fingerprint(frozen))
    if not adapted or policy.active_peft_config.is_adaption_prompt:  # a model cannot have two adaption prompts
        return Reference(copied(policy), None, fingerprint(policy.state_dict()))
    _copy_adapter(policy)
    return Reference(None, ADAPTER, fingerprint(policy.state_dict()))


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits of a hash of the weights.

    Args:
        tensors: Weights by name. Any shape.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def _refuse_other_vocabulary(policy: nn.Module, model: nn.Module, path: str) -> None:
    rows = [one.config.get_text_config().vocab_size for one in (policy, model)]
    if rows[0] != rows[1]:
        why = f"its vocabulary has {rows[1]} tokens and that of the policy {rows[0]}"
        raise InputError(f"method.reference={path}", why, "Name weights with the policy's tokenizer")


def _refuse_changed_base(policy: "PeftModel") -> None:
    """Refuse ``base`` if disabling the adapter would give other weights than those that were opened."""
    init = getattr(policy.active_peft_config, "init_lora_weights", None)
    why = None
    if isinstance(init, str) and init not in KEEPS_BASE:
        why = f"peft.init_lora_weights={init} moves a part of the base into the adapter, and the base is another one"
    elif trained := _trained_in_base(policy):
        why = f"{trained[0]} of the base itself is trained (peft.bias={policy.active_peft_config.bias})"
    if why:
        raise InputError("method.reference=base", why, "Type method.reference=initial, or the path of the base")


def _trained_in_base(policy: "PeftModel") -> list[str]:
    """Names of trained tensors that belong to no adapter (``bias: all`` and ``lora_only`` train biases of the base)."""
    if getattr(policy.active_peft_config, "bias", "none") == "none":
        return []
    active = policy.active_adapter
    return [n for n, tensor in policy.named_parameters() if tensor.requires_grad and active not in n.split(".")]


def _starts_as_identity(policy: "PeftModel") -> bool:
    """Whether the adapter has no effect yet: all its gates (LoRA's B) are zero, and it replaces no module."""
    if policy.peft_type not in GATED or getattr(policy.active_peft_config, "modules_to_save", None):
        return False
    gates = set(GATED_BY.values())
    return not any(tensor.any() for name, tensor in policy.named_parameters() if gates & set(name.split(".")))


@torch.no_grad()
def _copy_adapter(policy: "PeftModel") -> None:
    """Add a frozen copy of the policy's adapter to the policy."""
    config = copy.deepcopy(policy.active_peft_config)
    # Some initialisations (PiSSA, OLoRA) take the adapter out of the base, which would happen a second time.
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True
    policy.add_adapter(ADAPTER, config)
    for own, trained in _copied_tensors(policy):
        own.requires_grad_(False).copy_(trained)


def _copied_tensors(policy: "PeftModel") -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Pairs of a tensor of the frozen adapter and the trained tensor that it is a copy of."""
    tensors = dict(policy.named_parameters())
    suffix = f".{ADAPTER}"
    names = [name for name in tensors if f"{suffix}." in name or name.endswith(suffix)]
    return [(tensors[name], tensors[name.replace(suffix, f".{policy.active_adapter}")]) for name in names]


@contextmanager
def _switched(policy: "PeftModel", adapter: str | None) -> Iterator[None]:
    """Use another adapter, or none, within the context.

    PEFT's own methods also change which tensors are trainable, which sharded strategies do not support. Here only the
    attributes that a layer reads in its forward are changed.
    """
    if policy.active_peft_config.is_adaption_prompt and adapter is None:
        with policy.disable_adapter():  # adaption prompts replace the attention modules themselves
            yield
        return
    key, value = ("_disable_adapters", True) if adapter is None else ("_active_adapter", [adapter])
    switches = [(layer, key, value) for layer in policy.modules() if hasattr(layer, key)]
    switches.append((policy, "_adapters_disabled", True) if adapter is None else (policy, "active_adapter", adapter))
    before = [getattr(module, key) for module, key, _ in switches]
    try:
        for module, key, value in switches:
            setattr(module, key, value)
        yield
    finally:
        for (module, key, _), value in zip(switches, before, strict=True):
            setattr(module, key, value)


def _local(parameter: nn.Parameter) -> Tensor:
    """This rank's shard of a parameter, or the whole parameter if it is not sharded."""
    held = getattr(parameter, "ds_tensor", parameter.data)  # DeepSpeed's ZeRO-3
    return held.to_local() if isinstance(held, DTensor) else held
