"""What an operation promises, so that any kernel of it can be checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from refnet.arrays import Array
from refnet.errors import RefnetError
from refnet.kernel_op import KernelOp
from refnet.testing.bounds import Bound, equal
from refnet.testing.calls import Call


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A call that every kernel must refuse.

    Attributes:
        call: its arguments.
        error: the class of what it raises.
        reads_numbers: whether it takes the numbers of an array to know. A kernel on a device doesn't wait for them, so
            only those of the CPU must refuse.
    """

    call: Call
    error: type[RefnetError]
    reads_numbers: bool = False


@dataclass(frozen=True, kw_only=True)
class Adjoint:
    """An argument v that the first result Kv is linear in, so that <Kv, u> = <v, K'u>.

    Attributes:
        of: the argument's name.
        transposed: K'u, by the specification of the operation that is the other half, from u and the call.
    """

    of: str
    transposed: Callable[[Array, Call], Array]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What is known of an operation: what it is given, what it may not take, how exact it is.

    Attributes:
        operation: the operation.
        inputs: a hypothesis strategy of :class:`Call`, with floating-point arrays in float64; a kernel gets them in
            each type that it takes.
        edges: calls by name that are always made.
        bound: what the results must be.
        why: how `bound` is derived, in a sentence.
        refusals: calls, by name, that must raise an error of refnet's.
        adjoints: arguments that the first result is linear in.
        order_may_vary: whether sums may be taken in another order each time (atomics), so that bits may differ.
        writes: names of arguments that a kernel changes in place; they are in C order, and are checked as results are,
            behind the results.
    """

    operation: KernelOp[..., Any]
    inputs: Any
    edges: Mapping[str, Call]
    bound: Bound = equal
    why: str = "equal bit for bit"
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    adjoints: tuple[Adjoint, ...] = ()
    order_may_vary: bool = False
    writes: tuple[str, ...] = ()
