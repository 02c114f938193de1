"""PEFT adapters of every kind: attach a new one, continue with a saved one, list the trainable tensors.

The base may be quantised. Trainable tensors are always float32, since 16 bits would round away updates of usual size.
"""

import copy
import logging
import re
from collections.abc import Callable, Collection
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import InputError, raise_all
from alignlab.models.heads import TASKS, head_of
from alignlab.models.opening import opening
from alignlab.models.text_part import modules_beside_text
from alignlab.types.adapted import is_adapted

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

log = logging.getLogger(__name__)

# The gradient of these tensors is exactly zero while the tensor that gates them is zero. LoRA's B and the gate of an
# adaption prompt start at zero, so that an adapter starts as the identity (arXiv 2106.09685, 2303.16199).
GATED_BY = {"lora_A": "lora_B", "lora_embedding_A": "lora_embedding_B", "adaption_prompt": "adaption_gate"}

# Rows of tokens that the first steps may not hold.
SPARSE = ("trainable_tokens_delta",)


def attach(model: PreTrainedModel, peft_config: "PeftConfig") -> "PeftModel":
    """Freeze the model and put a new trainable adapter on it.

    Args:
        model: Full weights, quantised or not; changed in place.
        peft_config: Any config of PEFT; left unchanged.

    Raises:
        InputError: The kind does not fit the model, or some of its tensors could not be trained or saved correctly.
    """
    from peft import get_peft_model

    asked = f"peft={peft_config.peft_type.value.lower()}"
    if peft_config.peft_type.value == "ADALORA":
        why = "it moves ranks between layers in a call after every step, which is not made here: no rank would move"
        raise InputError(asked, why, "Type peft=lora")
    if is_adapted(model):
        raise InputError(asked, "the model already carries an adapter", "Type peft=none to train that one further")
    if not model.name_or_path:
        raise InputError(
            asked,
            "the model has random weights, which are not saved anywhere for the adapter to be opened with",
            "Train all weights with peft=none, or start from saved ones with model.path",
        )
    tied = _tied_embeddings(model)
    commit = getattr(model.config, "_commit_hash", None)
    # A copy: PEFT writes the resolved targets into the config, and a model may be built more than once.
    own_config = copy.deepcopy(peft_config)
    own_config.task_type = own_config.task_type or TASKS[head_of(model)]
    if (beside := modules_beside_text(model)) and hasattr(own_config, "exclude_modules"):
        own_config.exclude_modules = _excluded(own_config.exclude_modules, beside)
    unfit = opening(asked, f"it does not fit {type(model).__name__}", "Type peft=lora, which fits every model")
    # Drawn on the CPU, whatever the device of the base: another device would draw other numbers from the same seed.
    with unfit, torch.device("cpu"):
        adapted = get_peft_model(model, own_config, revision=commit)
    raise_all([*_adapted_tied(adapted, tied, asked), *_low_precision(adapted, asked), *_unsaved_head(adapted, asked)])
    asks_for_experts = getattr(peft_config, "target_parameters", None)
    asks_for_all = getattr(peft_config, "target_modules", None) == "all-linear"
    if (asks_for_all or asks_for_experts) and (left_out := _frozen_experts(adapted)):
        log.info("not adapted: %d tensors of experts, such as %s; peft.target_parameters adapts such", *left_out)
    return adapted


def _excluded(chosen: str | Collection[str] | None, beside: Collection[str]) -> str:
    """A pattern of names that an adapter leaves out: those that the user chose, and all modules within others."""
    within = rf"(?:{'|'.join(map(re.escape, beside))})\..*"
    if not chosen:
        return within
    own = chosen if isinstance(chosen, str) else rf"(?:.*\.)?(?:{'|'.join(map(re.escape, chosen))})"
    return f"(?:{own})|{within}"


def _frozen_experts(adapted: "PeftModel") -> tuple[int, str] | None:
    """Number of weights of experts that no adapter changes, and the name of one.

    Experts are slices of one tensor and no linear layers; PEFT knows those of some architectures only.
    """
    from peft.tuners.lora.layer import ParamWrapper

    base = adapted.get_base_model()
    by_parameter = [module for module in base.modules() if isinstance(module, ParamWrapper)]
    changed = {id(module.get_param()) for module in by_parameter}
    beside = {id(tensor) for module in by_parameter for tensor in module.get_base_layer().parameters()} - changed
    frozen = [
        name.replace("base_layer.", "")
        for name, tensor in base.named_parameters()
        if tensor.ndim == 3 and "lora_" not in name and id(tensor) not in changed
        if "base_layer" not in name or id(tensor) in beside
    ]
    return (len(frozen), frozen[0]) if frozen else None


def unadapted_layers(adapted: "PeftModel") -> list[str]:
    """Names of the linear layers that an adapter leaves out, besides the head.

    Args:
        adapted: A model with an adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = adapted.get_base_model()
    within = tuple(f"{name}." for name, module in base.named_modules() if isinstance(module, BaseTunerLayer))
    within = (*within, *(f"{name}." for name in modules_beside_text(base)))
    kept = {id(base.get_output_embeddings())}
    return [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith((*within, "score")) and id(module) not in kept
    ]


def trainable_config(folder: str) -> "PeftConfig":
    """The config of a saved adapter, for a new adapter of the same kind that is trained.

    Args:
        folder: Adapter folder.
    """
    from peft import PeftConfig

    with opening(f"the adapter in {folder}", "its adapter_config.json cannot be read", "Check its files"):
        config = PeftConfig.from_pretrained(folder)
    config.inference_mode = False
    return config


def reattach(model: PreTrainedModel, folder: str) -> "PeftModel":
    """Put a saved adapter on its base, trainable.

    PEFT saves a projected prefix as the keys and values that it projects to. These are then trained directly.

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
    if learns_prompt:  # PEFT opens these only frozen
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
    among: Collection[str] | None = None,
) -> list[str]:
    """Names of trainable tensors without a gradient, or with one that is exactly zero.

    Call it after the backward pass and before the optimizer. A tensor whose gate is still zero (see ``GATED_BY``) has a
    zero gradient by construction and is not named; its gate must have a gradient. Kinds of adapters with other gates
    (LoHa, LoKr, VeRA) have zero gradients in the first step only, so ask again after the update.

    Args:
        model: With gradients.
        gradient: Gives the full gradient of a parameter, also of a sharded one; called on all ranks in the same order.
        value: Gives the full value of a parameter, likewise.
        among: Names to look at: those that an earlier call gave; ``None`` for all trainable tensors.
    """
    tensors = dict(model.named_parameters())

    def is_zero(tensor: nn.Parameter) -> bool:
        found = gradient(tensor)  # one full gradient at a time: together they are as large as the model
        return found is None or not found.any()

    asked = [name for name, tensor in tensors.items() if tensor.requires_grad and (among is None or name in among)]
    names = [name for name in asked if is_zero(tensors[name])]
    return [name for name in names if not _gate_is_zero(name, tensors, value)]


def _gate_is_zero(name: str, tensors: dict[str, nn.Parameter], value: Callable[[nn.Parameter], Tensor]) -> bool:
    gate = re.sub("|".join(rf"\b{inner}\b" for inner in GATED_BY), lambda match: GATED_BY[match[0]], name)
    return gate != name and not value(tensors[gate]).any()


def _tied_embeddings(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Embedding and vocabulary head by name if they share one tensor, else an empty dict."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not table.weight:
        return {}
    return {name: module for name, module in model.named_modules() if module is table or module is head}


def _adapted_tied(adapted: "PeftModel", tied: dict[str, nn.Module], asked: str) -> list[InputError]:
    base = adapted.get_base_model()
    changed = [name for name, module in tied.items() if base.get_submodule(name) is not module]
    if not changed:
        return []
    why = f"it adapts {', '.join(changed)}, but embedding and vocabulary head share a tensor: one use would not train"
    return [InputError(asked, why, "Leave them out: peft.target_modules=all-linear peft.modules_to_save=null")]


def _low_precision(adapted: "PeftModel", asked: str) -> list[InputError]:
    dtypes = (torch.float16, torch.bfloat16)
    names = [name for name, tensor in adapted.named_parameters() if tensor.requires_grad and tensor.dtype in dtypes]
    if not names:
        return []
    why = f"{names[0]} (of {len(names)}) would train in 16 bits, where small updates are rounded away"
    return [InputError(asked, why, "Type model.dtype=float32, with trainer.precision=bf16-mixed for speed")]


def _unsaved_head(adapted: "PeftModel", asked: str) -> list[InputError]:
    """Whether a reward model's head would be neither trained nor saved."""
    from peft import get_peft_model_state_dict

    saved = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if head_of(adapted) == "language_model" or any("score" in name.split(".") for name in saved):
        return []
    why = "this kind of adapter neither trains nor saves a reward model's head"
    return [InputError(asked, why, "Type peft=lora")]
