"""Tokenise rows to token rows, with one function per kind of row."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from alignlab.data.formats.fields import is_finite, type_name
from alignlab.data.formats.messages import is_opened
from alignlab.data.settings import TokenSettings
from alignlab.data.sources.files.record import MEND
from alignlab.data.table.counts import BAD, Counts, Dropped, count
from alignlab.data.tokenise.context import Context, derive_context
from alignlab.data.tokenise.dialogue import ANOTHER_TEMPLATE, LEAVE_OUT, TemplateMisfit, refusal, render_dialogue
from alignlab.data.tokenise.encode import REASONING, encode, find_guard, protect
from alignlab.data.tokenise.supervise import check_doubled, supervise
from alignlab.data.tokenise.templates import TemplateLimit, template_names
from alignlab.data.tokenise.truncate import truncate
from alignlab.data.tokenise.turns import check_contents, open_answer
from alignlab.errors import InputError, nearest
from alignlab.rendering import template_variables
from alignlab.types.rows import Demonstration, Encoded, Preference, Prompt, Row, Text, TokenRow, Unpaired, WholeText

log = logging.getLogger(__name__)


def tokenize(row: Row, tokenizer: PreTrainedTokenizerBase, settings: TokenSettings) -> TokenRow | Dropped:
    """Tokenise a row and truncate it.

    Args:
        row: A row of any kind. A ``Text`` becomes a whole document, which ``data.table.pack`` cuts into blocks.
        tokenizer: The tokenizer that encodes.
        settings: How rows become tokens.

    Raises:
        InputError: The row cannot be tokenised faithfully and ``bad_rows`` is ``error``, or it is too long and
            ``truncation`` is ``error``.
    """
    return tokenize_counted(row, tokenizer, settings)[0]


def tokenize_counted(
    row: Row, tokenizer: PreTrainedTokenizerBase, settings: TokenSettings
) -> tuple[TokenRow | Dropped, Counts]:
    """Tokenise a row as ``tokenize`` does, and count it.

    Args:
        row: A row of any kind.
        tokenizer: The tokenizer that encodes.
        settings: How rows become tokens.

    Raises:
        InputError: As in ``tokenize``.
    """
    context = derive_context(tokenizer, settings, str(tokenizer.chat_template))
    try:
        whole = _tokenize_whole(row, context)
    except InputError as error:
        if settings.bad_rows == "error" or isinstance(error, TemplateLimit):
            raise
        dropped = Dropped(BAD, row.origin, detail=str(error))
        return dropped, count(dropped)
    if isinstance(row, Text):
        return whole, count(whole, unread=row.unread)
    fitted = truncate(whole, settings.max_tokens_per_sequence, settings.truncation, context.bos)
    cut_tokens = 0 if isinstance(fitted, Dropped) else len(whole.tokens) - len(fitted.tokens)
    return fitted, count(fitted, cut_tokens, row.unread)


def _tokenize_whole(row: Row, context: Context) -> TokenRow:
    """Tokenise a row without truncation."""
    check_numbers(row, context.settings.number_columns)
    check_weight(row, context.settings.weight_column)
    try:
        return _TOKENIZERS[type(row)](row, context)
    except TemplateMisfit as error:
        if context.settings.bad_rows == "drop":  # nobody reads the remedies of dropped rows, which take long to find
            raise
        raise _with_remedies(error, row, context) from error
    except TemplateError as error:
        why = f"the template refuses the dialogue: {error}"
        raise refusal(row, context, why, ANOTHER_TEMPLATE, LEAVE_OUT) from error
    except UnicodeEncodeError as error:
        raise refusal(row, context, f"its text is not valid Unicode: {error.reason}", LEAVE_OUT) from error


def _with_remedies(error: TemplateMisfit, row: Row, context: Context) -> InputError:
    """Name the settings with which the whole row can be tokenised, which are tried one by one."""
    settings = context.settings
    variables = template_variables(context.template.text) | template_variables(context.template.tool_text)
    switches = [
        replace(settings, chat_template_kwargs={**settings.chat_template_kwargs, name: value})
        for name in sorted(variables)
        if REASONING.search(name)
        for value in (True, False)
    ]
    found = [changed.chat_template_kwargs for changed in switches if _tokenizes(row, context, changed)]
    words = [f"data.chat_template_kwargs={{{_hydra(kwargs)}}}" for kwargs in found[:1]]
    others = {
        name: replace(settings, chat_template=name, chat_template_kwargs={})
        for name in template_names(context.tokenizer)
    }
    names = [name for name, changed in others.items() if _tokenizes(row, context, changed)]
    without = " and data.chat_template_kwargs={}" if settings.chat_template_kwargs else ""
    words += [f"data.chat_template={' or '.join(names)}{without}"] if names else []
    first = "; or ".join([*words, "data.chat_template=FILE, a jinja file that writes it"])
    return InputError(error.asked, error.why, error.instead.replace("Type ", f"Type {first}; or ", 1))


def _tokenizes(row: Row, context: Context, settings: TokenSettings) -> bool:
    """Whether a row can be tokenised with other settings."""
    try:
        _TOKENIZERS[type(row)](row, derive_context(context.tokenizer, settings, str(context.tokenizer.chat_template)))
    except (InputError, TemplateError):
        return False
    return True


def _hydra(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}: {str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()
    )


# --- one function per kind --------------------------------------------------------------------------------------------


def _text(row: Text | WholeText, context: Context) -> TokenRow:
    """A document: BOS if the tokenizer adds it, the text, EOS; every token but the first is supervised."""
    tokenizer = context.tokenizer
    if tokenizer.eos_token_id is None:
        raise refusal(row, context, "the tokenizer has no eos_token to end a document", "a tokenizer that has one")
    guard = find_guard(row.text, context.control.special)
    if guard and context.settings.special_tokens is None:
        _announce_ordinary(context.control.special.search(row.text)[0])
    encodes = context.settings.special_tokens == "encode"
    guard = None if encodes else guard
    text = protect(row.text, context.control.special, guard)
    text.encode()
    tokens = encode(text, tokenizer, guard)
    # A text that is encoded with its special tokens may have its own BOS and EOS, which are not doubled.
    bos = [] if context.bos is None or (encodes and tokens[:1] == [context.bos]) else [context.bos]
    eos = [] if encodes and tokens[-1:] == [tokenizer.eos_token_id] else [tokenizer.eos_token_id]
    tokens = [*bos, *tokens, *eos]
    return TokenRow(tokens, [False] + [True] * (len(tokens) - 1), [[0, len(tokens)]], row.origin, _numeric_columns(row))


@lru_cache
def _announce_ordinary(token: str) -> None:
    """Log once per process that a special-token string in texts becomes ordinary tokens."""
    instead = "type data.special_tokens=encode to keep them, or text if that is meant"
    log.warning("a text holds %s, and special tokens in texts become ordinary text: %s", token, instead)


def _encoded(row: Encoded, context: Context) -> TokenRow:
    """Token ids as they are, if they are ids of this tokenizer."""
    tokens = [*row.prompt, *(token for completion in row.completions for token in completion)]
    size = len(context.tokenizer)
    if outside := [token for token in tokens if not 0 <= token < size]:
        why = f"it holds the token {outside[0]}, and the tokenizer has {size}"
        raise refusal(row, context, why, "model.path= or model.tokenizer= of the tokenizer that made them", LEAVE_OUT)
    supervised = [False] * len(row.prompt) + [flag for flags in row.supervised for flag in flags]
    lengths = [len(row.prompt), *map(len, row.completions)]
    return TokenRow(tokens, supervised, [lengths], row.origin, _numeric_columns(row))


def _demonstration(row: Demonstration, context: Context) -> TokenRow:
    if not context.settings.weighs_turns and any("weight" in message for message in row.messages):
        why = "a message has a weight of its own, and the method does not weigh turns"
        raise refusal(row, context, why, "method=sft", LEAVE_OUT)
    return supervise([render_dialogue(row, row.messages, row.tools, context)], None).row(row, _numeric_columns(row))


def _preference(row: Preference, context: Context) -> TokenRow:
    """A group whose chosen completion has other tokens than each rejected one."""
    scores = {} if row.scores is None else {"scores": list(row.scores)}
    group = _group(row, (row.chosen, *row.rejected), scores, context)
    starts = list(accumulate(group.groups[0]))
    chosen, *rejected = (group.tokens[start:end] for start, end in pairwise(starts))
    if chosen in rejected:
        why = f"the chosen completion and rejected[{rejected.index(chosen)}] become the same tokens"
        raise refusal(row, context, why, ANOTHER_TEMPLATE, LEAVE_OUT)
    return group


def _unpaired(row: Unpaired, context: Context) -> TokenRow:
    return _group(row, (row.completion,), {"desirable": row.desirable}, context)


def _group(row: Preference | Unpaired, completions: Sequence, columns: dict[str, Any], context: Context) -> TokenRow:
    """A prompt and its completions, each rendered after the prompt; the tokens of the prompt are kept once."""
    dialogues = [render_dialogue(row, (*row.prompt, *turns), row.tools, context) for turns in completions]
    return supervise(dialogues, len(row.prompt)).row(row, {**_numeric_columns(row), **columns})


def _prompt(row: Prompt, context: Context) -> TokenRow:
    opened = is_opened(row.prompt)
    dialogue = render_dialogue(row, row.prompt, row.tools, context, generate=not opened)
    check_contents(dialogue)
    tokens = dialogue.encode(open_answer(dialogue, len(row.prompt) - 1) if opened else dialogue.text)
    check_doubled(dialogue, tokens)
    if not tokens:
        raise refusal(row, context, "its prompt renders to nothing", ANOTHER_TEMPLATE, LEAVE_OUT)
    record = {"prompt": list(row.prompt), "columns": row.columns}
    return TokenRow(tokens, [False] * len(tokens), [[len(tokens)]], row.origin, _numeric_columns(row), record=record)


_TOKENIZERS: dict[type[Row], Callable[[Any, Context], TokenRow]] = {
    Text: _text,
    WholeText: _text,
    Encoded: _encoded,
    Demonstration: _demonstration,
    Preference: _preference,
    Unpaired: _unpaired,
    Prompt: _prompt,
}


# --- numeric columns --------------------------------------------------------------------------------------------------


def check_numbers(row: Row, columns: Sequence[str]) -> None:
    """Check that columns which are needed as numbers hold finite numbers.

    Args:
        row: A row of any kind.
        columns: Names of the columns.

    Raises:
        InputError: A column is missing, or its value is not a number, a boolean, or not finite.
    """
    for name in columns:
        if name not in row.columns:
            why, close = f"field {name!r} is missing, and a number is needed", nearest(name, row.columns)
            raise InputError(row.origin, why, f"{close} {MEND}" if row.columns else MEND)
        value = row.columns[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(row.origin, f"field {name!r} is {type_name(value)} where a number is needed", MEND)
        if not is_finite(value):
            shown = value if isinstance(value, float) else "too large"
            raise InputError(row.origin, f"field {name!r} is {shown} where a finite number is needed", MEND)


def check_weight(row: Row, column: str | None) -> None:
    """Check that the weight of a row is not negative: the sum of the weights divides the loss.

    Args:
        row: A row whose column holds a number.
        column: Name of the column; None if rows have no weights.

    Raises:
        InputError: It is negative.
    """
    if column is not None and row.columns[column] < 0:
        why = f"field {column!r} is {row.columns[column]:g}, and the weight of a row is 0 or more"
        raise InputError(row.origin, why, MEND)


def _numeric_columns(row: Row) -> dict[str, Any]:
    """Columns that hold finite numbers; other values count as absent."""
    return {name: value for name, value in row.columns.items() if isinstance(value, int | float) and is_finite(value)}
