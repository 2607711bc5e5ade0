"""What a check found: a report, or the smallest counterexample."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refnet.arrays import Array
from refnet.errors import RefnetError

SHOWN = 100  # numbers of a result; of a larger one only its corners


class KernelMismatch(RefnetError, AssertionError):
    """A kernel departs from its operation's specification, or breaks its contract.

    Attributes:
        what: the departure in a line.
        arrays: the arguments, by name.
        parameters: what was given by keyword.
        expected: the specification's results; empty where an error was expected.
        actual: the kernel's results; empty where it raised an error.
        reproduction: a Python program that shows both.
        numbers: how many numbers the arguments hold, the counterexample's size.
    """

    def __init__(
        self,
        what: str,
        *,
        arrays: dict[str, Any],
        parameters: dict[str, Any],
        expected: tuple[Array, ...],
        actual: tuple[Array, ...],
        reproduction: str,
        numbers: int,
    ) -> None:
        self.what, self.arrays, self.parameters = what, arrays, parameters
        self.expected, self.actual = expected, actual
        self.reproduction, self.numbers = reproduction, numbers
        parts = [what]
        for title, results in (("the specification gives", expected), ("the kernel gives", actual)):
            if results:
                parts.append(f"{title}:\n" + "\n".join(_abridged(result) for result in results))
        super().__init__("\n\n".join([*parts, "to see it again:\n\n" + reproduction]))


def _abridged(result: Array) -> str:
    return f"{result.dtype} {result.shape}\n{np.array2string(result, threshold=SHOWN, edgeitems=2)}"


@dataclass
class Report:
    """What was checked, and held.

    Attributes:
        operation, kernel, device: names.
        edges: named edge cases that were run.
        examples: random calls that were made.
        skipped: calls that the kernel isn't made for.
        refusals: bad calls that were refused.
        checks: how often each property was checked.
        worst: the largest error, as a share of the bound; 0 if all results must be equal.
        notes: what was left out, and why.
    """

    operation: str
    kernel: str
    device: str
    edges: int = 0
    examples: int = 0
    skipped: int = 0
    refusals: int = 0
    checks: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("edge cases", str(self.edges)), ("random examples", str(self.examples))]
        if self.skipped:
            rows.append(("passed over", f"{self.skipped} calls that the kernel isn't made for"))
        rows += [(name, f"{count} times") for name, count in self.checks.items()]
        rows.append(("largest error", f"{self.worst:.3f} of the bound" if self.worst else "none"))
        rows.append(("calls refused", str(self.refusals)))
        rows += [("note", note) for note in self.notes]
        body = "\n".join(f"  {name:18}{value}" for name, value in rows)
        return f"{self.operation}: {self.kernel} on {self.device} keeps its contract\n{body}"
