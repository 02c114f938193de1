"""Rubrics: Jinja templates of the message to a judge."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError

from alignlab.data.tokenise.templates import NAMED
from alignlab.errors import InputError, nearest
from alignlab.rendering import compile_template, read_template, template_variables
from alignlab.system.paths import typed_path
from alignlab.types.rows import Message

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "rubrics"


@dataclass(frozen=True)
class Rubric:
    """A rubric.

    Args:
        template: The template.
        variables: Names of its placeholders.
    """

    template: Template
    variables: frozenset[str]

    def render(self, values: dict[str, Any], texts: dict[str, Any]) -> str:
        """Write the message to the judge.

        Args:
            values: Values that the rubric's author sets, by placeholder.
            texts: Texts and values of the data and of the policy, by placeholder; written in tags.
        """
        return self.template.render(**values, **{name: enclosed(name, text) for name, text in texts.items()})


def open_rubric(rubric: str, needed: Collection[str], asked: str) -> Rubric:
    """Open a rubric by the name of one of ours, or by its path.

    Args:
        rubric: Name, or path of a Jinja file.
        needed: Placeholders that it must have.
        asked: Config key of the rubric.

    Raises:
        InputError: There is none, it is no template, or it lacks a placeholder.
    """
    names = [path.stem for path in FOLDER.glob("*.jinja")]
    path, asked_for = FOLDER / f"{rubric}.jinja" if rubric in names else typed_path(rubric, asked), f"{asked}={rubric}"
    if not path.is_file():
        raise InputError(asked_for, "it is neither one of our rubrics nor a file", nearest(rubric, names))
    text = read_template(path, asked_for)
    try:
        template = compile_template(text)
    except TemplateError as error:
        raise InputError(asked_for, f"it is not a Jinja template: {error}", "Correct it") from error
    variables = template_variables(text)
    if missing := sorted({*needed} - variables):
        marks = " and ".join(f"{{{{ {name} }}}}" for name in missing)
        raise InputError(asked_for, f"it has no {marks}, so the judge would not see it", f"Write {marks} into it")
    return Rubric(template, variables)


def dialogue(prompt: str | Sequence[Message]) -> str:
    """A prompt as one text: a single message of the user as it is, several under their roles.

    Args:
        prompt: A text, or messages.
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and {*prompt[0]} == {"role", "content"} and prompt[0]["role"] == "user":
        return str(prompt[0]["content"])
    return compile_template(NAMED["plain"]).render(messages=prompt, eos_token="").strip()


def enclosed(name: str, text: Any) -> str:
    """A text between tags that do not occur in it.

    The tags hold a hash of the text, so that equal texts give equal messages and no text can hold its own tags but by
    a search through all hashes, which the loop ends.

    Args:
        name: Word in the tags.
        text: The text; another value is written as text. Halves of surrogate pairs become question marks.
    """
    text = str(text).encode(errors="replace").decode()
    mark = _short_hash(text)
    while mark in text:
        mark = _short_hash(mark + text)
    return f"<{name} {mark}>\n{text}\n</{name} {mark}>"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
