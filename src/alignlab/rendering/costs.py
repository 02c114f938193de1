"""Costs of operators, methods and filters of a template, charged before they are executed."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import pass_context
from jinja2.sandbox import safe_range

from alignlab.rendering.budget import BUDGET, ITERATION, TooMuch, size_of

MAX_NUMBER = 1_000_000
"""Largest width or count, and bound on the bits of a computed number."""

WIDTHS = ("center", "ljust", "rjust", "zfill", "to_bytes", "indent")


def charge_each(values: Iterator[Any], text: int) -> Iterator[Any]:
    """Yield values of an iterator of unknown length, and charge each.

    Args:
        values: The iterator.
        text: Characters that are written for each value.
    """
    for value in values:
        BUDGET.spend(ITERATION + text)
        yield value


def charge_operator(operator: str, left: Any, right: Any) -> None:
    """Charge for ``*``, ``**`` or ``%``."""
    if isinstance(left, int | float) and isinstance(right, int | float):
        if operator == "**":
            _refuse_large(abs(right) * (left.bit_length() if isinstance(left, int) else 1))
        elif operator == "*" and isinstance(left, int) and isinstance(right, int):
            _refuse_large(left.bit_length() + right.bit_length())
    elif operator == "%":
        _charge_format(left, right if isinstance(right, tuple) else (right,), "%")
    elif operator == "*":
        times, text = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(times, int) and hasattr(text, "__len__"):
            BUDGET.spend(max(0, times) * len(text))


def charge_method(receiver: Any, name: str, values: list[Any]) -> None:
    """Charge for a method of a string, bytes or an integer."""
    length = len(receiver) if isinstance(receiver, str | bytes) else 0
    numbers = [value for value in values if isinstance(value, int)]
    if name in WIDTHS or name == "expandtabs":
        _refuse_large(max(numbers, default=8))
        length += max(numbers, default=8) * (length if name == "expandtabs" else 1)
    elif name in ("format", "format_map"):
        _charge_format(receiver, values, "{")
    elif name == "replace" and len(values) > 1:
        length += (length // max(1, size_of(values[0])) + 1) * size_of(values[1])
    elif name == "join" and values:
        length = _size_joined(values[0], length)
    elif name == "translate":
        length += length * size_of(values)
    BUDGET.spend(length)


def _charge_format(text: Any, values: Iterable[Any], mark: str) -> None:
    """Charge for formatting values into a text, with the widths in it."""
    if not isinstance(text, str | bytes):
        return
    values = list(values)
    text = text if isinstance(text, str) else text.decode("latin-1")
    widths = [int(digits[:9]) for digits in re.findall(r"\d+", text)]
    # A width may be one of the values: '%*d', '{:{}}'.
    if "*" in text or "}}" in text or "{:{" in text or re.search(r":[^}]*\{", text):
        widths += [value for value in values if isinstance(value, int)]
    widest = max(widths, default=0)
    _refuse_large(widest)
    BUDGET.spend(len(text) + text.count(mark) * (widest + size_of(values)))


def _size_joined(values: Any, length: int) -> int:
    """Characters of joined values with a separator of ``length`` characters."""
    return size_of(values) + (len(values) * length if hasattr(values, "__len__") else 0)


def _refuse_large(number: float) -> None:
    if number > MAX_NUMBER:
        raise TooMuch("it computes a number, or a width, that is too large")


def limited_range(*limits: int) -> range:
    """The sandbox's ``range``, charged for its length."""
    numbers = safe_range(*limits)
    BUDGET.spend(len(numbers))
    return numbers


def _all_of(value: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * size_of(value)


def _indented(value: Any, *args: Any, **kwargs: Any) -> int:
    widths = [size_of(part) if isinstance(part, str) else part for part in (*args, *kwargs.values())]
    _refuse_large(max(widths, default=4))
    return size_of(value) + (str(value).count("\n") + 2) * max(widths, default=4)


def _replaced(value: Any, old: Any = "", new: Any = "", *args: Any, **kwargs: Any) -> int:
    length = size_of(value)
    return length + (length // max(1, size_of(old)) + 1) * size_of(new)


def _joined(value: Any, d: Any = "", *args: Any, **kwargs: Any) -> int:
    return _size_joined(value, size_of(d))


def _serialised(value: Any, *args: Any, **kwargs: Any) -> int:
    indent = kwargs.get("indent") or 0
    return size_of(value) * (2 + (size_of(indent) if isinstance(indent, str) else indent))


def _filled(value: Any, *args: Any, **kwargs: Any) -> int:
    _charge_format(value, [*args, *kwargs.values()], "%")
    return 0


def _counted(value: Any, number: Any = 1, *args: Any, **kwargs: Any) -> int:
    _refuse_large(number if isinstance(number, int) else 1)
    return size_of(value) + (number if isinstance(number, int) else 0)


COSTS: dict[str, Callable[..., int]] = {
    "center": _indented, "indent": _indented, "wordwrap": _all_of, "replace": _replaced, "join": _joined,
    "tojson": _serialised, "format": _filled, "batch": _counted, "slice": _counted, "string": _all_of, "list": _all_of,
    "pprint": _all_of, "sum": _all_of, "urlize": _all_of, "striptags": _all_of, "xmlattr": _all_of, "reverse": _all_of,
    "sort": _all_of, "unique": _all_of, "urlencode": _all_of,
}  # fmt: skip
"""Characters that a filter produces or reads, as functions of its arguments."""


COLLECTS = ("join", "list", "sum", "sort", "unique", "batch", "slice", "reverse")
"""Filters that read all values; an iterator is first collected into a list, to know its length."""


def charged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter to charge for it first. It takes the context, which prevents its evaluation at compile time."""
    first = {"context": lambda c: [c], "eval_context": lambda c: [c.eval_ctx], "environment": lambda c: [c.environment]}
    kind = getattr(function, "jinja_pass_arg", None)
    leading = first[kind.name] if kind is not None else lambda context: []
    cost, collects = COSTS[name], name in COLLECTS

    @pass_context
    def charge_and_filter(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if collects and isinstance(value, Iterator):
            value = list(charge_each(value, 0))
        BUDGET.spend(cost(value, *args, **kwargs))
        return function(*leading(context), value, *args, **kwargs)

    return charge_and_filter
