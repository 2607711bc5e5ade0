"""Parameters by the pattern of their names: which are trained, which decay, which learn faster.

A pattern is a regular expression that must match the *whole* name (``re.fullmatch``): ``bias`` alone matches no
parameter of a layer, ``.*bias`` matches all of them. Matterport's layer patterns are applied the same way.
"""

import re
from collections.abc import Iterable, Sequence

from refnet.errors import ArgumentError
from refnet.nn.module import Module


def match_names(names: Iterable[str], patterns: str | Sequence[str], *, what: str) -> list[str]:
    """Those of `names`, in their order, that at least one of `patterns` matches whole.

    Raises:
        ArgumentError: a pattern isn't a regular expression, or matches no name: it is misspelt, more often than not.
    """
    names = list(names)
    matched: set[str] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        try:
            found = [name for name in names if re.fullmatch(pattern, name)]
        except re.error as error:
            raise ArgumentError(f"{what}: {pattern!r} isn't a regular expression: {error}") from error
        if not found:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise ArgumentError(
                f"{what}: the pattern {pattern!r} matches the whole of none of {len(names)} names ({some})"
            )
        matched.update(found)
    return [name for name in names if name in matched]


def set_trainable(module: Module, patterns: str | Sequence[str]) -> list[str]:
    """Train the parameters whose names `patterns` match, freeze all others of `module`.

    A frozen parameter gets no gradient, costs no work in backward, and loses a gradient that it still has, so that
    an optimiser passes it over.

    Returns:
        The names of the parameters that are trained.

    Raises:
        ArgumentError: a pattern isn't a regular expression or matches no parameter; nothing was changed.
    """
    parameters = module.parameters()
    trained = match_names(parameters, patterns, what="set_trainable")
    for name, parameter in parameters.items():
        parameter.requires_grad = name in trained
        if not parameter.requires_grad:
            parameter.grad = None
    return trained
