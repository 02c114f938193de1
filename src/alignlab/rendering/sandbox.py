"""Jinja's sandbox in which loops, calls, assignments and output are charged to the budget."""

from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from alignlab.rendering.budget import BUDGET, CALL, ITERATION, size_of
from alignlab.rendering.costs import COSTS, charge_each, charge_method, charge_operator

LONG_LOOP = 256
"""Number of iterations from which a loop checks the clock while it runs."""

FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError)
"""Errors of an invalid template, besides Jinja's own, when it is compiled or rendered."""


class LimitedTemplate(Template):
    """A template whose rendering starts with a new budget."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """Render the template.

        Raises:
            TemplateError: The template raises an error, or exceeds its budget (``TooMuch``).
        """
        BUDGET.begin(kwargs)
        try:
            return super().render(*args, **kwargs)
        except FAULTS as error:
            raise TemplateError(f"{type(error).__name__}: {error}") from error


class LimitedSandbox(ImmutableSandboxedEnvironment):
    """The sandbox, in which everything that grows or repeats is charged.

    A single expression without calls and loops is larger than its parts by a small factor only (``FEW``). Values are
    therefore charged when they are assigned, passed on or written.
    """

    template_class = LimitedTemplate
    intercepted_binops = frozenset({"*", "**", "%"})

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        pieces = list(pieces)
        BUDGET.spend(sum(map(len, pieces)))
        return "".join(pieces)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        charge_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        BUDGET.spend(CALL)
        for value in (*args, *kwargs.values()):
            _kept(__context, value)
        receiver = getattr(__obj, "__self__", None)
        method = __obj if receiver is not None else getattr(__obj, "__wrapped__", None)
        if method is not None and isinstance(method.__self__, str | bytes | int):
            charge_method(method.__self__, method.__name__, [*args, *kwargs.values()])
        return super().call(__context, __obj, *args, **kwargs)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Compile, with the filters in ``HOOKS`` inserted into loops, macros, assignments and long sums."""
        for node in list(source.find_all(CHARGED)):
            if isinstance(node, nodes.For):
                node.iter = self._filtered(" loop", node.iter, _length_of_text(node))
            elif isinstance(node, nodes.Assign):
                node.node = self._filtered(" kept", node.node)
            elif isinstance(node, nodes.Output | nodes.Concat):
                charge = self._keep if isinstance(node, nodes.Concat) and len(node.nodes) > FEW else self._show
                node.nodes = [charge(piece) for piece in node.nodes]
            elif isinstance(node, nodes.Filter) and node.name not in COSTS and node.node is not None:
                node.node = self._show(node.node)
            elif isinstance(node, BUFFERED):
                self._charge_buffer(node)
            elif isinstance(node, nodes.Add) and _num_summands(node) > FEW:
                node.left = self._filtered(" kept", node.left)
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)

    def _charge_buffer(self, node: nodes.Node) -> None:
        """Charge for the output of a macro or a block here, since no hook is called when it is joined."""
        for output in list(node.find_all(nodes.Output)):
            output.nodes = [
                piece if isinstance(piece, nodes.TemplateData | nodes.Const) else self._filtered(" kept", piece)
                for piece in output.nodes
            ]
        node.body.insert(0, nodes.ExprStmt(self._filtered(" text", nodes.Const(None), _length_of_text(node))))

    def _show(self, node: nodes.Expr) -> nodes.Expr:
        """Charge for an expression that is converted to text."""
        return self._filtered(" shown", node) if isinstance(node, OPEN) else node

    def _keep(self, node: nodes.Expr) -> nodes.Expr:
        return self._filtered(" kept", node)

    def _filtered(self, name: str, node: nodes.Expr, *values: int) -> nodes.Filter:
        return nodes.Filter(node, name, [nodes.Const(value) for value in values], [], None, None, lineno=node.lineno)


BUFFERED = (nodes.Macro, nodes.CallBlock, nodes.AssignBlock, nodes.FilterBlock)

CHARGED = (nodes.For, nodes.Assign, nodes.Output, nodes.Concat, nodes.Add, nodes.Filter, *BUFFERED)

OPEN = (
    *(nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Call, nodes.CondExpr, nodes.Or, nodes.And, nodes.List),
    *(nodes.Dict, nodes.Tuple),
)
"""Expressions whose value may be of any type, including a list or a mapping."""

FEW = 16
"""Largest number of parts of a sum that are not charged one by one."""

EXTRA_CHARACTERS = 8
"""Characters charged for a piece of output in addition to its text."""


def _num_summands(node: nodes.Expr) -> int:
    """Number of parts of a sum, counted along its left side up to ``FEW`` + 1."""
    number = 1
    while isinstance(node, nodes.Add | nodes.Filter) and number <= FEW:
        number, node = number + isinstance(node, nodes.Add), node.left if isinstance(node, nodes.Add) else node.node
    return number


def _length_of_text(node: nodes.Node) -> int:
    """Characters that a node writes each time, without the loops and macros in it, which are charged separately."""
    total = 0
    for child in node.iter_child_nodes():
        if isinstance(child, nodes.TemplateData):
            total += len(child.data) + EXTRA_CHARACTERS
        elif isinstance(child, nodes.Const) and isinstance(child.value, str):
            total += len(child.value)
        elif not isinstance(child, nodes.For | nodes.Macro | nodes.CallBlock):
            total += _length_of_text(child) + EXTRA_CHARACTERS * isinstance(child, nodes.Expr)
    return total


def _loop(context: Any, values: Any, text: int) -> Any:
    """Charge for the values of a loop that writes ``text`` characters in each iteration."""
    if hasattr(values, "__len__"):
        BUDGET.spend((len(values) + 1) * (ITERATION + text))
        return values if len(values) < LONG_LOOP else _timed(values)
    return charge_each(values, text) if isinstance(values, Iterator) else values


def _timed(values: Iterable[Any]) -> Iterator[Any]:
    for number, value in enumerate(values):
        if not number % 16:
            BUDGET.check()
        yield value


def _text(context: Any, value: Any, text: int) -> None:
    """Charge for the text that a macro writes in each call."""
    BUDGET.spend(text)


def _kept(context: Any, value: Any) -> Any:
    """Charge for a value that is assigned, passed on or written."""
    if isinstance(value, str):
        BUDGET.spend(len(value))
    elif isinstance(value, CONTAINERS):
        BUDGET.spend(size_of(value))
    return value


def _shown(context: Any, value: Any) -> Any:
    """Charge for a value that is converted to text."""
    if type(value) is not str and isinstance(value, CONTAINERS):
        BUDGET.spend(size_of(value))
    return value


CONTAINERS = (dict, list, tuple, set, Namespace)

HOOKS = {" loop": _loop, " text": _text, " kept": _kept, " shown": _shown}
"""Filters for compiled templates only: a template cannot use them, since a name in its text cannot contain a space."""
