"""Jinja's sandbox with loops, calls, assignments and what is written led through the budget."""

from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from alignlab.rendering.budget import BUDGET, CALL, TURN, size_of
from alignlab.rendering.prices import PRICES, each, pay_method, pay_operator

LONG = 256
"""Turns of a loop from which on the clock is looked at while it turns."""

FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError)
"""What a template at fault raises besides Jinja's own errors, when it is compiled or rendered."""


class LimitedTemplate(Template):
    """A template whose rendering begins with a budget."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """The text.

        Raises:
            TemplateError: The template refuses, fails, or takes too much (``TooMuch``).
        """
        BUDGET.begin(kwargs)
        try:
            return super().render(*args, **kwargs)
        except FAULTS as error:
            raise TemplateError(f"{type(error).__name__}: {error}") from error


class LimitedSandbox(ImmutableSandboxedEnvironment):
    """The sandbox with everything that grows or repeats paid for.

    A single expression without calls and loops grows its parts by a small factor only (``FEW``), so what grows is
    caught where it is kept, handed on or written.
    """

    template_class = LimitedTemplate
    intercepted_binops = frozenset({"*", "**", "%"})

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join what was written."""
        pieces = list(pieces)
        BUDGET.spend(sum(map(len, pieces)))
        return "".join(pieces)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute, if the result may be so large."""
        pay_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call, if what it makes may be so large."""
        BUDGET.spend(CALL)
        for value in (*args, *kwargs.values()):
            _kept(__context, value)
        receiver = getattr(__obj, "__self__", None)
        method = __obj if receiver is not None else getattr(__obj, "__wrapped__", None)
        if method is not None and isinstance(method.__self__, str | bytes | int):
            pay_method(method.__self__, method.__name__, [*args, *kwargs.values()])
        return super().call(__context, __obj, *args, **kwargs)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Compile with loops, macros, assignments and long sums led through the filters that pay for them."""
        for node in list(source.find_all(PAID)):
            if isinstance(node, nodes.For):
                node.iter = self._filtered(" turns", node.iter, _length_of_text(node))
            elif isinstance(node, nodes.Assign):
                node.node = self._filtered(" kept", node.node)
            elif isinstance(node, nodes.Output | nodes.Concat):
                pay = self._all_kept if isinstance(node, nodes.Concat) and len(node.nodes) > FEW else self._shown
                node.nodes = [pay(piece) for piece in node.nodes]
            elif isinstance(node, nodes.Filter) and node.name not in PRICES and node.node is not None:
                node.node = self._shown(node.node)
            elif isinstance(node, BUFFERED):
                self._pay_buffer(node)
            elif isinstance(node, nodes.Add) and _num_summands(node) > FEW:
                node.left = self._filtered(" kept", node.left)
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)

    def _pay_buffer(self, node: nodes.Node) -> None:
        """Pay for what a macro or a block writes, which is joined where no hook is."""
        for output in list(node.find_all(nodes.Output)):
            output.nodes = [
                piece if isinstance(piece, nodes.TemplateData | nodes.Const) else self._filtered(" kept", piece)
                for piece in output.nodes
            ]
        node.body.insert(0, nodes.ExprStmt(self._filtered(" text", nodes.Const(None), _length_of_text(node))))

    def _shown(self, node: nodes.Expr) -> nodes.Expr:
        """An expression that becomes text, which what it holds may be much larger than."""
        return self._filtered(" shown", node) if isinstance(node, OPEN) else node

    def _all_kept(self, node: nodes.Expr) -> nodes.Expr:
        return self._filtered(" kept", node)

    def _filtered(self, name: str, node: nodes.Expr, *values: int) -> nodes.Filter:
        return nodes.Filter(node, name, [nodes.Const(value) for value in values], [], None, None, lineno=node.lineno)


BUFFERED = (nodes.Macro, nodes.CallBlock, nodes.AssignBlock, nodes.FilterBlock)

PAID = (nodes.For, nodes.Assign, nodes.Output, nodes.Concat, nodes.Add, nodes.Filter, *BUFFERED)

OPEN = (
    *(nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Call, nodes.CondExpr, nodes.Or, nodes.And, nodes.List),
    *(nodes.Dict, nodes.Tuple),
)
"""Expressions that may be anything, a list or a mapping too."""

FEW = 16
"""Parts of a sum that are not paid for one by one."""

PIECE = 8
"""Characters that a piece counts for besides its text."""


def _num_summands(node: nodes.Expr) -> int:
    """Parts of a sum that stand on its left side, with itself."""
    number = 1
    while isinstance(node, nodes.Add | nodes.Filter) and number <= FEW:
        number, node = number + isinstance(node, nodes.Add), node.left if isinstance(node, nodes.Add) else node.node
    return number


def _length_of_text(node: nodes.Node) -> int:
    """Characters that a node writes each time, without loops and macros in it, which pay for theirs."""
    total = 0
    for child in node.iter_child_nodes():
        if isinstance(child, nodes.TemplateData):
            total += len(child.data) + PIECE
        elif isinstance(child, nodes.Const) and isinstance(child.value, str):
            total += len(child.value)
        elif not isinstance(child, nodes.For | nodes.Macro | nodes.CallBlock):
            total += _length_of_text(child) + PIECE * isinstance(child, nodes.Expr)
    return total


def _turns(context: Any, values: Any, text: int) -> Any:
    """What a loop goes through, paid for; ``text`` characters are written at each turn."""
    if hasattr(values, "__len__"):
        BUDGET.spend((len(values) + 1) * (TURN + text))
        return values if len(values) < LONG else _timed(values)
    return each(values, text) if isinstance(values, Iterator) else values


def _timed(values: Iterable[Any]) -> Iterator[Any]:
    for number, value in enumerate(values):
        if not number % 16:
            BUDGET.look()
        yield value


def _text(context: Any, value: Any, text: int) -> None:
    """What a macro writes at each call, paid for."""
    BUDGET.spend(text)


def _kept(context: Any, value: Any) -> Any:
    """A value that is kept, handed on or written, paid for."""
    if isinstance(value, str):
        BUDGET.spend(len(value))
    elif isinstance(value, CONTAINERS):
        BUDGET.spend(size_of(value))
    return value


def _shown(context: Any, value: Any) -> Any:
    """A value that becomes text, paid for where it is none yet."""
    if type(value) is not str and isinstance(value, CONTAINERS):
        BUDGET.spend(size_of(value))
    return value


CONTAINERS = (dict, list, tuple, set, Namespace)

HOOKS = {" turns": _turns, " text": _text, " kept": _kept, " shown": _shown}
"""Filters that only compiled templates name: no template can type a blank in a name."""
