"""Pretrained weights and their tokenizer: embedded, in a folder (model, adapter or run), or on a hub.

Weights are never resized: every id of the tokenizer must have a row in the embedding. A pad token without a row, or a
missing pad token, is replaced by another token, and the log names it.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers.auto import AutoQuantizationConfig

from alignlab.errors import InputError
from alignlab.models import adapters
from alignlab.models.activation_offloading import offload_activations
from alignlab.models.dropout import set_dropout
from alignlab.models.heads import AUTO_CLASSES, PADS, Head, fill_head, refuse_other_adapter, with_head
from alignlab.models.locations import QUANTIZATION, Location, locate
from alignlab.models.opening import opening, refuse_values
from alignlab.models.packed_attention import fitting, implementation
from alignlab.models.pickled import refusal
from alignlab.models.scratch import SaveDtype, Texts, num_rows, prepare, refuse_without_vocabulary
from alignlab.models.text_part import freeze_beside_text
from alignlab.system.disk import MANIFEST, read_manifest
from alignlab.types.dtypes import Dtype

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)


class Pretrained:
    """Pretrained weights.

    Args:
        path: A path as in ``locate``; an adapter folder gives its base with that adapter, to be trained further.
        dtype: Dtype of the (base) weights; ``auto`` is that of the files.
        attn_implementation: A name of ``packed_attention.IMPLEMENTATIONS``.
        gradient_checkpointing: Recompute activations in the backward pass instead of keeping them.
        activation_offloading: Keep activations of the decoder in host memory until the backward pass.
        compile: Compile the decoder blocks (``torch.compile``).
        trust_remote_code: Run the code that comes with the weights.
        revision: Branch, tag or commit on the hub.
        dropout: Rate of the model's own dropout in training; ``None`` for the rates of its config.
        save_dtype: Dtype in which trained weights are written; ``None`` for that of the weights that the optimizer
            updates.
    """

    def __init__(
        self,
        *,
        path: str,
        dtype: Dtype,
        attn_implementation: str,
        gradient_checkpointing: bool,
        compile: bool,
        trust_remote_code: bool,
        revision: str | None,
        dropout: Annotated[float, Field(ge=0, lt=1)] | None = None,
        save_dtype: SaveDtype = None,
        activation_offloading: bool = False,
    ):
        self.path, self.revision, self.trust_remote_code = path, revision, trust_remote_code
        self.dtype, self.attn_implementation = dtype, attn_implementation
        self.gradient_checkpointing, self.compile, self.dropout = gradient_checkpointing, compile, dropout
        self.save_dtype, self.activation_offloading = save_dtype, activation_offloading

    def load_tokenizer(self, texts: Texts | None = None) -> PreTrainedTokenizerBase:
        """Load the tokenizer of the weights, with a pad token that has a row in the embedding.

        Args:
            texts: Unused here; ``Scratch`` trains on them.

        Raises:
            InputError: There is no tokenizer, or it does not fit the weights.
        """
        location = locate(self.path, self.revision)
        _check_config_files(location)
        _refuse_without_tokenizer(location)
        tokenizer = _read(location, AutoTokenizer, location.tokenizer, trust_remote_code=self.trust_remote_code)
        refuse_without_vocabulary(tokenizer, f"model.path={location.asked}")
        config = _read_config(location, self.trust_remote_code)
        return fit_to_embedding(tokenizer, config.get_text_config().vocab_size)

    def load_model(
        self, tokenizer: PreTrainedTokenizerBase, quantization: Any = None, head: Head = "language_model"
    ) -> "PreTrainedModel | PeftModel":
        """Load the weights for training, with their adapter if the path holds one.

        Args:
            tokenizer: Sets the stop and pad tokens of generation.
            quantization: A quantisation config of Transformers for the (base) weights; ``None`` for the one that the
                base of a saved adapter was trained with.
            head: ``reward`` makes a reward model, also from a language model.

        Raises:
            InputError: There is no model at the path, or its files lack tensors of the architecture.
        """
        location = locate(self.path, self.revision)
        attention, trust = implementation(self.attn_implementation), self.trust_remote_code
        if quantization is None and location.quantization:
            quantization = AutoQuantizationConfig.from_dict(dict(location.quantization))
            log.info("the base is quantised as the adapter was trained: see %s/%s", location.adapter, QUANTIZATION)
        options = {"trust_remote_code": trust, "quantization": quantization, "head": head}
        model = open_weights(location, self.dtype, attention, **options)
        freeze_beside_text(model)
        set_dropout(model, self.dropout)  # before there is an adapter, which keeps its own
        prepare(model, tokenizer, self.gradient_checkpointing, self.compile)
        if self.activation_offloading:
            offload_activations(model)
        return adapters.reattach(model, location.adapter) if location.adapter else model

    def without_weights(
        self, tokenizer: PreTrainedTokenizerBase, head: Head = "language_model"
    ) -> "PreTrainedModel | PeftModel":
        """Build the architecture as ``load_model`` does, with new weights and a new adapter instead of those on disk.

        Within ``FakeTensorMode`` this takes no memory, whatever the size of the model.

        Args:
            tokenizer: As in ``load_model``.
            head: As in ``load_model``.

        Raises:
            InputError: There is no model at the path.
        """
        location = locate(self.path, self.revision)
        config = with_head(_read_config(location, self.trust_remote_code), head, f"model.path={location.asked}")
        attention = fitting(implementation(self.attn_implementation), config)
        dtype = getattr(config, "dtype", None) if self.dtype == "auto" else getattr(torch, self.dtype)
        options = {"dtype": dtype or torch.float32, "attn_implementation": attention}
        remote = {"trust_remote_code": True} if self.trust_remote_code else {}
        model = AUTO_CLASSES[head].from_config(config, **options, **remote)
        model.name_or_path = location.weights
        freeze_beside_text(model)
        set_dropout(model, self.dropout)
        prepare(model, tokenizer, self.gradient_checkpointing, self.compile)
        return adapters.attach(model, adapters.trainable_config(location.adapter)) if location.adapter else model


def refuse_damaged(location: Location) -> None:
    """Compare a model or an adapter that an alignlab run has written with its checksums.

    Raises:
        InputError: A file is missing or its content has changed.
    """
    for folder in (Path(path) for path in (location.weights, location.adapter) if path):
        if (folder / MANIFEST).exists():
            try:
                read_manifest(folder)
            except ValueError as error:
                instead = f"Take another copy; or remove {folder / MANIFEST} if you have changed it yourself"
                raise InputError(f"model.path={location.asked}", f"{folder} is damaged: {error}", instead) from error


def open_weights(
    location: Location,
    dtype: Dtype | torch.dtype,
    attn_implementation: str,
    *,
    trust_remote_code: bool = False,
    quantization: Any = None,
    head: Head = "language_model",
) -> PreTrainedModel:
    """Read the full weights at a location, without its adapter.

    Args:
        location: See ``locate``.
        dtype: Dtype of the weights.
        attn_implementation: A name registered with Transformers.
        trust_remote_code: Run the code that comes with the weights.
        quantization: A quantisation config of Transformers.
        head: Head of the model; a language model gets a new head to become a reward model.

    Raises:
        InputError: The files cannot be read, or lack tensors of the architecture other than a reward model's new head.
    """
    asked = f"model.path={location.asked}"
    if location.adapter:
        refuse_other_adapter(location.adapter, head, asked)
    config = _read_config(location, trust_remote_code)
    _check_config_files(location)
    config = with_head(config, head, asked)
    attention = fitting(attn_implementation, config)
    options = {"dtype": dtype, "attn_implementation": attention, "quantization_config": quantization, "config": config}
    # Mismatched shapes are allowed here so that the error below can name all of them.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "trust_remote_code": trust_remote_code}
    with _without_load_report(head):
        model, report = _read(location, AUTO_CLASSES[head], location.weights, **options)
    new = fill_head(model, head, report, asked)
    if new and not location.adapter:  # an adapter brings its own head
        log.info("score head: new, drawn from seed %d", torch.initial_seed())
    wrong = sorted(report["missing_keys"] - new) + sorted(key for key, *_ in report["mismatched_keys"])
    if wrong:
        raise InputError(
            asked,
            f"its files lack {len(wrong)} tensors of {type(model).__name__}, or have them in other shapes:"
            f" {', '.join(wrong[:4])}",
            "Name a folder whose config.json belongs to its weights",
        )
    # On some CPUs, bitsandbytes repacks 4-bit weights in the first eval forward; no gradient flows through them then.
    for module in (module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")):
        module.support_avx512bf16_for_cpu = False
    return model


@contextmanager
def _without_load_report(head: Head) -> Iterator[None]:
    """Silence Transformers' load report for a reward model: the missing head in it is expected, and logged here."""
    reports = logging.getLogger("transformers.modeling_utils")

    def wanted(record: logging.LogRecord) -> bool:
        return head == "language_model" or "LOAD REPORT" not in record.getMessage()

    reports.addFilter(wanted)
    try:
        yield
    finally:
        reports.removeFilter(wanted)


def _read(location: Location, kind: Any, source: str, **options: Any) -> Any:
    """Call ``kind.from_pretrained``, and turn its errors into an ``InputError``."""
    revision = location.revision if source == location.weights else None
    instead = "Name a folder or hub id with a causal language model and its tokenizer"
    try:
        with opening(f"model.path={location.asked}", f"{kind.__name__} cannot read {source}", instead):
            return kind.from_pretrained(source, revision=revision, **options)
    except UnpicklingError as error:
        raise refusal(source, f"model.path={location.asked}", error) from error


def _read_config(location: Location, trust_remote_code: bool) -> PreTrainedConfig:
    """The checked config of the weights.

    Raises:
        InputError: It cannot be read, or holds invalid values.
    """
    config = _read(location, AutoConfig, location.weights, trust_remote_code=trust_remote_code)
    refuse_values(config, f"config.json of model.path={location.asked} with ")
    return config


TOKENIZER_FILES = ("*token*", "vocab*", "*.model", "merges.txt", "*.tiktoken")
"""Patterns of the files of tokenizers of all kinds."""


def _refuse_without_tokenizer(location: Location) -> None:
    """Refuse a folder without any file of a tokenizer, of which Transformers says that a package is missing."""
    folder = Path(location.tokenizer)
    if folder.is_dir() and not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        why = f"{folder} holds a model and no tokenizer (tokenizer.json, tokenizer_config.json and others)"
        raise InputError(f"model.path={location.asked}", why, "Copy the tokenizer's files of its base model there")


def _check_config_files(location: Location) -> None:
    """Check config files for faults that Transformers ignores, or reports with a message that does not name the file.

    Raises:
        InputError: A config is not a JSON object, or holds invalid values.
    """
    asked = f"model.path={location.asked}"
    for file in (Path(location.weights) / name for name in ("config.json", "generation_config.json")):
        if file.exists():
            with opening(asked, f"{file} cannot be read", "Save it again"):
                keys = dict(json.loads(file.read_text(encoding="utf-8")).items())
            refuse_values(keys, f"{file.name} of {asked} with ")


def fit_to_embedding(tokenizer: PreTrainedTokenizerBase, rows: int) -> PreTrainedTokenizerBase:
    """Choose the pad token such that every id has a row; padding is masked by position, so any token can be used.

    Args:
        tokenizer: Changed in place.
        rows: Rows of the embedding.

    Raises:
        InputError: A token other than the pad token has no row, or there is no token to pad with.
    """
    outside = sorted(token for token, index in tokenizer.get_vocab().items() if index >= rows)
    if outside and outside != [tokenizer.pad_token]:
        raise InputError(
            f"a tokenizer of {num_rows(tokenizer)} tokens over an embedding of {rows} rows",
            f"{', '.join(map(repr, outside[:4]))} would have no row, and weights are not resized automatically",
            "Use the tokenizer of these weights, or call resize_token_embeddings on the model and save both",
        )
    if not outside and tokenizer.pad_token is not None:
        return tokenizer
    inside = tokenizer.get_vocab().keys() - outside
    pad = next((token for token in (*PADS, tokenizer.eos_token) if token in inside), None)
    if pad is None:
        raise InputError("a tokenizer without pad token", "it has no end-of-sequence token either", "Set its eos_token")
    log.info("pad token: %r instead of %r; masks go by position, so it may have another use", pad, tokenizer.pad_token)
    tokenizer.pad_token = pad
    if outside:  # remove the token: a text that contains it would give an id without a row
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in outside]
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    return tokenizer
