"""Heads of decoders: a language model's over the vocabulary, or a reward model's with one number per sequence.

A reward model computes its number from the last token of a sequence by a linear map (arXiv 2009.01325, section 3.4).
alignlab finds the last token by the mask, Transformers' own classes by the pad token's id. The pad token is therefore
chosen such that no sequence ends in it, and both find the same position.
"""

import logging
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignlab.errors import InputError
from alignlab.models.opening import opening

log = logging.getLogger(__name__)

Head = Literal["language_model", "reward"]

AUTO_CLASSES = {"language_model": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}

TASKS = {"language_model": "CAUSAL_LM", "reward": "SEQ_CLS"}
"""PEFT's name of the task of each head. For ``SEQ_CLS`` PEFT trains and saves the head with the adapter."""

WEIGHT = "score.weight"

# Tokens that models reserve for padding, in order of preference.
PADS = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|endoftext|>", "<unk>", "[UNK]")
RESERVED = ("pad", "reserved", "unused")


def head_of(model: nn.Module) -> Head:
    """Which head a model has, with or without an adapter."""
    return "reward" if isinstance(getattr(model, "score", None), nn.Module) else "language_model"


def adapter_head(folder: str) -> Head:
    """Which head a saved adapter belongs to.

    Args:
        folder: Adapter folder.
    """
    from peft import PeftConfig

    instead = "Name a folder that holds a PEFT adapter"
    with opening(f"the adapter in {folder}", "PEFT cannot read its adapter_config.json", instead):
        return "reward" if PeftConfig.from_pretrained(folder).task_type == TASKS["reward"] else "language_model"


def refuse_other_adapter(folder: str, head: Head, asked: str) -> None:
    """Refuse an adapter that was trained with another head.

    Args:
        folder: Adapter folder.
        head: Head that the model will have.
        asked: The user's setting, for errors.

    Raises:
        InputError: The adapter was trained with another head.
    """
    names = {"language_model": "a language model", "reward": "a reward model"}
    if adapter_head(folder) != head:
        why = f"its adapter was trained for {names[adapter_head(folder)]}, but {names[head]} is needed here"
        raise InputError(asked, why, "Merge the adapter into its base, and name the merged weights")


def with_head(config: PreTrainedConfig, head: Head, asked: str) -> PreTrainedConfig:
    """Set the keys of a config that its head needs.

    Args:
        config: Changed in place.
        head: Head that the model will have.
        asked: The user's setting, for errors.

    Raises:
        InputError: Transformers has no reward model of this architecture.
    """
    if head == "language_model":
        return config
    remote = AutoModelForSequenceClassification.__name__ in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not remote:
        why = f"Transformers has no {config.model_type} that scores sequences (AutoModelForSequenceClassification)"
        raise InputError(asked, why, "Use another architecture, such as llama or qwen2")
    config.num_labels = 1
    return config


def fill_head(model: PreTrainedModel, head: Head, report: dict[str, Any], asked: str) -> set[str]:
    """Initialise the head of a reward model whose files are those of a language model.

    Args:
        model: As opened; changed in place.
        head: Head that the model must have.
        report: Loading info of Transformers: missing and mismatched tensors.
        asked: The user's setting, for errors.

    Returns:
        Names of the tensors that the files lacked and that are initialised now.

    Raises:
        InputError: The files hold a head with several numbers or lack one that they declare, or the architecture's head
            has another name.
    """
    if head == "language_model":
        return set()
    if head_of(model) != head:
        raise InputError(asked, f"{type(model).__name__} has no head named score", "Use a decoder, such as llama")
    for name, stored, _ in report["mismatched_keys"]:
        if name == WEIGHT:
            why = f"its head gives {stored[0]} numbers per sequence, but a reward is one number"
            raise InputError(asked, why, "Name weights with a single label, or a language model, which gets a new head")
    if WEIGHT not in report["missing_keys"]:
        return set()
    if any("SequenceClassification" in name for name in model.config.architectures or ()):
        why = f"its config.json is that of a reward model, and its files lack {WEIGHT}"
        raise InputError(asked, why, "Take another copy")
    draw_head(model)
    return {WEIGHT}


@torch.no_grad()
def draw_head(model: PreTrainedModel) -> None:
    """Initialise a reward head with small random weights of variance 1 / (hidden size + 1) (arXiv 2009.01325).

    They depend on the global seed alone, and not on the device. A zero head would give the decoder no gradient.
    """
    weight = model.score.weight
    seed = torch.initial_seed()  # does not depend on the numbers drawn before
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    weight.copy_(drawn * (weight.shape[1] + 1) ** -0.5)


def set_pad_token(model: nn.Module, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
    """Choose a pad token in which no sequence ends, for the tokenizer and the config, in place.

    If no token is free, the config has no pad token: Transformers then reads the last token, and refuses batches.

    Args:
        model: With a reward head.
        tokenizer: Its pad token is kept if no sequence ends in it.
        ends: Ids in which sequences end.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    barred = {*ends, tokenizer.eos_token_id, tokenizer.bos_token_id}
    special = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    free = {token: index for token, index in special.items() if index not in barred and index < rows}
    reserved = sorted(token for token in free if any(word in token.lower() for word in RESERVED))
    pad = next((token for token in (tokenizer.pad_token, *PADS, *reserved) if token in free), None)
    if pad is None:
        log.info("pad token: no token is free, so Transformers can score only one sequence at a time")
    elif pad != tokenizer.pad_token:
        log.info("pad token: %r instead of %r, in which sequences may end", pad, tokenizer.pad_token)
        tokenizer.pad_token = pad
    model.config.get_text_config().pad_token_id = free.get(pad)
    model.config.pad_token_id = free.get(pad)
