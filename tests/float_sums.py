"""A plugin of mypy (`plugins` in ``pyproject.toml``) that refuses the built-in ``sum`` of floating-point numbers.

From Python 3.12 on ``sum`` of floats compensates what rounding loses: records made by 3.11 and by 3.12 would differ
in their last bits. `servetwin.core.arithmetic.float_sum` adds from left to right on every Python. Sums of
integers are exact, and stay; which is which is told by their types. One of ``Any`` (of a row of a table) is
refused too.
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.maptype import map_instance_to_supertype
from mypy.nodes import Expression
from mypy.plugin import FunctionContext, Plugin
from mypy.typeops import tuple_fallback
from mypy.types import AnyType, Instance, LiteralType, TupleType, Type, TypeOfAny, UnionType, get_proper_type

#: What is added exactly, and arrays, which add themselves.
ALLOWED = ("builtins.int", "numpy.ndarray")

TOLD = "sum() of floats rounds otherwise from Python 3.12 on: use servetwin.core.arithmetic.float_sum"


class FloatSums(Plugin):
    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Type] | None:
        return _refuse if fullname == "builtins.sum" else None


def _refuse(context: FunctionContext) -> Type:
    told = context.default_return_type
    # What stands around it may ask for a float (`x / sum(...)`), of whatever is added: the items decide.
    if not _allowed(told) and not all(_allowed(_item(context, given[0])) for given in context.args if given):
        # mypy tries the overloads of `sum` one after the other, and passes by one that an error is told of: it is
        # not to hear of this one.
        errors = context.api.errors  # type: ignore[attr-defined]
        listening, errors._watchers = errors._watchers, []
        context.api.fail(f"{TOLD} ({told})", context.context)
        errors._watchers = listening
    return told


def _item(context: FunctionContext, given: Expression) -> Type:
    """The type of the items of an iterable, or of a number."""
    found = get_proper_type(context.api.get_expression_type(given))
    if isinstance(found, TupleType):
        found = tuple_fallback(found)
    iterable = context.api.named_generic_type("typing.Iterable", [AnyType(TypeOfAny.explicit)]).type
    if isinstance(found, Instance) and found.type.has_base(iterable.fullname):
        return map_instance_to_supertype(found, iterable).args[0]
    return found


def _allowed(kind: Type) -> bool:
    found = get_proper_type(kind)
    if isinstance(found, UnionType):
        return all(map(_allowed, found.items))
    if isinstance(found, LiteralType):
        found = found.fallback
    if isinstance(
        found, AnyType
    ):  # as somebody wrote it, that is; mypy's own are of a lambda that it does not know yet
        return (found.source_any or found).type_of_any != TypeOfAny.explicit
    if not isinstance(found, Instance):
        return False
    # An `object`, likewise, is such a parameter.
    return found.type.fullname == "builtins.object" or any(found.type.has_base(name) for name in ALLOWED)


def plugin(version: str) -> type[Plugin]:
    return FloatSums
