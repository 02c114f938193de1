"""Random weights of any Transformers architecture, with an existing tokenizer or one trained on the data.

A trained tokenizer is a byte-level BPE (arXiv 1508.07909 on bytes): it has no unknown token, decoding restores the
text, and each digit is a token. Markers of the chat template are single tokens, and the pad token is never the end of
sequence.
"""

import itertools
import logging
import re
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jinja2 import TemplateError
from pydantic import Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from alignlab.errors import InputError, nearest, raise_all
from alignlab.models.activation_offloading import offload_activations
from alignlab.models.compiled import compile_blocks
from alignlab.models.dropout import set_dropout
from alignlab.models.heads import AUTO_CLASSES, Head, draw_head, set_pad_token, with_head
from alignlab.models.opening import opening, refuse_values
from alignlab.models.packed_attention import fitting, implementation
from alignlab.rendering import read_template
from alignlab.system.paths import typed_path

log = logging.getLogger(__name__)

Texts = Callable[[], Iterable[str]]
"""Returns an iterator over the training texts; each call starts again."""

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")
MIN_FREQUENCY = 2  # a pair that occurs once gets no token

# Keys of older config files that Transformers still converts.
LEGACY_KEYS = {"rope_theta", "rope_scaling", "torch_dtype"}


SaveDtype = Literal["float32", "bfloat16", "float16"] | None


class Scratch:
    """Untrained weights.

    Args:
        config: ``model_type`` and any keys of its Transformers config. The vocabulary size is that of the tokenizer;
            ``vocab_size`` may ask for more rows, for instance a round number.
        tokenizer: A tokenizer folder or hub id, or ``train``.
        vocabulary_size: Largest number of tokens of a trained tokenizer.
        chat_template: For a trained tokenizer: a Jinja file, ``pocket`` (the embedded one), or ``null`` for the ChatML
            markers without a template; the data then uses its fallback template.
        seed: Seed of the weights.
        dtype: Dtype of the weights.
        attn_implementation: A name of ``packed_attention.IMPLEMENTATIONS``.
        gradient_checkpointing: Recompute activations in the backward pass instead of keeping them.
        activation_offloading: Keep activations of the decoder in host memory until the backward pass.
        compile: Compile the decoder blocks (``torch.compile``).
        dropout: Rate of the model's own dropout in training; ``None`` for the rates of its config.
        save_dtype: Dtype in which trained weights are written; ``None`` for that of the weights that the optimizer
            updates.
    """

    def __init__(
        self,
        *,
        config: dict[str, Any],
        tokenizer: str,
        vocabulary_size: Annotated[int, Field(ge=300)],
        chat_template: str | None,
        seed: Annotated[int, Field(ge=0)],
        dtype: Literal["float32", "bfloat16", "float16"],
        attn_implementation: str,
        gradient_checkpointing: bool,
        compile: bool,
        dropout: Annotated[float, Field(ge=0, lt=1)] | None = None,
        save_dtype: SaveDtype = None,
        activation_offloading: bool = False,
    ):
        self.config, self.tokenizer, self.vocabulary_size = dict(config), tokenizer, vocabulary_size
        self.chat_template, self.seed, self.dtype = chat_template, seed, dtype
        self.attn_implementation, self.gradient_checkpointing = attn_implementation, gradient_checkpointing
        self.compile, self.dropout, self.save_dtype = compile, dropout, save_dtype
        self.activation_offloading = activation_offloading

    def load_tokenizer(self, texts: Texts | None = None) -> PreTrainedTokenizerBase:
        """Load the named tokenizer, or train one.

        Args:
            texts: Returns the texts to train on.

        Raises:
            InputError: There is no such tokenizer, or no text to train it on.
        """
        if self.tokenizer == "train":
            return train_tokenizer(texts() if texts else (), self.vocabulary_size, _template(self.chat_template))
        asked = f"model.tokenizer={self.tokenizer}"
        typed_path(self.tokenizer, "model.tokenizer")
        with opening(asked, "no tokenizer could be read there", "Name its folder, or type train"):
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        refuse_without_vocabulary(tokenizer, asked)
        if tokenizer.pad_token is None:
            log.info("pad token: the end of sequence %r; padding is masked by position", tokenizer.eos_token)
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def load_model(
        self, tokenizer: PreTrainedTokenizerBase, quantization: Any = None, head: Head = "language_model"
    ) -> PreTrainedModel:
        """Build the architecture with random weights that depend on the seed alone.

        Args:
            tokenizer: Sets the vocabulary size and the stop and pad tokens.
            quantization: Must be ``None``: quantised weights could not be trained.
            head: Head of a language model or of a reward model.

        Raises:
            InputError: The config is not one of a causal language model.
        """
        if quantization is not None:
            raise InputError("model=scratch with quantised weights", "they could not be trained", "Type peft=none")
        config = make_config(self.config, tokenizer)
        config = with_head(config, head, f"model.config.model_type={config.model_type}")
        attention = fitting(implementation(self.attn_implementation), config)
        asked = f"model.config of model_type={config.model_type}"
        refused = opening(asked, "no model can be built", "Change the value named")
        # On the CPU: Lightning's default device is that of the run, where the same seed draws other numbers.
        with refused, torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.random.default_generator.manual_seed(self.seed)
            dtype = getattr(torch, self.dtype)
            model = AUTO_CLASSES[head].from_config(config, dtype=dtype, attn_implementation=attention)
            if head == "reward":
                draw_head(model)
        set_dropout(model, self.dropout)
        prepare(model, tokenizer, self.gradient_checkpointing, self.compile)
        if self.activation_offloading:
            offload_activations(model)
        return model


def make_config(keys: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Make a Transformers config with the vocabulary and special tokens of the tokenizer.

    Raises:
        InputError: The architecture or a key is unknown, the architecture refuses a value, or the vocabulary is smaller
            than the tokenizer's.
    """
    kind = keys.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        why = "Transformers has no causal language model of that name"
        options = "Type llama, qwen3, …" if kind is None else nearest(kind, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise InputError(f"model.config.model_type={kind}", why, options)
    architecture, rows = CONFIG_MAPPING[kind], num_rows(tokenizer)
    known = architecture().to_dict().keys() | architecture.attribute_map.keys() | LEGACY_KEYS
    faults = [
        InputError(f"model.config.{key}", f"{architecture.__name__} has no such key", nearest(key, known))
        for key in sorted(keys.keys() - known)
    ]
    if isinstance(keys.get("vocab_size"), int) and 1 <= keys["vocab_size"] < rows:
        asked = f"model.config.vocab_size={keys['vocab_size']}"
        faults.append(InputError(asked, f"the tokenizer has {rows} tokens", "Leave it out, or ask for more"))
    raise_all(faults)
    refuse_values(keys, "model.config.")
    # Without pad token: Embedding(padding_idx) would start its row at zero, and it may be the end of sequence too.
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    values = {"vocab_size": rows, **keys, **special}
    values = {key: _as_number(value, architecture, key) for key, value in values.items()}
    with opening(f"model.config of model_type={kind}", f"{architecture.__name__} refuses it", "Change the value named"):
        config = architecture(**{key: value for key, value in values.items() if key != "model_type"})
    refuse_values(config, "model.config.")
    return config


def _as_number(value: Any, architecture: type, key: str) -> Any:
    """A whole number as a float where the config has a float, which it would refuse: ``rope_theta=10000``."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole and isinstance(getattr(architecture, key, None), float) else value


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, template: str | None) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; the same texts give the same tokenizer.

    Args:
        texts: At least one that is not empty.
        vocabulary_size: Largest number of tokens; there are fewer if the texts have too few pairs that occur twice.
        template: Chat template as Jinja text, or ``None`` for the ChatML markers.

    Raises:
        InputError: There is no text.
    """
    special = list(dict.fromkeys([BOS, EOS, PAD, *(CHATML_MARKERS if template is None else _markers(template))]))
    backend = Tokenizer(models.BPE())
    digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence([digits, level]), decoders.ByteLevel()
    asked = f"model.vocabulary_size={vocabulary_size}"
    with opening(asked, "no tokenizer of this size can be trained", "Type model.vocabulary_size=32000"):
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            min_frequency=MIN_FREQUENCY,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
    texts = (text for text in texts if text)
    first = next(texts, None)
    if first is None:
        raise InputError("model.tokenizer=train", "the data has no text to train it on", "Name a tokenizer folder")
    backend.train_from_iterator(itertools.chain([first], texts), trainer)
    tokenizer = _wrap(backend, template)
    log.info("tokenizer: trained, %d tokens (at most %d were asked for)", len(tokenizer), vocabulary_size)
    return tokenizer


def _wrap(backend: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = template
    return tokenizer


def _template(name: str | None) -> str | None:
    if name is None:
        return None
    folder = Path(str(files("alignlab"))) / "assets" / "pocket"
    path = folder / "chat_template.jinja" if name == "pocket" else typed_path(name, "model.chat_template")
    if not path.is_file():
        raise InputError(f"model.chat_template={name}", f"there is no file {path.resolve()}", "Name a Jinja file")
    return read_template(path, f"model.chat_template={name}")


def _markers(template: str) -> list[str]:
    """Markers of the form ``<|…|>`` that the template writes around messages, in order of appearance."""
    roles = ("system", "user", "assistant")
    messages = [{"role": role, "content": "-"} for role in roles]
    blank = _wrap(Tokenizer(models.BPE()), template)
    try:
        text = blank.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise InputError("model.chat_template", f"it refuses a plain dialogue: {error}", "Correct the file") from error
    return re.findall(r"<\|[^|<>\s]+\|>", text)


def refuse_without_vocabulary(tokenizer: PreTrainedTokenizerBase, asked: str) -> None:
    """Refuse a tokenizer that has special tokens only; it would lose every text, without a word.

    Transformers makes one from a folder that holds a ``tokenizer_config.json`` and nothing else.

    Args:
        tokenizer: As opened.
        asked: What named it.

    Raises:
        InputError: It has no vocabulary.
    """
    if not tokenizer.get_vocab().keys() - tokenizer.added_tokens_encoder.keys():
        why = "its tokenizer has special tokens and no vocabulary: a file such as tokenizer.json is missing"
        raise InputError(asked, why, "Copy all files of the tokenizer there")


def num_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding needs for the tokenizer: its largest id plus one."""
    return max(tokenizer.get_vocab().values()) + 1


def prepare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gradient_checkpointing: bool, compile: bool
) -> None:
    """Prepare a model in place: for training, and for generation or scoring with its tokenizer."""
    # Embedding(padding_idx) would never train that row, and the pad token may be the end of sequence too.
    model.get_input_embeddings().padding_idx = None
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if compile:
        compile_blocks(model)
    if not model.can_generate():
        return set_pad_token(model, tokenizer, ())
    generation = model.generation_config
    declared = generation.eos_token_id
    declared = [declared] if isinstance(declared, int) else list(declared or ())
    generation.eos_token_id = sorted({*declared, tokenizer.eos_token_id} - {None})
    generation.pad_token_id = tokenizer.pad_token_id
