"""The reference policy: what the trained policy is held against, and where its weights lie.

| ``method.reference`` | what it is | full weights | with an adapter |
|---|---|---|---|
| ``initial`` | the policy as training starts, an earlier stage's adapter included | a frozen copy | the adapter \
switched off where it starts as the identity, else a frozen copy of the adapter |
| ``base`` | the weights under the adapter | a frozen copy | the adapter switched off |
| ``ema`` | a moving average of the policy (TR-DPO, arXiv 2404.09656, eq. 7) | a copy | a copy of the adapter |
| ``synchronised`` | the policy as it was some steps ago (TR-DPO, eq. 8) | a copy | a copy of the adapter |
| a path | other weights | these, frozen | these, frozen |
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
from alignlab.types.adapted import is_adapted

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "reference"
"""Name of the frozen copy of an adapter."""

OWN = ("initial", "base", "ema", "synchronised")
"""References that come from the policy itself; any other word but ``none`` is a path."""

MOVING = ("ema", "synchronised")

GATED = ("LORA", "ADAPTION_PROMPT")
"""Adapters that change nothing while their gates are zero."""


class Reference(nn.Module):
    """A policy that is not trained, always in eval mode.

    Args:
        model: Weights of its own; ``None`` where it is the policy with another adapter or none.
        adapter: Name of the adapter to switch to; ``None`` for none at all. Unused with weights of its own.
        fingerprint: Of its weights when it was made.
    """

    def __init__(self, model: nn.Module | None, adapter: str | None, fingerprint: str):
        super().__init__()
        self.model = None if model is None else model.requires_grad_(False).eval()
        self.adapter, self.fingerprint = adapter, fingerprint

    def train(self, mode: bool = True) -> "Reference":
        """Stay in eval mode, whoever asks."""
        return super().train(False)

    @contextmanager
    def standing_in(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The model to score with, without gradients; the policy is left as it was.

        Args:
            policy: The trained model, which carries the reference where it has no weights of its own.
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
        """Take over a share of the policy's weights, shard by shard; 1 copies them."""
        for own, trained in self._pairs(policy):
            _local(own).lerp_(_local(trained).to(own.dtype), share)

    def _pairs(self, policy: nn.Module) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
        if self.model is not None:
            return zip(self.model.parameters(), policy.parameters(), strict=True)
        return ((copied, trained) for copied, trained in _copied_tensors(policy))


def make_reference(policy: nn.Module, word: str, load: Callable[[str], nn.Module]) -> Reference:
    """The reference of a policy that is whole and has not been trained in this run.

    Args:
        policy: With or without an adapter; gets a frozen copy of its adapter where the reference needs one.
        word: ``initial``, ``base``, ``ema``, ``synchronised`` or a path.
        load: Opens a path.

    Raises:
        InputError: The policy and the weights at a path do not speak the same tokens.
    """
    if word not in OWN:
        model = load(word)
        _refuse_other_vocabulary(policy, model, word)
        return Reference(model, None, fingerprint(model.state_dict()))
    adapted = is_adapted(policy)
    if adapted and (word == "base" or (word == "initial" and _starts_as_identity(policy))):
        frozen = {name: tensor for name, tensor in policy.named_parameters() if not tensor.requires_grad}
        return Reference(None, None, fingerprint(frozen))
    if not adapted or policy.active_peft_config.is_adaption_prompt:  # of which two cannot stand side by side
        return Reference(copy.deepcopy(policy), None, fingerprint(policy.state_dict()))
    _copy_adapter(policy)
    return Reference(None, ADAPTER, fingerprint(policy.state_dict()))


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Twelve digits that change with any bit of the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def _refuse_other_vocabulary(policy: nn.Module, model: nn.Module, path: str) -> None:
    rows = [one.config.get_text_config().vocab_size for one in (policy, model)]
    if rows[0] != rows[1]:
        why = f"it knows {rows[1]} tokens and the policy {rows[0]}"
        raise InputError(f"method.reference={path}", why, "Name weights with the policy's tokenizer")


def _starts_as_identity(policy: "PeftModel") -> bool:
    """Whether the adapter changes nothing yet: every gate of it (LoRA's B) is zero, over the base's own weights."""
    if policy.peft_type not in GATED or getattr(policy.active_peft_config, "modules_to_save", None):
        return False
    gates = set(GATED_BY.values())
    return not any(tensor.any() for name, tensor in policy.named_parameters() if gates & set(name.split(".")))


@torch.no_grad()
def _copy_adapter(policy: "PeftModel") -> None:
    """Put a frozen copy of the policy's adapter beside it."""
    active = policy.active_adapter
    policy.add_adapter(ADAPTER, copy.deepcopy(policy.peft_config[active]))
    for copied, trained in _copied_tensors(policy):
        copied.requires_grad_(False).copy_(trained)


def _copied_tensors(policy: "PeftModel") -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Each tensor of the frozen adapter, and the one that it is a copy of."""
    tensors = dict(policy.named_parameters())
    part = f".{ADAPTER}"
    names = [name for name in tensors if f"{part}." in name or name.endswith(part)]
    return [(tensors[name], tensors[name.replace(part, f".{policy.active_adapter}")]) for name in names]


@contextmanager
def _switched(policy: "PeftModel", adapter: str | None) -> Iterator[None]:
    """Another adapter, or none, for a while.

    PEFT's own switches also change what is trained, which sharded strategies do not survive; here only the choice
    that a layer looks up in its forward is changed.
    """
    if policy.active_peft_config.is_adaption_prompt and adapter is None:
        with policy.disable_adapter():  # these stand in for the attention modules themselves
            yield
        return
    key, value = ("_disable_adapters", True) if adapter is None else ("_active_adapter", [adapter])
    switches = [(layer, key, value) for layer in policy.modules() if hasattr(layer, key)]
    switches.append((policy, "_adapters_disabled", True) if adapter is None else (policy, "active_adapter", adapter))
    before = [getattr(owner, key) for owner, key, _ in switches]
    try:
        for owner, key, value in switches:
            setattr(owner, key, value)
        yield
    finally:
        for (owner, key, _), value in zip(switches, before, strict=True):
            setattr(owner, key, value)


def _local(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a parameter, however it is sharded."""
    held = getattr(parameter, "ds_tensor", parameter.data)  # DeepSpeed's ZeRO-3
    return held.to_local() if isinstance(held, DTensor) else held
