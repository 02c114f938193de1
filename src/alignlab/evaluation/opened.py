"""The models of an evaluation, and rows as their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from alignlab.assemble import Config, pick, refuse_beyond_context
from alignlab.data.formats.conversions import convert
from alignlab.data.settings import TokenSettings
from alignlab.data.table.cache import tokenize_stream
from alignlab.data.tokenise.rows import tokenize
from alignlab.data.tokenise.templates import set_template
from alignlab.data.tokenise.turn_ends import stop_tokens
from alignlab.models.locations import locate
from alignlab.models.opened import open_trained
from alignlab.models.publish import stored_head
from alignlab.models.stopping import declared_stops
from alignlab.types.rows import Prompt, Row, TokenRow, longest_sequence


@dataclass(frozen=True)
class Opened:
    """A model to measure.

    Args:
        model: In eval mode.
        tokenizer: With its chat template.
        stops: Tokens that end a completion.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    stops: Sequence[int]


def open_for(config: Config, path: str) -> Opened:
    """Open a model, with the chat template of the data."""
    options = {key: config[key] for key in ("dtype", "device", "trust_remote_code")}
    model, tokenizer = open_trained(path, head=stored_head(locate(path)), **options)
    data = config["data"] or {"chat_template": "auto", "chat_template_kwargs": {}}
    template = set_template(tokenizer, data["chat_template"], data["chat_template_kwargs"])
    if not model.can_generate():
        return Opened(model, tokenizer, ())
    return Opened(model, tokenizer, sorted(stop_tokens(tokenizer, template) | declared_stops(model)))


def encode(config: Config, opened: Opened, rows: Sequence[Row], kind: type[Row]) -> list[TokenRow]:
    """Rows of a kind as tokens.

    Args:
        config: Config of the evaluation.
        opened: The model.
        rows: Rows that can be converted to the kind.
        kind: Kind of row.

    Raises:
        InputError: A row is longer than the model's context, or cannot be tokenised.
    """
    settings = token_settings(config)
    encoded = list(tokenize_stream((convert(row, kind) for row in rows), opened.tokenizer, settings, kind))
    longest = max(map(longest_sequence, encoded), default=0)
    refuse_beyond_context(opened.model, longest, settings.max_tokens_per_sequence)
    return encoded


def token_settings(config: Config) -> TokenSettings:
    """How rows become tokens; weights of rows and turns are for training alone."""
    return pick(TokenSettings, config["data"] | {"number_columns": (), "weight_column": None, "weighs_turns": False})


def encode_prompts(config: Config, opened: Opened, rows: Sequence[Row]) -> list[TokenRow]:
    """Rows as prompts, without those that are too long."""
    prompts = [tokenize(convert(row, Prompt), opened.tokenizer, token_settings(config)) for row in rows]
    return [row for row in prompts if isinstance(row, TokenRow)]
