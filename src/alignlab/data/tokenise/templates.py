"""Chat templates: how one is chosen, and how it renders.

The chosen template is set on the tokenizer, so it is saved with the model and used when the model is served.
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from alignlab.data.tokenise.dialect import Dialect, find_dialect
from alignlab.errors import InputError, nearest
from alignlab.rendering import TooMuch, read_template, render_jinja_template, template_variables
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

PROBE_TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
PROBE_TOOLS = (None, (PROBE_TOOL,))
"""Tools with which the dialogue is rendered: none, and one that every template for tools accepts."""

TOOL_USE = "tool_use"
"""Name under which tokenizers have a template of their own for dialogues with tools."""

SET_HERE = (
    *("messages", "conversations", "tools", "documents", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "return_assistant_tokens_mask"),
)
"""Variables of templates that every rendering sets, besides the special tokens; ``documents`` it sets to nothing."""

INSTEAD = {
    "messages": "Type data.prepend=[...] for messages before every dialogue, or leave it out",
    "tools": "Put tools into a column 'tools' of the data, or leave it out",
    "chat_template": "Type data.chat_template=FILE",
}
"""What to type for a variable that cannot be set; the others can only be left out."""

_CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Template:
    """A chosen chat template.

    Args:
        name: The name that the user types: ``auto`` (the tokenizer's own), a name of ``NAMED``, the name of one of the
            tokenizer's own, or a path.
        text: The Jinja text.
        announcement: One line to print if the choice is a fallback; otherwise empty.
        variables: Values of the template's own variables, by name.
        tool_text: The Jinja text for dialogues with tools, if it is another; otherwise empty.
    """

    name: str
    text: str
    announcement: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)
    tool_text: str = ""

    def text_for(self, tools: Sequence[Any] | None) -> str:
        """The Jinja text that renders a dialogue with these tools."""
        return self.tool_text if tools and self.tool_text else self.text


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
    own = own_templates(tokenizer)
    return [*(own if len(own) > 1 else ()), *(name for name in NAMED if name != "none")]


def own_templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The tokenizer's own templates by name: ``default``, and perhaps ``tool_use``, ``rag`` and others.

    Args:
        tokenizer: The tokenizer.
    """
    own = tokenizer.chat_template or {}
    if isinstance(own, str):
        return {"default": own}
    return dict(own) if isinstance(own, Mapping) else {one["name"]: one["template"] for one in own}


def choose_template(
    tokenizer: PreTrainedTokenizerBase, chat_template: str, variables: Mapping[str, Any] | None = None
) -> Template:
    """Choose the template that ``data.chat_template`` names, with the variables of ``data.chat_template_kwargs``.

    Args:
        tokenizer: The tokenizer. ``auto`` chooses its own template, and for dialogues with tools the one that it names
            ``tool_use``; if it has none, ``chatml`` if the markers of ChatML are single tokens of its vocabulary,
            otherwise ``plain``.
        chat_template: ``auto``, ``chatml``, ``plain``, ``none``, the name of one of the tokenizer's own, or the path of
            a Jinja file.
        variables: Values of the template's own variables (``enable_thinking``), by name.

    Raises:
        InputError: The name is unknown, the file is missing, the tokenizer lacks what the template needs, or a variable
            is not one of the template, or one that each rendering sets.
    """
    template = _choose(tokenizer, chat_template)
    _check_variables(template, variables or {}, tokenizer)
    return replace(template, variables=dict(variables or {}))


def _choose(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> Template:
    own = own_templates(tokenizer)
    if chat_template == "auto" and own:
        return Template("auto", _default(own), tool_text=own.get(TOOL_USE, ""))
    if chat_template == "auto":
        name = "chatml" if _has_chatml_markers(tokenizer) else "plain"
        announcement = f"the tokenizer has no chat template: rendering with the fallback '{name}'"
        return Template(name, _named(tokenizer, name), announcement)
    if chat_template in NAMED:
        return Template(chat_template, _named(tokenizer, chat_template))
    if chat_template in own:
        return Template(chat_template, own[chat_template])
    if Path(chat_template).is_file():
        return Template(chat_template, read_template(Path(chat_template), f"data.chat_template={chat_template}"))
    raise InputError(
        f"data.chat_template={chat_template}",
        "it is neither a named template nor a file",
        nearest(chat_template, ["auto", *NAMED, *own]),
    )


def _check_variables(template: Template, variables: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that each variable is one that the template reads, and that only the user sets."""
    for name, value in variables.items():
        asked, key = f"data.chat_template_kwargs={{{name}: {value}}}", f"data.chat_template={template.name}"
        if name in (*SET_HERE, *tokenizer.special_tokens_map):
            raise InputError(asked, f"each rendering sets {name!r} itself", INSTEAD.get(name, "Leave it out"))
        if name not in (known := template_variables(template.text) | template_variables(template.tool_text)):
            free = known - {*SET_HERE, *tokenizer.special_tokens_map}
            close = nearest(name, sorted(free)) if free else "Leave it out"
            raise InputError(asked, f"the template of {key} reads no variable {name!r}", close)


def set_template(
    tokenizer: PreTrainedTokenizerBase, chat_template: str, variables: Mapping[str, Any] | None = None
) -> Template:
    """Choose a template and set its text on the tokenizer, with which it is saved.

    The tokenizer's own templates all stay, also where one of them is chosen by its name. What is saved begins with the
    variables as defaults, so that the model is served with the values that it was trained with.

    Args:
        tokenizer: The tokenizer, changed in place.
        chat_template: As in ``choose_template``.
        variables: As in ``choose_template``.

    Raises:
        InputError: As in ``choose_template`` and ``render``.
    """
    template = choose_template(tokenizer, chat_template, variables)
    # A template that takes too much is refused here, before any row is read.
    for tools in PROBE_TOOLS:
        with contextlib.suppress(TemplateError):
            render(template, tokenizer, PROBE, tools)
    own, named = own_templates(tokenizer), not isinstance(tokenizer.chat_template, str)
    is_own = template.name in ("auto", *own) and template.text in own.values()
    saved = own if named and is_own else {"": template.text}
    saved = {name: _with_defaults(text, template.variables) for name, text in saved.items()}
    tokenizer.chat_template = saved.get("", saved)
    return template


def _with_defaults(text: str, variables: Mapping[str, Any]) -> str:
    """A template whose own variables have these values where a rendering sets none."""
    # A value of Jinja: JSON but for its capital letters, which Python's literals have, and Jinja takes too.
    lines = (
        f"{{%- if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}"
        for name, value in variables.items()
    )
    head = "".join(lines)
    return text if text.startswith(head) else head + text


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
    text = template.text_for(tools)
    try:
        written = [_dialect(text).write(message) for message in messages]
        own = (tokenizer.special_tokens_map, add_generation_prompt, template.variables)
        return _rendered(text, written, tools, *own)
    except TooMuch as error:
        why = f"rendering a dialogue of {len(messages)} messages with it takes too much: {error}"
        instead = "Type data.chat_template=chatml or plain, or correct the template"
        raise TemplateLimit(f"data.chat_template={template.name}", why, instead) from error


def _rendered(
    text: str,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    special_tokens: Mapping[str, Any],
    add_generation_prompt: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Render messages as they are."""
    texts, _ = render_jinja_template(
        conversations=[list(messages)],
        tools=list(tools) if tools else None,
        chat_template=text,
        add_generation_prompt=add_generation_prompt,
        **special_tokens,
        **(variables or {}),
    )
    return texts[0]


@functools.lru_cache(maxsize=32)
def _dialect(text: str) -> Dialect:
    """The forms of messages that a template reads."""
    special_tokens = {"bos_token": "", "eos_token": "", "pad_token": "", "unk_token": ""}
    return find_dialect(text, lambda messages: _rendered(text, messages, None, special_tokens))


def probe(template: Template, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Render a plain dialogue and an opening of an answer with each text of a template; None if it refuses them.

    Args:
        template: The template.
        tokenizer: The tokenizer, for its special tokens.
    """
    rendered = ""
    for text in filter(None, (template.text, template.tool_text)):
        one = replace(template, text=text, tool_text="")
        try:
            rendered += render(one, tokenizer, PROBE) + render(one, tokenizer, PROBE[:1], add_generation_prompt=True)
        except TemplateError:
            return None
    return rendered


def _default(own: Mapping[str, str]) -> str:
    if "default" in own:
        return own["default"]
    why = f"the tokenizer has the templates {', '.join(own)}, and none of them is named 'default'"
    instead = f"Type data.chat_template={' or '.join(own)}; or chatml, plain or the path of a jinja file"
    raise InputError("data.chat_template=auto", why, instead)


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
