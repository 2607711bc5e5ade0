"""Arithmetic over the sizes and parameters of a call, in text: for the command line, without eval.

``N``, ``Ho``, ``kh`` are the letters of the specification's annotations, and ``B`` of ``*B C`` is the product of its
axes; parameters have their names (``stride[0]``, ``iou_threshold``); arrays have ``x.shape[0]``, ``x.size`` and
``x.ndim``; results are ``out``, or ``out0`` and ``out1``. There are + - * // / % and comparisons, ``and``, ``or``,
``not``, and the functions cdiv (division rounded up), min, max and abs.
"""

from __future__ import annotations

import ast
import math
import operator
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from refnet.arrays import is_array
from refnet.errors import ArgumentError
from refnet.kernel_op import KernelOp

OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.USub: operator.neg, ast.Not: operator.not_,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {"cdiv": lambda a, b: -(-a // b), "min": min, "max": max, "abs": abs}
ATTRIBUTES = ("shape", "size", "ndim")


def evaluate(text: str, names: Mapping[str, Any]) -> Any:
    """The value of an expression.

    Raises:
        ArgumentError: it isn't one, it has something else in it than what the head of this file lists, or a name that
            isn't known.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError):
        raise ArgumentError(f"expected an expression, got {text!r}") from None
    try:
        return _value(tree.body, names)
    except (TypeError, IndexError, ZeroDivisionError) as error:
        raise ArgumentError(f"{text}: {error}") from None


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() | None):
            return node.value
        case ast.Name(id=name):
            if name not in names:
                raise ArgumentError(f"expected one of the names {', '.join(sorted(names))}, got {name!r}")
            return names[name]
        case ast.Tuple(elts=entries):
            return tuple(_value(entry, names) for entry in entries)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](_value(left, names), _value(right, names))
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](_value(operand, names))
        case ast.Compare(left=left, ops=signs, comparators=others) if all(type(s) in OPERATORS for s in signs):
            values = [_value(entry, names) for entry in (left, *others)]
            return all(OPERATORS[type(s)](a, b) for s, a, b in zip(signs, values, values[1:], strict=False))
        case ast.BoolOp(op=sign, values=parts):
            return (all if isinstance(sign, ast.And) else any)(_value(part, names) for part in parts)
        case ast.Subscript(value=base, slice=index):
            return _value(base, names)[_value(index, names)]
        case ast.Attribute(value=base, attr=name) if name in ATTRIBUTES:
            return getattr(_value(base, names), name)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_value(argument, names) for argument in arguments))
    raise ArgumentError(f"{ast.unparse(node)}: expected arithmetic over sizes and parameters")


def sizes(operation: KernelOp[..., Any], arrays: Mapping[str, Any], results: Sequence[Any] = ()) -> dict[str, int]:
    """The extents that the specification's annotations name, of the arguments and, if given, of the results."""
    hints = typing.get_type_hints(operation.specification)
    outcome = hints.get("return")
    annotations = list(typing.get_args(outcome)) if typing.get_origin(outcome) is tuple else [outcome]
    named = [(hints.get(name), array) for name, array in arrays.items()]
    named += list(zip(annotations, results, strict=False))
    found: dict[str, int] = {}
    for annotation, array in named:
        letters = getattr(annotation, "dim_str", "").split()
        if is_array(array) and letters:
            found.update(_extents(letters, array.shape))
    return found


def _extents(letters: list[str], shape: tuple[int, ...]) -> dict[str, int]:
    starred = [position for position, letter in enumerate(letters) if letter.startswith("*")]
    if not starred:
        named = dict(zip(letters, shape, strict=False))
    else:
        first, behind = starred[0], len(shape) - (len(letters) - starred[0] - 1)
        named = dict(zip(letters[:first], shape, strict=False))
        named[letters[first][1:]] = math.prod(shape[first:behind])
        named |= dict(zip(letters[first + 1 :], shape[behind:], strict=False))
    return {letter: extent for letter, extent in named.items() if letter.isidentifier()}
