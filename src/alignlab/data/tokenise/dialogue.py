"""A rendered dialogue, in which supervised spans are found."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignlab.data.tokenise.context import Context
from alignlab.data.tokenise.encode import encode, guard_dialogue
from alignlab.data.tokenise.templates import render
from alignlab.errors import InputError
from alignlab.types.rows import Message, Row

ANOTHER_TEMPLATE = "data.chat_template=chatml, plain or the path of a jinja file"
LEAVE_OUT = "data.bad_rows=drop to leave such rows out, counted"


class TemplateMisfit(InputError):
    """A template leaves out a part of a row, or opens an answer otherwise; ``rows`` finds the settings that do not."""


@dataclass(frozen=True)
class Dialogue:
    """Messages and their rendering.

    Args:
        row: The row that the dialogue comes from.
        context: Tokenizer, template and settings.
        messages: The turns; the guard splits special-token strings in them.
        tools: Tool descriptions, with the guard as in ``messages``.
        guard: The character that splits special-token strings; None if there are none.
        text: The rendering, without blanks after a last assistant turn.
    """

    row: Row
    context: Context
    messages: list[dict[str, Any]]
    tools: list[Any] | None
    guard: str | None
    text: str

    def render(self, num_messages: int, add_generation_prompt: bool = False) -> str:
        """Render the first messages."""
        return self.render_messages(self.messages[:num_messages], add_generation_prompt)

    def render_messages(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """Render other messages with the tools of this dialogue."""
        return render(self.context.template, self.context.tokenizer, messages, self.tools, add_generation_prompt)

    def with_messages(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> "Dialogue":
        """A dialogue of other messages and tools, with the same guard."""
        other = replace(self, messages=list(messages), tools=list(tools) if tools else None, text="")
        return replace(other, text=other.render(len(messages)))

    def encode(self, text: str) -> list[int]:
        """Encode rendered text to token ids."""
        return encode(text, self.context.tokenizer, self.guard)

    def refusal(self, why: str, *remedies: str) -> InputError:
        """Make an error for this row."""
        return refusal(self.row, self.context, why, *remedies)

    def loss(self, what: str) -> InputError:
        """Make an error for a part of this row that the template leaves out."""
        return self.misfit(f"the template leaves out {what}")

    def misfit(self, why: str) -> InputError:
        """Make an error that another template, or another value of a variable of this one, may avoid."""
        return TemplateMisfit(*_explain(self.row, self.context, why, LEAVE_OUT))


def render_dialogue(
    row: Row, messages: Sequence[Message], tools: Sequence[Any] | None, context: Context, generate: bool = False
) -> Dialogue:
    """Render a dialogue such that no content can act as a special token.

    Args:
        row: The row that the dialogue comes from.
        messages: The turns.
        tools: Tool descriptions.
        context: Tokenizer, template and settings. With the template ``none``, contents are rendered by the user, so
            special tokens in them are kept, unless ``special_tokens`` is ``text``.
        generate: End with the opening of an assistant turn.

    Raises:
        jinja2.TemplateError: The template refuses the dialogue.
        UnicodeEncodeError: The text holds half a surrogate pair.
    """
    messages, tools, guard = [dict(message) for message in messages], list(tools) if tools else None, None
    chosen, raw = context.settings.special_tokens, context.template.name == "none"
    if chosen == "encode" and not raw:
        why = "data.special_tokens=encode would let the contents of a rendered dialogue begin and end turns"
        raise refusal(
            row, context, why, "data.special_tokens=null", "data.chat_template=none if they are rendered already"
        )
    if chosen == "text" or not raw:
        messages, tools, guard = guard_dialogue(messages, tools, context.control)
    text = render(context.template, context.tokenizer, messages, tools, add_generation_prompt=generate)
    if not generate and messages and messages[-1]["role"] == "assistant":
        text = text.rstrip()
    text.encode()
    return Dialogue(row, context, messages, tools, guard, text)


def refusal(row: Row, context: Context, why: str, *remedies: str) -> InputError:
    """Make an error for a row, with the name of the template.

    Args:
        row: The row, for its file and line.
        context: The context, for the names of the template and the tokenizer.
        why: What is wrong.
        remedies: What to type instead.
    """
    return InputError(*_explain(row, context, why, *remedies))


def _explain(row: Row, context: Context, why: str, *remedies: str) -> tuple[str, str, str]:
    name = context.tokenizer.name_or_path or type(context.tokenizer).__name__
    asked = f"{row.origin} with data.chat_template={context.template.name} of the tokenizer '{name}'"
    return asked, why, "Type " + "; or ".join(remedies)


def squeeze(text: str) -> str:
    """Remove blanks and line breaks, which templates strip and add.

    Args:
        text: Any text.
    """
    return "".join(text.split())
