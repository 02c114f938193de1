"""Trained reward models, opened frozen: one number per sequence, whatever the architecture."""

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from alignlab.errors import InputError
from alignlab.models import adapters
from alignlab.models.heads import adapter_head, head_of
from alignlab.models.load import Dtype, open_weights
from alignlab.models.locations import Place, locate
from alignlab.models.scoring import sequence_scores
from alignlab.types.adapted import base_model
from alignlab.types.batch import MicroBatch

INSTEAD = "Name what method=reward_model wrote (a run or its folder model), or a sequence classifier of one label"


def open_reward_model(path: str, dtype: Dtype, asked: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A reward model in eval mode, without gradients, on the CPU, and its own tokenizer.

    Args:
        path: As ``places.locate`` takes it: a model, adapter or run folder, or a hub id.
        dtype: Number format of the (base) weights.
        asked: The key under which the user gave the path, for errors.

    Raises:
        InputError: Nothing is there, it cannot be read, or it does not give one trained number per sequence.
    """
    asked = f"{asked}={path}"
    try:
        place = locate(path)
        model = (_open_adapter if place.adapter else _open_whole)(place, dtype, asked)
        tokenizer = AutoTokenizer.from_pretrained(place.tokenizer)
    except InputError as error:
        raise InputError(asked, error.why, INSTEAD) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(asked, f"it cannot be read: {reason}", INSTEAD) from error
    return model.eval().requires_grad_(False), tokenizer


def _open_adapter(place: Place, dtype: Dtype, asked: str) -> nn.Module:
    if adapter_head(place.adapter) != "reward":
        raise InputError(asked, "its adapter is that of a language model, which scores no sequences", INSTEAD)
    return adapters.reattach(open_weights(place, dtype, "packed", head="reward"), place.adapter)


def _open_whole(place: Place, dtype: Dtype, asked: str) -> nn.Module:
    _refuse_other_head(AutoConfig.from_pretrained(place.weights, revision=place.revision), asked)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        place.weights, revision=place.revision, dtype=dtype, output_loading_info=True
    )
    if report["missing_keys"]:
        why = f"its files lack {', '.join(sorted(report['missing_keys'])[:4])}, which would be random"
        raise InputError(asked, why, INSTEAD)
    return model


def _refuse_other_head(config, asked: str) -> None:
    """Refuse, before any weight is read, what would score with a new head or with several numbers."""
    names = config.architectures or ["a model without architectures in its config.json"]
    if not any("SequenceClassification" in name for name in names):
        raise InputError(asked, f"it holds {names[0]}, which scores no sequences", INSTEAD)
    if config.num_labels != 1:
        raise InputError(
            asked, f"its head gives {config.num_labels} numbers per sequence, and a reward is one", INSTEAD
        )


def context_of(model: nn.Module) -> int | None:
    """Most tokens of a sequence that a model has positions for; None where nothing is said."""
    return getattr(base_model(model).config.get_text_config(), "max_position_embeddings", None)


@torch.no_grad()
def rewards_of(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Scores of the sequences of a padded micro-batch.

    A decoder is read at the last token by position, never by the pad token's id, in which a sequence may end; what
    pools otherwise (an encoder) is asked by its own forward.

    Args:
        model: As ``open_reward_model`` gives it.
        batch: Padded on the right.

    Returns:
        float32 at least. Shape ``[S]``.
    """
    if head_of(model) == "reward":
        return sequence_scores(model, batch)
    # Positions are its own matter: some encoders count them from 2.
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    scores = model(**inputs).logits[:, 0]
    return scores if scores.dtype == torch.float64 else scores.float()
