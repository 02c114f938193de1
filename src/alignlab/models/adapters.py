"""Adapters of every kind that PEFT knows: attach a new one, go on with a saved one, and count what trains.

The base may be quantised. What trains is float32, whatever the base is: updates of a usual size vanish in 16 bits.
"""

import copy
import re
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import InputError, raise_all
from alignlab.models.heads import TASKS, head_of
from alignlab.models.opening import opening
from alignlab.types.adapted import is_adapted

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

# Tensors whose gradient is exactly zero as long as the tensor that gates them is: LoRA's B and the gate of an
# adaption prompt start at zero, so that an adapter starts as the identity (arXiv 2106.09685, 2303.16199).
GATED_BY = {"lora_A": "lora_B", "lora_embedding_A": "lora_embedding_B", "adaption_prompt": "adaption_gate"}


def attach(model: PreTrainedModel, peft_config: "PeftConfig") -> "PeftModel":
    """Freeze the model and put a new trainable adapter on it.

    Args:
        model: Full weights, quantised or not; changed in place.
        peft_config: Any config of PEFT; left unchanged.

    Raises:
        InputError: The kind does not fit the model, or what it would train cannot be trained or saved soundly.
    """
    from peft import get_peft_model

    asked = f"peft={peft_config.peft_type.value.lower()}"
    if is_adapted(model):
        raise InputError(asked, "the model already carries an adapter", "Type peft=none to train that one further")
    if not model.name_or_path:
        raise InputError(
            asked,
            "the model has random weights, which exist nowhere the adapter could be opened with",
            "Train all weights with peft=none, or start from saved ones with model.path",
        )
    ends = _tied_ends(model)
    commit = getattr(model.config, "_commit_hash", None)
    # A copy: PEFT writes the resolved targets into the config, and a model may be built more than once.
    own_config = copy.deepcopy(peft_config)
    own_config.task_type = own_config.task_type or TASKS[head_of(model)]
    with opening(asked, f"it does not fit {type(model).__name__}", "Type peft=lora, which fits every model"):
        adapted = get_peft_model(model, own_config, revision=commit)
    raise_all([*_adapted_ends(adapted, ends, asked), *_narrow(adapted, asked), *_left_head(adapted, asked)])
    return adapted


def reattach(model: PreTrainedModel, folder: str) -> "PeftModel":
    """Put a saved adapter on its base, trainable.

    A projected prefix was saved as the keys and values it projects to; these themselves train on.

    Args:
        model: The weights that the adapter was trained on.
        folder: Adapter folder.

    Raises:
        InputError: The adapter does not fit the model.
    """
    from peft import PeftConfig, PeftModel

    why = f"it cannot be read, or does not fit {type(model).__name__}"
    with opening(f"the adapter in {folder}", why, "Check its files and its base model"):
        learns_prompt = PeftConfig.from_pretrained(folder).is_prompt_learning
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=not learns_prompt)
    if learns_prompt:  # PEFT opens these only frozen, but what it then reads is a tensor like any other
        adapted.prompt_encoder.requires_grad_(True)
        if head_of(adapted) == "reward":
            adapted.get_base_model().score.modules_to_save.requires_grad_(True)
    return adapted


def trainable(model: nn.Module) -> dict[str, int]:
    """Number of elements of every trainable tensor, by name."""
    return {name: tensor.numel() for name, tensor in model.named_parameters() if tensor.requires_grad}


def zero_gradients(
    model: nn.Module,
    gradient: Callable[[nn.Parameter], Tensor | None] = attrgetter("grad"),
    value: Callable[[nn.Parameter], Tensor] = Tensor.detach,
) -> list[str]:
    """Names of trainable tensors that got no gradient, or one that is exactly zero.

    To be asked after the backward pass and before the optimizer of the first step. A tensor whose gate is still zero
    (see ``GATED_BY``) has none by construction and is not named; its gate must have one.

    Args:
        model: With gradients.
        gradient: The whole gradient of a parameter, however it is spread; asked for each in the same order.
        value: The whole value, likewise.
    """
    tensors = dict(model.named_parameters())

    def is_silent(tensor: nn.Parameter) -> bool:
        found = gradient(tensor)  # one whole gradient at a time: together they are as large as the model
        return found is None or not found.any()

    silent = [name for name, tensor in tensors.items() if tensor.requires_grad and is_silent(tensor)]
    return [name for name in silent if not _is_shut(name, tensors, value)]


def _is_shut(name: str, tensors: dict[str, nn.Parameter], value: Callable[[nn.Parameter], Tensor]) -> bool:
    gate = re.sub("|".join(rf"\b{inner}\b" for inner in GATED_BY), lambda match: GATED_BY[match[0]], name)
    return gate != name and not value(tensors[gate]).any()


def _tied_ends(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Embedding and vocabulary head by name where they share one tensor, else nothing."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not table.weight:
        return {}
    return {name: module for name, module in model.named_modules() if module is table or module is head}


def _adapted_ends(adapted: "PeftModel", ends: dict[str, nn.Module], asked: str) -> list[InputError]:
    base = adapted.get_base_model()
    changed = [name for name, module in ends.items() if base.get_submodule(name) is not module]
    if not changed:
        return []
    why = f"it adapts {', '.join(changed)}, but embedding and vocabulary head are one tied tensor: only one use trains"
    return [InputError(asked, why, "Leave them out: peft.target_modules=all-linear peft.modules_to_save=null")]


def _narrow(adapted: "PeftModel", asked: str) -> list[InputError]:
    narrow = (torch.float16, torch.bfloat16)
    names = [name for name, tensor in adapted.named_parameters() if tensor.requires_grad and tensor.dtype in narrow]
    if not names:
        return []
    why = f"{names[0]} (of {len(names)}) would train in 16 bits, where small updates are rounded away"
    return [InputError(asked, why, "Type model.dtype=float32, with trainer.precision=bf16-mixed for speed")]


def _left_head(adapted: "PeftModel", asked: str) -> list[InputError]:
    """Whether a reward model's head would be left as it is."""
    from peft import get_peft_model_state_dict

    saved = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if head_of(adapted) == "language_model" or any("score" in name.split(".") for name in saved):
        return []
    why = "this kind of adapter neither trains nor saves a reward model's head beside itself"
    return [InputError(asked, why, "Type peft=lora")]
