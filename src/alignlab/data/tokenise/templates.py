"""Chat templates: how one is chosen, how it renders, and which tokens end a turn.

The chosen template is set on the tokenizer, so it is saved with the model and used when the model is served.
"""

import contextlib
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from alignlab.errors import InputError, nearest
from alignlab.rendering import TooMuch, read_template, render_jinja_template
from alignlab.types.rows import Message

_BODY = (
    "{%- if message.reasoning_content %}{{ '<think>\\n' ~ message.reasoning_content ~ '\\n</think>\\n\\n' }}{% endif %}"
    "{{- message.content or '' }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- '\\n<tool_call>\\n' ~ (call.function or call) | tojson ~ '\\n</tool_call>' }}"
    "{%- endfor %}"
)
_CHATML = (
    "{%- if tools %}{{ '<|im_start|>system\\nTools:\\n' ~ tools | tojson ~ '<|im_end|>\\n' }}{% endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' ~ message.role ~ '\\n' }}" + _BODY + "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_PLAIN = (
    "{%- if tools %}{{ 'Tools:\\n' ~ tools | tojson ~ '\\n\\n' }}{% endif %}"
    "{%- for message in messages %}"
    "{{- message.role | capitalize ~ ':\\n' }}" + _BODY + "{{- (eos_token if message.role == 'assistant') ~ '\\n\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
_NONE = (
    "{%- for message in messages %}"
    "{{- message.content }}"
    "{%- if message.role == 'assistant' and not message.content.endswith(eos_token) %}{{ eos_token }}{% endif %}"
    "{%- endfor %}"
)
NAMED = {"chatml": _CHATML, "plain": _PLAIN, "none": _NONE}
"""Templates by name. ``none`` joins the contents unchanged and ends assistant turns in EOS."""

PROBE = ({"role": "user", "content": "0"}, {"role": "assistant", "content": "probe"})
"""A dialogue that every template accepts."""

_CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Template:
    """A chosen chat template.

    Args:
        name: The name that the user types: ``auto`` (the tokenizer's own), a name of ``NAMED``, or a path.
        text: The Jinja text.
        announcement: One line to print if the choice is a fallback; otherwise empty.
    """

    name: str
    text: str
    announcement: str = ""


class TemplateLimit(InputError):
    """A template takes too much time or memory. It ends the run, unlike an error of a single row."""


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts BOS before a text; the named templates then begin a dialogue with it too."""
    return tokenizer.bos_token_id is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]


def template_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Names that ``data.chat_template`` accepts and whose templates write all parts of a dialogue, or may do so.

    Args:
        tokenizer: The tokenizer.
    """
    return [name for name in NAMED if name != "none"]


def choose_template(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> Template:
    """Choose the template that ``data.chat_template`` names.

    Args:
        tokenizer: The tokenizer. ``auto`` chooses its own template; if it has none, ``chatml`` if the markers of ChatML
            are single tokens of its vocabulary, otherwise ``plain``.
        chat_template: ``auto``, ``chatml``, ``plain``, ``none``, or the path of a Jinja file.

    Raises:
        InputError: The name is unknown, the file is missing, or the tokenizer lacks what the template needs.
    """
    if chat_template == "auto" and tokenizer.chat_template:
        return Template("auto", _own(tokenizer))
    if chat_template == "auto":
        name = "chatml" if _has_chatml_markers(tokenizer) else "plain"
        announcement = f"the tokenizer has no chat template: rendering with the fallback '{name}'"
        return Template(name, _named(tokenizer, name), announcement)
    if chat_template in NAMED:
        return Template(chat_template, _named(tokenizer, chat_template))
    if Path(chat_template).is_file():
        return Template(chat_template, read_template(Path(chat_template), f"data.chat_template={chat_template}"))
    raise InputError(
        f"data.chat_template={chat_template}",
        "it is neither a named template nor a file",
        nearest(chat_template, ["auto", *NAMED]),
    )


def set_template(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> Template:
    """Choose a template and set its text on the tokenizer, with which it is saved.

    Args:
        tokenizer: The tokenizer, changed in place.
        chat_template: As in ``choose_template``.

    Raises:
        InputError: As in ``choose_template`` and ``render``.
    """
    template = choose_template(tokenizer, chat_template)
    # A template that takes too much is refused here, before any row is read.
    with contextlib.suppress(TemplateError):
        render(template, tokenizer, PROBE)
    tokenizer.chat_template = template.text
    return template


def render(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """Render a dialogue to text, which may be empty.

    Args:
        template: The template that renders.
        tokenizer: The tokenizer, for its special tokens.
        messages: The turns; ``content: None`` counts as empty text.
        tools: Tool descriptions, if the row has any.
        add_generation_prompt: End with the opening of an assistant turn, as generation does.

    Raises:
        jinja2.TemplateError: The template refuses the dialogue, or fails.
        TemplateLimit: The template takes too much time or memory.
    """
    renamed = {"reasoning_content": _reasoning_field(template.text)}
    plain = [{renamed.get(k, k): v for k, v in m.items() if k != "supervised" and v is not None} for m in messages]
    try:
        texts, _ = render_jinja_template(
            conversations=[[{"content": "", **message} for message in plain]],
            tools=list(tools) if tools else None,
            chat_template=template.text,
            add_generation_prompt=add_generation_prompt,
            **tokenizer.special_tokens_map,
        )
    except TooMuch as error:
        why = f"rendering a dialogue of {len(plain)} messages with it takes too much: {error}"
        instead = "Type data.chat_template=chatml or plain, or correct the template"
        raise TemplateLimit(f"data.chat_template={template.name}", why, instead) from error
    return texts[0]


@functools.lru_cache(maxsize=32)
def _reasoning_field(template: str) -> str:
    """Name by which a template reads the reasoning of a message: ``thinking`` in GPT-OSS, for example."""
    fields = ("reasoning_content", "reasoning", "thinking")
    return next((field for field in fields if re.search(rf"[.'\"]{field}\b", template)), fields[0])


def stop_tokens(tokenizer: PreTrainedTokenizerBase, template: Template) -> frozenset[int]:
    """Find the ids that generation stops on: EOS, and the added token that the template puts after assistant content.

    Args:
        tokenizer: The tokenizer, for its EOS and its added tokens.
        template: The template; a short dialogue is rendered to find its end of a turn.
    """
    eos = frozenset({tokenizer.eos_token_id} - {None})
    try:
        tail = render(template, tokenizer, PROBE).rpartition("probe")[2]
    except TemplateError:
        return eos
    turn_end = tokenizer.encode(tail, add_special_tokens=False)[:1]
    return eos | (set(turn_end) & set(tokenizer.added_tokens_decoder))


def _own(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:  # it has several, and none is the default
        instead = "Type data.chat_template=chatml or plain, or the path of a jinja file"
        raise InputError("data.chat_template=auto", " ".join(str(error).split()), instead) from error


def _has_chatml_markers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether each ChatML marker is a single token, so that a model can learn it and stop on it."""
    return all(len(tokenizer.encode(marker, add_special_tokens=False)) == 1 for marker in _CHATML_MARKERS)


def _named(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """The text of a named template, with BOS at the beginning if the tokenizer adds it."""
    if name == "chatml" and not _has_chatml_markers(tokenizer):
        raise InputError(
            "data.chat_template=chatml",
            f"{' and '.join(_CHATML_MARKERS)} are not single tokens of this tokenizer",
            "Type data.chat_template=plain, or the path of a jinja file made for this tokenizer",
        )
    if name != "chatml" and tokenizer.eos_token is None:
        raise InputError(
            f"data.chat_template={name}",
            "the tokenizer has no eos_token to end an assistant turn",
            "Set eos_token in its tokenizer_config.json, or type data.chat_template=<path of a jinja file>",
        )
    return ("{{- bos_token }}" if adds_bos(tokenizer) else "") + NAMED[name]
