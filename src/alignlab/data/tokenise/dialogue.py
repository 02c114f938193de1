"""A rendered dialogue, in which supervised spans are found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignlab.data.tokenise.context import Context
from alignlab.data.tokenise.encode import encode, guard_dialogue
from alignlab.data.tokenise.kept import find_lost
from alignlab.data.tokenise.templates import render
from alignlab.errors import InputError
from alignlab.types.rows import Message, Row

ANOTHER_TEMPLATE = "data.chat_template=chatml, plain or the path of a jinja file"
LEAVE_OUT = "data.bad_rows=drop to leave such rows out, counted"


class TemplateLoss(InputError):
    """A template leaves out a part of a row; ``rows`` finds the templates that do not."""


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
        return self._render(self.messages[:num_messages], self.tools, add_generation_prompt)

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, add_generation_prompt: bool = False
    ) -> str:
        return render(self.context.template, self.context.tokenizer, messages, tools, add_generation_prompt)

    def encode(self, text: str) -> list[int]:
        """Encode rendered text to token ids."""
        return encode(text, self.context.tokenizer, self.guard)

    def ends_in_answer(self, end: int) -> bool:
        """Whether the span that ends at this position of the text ends with an assistant turn."""
        return end < len(self.text) or self.messages[-1]["role"] == "assistant"

    def refusal(self, why: str, *remedies: str) -> InputError:
        """Make an error for this row."""
        return refusal(self.row, self.context, why, *remedies)

    def loss(self, what: str) -> InputError:
        """Make an error for a part of this row that the template leaves out."""
        return TemplateLoss(*_explain(self.row, self.context, f"the template leaves out {what}", LEAVE_OUT))

    def check_contents(self) -> None:
        """Check that the template renders the content of every system and user message, tools, calls, and reasoning.

        Blanks are ignored. The contents of assistant turns are checked where they are supervised.
        """
        squeezed = squeeze(self.text)
        for message in self.messages:
            given = message["role"] not in ("assistant", "tool")
            if given and squeeze(message.get("content") or "") not in squeezed:
                raise self.loss(f"the content of a message of role '{message['role']}'")
        if lost := find_lost(self.messages, self.tools, self._render):
            raise self.loss(lost)


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
