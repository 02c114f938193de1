"""Settings of tokenisation, and the context that is derived from them once per tokenizer."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from alignlab.data.tokenise.encode import Control, control_patterns
from alignlab.data.tokenise.templates import Template, adds_bos, choose_template, probe
from alignlab.data.tokenise.truncate import Truncation
from alignlab.data.tokenise.turn_ends import TurnEnds, find_turn_ends


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """Settings that decide how rows become tokens; part of the cache key.

    Args:
        chat_template: ``auto``, ``chatml``, ``plain``, ``none``, the name of one of the tokenizer's own templates, or
            the path of a Jinja file.
        chat_template_kwargs: Values of the template's own variables, by name. Compared, but not hashed.
        special_tokens: What a special-token string in a text row, or in a content with the template ``none``, becomes:
            ``encode`` makes it the special token, ``text`` ordinary tokens; None means ``text`` for text rows and
            ``encode`` with ``none``. In dialogues that a template renders, ``text`` extends to tokens that control
            nothing, and ``encode`` is refused.
        loss_on: Supervise every assistant turn, the last one, or everything. In rows with a separate prompt
            (preferences, unpaired) only turns of the completion are supervised.
        loss_on_reasoning: Whether the reasoning in supervised turns is supervised too, and an empty block of reasoning
            that a template inserts.
        max_tokens_per_sequence: Maximum tokens of a prompt with one completion; length of a block of text.
        truncation: What to do with longer rows.
        max_cut_fraction: Maximum share of rows that may be cut.
        max_dropped_fraction: Maximum share of rows that may be dropped.
        bad_rows: ``error`` raises for a row that cannot be tokenised; ``drop`` drops and counts it.
        cross_document_attention: Whether documents in one block of text attend to each other.
        number_columns: Columns that must hold a finite number in every row, because something computes with them.
        weight_column: The one of them that weighs rows in the loss; None if nothing does.
        weighs_turns: Whether the method weighs the turns of a dialogue.
    """

    chat_template: str
    chat_template_kwargs: dict[str, Any] = field(hash=False)
    special_tokens: Literal["encode", "text"] | None
    loss_on: Literal["assistant", "last", "all"]
    loss_on_reasoning: bool
    max_tokens_per_sequence: Annotated[int, Field(ge=2)]
    truncation: Truncation
    max_cut_fraction: Annotated[float, Field(ge=0, le=1)]
    max_dropped_fraction: Annotated[float, Field(ge=0, le=1)]
    bad_rows: Literal["error", "drop"]
    cross_document_attention: bool
    number_columns: tuple[str, ...]
    weight_column: str | None
    weighs_turns: bool


@dataclass(frozen=True)
class Context:
    """What is derived once from a tokenizer and its settings.

    Args:
        tokenizer: The tokenizer that encodes.
        settings: How rows become tokens.
        template: The chat template that renders dialogues.
        ends: How assistant turns end, and the ids that generation stops on.
        control: Patterns of token strings that contents must not write.
        bos: Id that the tokenizer puts before a text; None if it puts none.
    """

    tokenizer: PreTrainedTokenizerBase
    settings: TokenSettings
    template: Template
    ends: TurnEnds
    control: Control
    bos: int | None


@lru_cache(maxsize=8)
def derive_context(tokenizer: PreTrainedTokenizerBase, settings: TokenSettings, own_template: str) -> Context:
    """Derive the context of a tokenizer and settings.

    Args:
        tokenizer: The tokenizer that encodes.
        settings: How rows become tokens.
        own_template: Text of the tokenizer's template; part of the cache key, because it may change on the same object.
    """
    template = choose_template(tokenizer, settings.chat_template, settings.chat_template_kwargs)
    ends = find_turn_ends(tokenizer, template)
    bos = tokenizer.bos_token_id if adds_bos(tokenizer) else None
    control = control_patterns(tokenizer, ends.stop, template.text + template.tool_text, probe(template, tokenizer))
    if settings.special_tokens == "text":
        control = Control(control.special, control.special, control.special)
    return Context(tokenizer, settings, template, ends, control, bos)
