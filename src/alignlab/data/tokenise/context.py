"""Settings of tokenisation, and the context that is derived from them once per tokenizer."""

from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from alignlab.data.settings import TokenSettings
from alignlab.data.tokenise.encode import Control, control_patterns
from alignlab.data.tokenise.templates import Template, adds_bos, choose_template, probe
from alignlab.data.tokenise.turn_ends import TurnEnds, find_turn_ends


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
