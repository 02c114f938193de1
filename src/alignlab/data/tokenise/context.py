"""What tokenisation is told (settings) and what it derives once per tokenizer (context)."""

from dataclasses import dataclass
from functools import lru_cache
from re import Pattern
from typing import Annotated, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from alignlab.data.tokenise.encode import control_pattern
from alignlab.data.tokenise.templates import Template, adds_bos, choose_template, stop_tokens
from alignlab.data.tokenise.truncate import Truncation


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """What decides how rows become tokens; part of the cache key.

    Args:
        chat_template: ``auto``, ``chatml``, ``plain``, ``none`` or the path of a Jinja file.
        loss_on: Supervise every assistant turn, the last one, or everything. In rows with a given prompt (preferences,
            unpaired) only turns of the completion count.
        max_tokens_per_sequence: Most tokens of a prompt with one completion; length of a block of text.
        truncation: What to do with longer rows.
        max_cut_fraction: Share of rows that may be cut before the run is refused.
        max_dropped_fraction: Share of rows that may be dropped before the run is refused.
        bad_rows: Refuse the run for a row that cannot be tokenised, or drop and count it.
        cross_document_attention: Whether documents in one block of text see each other.
        number_columns: Columns that every row must have as a finite number, because something computes with them.
    """

    chat_template: str
    loss_on: Literal["assistant", "last", "all"]
    max_tokens_per_sequence: Annotated[int, Field(ge=2)]
    truncation: Truncation
    max_cut_fraction: Annotated[float, Field(ge=0, le=1)]
    max_dropped_fraction: Annotated[float, Field(ge=0, le=1)]
    bad_rows: Literal["error", "drop"]
    cross_document_attention: bool
    number_columns: tuple[str, ...]


@dataclass(frozen=True)
class Context:
    """What tokenisation derives once from a tokenizer and its settings.

    Args:
        tokenizer: What encodes.
        settings: How.
        template: What renders dialogues.
        stop: Ids that generation stops on.
        control: Matches the strings that contents must not smuggle in.
        bos: The id that the tokenizer puts before a text, if it does.
    """

    tokenizer: PreTrainedTokenizerBase
    settings: TokenSettings
    template: Template
    stop: frozenset[int]
    control: Pattern[str] | None
    bos: int | None


@lru_cache(maxsize=8)
def derive_context(tokenizer: PreTrainedTokenizerBase, settings: TokenSettings, own_template: str) -> Context:
    """The context of a tokenizer and settings.

    Args:
        tokenizer: What encodes.
        settings: How.
        own_template: The tokenizer's template text, which may change while the tokenizer stays the same object.
    """
    template = choose_template(tokenizer, settings.chat_template)
    stop = stop_tokens(tokenizer, template)
    bos = tokenizer.bos_token_id if adds_bos(tokenizer) else None
    return Context(tokenizer, settings, template, stop, control_pattern(tokenizer, stop), bos)
