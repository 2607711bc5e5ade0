"""What an operation is called with, in a form that can be changed, checked and written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from refnet.arrays import Array
from refnet.errors import ArgumentError

Kind: TypeAlias = Literal["ones", "integers", "quarters", "normal", "positive"]
Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Values:
    """The numbers of an array, by a recipe that is shorter than the array.

    Attributes:
        shape: of the array.
        kind: "ones"; "integers" from -3 to 3; "quarters", multiples of 1/4 from -4 to 4; "normal"; "positive", from
            1/4 to 4. Sums of few products of the first three are exact in float32, and in TF32 and bf16 the first two.
        seed: of the generator.
    """

    shape: Shape
    kind: Kind = "normal"
    seed: int = 0

    def array(self) -> Array:
        """The numbers, float64.

        Raises:
            ArgumentError: there is no such kind.
        """
        rng = np.random.default_rng(self.seed)
        if self.kind not in get_args(Kind):
            raise ArgumentError(f"Values: kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.kind == "ones":
            return np.ones(self.shape)
        if self.kind == "normal":
            return np.asarray(rng.standard_normal(self.shape))
        if self.kind == "positive":
            return np.asarray(rng.uniform(0.25, 4, self.shape))
        scale, most = (1.0, 3) if self.kind == "integers" else (0.25, 16)
        return np.asarray(rng.integers(-most, most + 1, self.shape) * scale)


EXACT: tuple[Kind, ...] = ("ones", "integers")


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of an operation.

    Attributes:
        arrays: by the specification's names and in its order; None where one is left out, a tuple where one argument is
            several arrays.
        parameters: what the specification takes by keyword.
        exact: whether every sum of products of these numbers is exact, in any order and in every type.
        recipes: of the arrays that were made by one.
    """

    arrays: dict[str, Any]
    parameters: dict[str, Any]
    exact: bool = False
    recipes: dict[str, Values] = field(default_factory=dict)

    @classmethod
    def of(
        cls, arrays: Mapping[str, Any], parameters: Mapping[str, Any] | None = None, *, exact: bool | None = None
    ) -> Call:
        """A call with arrays, or recipes for them.

        By default it is exact if all its floating-point arrays are by recipes of small integers.
        """
        recipes = {name: value for name, value in arrays.items() if isinstance(value, Values)}
        if exact is None:
            exact = all(
                recipes[name].kind in EXACT
                if name in recipes
                else not any(entry.dtype.kind == "f" for entry in leaves(value))
                for name, value in arrays.items()
            )
        made = {name: value.array() if isinstance(value, Values) else value for name, value in arrays.items()}
        return cls(arrays=made, parameters=dict(parameters or {}), exact=exact, recipes=recipes)

    def __getitem__(self, name: str) -> Any:
        """The array or the parameter of that name."""
        return self.arrays[name] if name in self.arrays else self.parameters[name]

    def map(self, function: Callable[[str, Array], Array]) -> Call:
        """The call with every array replaced by what `function` makes of its name and itself."""
        arrays = {name: map_leaves(partial(function, name), value) for name, value in self.arrays.items()}
        return replace(self, arrays=arrays)

    def astype(self, dtype: Any, *, keep: tuple[str, ...] = ()) -> Call:
        """The call with floating-point arrays of `dtype`, but for those that are named in `keep`."""
        return self.map(lambda name, a: a.astype(dtype) if a.dtype.kind == "f" and name not in keep else a)

    def absolute(self, *, keep: tuple[str, ...] = ()) -> Call:
        """The call with the absolute values of floating-point arrays, but for those that are named in `keep`."""
        return self.map(lambda name, a: abs(a) if a.dtype.kind == "f" and name not in keep else a)

    def changed(self, **changes: Any) -> Call:
        """The call with other arrays or parameters."""
        arrays = {name: changes.get(name, value) for name, value in self.arrays.items()}
        parameters = {name: changes.get(name, value) for name, value in self.parameters.items()}
        recipes = {name: recipe for name, recipe in self.recipes.items() if name not in changes}
        return replace(self, arrays=arrays, parameters=parameters, recipes=recipes)

    def apply(self, function: Callable[..., Any]) -> Any:
        """Call `function`: arrays by position, parameters by keyword."""
        return function(*self.arrays.values(), **self.parameters)

    def results(self, function: Callable[..., Any]) -> tuple[Array, ...]:
        """The results of :meth:`apply`; of one array, a tuple of one."""
        return as_tuple(self.apply(function))

    @property
    def size(self) -> int:
        """How many numbers all arrays hold."""
        return sum(entry.size for value in self.arrays.values() for entry in leaves(value))


def leaves(value: Any) -> list[Any]:
    """The arrays of an argument or a result: none for None, those of a sequence, else itself."""
    if value is None:
        return []
    return [leaf for entry in value for leaf in leaves(entry)] if isinstance(value, tuple | list) else [value]


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """`value` with each of its :func:`leaves` replaced."""
    if value is None:
        return None
    if isinstance(value, tuple | list):
        return type(value)(map_leaves(function, entry) for entry in value)
    return function(value)


def as_tuple(result: Any) -> tuple[Any, ...]:
    """The results of an operation as a tuple, whether it returns one or several."""
    return tuple(leaves(result))
