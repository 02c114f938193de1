"""Pretrained weights and their tokenizer: embedded, in a folder (model, adapter or run), or on a hub.

Weights are never resized: every id of the tokenizer must have a row in the embedding. A pad token outside it, or none,
is replaced by one inside, and the log says so.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from alignlab.errors import InputError
from alignlab.models import adapters
from alignlab.models.heads import AUTO_CLASSES, PADS, Head, fill_head, refuse_other_adapter, with_head
from alignlab.models.locations import Place, locate
from alignlab.models.opening import opening, refuse_values
from alignlab.models.packed_attention import fitting, implementation
from alignlab.models.pickled import refusal
from alignlab.models.scratch import Texts, num_rows, prepare
from alignlab.system.disk import MANIFEST, read_manifest

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Pretrained:
    """Weights that somebody trained.

    Args:
        path: As ``locate`` takes it; an adapter folder gives its base with that adapter, to be trained further.
        dtype: Number format of the (base) weights; ``auto`` is that of the files.
        attn_implementation: A name of ``attention.IMPLEMENTATIONS``.
        gradient_checkpointing: Recompute activations in the backward pass instead of keeping them.
        trust_remote_code: Run the code that comes with the weights.
        revision: Branch, tag or commit on the hub.
    """

    def __init__(
        self,
        *,
        path: str,
        dtype: Dtype,
        attn_implementation: str,
        gradient_checkpointing: bool,
        trust_remote_code: bool,
        revision: str | None,
    ):
        self.path, self.revision, self.trust_remote_code = path, revision, trust_remote_code
        self.dtype, self.attn_implementation = dtype, attn_implementation
        self.gradient_checkpointing = gradient_checkpointing

    def load_tokenizer(self, texts: Texts | None = None) -> PreTrainedTokenizerBase:
        """The tokenizer beside the weights, with a pad token that has a row in the embedding.

        Args:
            texts: Not needed here; ``Scratch`` trains on them.

        Raises:
            InputError: There is none, or it does not fit the weights.
        """
        place = locate(self.path, self.revision)
        _look_at_files(place)
        tokenizer = _read(place, AutoTokenizer, place.tokenizer, trust_remote_code=self.trust_remote_code)
        config = _read_config(place, self.trust_remote_code)
        return fit_to_embedding(tokenizer, config.get_text_config().vocab_size)

    def load_model(
        self, tokenizer: PreTrainedTokenizerBase, quantization: Any = None, head: Head = "language_model"
    ) -> "PreTrainedModel | PeftModel":
        """The weights, ready to be trained, with their adapter where the path holds one.

        Args:
            tokenizer: Decides the stop and pad tokens of generation.
            quantization: A quantisation config of Transformers for the (base) weights.
            head: ``reward`` makes a reward model, of a language model too.

        Raises:
            InputError: Nothing is at the path, or its files do not fill the architecture.
        """
        place = locate(self.path, self.revision)
        attention, trust = implementation(self.attn_implementation), self.trust_remote_code
        options = {"trust_remote_code": trust, "quantization": quantization, "head": head}
        model = open_weights(place, self.dtype, attention, **options)
        prepare(model, tokenizer, self.gradient_checkpointing)
        return adapters.reattach(model, place.adapter) if place.adapter else model


def refuse_damaged(place: Place) -> None:
    """Compare a model or an adapter that a run of ours has written with its checksums.

    Raises:
        InputError: A file is missing or not what was written.
    """
    for folder in (Path(one) for one in (place.weights, place.adapter) if one):
        if (folder / MANIFEST).exists():
            try:
                read_manifest(folder)
            except ValueError as error:
                instead = f"Take another copy; or remove {folder / MANIFEST} if you have changed it yourself"
                raise InputError(f"model.path={place.asked}", f"{folder} is damaged: {error}", instead) from error


def open_weights(
    place: Place,
    dtype: Dtype | torch.dtype,
    attn_implementation: str,
    *,
    trust_remote_code: bool = False,
    quantization: Any = None,
    head: Head = "language_model",
) -> PreTrainedModel:
    """Read the full weights of a place, without its adapter.

    Args:
        place: See ``locate``.
        dtype: Number format.
        attn_implementation: A name registered with Transformers.
        trust_remote_code: Run the code that comes with the weights.
        quantization: A quantisation config of Transformers.
        head: What the model is to have; a language model gets a new one to become a reward model.

    Raises:
        InputError: The files cannot be read or do not fill the architecture; no other layer is left random.
    """
    asked = f"model.path={place.asked}"
    if place.adapter:
        refuse_other_adapter(place.adapter, head, asked)
    config = _read_config(place, trust_remote_code)
    _look_at_files(place)
    config = with_head(config, head, asked)
    attention = fitting(attn_implementation, config)
    options = {"dtype": dtype, "attn_implementation": attention, "quantization_config": quantization, "config": config}
    # Mismatched shapes are let through here so that all of them are named below.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "trust_remote_code": trust_remote_code}
    with _no_table_of(head):
        model, report = _read(place, AUTO_CLASSES[head], place.weights, **options)
    new = fill_head(model, head, report, asked)
    if new and not place.adapter:  # which would bring its own
        log.info("score head: new, drawn from seed %d", torch.initial_seed())
    wrong = sorted(report["missing_keys"] - new) + sorted(key for key, *_ in report["mismatched_keys"])
    if wrong:
        raise InputError(
            asked,
            f"its files lack {len(wrong)} tensors of {type(model).__name__} in its shapes: {', '.join(wrong[:4])}",
            "Name a folder whose config.json belongs to its weights",
        )
    # bitsandbytes on some CPUs repacks 4-bit weights in the first eval forward, which then pass on no gradient.
    for module in (module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")):
        module.support_avx512bf16_for_cpu = False
    return model


@contextmanager
def _no_table_of(head: Head) -> Iterator[None]:
    """Without Transformers' table of what the files lack: of a new reward model that is its head, and we say so."""
    reports = logging.getLogger("transformers.modeling_utils")

    def wanted(record: logging.LogRecord) -> bool:
        return head == "language_model" or "LOAD REPORT" not in record.getMessage()

    reports.addFilter(wanted)
    try:
        yield
    finally:
        reports.removeFilter(wanted)


def _read(place: Place, kind: Any, source: str, **options: Any) -> Any:
    """``kind.from_pretrained``, whose many ways of failing become one."""
    revision = place.revision if source == place.weights else None
    instead = "Name a folder or hub id with a causal language model and its tokenizer"
    try:
        with opening(f"model.path={place.asked}", f"{kind.__name__} cannot read {source}", instead):
            return kind.from_pretrained(source, revision=revision, **options)
    except UnpicklingError as error:
        raise refusal(source, f"model.path={place.asked}", error) from error


def _read_config(place: Place, trust_remote_code: bool) -> PreTrainedConfig:
    """The config of the weights, of which a model can be made.

    Raises:
        InputError: It cannot be read, or holds sizes that are none.
    """
    config = _read(place, AutoConfig, place.weights, trust_remote_code=trust_remote_code)
    refuse_values(config, f"config.json of model.path={place.asked} with ")
    return config


def _look_at_files(place: Place) -> None:
    """Refuse what a library would pass over without a word, or complain of in words that do not lead to it.

    Raises:
        InputError: A config is no JSON object, or holds values that are none.
    """
    asked = f"model.path={place.asked}"
    for file in (Path(place.weights) / name for name in ("config.json", "generation_config.json")):
        if file.exists():
            with opening(asked, f"{file} cannot be read", "Save it again"):
                keys = dict(json.loads(file.read_text(encoding="utf-8")).items())
            refuse_values(keys, f"{file.name} of {asked} with ")


def fit_to_embedding(tokenizer: PreTrainedTokenizerBase, rows: int) -> PreTrainedTokenizerBase:
    """Settle the pad token such that every id has a row; padding is masked by position, so any token can serve.

    Args:
        tokenizer: Changed in place.
        rows: Rows of the embedding.

    Raises:
        InputError: Another token than the pad token has no row, or no token can serve as pad.
    """
    outside = sorted(token for token, index in tokenizer.get_vocab().items() if index >= rows)
    if outside and outside != [tokenizer.pad_token]:
        raise InputError(
            f"a tokenizer of {num_rows(tokenizer)} tokens over an embedding of {rows} rows",
            f"{', '.join(map(repr, outside[:4]))} would have no row, and weights are not resized unasked",
            "Use the tokenizer of these weights, or call resize_token_embeddings on the model and save both",
        )
    if not outside and tokenizer.pad_token is not None:
        return tokenizer
    inside = tokenizer.get_vocab().keys() - outside
    pad = next((token for token in (*PADS, tokenizer.eos_token) if token in inside), None)
    if pad is None:
        raise InputError("a tokenizer without pad token", "it has no end of sequence either", "Set its eos_token")
    log.info("pad token: %r instead of %r; masks go by position, so it may have another use", pad, tokenizer.pad_token)
    tokenizer.pad_token = pad
    if outside:  # forget the token: a text that spells it would give an id without a row
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in outside]
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    return tokenizer
