"""check_kernel: any kernel of an operation against the operation's contract."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refnet.arrays import Array, to_host
from refnet.errors import ArgumentError, CompilerError, DependencyError, DTypeError
from refnet.kernel_op import KernelOp
from refnet.testing.adapter import Adapter, Unsuited
from refnet.testing.bounds import DOUBLE, Algorithm, Expected, Precision, Rounding
from refnet.testing.calls import Call, as_tuple, leaves
from refnet.testing.contract import Contract, Refusal
from refnet.testing.devices import TITLES, Device, array_module, is_on, run
from refnet.testing.layouts import LAYOUTS, Layout, laid_out, unreadable, with_memory
from refnet.testing.report import KernelMismatch, Report
from refnet.testing.reproduction import kernel_code, kernel_title, program

SCHEDULES = 8  # orders of threads and blocks that examples are run in, emulated
TRIES = 20  # calls drawn for one that suits a kernel which isn't made for all


def check_kernel(
    operation: KernelOp[..., Any],
    kernel: Callable[..., Any],
    *,
    device: Device = "cpu",
    max_examples: int | None = None,
    seed: int = 0,
    adapter: Adapter | None = None,
    precision: Precision = "full",
    algorithm: Callable[..., Algorithm] | None = None,
    only: Callable[..., bool] | None = None,
    exact: bool = False,
    dtypes: Sequence[str] = ("float32", "float64"),
    refusals: bool = True,
    repeatable: bool = False,
    shrink: bool = True,
    contract: Contract | None = None,
    code: str | None = None,
) -> Report:
    """Check `kernel` against the contract of `operation`: named edge cases first, then random calls.

    Every call checks the results' number, shapes, types, device and values, that the arguments are as they were
    (also what lies around them in memory), that the results are memory of their own, and that the same call gives the
    same bits again; linear operations are checked for their adjoint too. Arguments lie in memory in all
    :data:`refnet.testing.LAYOUTS`. Calls that the specification refuses must be refused.

    Args:
        operation: any KernelOp, ``refnet.ops.nms``.
        kernel: takes what the specification takes; other conventions are the business of `adapter`.
        device: where it runs: "cpu" with NumPy's arrays, "cuda" with CuPy's, "emulated" for a launcher of CUDA kernels,
            which gets NumPy's arrays and is watched by the emulator's checker.
        max_examples: random calls; by default as many as hypothesis's present profile says.
        seed: of the random calls.
        adapter: the kernel's own conventions.
        precision: what the kernel rounds the operands of products to, for tensor cores.
        algorithm: from the arguments, as the kernel takes them, what algorithm it computes sums of products by, whose
            bound it must then keep; by default what the kernel's own attribute of that name says, else plain sums.
        only: from the arguments (arrays and parameters by keyword), whether the kernel is made for them.
        exact: only calls whose sums and decisions are exact in any order and in every type, for kernels that take the
            operations of a decision in an order of their own.
        dtypes: the types that are checked. float64 is left out if the kernel refuses it with a DTypeError.
        refusals: whether bad calls must be refused.
        repeatable: whether bits must repeat even where the contract lets the order of sums vary.
        shrink: whether to look for the smallest counterexample.
        contract: by default that of refnet for the operation.
        code: Python statements that define ``kernel``, for the reproduction.

    Raises:
        KernelMismatch: the kernel departs; it holds the smallest counterexample that was found, and its reproduction.
        ArgumentError: there is no contract, or no call suits the kernel.
        DependencyError: hypothesis isn't installed.
    """
    check = _Check(
        operation=operation,
        kernel=adapter.wrap(operation, kernel) if adapter else kernel,
        contract=contract or contract_of(operation),
        device=device,
        precision=precision,
        algorithm=algorithm or getattr(kernel, "algorithm", None),
        only=only,
        exact=exact,
        repeatable=repeatable,
        adapted=adapter is not None,
        code=_with_adapter(code or kernel_code(kernel), adapter),
        report=Report(operation.name, kernel_title(kernel), TITLES.get(device, device)),
        xp=array_module(device),
    )
    types = check.supported(dtypes)
    found = check.edges(types, all_of_them=shrink)
    if found is None or shrink:
        found = check.random(types, max_examples, seed, shrink, found)
    if found is not None:
        raise found
    if refusals:
        check.refusals()
    return check.report


def contract_of(operation: KernelOp[..., Any]) -> Contract:
    """The contract of one of refnet's operations.

    Raises:
        DependencyError: hypothesis isn't installed.
        ArgumentError: there is none.
    """
    contracts = contracts_by_name()
    if operation.name not in contracts:
        raise ArgumentError(f"check_kernel: {operation.name} has no contract; pass one: contract=Contract(...)")
    return contracts[operation.name]


def contracts_by_name() -> dict[str, Contract]:
    """The contracts of all operations.

    Raises:
        DependencyError: hypothesis isn't installed.
    """
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        raise DependencyError(
            "refnet.testing draws its examples with hypothesis, which isn't installed: pip install 'refnet[testing]'"
        ) from None
    from refnet.testing.contracts import CONTRACTS

    return CONTRACTS


@dataclass(frozen=True)
class Example:
    """A call, and how the kernel gets it.

    Attributes:
        call: the arguments, floating-point arrays in float64.
        dtype: of floating-point arrays.
        layout: how arrays lie in memory.
        schedule: the order of threads and blocks, emulated.
    """

    call: Call
    dtype: str = "float32"
    layout: Layout = "contiguous"
    schedule: int = 0


@dataclass(frozen=True, kw_only=True)
class _Check:
    operation: KernelOp[..., Any]
    kernel: Callable[..., Any]
    contract: Contract
    device: Device
    precision: Precision
    algorithm: Callable[..., Algorithm] | None
    only: Callable[..., bool] | None
    exact: bool
    repeatable: bool
    adapted: bool
    code: str
    report: Report
    xp: Any
    known: list[Any] = field(default_factory=list)

    def supported(self, dtypes: Sequence[str]) -> list[str]:
        """The types of `dtypes` that the kernel takes: float64 may be refused, by a DTypeError."""
        types = list(dtypes)
        if "float64" in types and len(types) > 1:
            for call in self.contract.edges.values():
                wide = call.astype("float64")
                if not self._suits(wide):
                    continue
                try:
                    run(self.kernel, wide, self.device, 0)
                except DTypeError:
                    types.remove("float64")
                    self.report.notes.append("float64 is refused by a DTypeError")
                except CompilerError:
                    raise
                except Exception:
                    pass
                break
        return types

    def edges(self, types: Sequence[str], *, all_of_them: bool) -> KernelMismatch | None:
        """Run the named edge cases; return the smallest that fails, or the first."""
        failures: list[KernelMismatch] = []
        for number, (name, call) in enumerate(self.contract.edges.items()):
            odd = Example(call, types[0], LAYOUTS[1 + number % (len(LAYOUTS) - 1)], number % SCHEDULES)
            plain = [Example(call, dtype) for dtype in types]
            try:
                ran = [self.example(example, f'in the edge case "{name}"') for example in (plain[0], odd, *plain[1:])]
            except KernelMismatch as mismatch:
                if not all_of_them:
                    return mismatch
                failures.append(mismatch)
            else:
                self.report.edges += any(ran)
        return min(failures, key=lambda mismatch: mismatch.numbers, default=None)

    def random(
        self,
        types: Sequence[str],
        max_examples: int | None,
        seed: int,
        shrink: bool,
        known: KernelMismatch | None,
    ) -> KernelMismatch | None:
        """Run random calls; return the smallest failure, or `known` if that is smaller."""
        import hypothesis
        from hypothesis import strategies as st

        wanted = hypothesis.settings().max_examples if max_examples is None else max_examples
        if wanted < 1:
            return known
        examples = st.builds(
            Example,
            call=self.contract.inputs,
            dtype=st.sampled_from(types),
            layout=st.sampled_from(LAYOUTS),
            schedule=st.integers(0, SCHEDULES - 1) if self.device == "emulated" else st.just(0),
        )
        phases = [hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if shrink else [])]
        failures: list[KernelMismatch] = []

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=wanted * (TRIES if self.only or self.exact or self.adapted else 1),
            phases=phases,
            database=None,
            deadline=None,
            derandomize=False,
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(examples)
        def all_hold(example: Example) -> None:
            if self.report.examples >= wanted and not failures:
                return
            try:
                self.report.examples += self.example(example, "in a random example")
            except KernelMismatch as mismatch:
                failures.append(mismatch)
                raise

        try:
            with warnings.catch_warnings():
                # a program that checks annotations while it runs may pick entries of containers at random; that's harmless
                warnings.simplefilter("ignore", hypothesis.errors.HypothesisDeprecationWarning)
                all_hold()
        except (KernelMismatch, hypothesis.errors.Flaky):
            if not failures:  # it isn't the kernel that behaved in two ways
                raise
            smallest = min(failures, key=lambda mismatch: mismatch.numbers)
            return smallest if known is None or smallest.numbers < known.numbers else known
        if known is None and not self.report.examples:
            raise ArgumentError(f"check_kernel: no call of {self.operation.name} that was drawn suits the kernel")
        return known

    def example(self, example: Example, where: str) -> bool:
        """Check one call; whether the kernel is made for it.

        Raises:
            KernelMismatch: it departs.
        """
        call = example.call.astype(example.dtype)
        if not self._suits(call):
            self.report.skipped += 1
            return False
        one = _One(self, example, call, where)
        one.run()
        return True

    def expected_of(self, example: Example, call: Call) -> tuple[Expected, ...]:
        """What the results of `call` must be; remembered for the last call, which another layout may follow."""
        if not self.known or self.known[0].call is not example.call or self.known[0].dtype != example.dtype:
            rounding = Rounding.of(example.dtype, self.precision)
            if self.algorithm is not None:
                rounding = replace(rounding, algorithm=call.apply(self.algorithm))
            self.known[:] = example, self.contract.bound(self.operation.specification, call, rounding)
        expected: tuple[Expected, ...] = self.known[1]
        return expected

    def refusals(self) -> None:
        """Make the calls that must be refused.

        Raises:
            KernelMismatch: one isn't, or by an error of another class.
        """
        unread = 0
        for name, refusal in self.contract.refusals.items():
            if refusal.reads_numbers and self.device != "cpu":
                unread += 1
                continue
            self._refusal(name, refusal)
            self.report.refusals += 1
        if unread:
            self.report.notes.append(f"{unread} refusals would wait for numbers on the device, and aren't asked for")

    def _refusal(self, name: str, refusal: Refusal) -> None:
        given = refusal.call.map(lambda _, a: laid_out(a, "contiguous", self.xp))
        wanted = refusal.error.__name__
        results: tuple[Array, ...] = ()
        try:
            result = run(self.kernel, given, self.device, 0)
        except refusal.error:
            return
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
        else:
            results = tuple(to_host(entry) for entry in as_tuple(result))
            what = "a result"
        raise KernelMismatch(
            f"{self._title()}: {name}: expected the error {wanted}, got {what}",
            arrays=refusal.call.arrays,
            parameters=refusal.call.parameters,
            expected=(),
            actual=results,
            reproduction=program(self.operation, self.code, refusal.call, device=self.device, raises=True),
            numbers=refusal.call.size,
        )

    def _title(self) -> str:
        return f"{self.operation.name}: {self.report.kernel} on {self.report.device}"

    def _suits(self, call: Call) -> bool:
        if self.exact and not call.exact:
            return False
        if self.only is not None and not self.only(**call.arrays, **call.parameters):
            return False
        try:
            if self.adapted:
                self.kernel.suits(call)  # type: ignore[attr-defined]
        except Unsuited:
            return False
        return True


class _One:
    """The checks of one call."""

    def __init__(self, check: _Check, example: Example, call: Call, where: str) -> None:
        self.check, self.example, self.call, self.where = check, example, call, where

    def run(self) -> None:
        check = self.check
        self.expected = check.expected_of(self.example, self.call)
        first = self._results(0)
        self._same_form(first)
        self._close(first)
        self._adjoint(first)

        earlier = self.live
        second = self._results(1)
        self._same_form(second)
        self._apart(earlier, first, second)
        if not check.contract.order_may_vary or check.repeatable:
            for position, (a, b) in enumerate(zip(first, second, strict=True)):
                if not same(a, b):
                    where = _first_difference(a, b)
                    raise self.mismatch(
                        f"the same call gave two results: {_name(position, first)}{where} is {a[where]}, then {b[where]}",
                        second,
                        times=2,
                    )
            self.check.report.checks["repeated"] += 1

    def _results(self, repeat: int) -> tuple[Array, ...]:
        """Run the kernel, and check everything but the results' numbers."""
        check = self.check
        memory: dict[str, list[Any]] = {}

        def placed(name: str, array: Array) -> Any:
            written = name in check.contract.writes
            given, whole = with_memory(array, "contiguous" if written else self.example.layout, check.xp)
            if not written:
                memory.setdefault(name, []).append(whole)
            return given

        given = self.call.map(placed)
        before = {name: [to_host(a).copy() for a in entries] for name, entries in memory.items()}
        try:
            result = run(check.kernel, given, check.device, self.example.schedule + repeat)
        except CompilerError:
            raise
        except Exception as error:
            raise self.mismatch(f"it raised {type(error).__name__}: {error}", (), times=1 + repeat) from error
        for name, entries in memory.items():
            if not all(same(to_host(a), b) for a, b in zip(entries, before[name], strict=True)):
                raise self.mismatch(f"it changed its argument {name}, or what lies around it", ())
        written = tuple(leaf for name in check.contract.writes for leaf in leaves(given.arrays[name]))
        results = as_tuple(result)
        for entry in results:
            if not hasattr(entry, "dtype") or not hasattr(entry, "shape"):
                raise self.mismatch(f"expected arrays, got {type(entry).__name__}", ())
            if not is_on(entry, check.device):
                raise self.mismatch("a result isn't on the device of the arguments", ())
        self.live = results
        final = tuple(np.array(to_host(entry)) for entry in (*results, *written))
        for whole in (array for arrays in memory.values() for array in arrays):
            whole.fill(unreadable(whole.dtype))
        if not all(same(to_host(a), b) for a, b in zip((*results, *written), final, strict=True)):
            raise self.mismatch("a result shares memory with an argument", final)
        return final

    def _same_form(self, results: tuple[Array, ...]) -> None:
        wanted = [(entry.value.shape, np.dtype(self._dtype(entry))) for entry in self.expected]
        if len(results) != len(wanted):
            raise self.mismatch(f"expected {len(wanted)} results, got {len(results)}", results)
        for position, (result, (shape, dtype)) in enumerate(zip(results, wanted, strict=True)):
            name = _name(position, results)
            if result.shape != shape:
                raise self.mismatch(f"{name} should have shape {shape}, got {result.shape}", results)
            if result.dtype != dtype:
                raise self.mismatch(f"{name} should be {dtype}, got {result.dtype}", results)

    def _dtype(self, entry: Expected) -> Any:
        """References of sums are float64; the kernel's are of the arguments' type, unless they are wide."""
        return self.example.dtype if entry.allowed is not None and not entry.wide else entry.value.dtype

    def _close(self, results: tuple[Array, ...]) -> None:
        report = self.check.report
        for position, (result, entry) in enumerate(zip(results, self.expected, strict=True)):
            allowed = np.zeros(()) if entry.allowed is None else entry.allowed
            with np.errstate(invalid="ignore"):
                error = np.asarray(abs(result.astype(np.float64) - entry.value))
                unknown = np.isnan(result) & np.isnan(entry.value)
                good = np.asarray((error <= allowed) | (result == entry.value) | unknown | (allowed == np.inf))
            if not good.all():
                raise self.mismatch(_departure(position, results, entry.value, error, allowed, good), results)
            share = np.divide(error, allowed, out=np.zeros(error.shape), where=(allowed > 0) & np.isfinite(error))
            report.worst = max(report.worst, float(share.max(initial=0)))
        report.checks["values"] += 1

    def _apart(self, earlier: tuple[Any, ...], first: tuple[Array, ...], second: tuple[Array, ...]) -> None:
        """Two calls must give results in memory of their own: what becomes of one must not be seen in the other."""
        apart = all(same(to_host(a), b) for a, b in zip(earlier, first, strict=False))
        for result in earlier:
            if getattr(result.flags, "writeable", True):
                result.fill(unreadable(result.dtype))
        if not apart or not all(same(to_host(a), b) for a, b in zip(self.live, second, strict=False)):
            raise self.mismatch("the results of two calls share memory", second, times=2)

    def _adjoint(self, results: tuple[Array, ...]) -> None:
        """<Kv, u> = <v, K'u>: both sides are sums of the same products, and K'u is the specification's, in float64.

        A constant that the operation adds to Kv is what the specification makes of v = 0.
        """
        if not self.check.contract.adjoints:  # as of operations without results
            return
        specification, entry = self.check.operation.specification, self.expected[0]
        rng = np.random.default_rng(results[0].size)
        wide = self.call.astype(np.float64)
        for adjoint in self.check.contract.adjoints:
            u = rng.integers(-3, 4, results[0].shape).astype(np.float64)
            v = np.asarray(wide[adjoint.of])
            constant = as_tuple(self.call.changed(**{adjoint.of: np.zeros_like(v)}).apply(specification))[0]
            kv = results[0] - constant.astype(np.float64)
            products, mirrored = kv * u, v * adjoint.transposed(u, self.call)
            allowed = 0.0 if entry.allowed is None else float((entry.allowed * abs(u)).sum())
            count = products.size + mirrored.size + v.size + 1
            allowed += count * DOUBLE * float(abs(products).sum() + abs(mirrored).sum())
            if not abs(products.sum() - mirrored.sum()) <= allowed:
                raise self.mismatch(
                    f"the adjoint identity <Kv, u> = <v, K'u> fails for v = {adjoint.of}: "
                    f"{products.sum()} and {mirrored.sum()}, {allowed:.3g} apart at most",
                    results,
                )
            self.check.report.checks["adjoint identity"] += 1

    def mismatch(self, what: str, results: tuple[Array, ...], times: int = 1) -> KernelMismatch:
        check, example = self.check, self.example
        form = f"{example.dtype}, {example.layout} arrays"
        if check.device == "emulated":
            form += f", schedule {example.schedule}"
        return KernelMismatch(
            f"{check._title()}, {self.where} ({form}): {what}",
            arrays=self.call.arrays,
            parameters=self.call.parameters,
            expected=tuple(entry.value for entry in self.expected),
            actual=results,
            reproduction=program(
                check.operation,
                check.code,
                self.call,
                layout=example.layout,
                device=check.device,
                schedule=example.schedule,
                times=times,
                writes=check.contract.writes,
            ),
            numbers=self.call.size,
        )


def same(a: Array, b: Array) -> bool:
    """Whether two arrays hold the same bits."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    )


def _name(position: int, results: Sequence[Array]) -> str:
    return "the result" if len(results) == 1 else f"result {position}"


def _first_difference(a: Array, b: Array) -> tuple[int, ...]:
    """The first place whose bits differ, in two arrays of one shape and type."""
    bits = (np.ascontiguousarray(x).reshape(-1).view(np.uint8).reshape(x.size, -1) for x in (a, b))
    first = int(np.not_equal(*bits).any(axis=1).argmax())
    return tuple(int(i) for i in np.unravel_index(first, a.shape))


def _departure(
    position: int, results: Sequence[Array], expected: Array, error: Array, allowed: Array, good: Array
) -> str:
    """What to say of a result that is off: its worst number."""
    excess = np.where(good, -1.0, np.where(np.isnan(error), np.inf, error - allowed))
    worst = tuple(int(i) for i in np.unravel_index(int(excess.argmax()), excess.shape))
    limit = float(np.broadcast_to(allowed, error.shape)[worst])
    wanted = f"{expected[worst]}" + (f" within {limit:.3g}" if limit else "")
    count = f"{int((~good).sum())} of {good.size} numbers depart"
    return f"{_name(position, results)}{list(worst)} should be {wanted}, got {results[position][worst]}; {count}"


def _with_adapter(code: str, adapter: Adapter | None) -> str:
    if adapter is None:
        return code
    return f"from refnet.testing import Adapter\n{code}\nkernel = {adapter!r}.wrap(operation, kernel)"
