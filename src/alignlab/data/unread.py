"""Columns of the data that nothing reads, and what to type for those that look as if they should be read."""

from collections.abc import Iterable, Mapping

from alignlab.types.rows import Prompt, Row, Text

MAX_NAMED = 12
"""Largest number of columns that a line names."""

VOTE = "chat_vote"
"""Column with what ``alignlab chat`` notes about a vote: who won, and how it was sampled. It is there for people."""

_INPUT = (
    "to put it after the question, type data.format={format} "
    "'data.columns={{instruction: QUESTION, input: {name}{answer}}}'"
)
_SYSTEM = "for the system message, type data.columns={{system: {name}}}"
_TOOLS = "for the tools, type data.columns={{tools: {name}}}"
_COMPLETIONS = (
    "for a comparison, type data.columns={{completions: {name}}}, with scores: COLUMN unless the best is first"
)
_SCORES = "for the scores of a comparison, type data.columns={{scores: {name}}}"
_WEIGHT = "to weigh rows, type method.weight_column={name}, which methods have that do not sample"

HINTS = {
    **dict.fromkeys(("context", "passage", "document", "background"), _INPUT),
    **dict.fromkeys(("system_prompt", "system_message"), _SYSTEM),
    **dict.fromkeys(("functions", "available_tools"), _TOOLS),
    **dict.fromkeys(("responses", "candidates", "generations"), _COMPLETIONS),
    **dict.fromkeys(("rewards", "ratings"), _SCORES),
    **dict.fromkeys(("weight", "weights", "sample_weight"), _WEIGHT),
}
"""What to type, by the usual name of a column that formats know under another name."""

_FOR_PROMPTS = (_INPUT, _SYSTEM, _TOOLS)
"""Hints that also suit rows of which only the prompt is used."""


def hints(names: Iterable[str], kind: type[Row]) -> list[str]:
    """What to type for columns that look as if they should be read.

    Args:
        names: Columns that no format read.
        kind: The kind of row that the method trains on. Documents have no place for any of these columns.
    """
    if kind is Text:
        return []
    form = {"format": "prompt", "answer": ""} if kind is Prompt else {"format": "alpaca", "answer": ", output: ANSWER"}
    meant = {name: HINTS[name.lower()] for name in names if name.lower() in HINTS}
    kept = {name: hint for name, hint in meant.items() if kind is not Prompt or hint in _FOR_PROMPTS}
    return [f"{name}: {hint.format(name=name, **form)}" for name, hint in kept.items()]


def describe_unread(counts: Mapping[str, int], kind: type[Row], read: Iterable[str]) -> list[str]:
    """Describe the columns that nothing reads: one line with their names, and one for each that looks meant.

    Args:
        counts: Number of rows in which each column that no format read is filled.
        kind: The kind of row that the method trains on. Rewards are given all columns of prompts.
        read: Columns that something else reads, such as weights.
    """
    names = sorted(counts.keys() - {VOTE, *read})
    if not names:
        return []
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    what = "columns that only rewards are given" if kind is Prompt else "columns not read"
    return [f"{what}: {', '.join(names[:MAX_NAMED])}{more}", *hints(names, kind)]
