"""Chat templates with limits: Transformers' sandbox with a budget of characters and processor time.

A template is a program that comes with a model. The sandbox denies it files and processes, but does not stop it from
running forever or filling the memory. Here loops, calls, operators, filters and output are charged to a budget before
they are executed, in units that do not depend on the machine. A limit of processor time covers what is not charged.
This applies to all templates of the process, including those that ``apply_chat_template`` renders.
"""

import functools
from pathlib import Path

from jinja2 import Template, TemplateError, meta, pass_context
from transformers.utils import chat_template_utils

from alignlab.errors import InputError
from alignlab.rendering.budget import BUDGET, TooMuch
from alignlab.rendering.costs import COSTS, charged, limited_range
from alignlab.rendering.sandbox import FAULTS, HOOKS, LimitedSandbox

MAX_TEMPLATE_CHARACTERS = 2**18
"""Longest text of a template; the longest known have about ten thousand characters."""


@functools.lru_cache
def compile_template(text: str) -> Template:
    """Compile a template with limits, and with the extensions, filters and globals of Transformers.

    Raises:
        TemplateError: It is too long, or not a valid template.
    """
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        raise TooMuch(f"it has {len(text):,} characters, more than {MAX_TEMPLATE_CHARACTERS:,}")
    theirs = _original("").environment
    sandbox = LimitedSandbox(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
    )
    sandbox.globals |= {**theirs.globals, "range": limited_range}
    sandbox.globals.pop("lipsum", None)
    sandbox.filters |= {name: charged(name, f) if name in COSTS else f for name, f in theirs.filters.items()}
    sandbox.filters |= {name: pass_context(hook) for name, hook in HOOKS.items()}
    BUDGET.begin(None)
    try:
        return sandbox.from_string(text)
    except FAULTS as error:
        raise TemplateError(f"{type(error).__name__}: {error}") from error


_original = chat_template_utils._compile_jinja_template
chat_template_utils._compile_jinja_template = compile_template
render_jinja_template = chat_template_utils.render_jinja_template


@functools.lru_cache
def template_variables(text: str) -> frozenset[str]:
    """Names of the variables that a template reads and does not set itself; none if it is not valid.

    Args:
        text: The Jinja text.
    """
    environment = _original("").environment
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(text))) - environment.globals.keys()
    except FAULTS:
        return frozenset()


def read_template(path: Path, asked: str) -> str:
    """Read the file of a template.

    Args:
        path: Path of the file.
        asked: What the user typed.

    Raises:
        InputError: It is too large, or not a text.
    """
    instead = "Name a Jinja file"
    if path.stat().st_size > 4 * MAX_TEMPLATE_CHARACTERS:
        why = f"{path} has {path.stat().st_size:,} bytes; a template has at most {MAX_TEMPLATE_CHARACTERS:,} characters"
        raise InputError(asked, why, instead)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(asked, f"{path} cannot be read as text ({error})", instead) from error
