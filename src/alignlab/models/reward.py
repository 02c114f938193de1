"""Frozen reward models of any architecture that gives one number per sequence."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from alignlab.errors import InputError
from alignlab.models import adapters
from alignlab.models.heads import adapter_head, head_of
from alignlab.models.load import open_weights
from alignlab.models.locations import Location, locate
from alignlab.models.scoring import sequence_scores
from alignlab.types.adapted import base_model
from alignlab.types.batch import MicroBatch
from alignlab.types.dtypes import Dtype

INSTEAD = "Name a run of method=reward_model (or its folder model), or a sequence classifier with one label"


def open_reward_model(path: str, dtype: Dtype, asked: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Open a reward model in eval mode, without gradients, on the CPU, and its tokenizer.

    Args:
        path: A model, adapter or run folder, or a hub id, as in ``locations.locate``.
        dtype: Dtype of the (base) weights.
        asked: Config key of the path, for errors.

    Raises:
        InputError: There is no model, it cannot be read, or it lacks a trained head with one number per sequence.
    """
    asked = f"{asked}={path}"
    location = find_reward_model(path, asked, INSTEAD)
    with _explained(asked, INSTEAD):
        model = (_open_adapter if location.adapter else _open_whole)(location, dtype, asked)
        tokenizer = AutoTokenizer.from_pretrained(location.tokenizer)
    return model.eval().requires_grad_(False), tokenizer


def find_reward_model(path: str, asked: str, instead: str) -> Location:
    """Find a reward model, without reading its weights.

    Args:
        path: As for ``open_reward_model``.
        asked: The user's setting, for errors.
        instead: What to type instead, for errors.

    Raises:
        InputError: There is no model, or its config is not that of a model with one number per sequence.
    """
    with _explained(asked, instead):
        location = locate(path)
        if not location.adapter:
            _refuse_other_head(AutoConfig.from_pretrained(location.weights, revision=location.revision), asked)
        elif adapter_head(location.adapter) != "reward":
            raise InputError(asked, "its adapter is for a language model, which does not score sequences", instead)
    return location


def refuse_other_tokens(location: Location, tokenizer: PreTrainedTokenizerBase, asked: str, instead: str) -> None:
    """Refuse a reward model whose tokenizer gives another id to a token of this one.

    Args:
        location: From ``find_reward_model``.
        tokenizer: The tokenizer whose ids the model will read.
        asked: The user's setting, for errors.
        instead: What to type instead, for errors.

    Raises:
        InputError: The ids differ, or its tokenizer cannot be read.
    """
    with _explained(asked, instead):
        theirs = AutoTokenizer.from_pretrained(location.tokenizer).get_vocab()
        for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
            if theirs.get(token) != index:
                there = "is missing" if token not in theirs else f"is {theirs[token]}"
                why = (
                    f"it has other tokens: {token!r} is {index} in the tokenizer of the policy, and {there} in its own"
                )
                raise InputError(asked, why, instead)


@contextmanager
def _explained(asked: str, instead: str) -> Iterator[None]:
    """Turn errors of reading a model into an ``InputError`` with the user's setting."""
    try:
        yield
    except InputError as error:
        raise InputError(asked, error.why, instead) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(asked, f"it cannot be read: {reason}", instead) from error


def _open_adapter(location: Location, dtype: Dtype, asked: str) -> nn.Module:
    return adapters.reattach(open_weights(location, dtype, "packed", head="reward"), location.adapter)


def _open_whole(location: Location, dtype: Dtype, asked: str) -> nn.Module:
    model, report = AutoModelForSequenceClassification.from_pretrained(
        location.weights, revision=location.revision, dtype=dtype, output_loading_info=True
    )
    if report["missing_keys"]:
        why = f"its files lack {', '.join(sorted(report['missing_keys'])[:4])}, which would be random"
        raise InputError(asked, why, INSTEAD)
    return model


def _refuse_other_head(config, asked: str) -> None:
    """Refuse, before weights are read, a model without a trained head or with several numbers per sequence."""
    names = config.architectures or ["a model without architectures in its config.json"]
    if not any("SequenceClassification" in name for name in names):
        raise InputError(asked, f"it holds {names[0]}, which does not score sequences", INSTEAD)
    if config.num_labels != 1:
        raise InputError(
            asked, f"its head gives {config.num_labels} numbers per sequence, but a reward is one number", INSTEAD
        )


def context_of(model: nn.Module) -> int | None:
    """Longest sequence in tokens that a model has positions for; ``None`` if its config does not name it."""
    return getattr(base_model(model).config.get_text_config(), "max_position_embeddings", None)


@torch.no_grad()
def rewards_of(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Scores of the sequences of a padded micro-batch.

    A decoder is scored at the last token by position, not by the pad token's id, since a sequence may end in that
    token. A model that pools in another way (an encoder) is scored by its own forward.

    Args:
        model: From ``open_reward_model``.
        batch: Padded on the right.

    Returns:
        float32 at least. Shape ``[S]``.
    """
    if head_of(model) == "reward":
        return sequence_scores(model, batch)
    # Without position ids: some encoders count positions from 2.
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    scores = model(**inputs).logits[:, 0]
    return scores if scores.dtype == torch.float64 else scores.float()
