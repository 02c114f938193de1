"""Chat templates within limits: Transformers' sandbox, with a budget of characters and processor time.

A template is a program that comes with a model. The sandbox keeps it from files and processes, not from running for
ever or filling the memory. Here loops, calls, operators, filters and what is written are paid for before they are done,
in units that do not depend on the machine; processor time is the last limit, for what is not counted. All templates of
the process are compiled so, those that ``apply_chat_template`` renders too.
"""

import functools
from pathlib import Path

from jinja2 import Template, TemplateError, pass_context
from transformers.utils import chat_template_utils

from alignlab.errors import InputError
from alignlab.rendering.budget import BUDGET, TooMuch
from alignlab.rendering.prices import PRICES, limited_range, paid
from alignlab.rendering.sandbox import FAULTS, HOOKS, LimitedSandbox

MAX_TEMPLATE_CHARACTERS = 2**18
"""Of a template's text; the longest known have some ten thousand."""


@functools.lru_cache
def _compiled(text: str) -> Template:
    """A template compiled within limits, with the extensions, filters and globals that Transformers gives it.

    Raises:
        TemplateError: It is too long, or no template.
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
    sandbox.filters |= {name: paid(name, f) if name in PRICES else f for name, f in theirs.filters.items()}
    sandbox.filters |= {name: pass_context(hook) for name, hook in HOOKS.items()}
    BUDGET.begin(None)
    try:
        return sandbox.from_string(text)
    except FAULTS as error:
        raise TemplateError(f"{type(error).__name__}: {error}") from error


_original = chat_template_utils._compile_jinja_template
chat_template_utils._compile_jinja_template = _compiled
render_jinja_template = chat_template_utils.render_jinja_template


def read_template(path: Path, asked: str) -> str:
    """A template's file.

    Args:
        path: Of the file.
        asked: What the user typed.

    Raises:
        InputError: It is too large, or no text.
    """
    instead = "Name a Jinja file"
    if path.stat().st_size > 4 * MAX_TEMPLATE_CHARACTERS:
        why = f"{path} has {path.stat().st_size:,} bytes, and a template at most {MAX_TEMPLATE_CHARACTERS:,} characters"
        raise InputError(asked, why, instead)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(asked, f"{path} cannot be read as text ({error})", instead) from error
