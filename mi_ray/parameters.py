"""Named, validated values: what a sweep may say of an attack, a defense, an objective, an architecture or a dataset.

A method declares its parameters as dataclass fields with `number`, `integer`, `pair` and the like. YAML keys, error
messages, axes of a grid, the lines of `mi-ray list` and the content keys all come from those fields.
"""

import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from mi_ray.refusals import FACTORY, PATTERNS, shown
from mi_ray.threat_model import parse_number

Kind = Literal["number", "integer", "integers", "pair", "flag", "choice", "ratio", "text", "factory", "methods"]


def unknown(noun: str, name: object, known: list[str]) -> ValueError:
    """The error for a name that nobody knows, which says what is known and which known name was probably meant."""
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return ValueError(f"unknown {noun} {name!r}{hint}; known: {', '.join(known) or 'none'}")


class Method(NamedTuple):
    """A method by its registered name, with its parameters: a defense, an attack, an objective, a dataset.

    values: in a sweep file what is written under the name; in a plan every parameter, defaults written out. JSON and
    content keys hold it as the list [name, values].
    """

    name: str
    values: Any


def read_method(written: object) -> Method:
    """The method that `name`, `{name: value}` or `{name: {parameter: value}}` names. Raises ValueError for anything else."""
    if isinstance(written, Method):
        return written
    if isinstance(written, str):
        return Method(written, {})
    if isinstance(written, Mapping) and len(written) == 1:
        ((name, value),) = written.items()
        return Method(str(name), {} if value is None else value)
    raise ValueError(f"must be a name, or one name with its parameters ({{name: {{…}}}}); got {shown(written)}")


@dataclass(frozen=True)
class Distribution:
    """λ drawn afresh for each execution, or in training for each example (paper, App. B.1), within [0, 1].

    values: of beta its a and b; of uniform its ends; of any other distribution its quantiles at equal steps of probability, from
    the lowest value to the highest, between which the quantile function is straight.
    """

    name: Literal["beta", "uniform", "quantiles"]
    values: tuple[float, ...]

    def plain(self) -> dict[str, list[float]]:
        """As YAML and JSON write it."""
        return {self.name: list(self.values)}

    def quantile(self, probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The values that λ is below with these probabilities, of the same shape."""
        if self.name == "beta":
            from scipy.special import betaincinv  # Whoever reads a sweep file does not need it.

            first, second = self.values
            return np.asarray(betaincinv(first, second, probability))
        return np.interp(probability, np.linspace(0, 1, len(self.values)), self.values)


@dataclass(frozen=True)
class Axis:
    """The values of one hyperparameter in a sweep; `span` is set where any value between them has a meaning too."""

    values: tuple[Any, ...]
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class Parameter:
    """One hyperparameter: its kind, bounds, meaning, and the study option that supplies it when left out.

    unsaid: whether it is left out of the method's values where it has its default, so that the keys of what was made before
    there was such a parameter stay what they were. registry: what the names of methods are looked up in.
    """

    kind: Kind
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    option: str | None = None
    unsaid: bool = False
    registry: "Registry[Any] | None" = None

    def allowed(self) -> str:
        """The rule in words, for errors and for `mi-ray list`."""
        bounds = f" in [{'-∞' if self.low is None else f'{self.low:g}'}, "
        bounds += f"{'∞' if self.high is None else f'{self.high:g}'}]"
        return {
            "number": "a number" + bounds,
            "integer": "a whole number" + bounds,
            "integers": "a whole number, or a list of distinct ones," + bounds,
            "pair": "two whole numbers [lo, hi], lo <= hi," + bounds,
            "flag": "true or false",
            "choice": "one of " + ", ".join(self.choices),
            "text": "text",
            "factory": PATTERNS[FACTORY],
            "methods": f"one or several {self.registry.noun if self.registry else 'method'}s, each a name or {{name: {{…}}}}",
            "ratio": f"a number{bounds}, or {{beta: [a, b]}}, {{uniform: [a, b]}} or {{quantiles: [lowest, …, highest]}}",
        }[self.kind]

    def parse(self, name: str, value: object) -> Any:
        """The value in its canonical form. Raises ValueError with the rule, the value and what is allowed."""
        try:
            return getattr(self, f"_{self.kind}")(name, value)
        except (ValueError, TypeError) as problem:
            why = f": {problem}" if self.kind == "methods" and str(problem) else ""
            raise ValueError(f"{name} must be {self.allowed()}; got {plain(value)!r}{why}") from problem

    def _bounded(self, value: float) -> None:
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            raise ValueError(value)

    def _number(self, name: str, value: object) -> float:
        number_ = parse_number(name, value)
        self._bounded(number_)
        return number_

    def _integer(self, name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(value)
        self._bounded(value)
        return value

    def _integers(self, name: str, value: object) -> tuple[int, ...]:
        listed = list(value) if isinstance(value, (list, tuple)) else [value]
        numbers = tuple(sorted(self._integer(name, item) for item in listed))
        if not numbers or len(set(numbers)) != len(numbers):
            raise ValueError(value)
        return numbers

    def _pair(self, name: str, value: object) -> tuple[int, int]:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise TypeError(value)
        low, high = (self._integer(name, side) for side in value)
        if low > high:
            raise ValueError(value)
        return low, high

    def _flag(self, name: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise TypeError(value)
        return value

    def _text(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not value:
            raise TypeError(value)
        return value

    def _factory(self, name: str, value: object) -> str:
        if re.fullmatch(FACTORY, self._text(name, value)) is None:
            raise ValueError(value)
        return str(value)

    def _choice(self, name: str, value: object) -> str:
        if value not in self.choices:
            raise ValueError(value)
        return str(value)

    def _ratio(self, name: str, value: object) -> float | Distribution:
        if isinstance(value, Distribution):
            value = value.plain()
        if not isinstance(value, Mapping):
            return self._number(name, value)
        ((kind, written),) = value.items()
        # The characters of a text, or a mapping's keys, are no list of numbers.
        if not isinstance(written, (list, tuple)):
            raise TypeError(written)
        values = tuple(parse_number(name, each) for each in written)
        if len(values) < 2 or (len(values) > 2 and kind != "quantiles"):
            raise ValueError(value)
        if kind == "beta" and min(values) > 0:
            return Distribution("beta", values)
        if kind in ("uniform", "quantiles") and list(values) == sorted(values):
            self._bounded(values[0])
            self._bounded(values[-1])
            return Distribution(kind, values)
        raise ValueError(value)

    def _methods(self, name: str, value: object) -> tuple["Parameterized", ...]:
        made = tuple(self._made(item) for item in _items(value))
        if not made:
            raise ValueError("there is none")
        return made

    def _made(self, item: object) -> "Parameterized":
        """A method of the registry from what a person, or a key, says of it."""
        if isinstance(item, Parameterized):
            return item
        assert self.registry is not None
        return self.registry.make(*read_method(item))

    def _combined(self, name: str, written: object, option: Callable[[str], object]) -> Axis:
        """The values that methods with axes of their own span: every combination."""
        assert self.registry is not None
        each = []
        for item in _items(written):
            try:
                named = read_method(item)
            except ValueError as error:
                raise ValueError(f"{name}: each {error}") from error
            method = self.registry[named.name]
            axes = expand(method, named.values, option)
            each.append([method.make(values) for values in product(axes)])
        return Axis(tuple(self.parse(name, list(chosen)) for chosen in itertools.product(*each)))

    def axis(self, name: str, written: object, option: Callable[[str], object]) -> Axis:
        """The values that a sweep file asks for: one value, a list of them, `linspace` or `arange`.

        `{linspace: [0.005, 0.05, 10]}` is ten values with both ends, `{arange: [0.2, 1.0, 0.05]}` includes its
        end when a step lands on it. Values are rounded to 12 digits, so that 0.1 + 0.2 is 0.3 in every key. Methods with
        axes of their own span every combination of these. option: as `expand` takes it.
        Raises ValueError for a value that is not allowed, for one that is named twice, and for an empty list.
        """
        if self.registry is not None:
            return self._combined(name, written, option)
        ends: list[float] = []  # of a range, whose values between them have a meaning too
        if (
            isinstance(written, Mapping)
            and self.kind in ("number", "ratio", "integer")
            and [*written] in [[how] for how in RANGES]
        ):
            ((how, three),) = written.items()
            ends = spaced_values(name, str(how), three)
            whole = self.kind == "integer" and all(end.is_integer() for end in ends)
            listed: Sequence[object] = [int(end) for end in ends] if whole else ends
        elif isinstance(written, (list, tuple)) and not self._one_value(written):
            listed = written
        else:
            return Axis((self.parse(name, written),))
        if not listed:
            raise ValueError(f"{name} must have at least one value; got []")
        values = tuple(self.parse(name, value) for value in listed)
        if len({json.dumps(plain(value)) for value in values}) != len(values):
            raise ValueError(f"{name} must not name a value twice; got {written!r}")
        return Axis(values, (min(ends), max(ends)) if ends and self.kind != "integer" else None)

    def _one_value(self, written: Sequence[object]) -> bool:
        """Whether a list is one value of this kind, and not several values."""
        return self.kind in ("integers", "methods") or (
            self.kind == "pair" and not any(isinstance(part, list) for part in written)
        )


def spaced_values(name: str, how: str, ends: object) -> list[float]:
    """The values of a range: how is one of `RANGES`. Raises ValueError, which names the parameter, for one that is none."""
    rule = f"{name}: {how} must be " + (
        "[first, last, count] with count a whole number from 1 to 10000"
        if how == "linspace"
        else "[first, last, step] with step > 0, last >= first and at most 10000 values"
    )
    if not isinstance(ends, (list, tuple)) or len(ends) != 3:
        raise ValueError(f"{rule}; got {ends!r}")
    first, last, third = (parse_number(name, end) for end in ends)
    if how == "linspace":
        if third != int(third) or not 1 <= third <= 10_000:
            raise ValueError(f"{rule}; got {ends!r}")
        values: Any = np.linspace(first, last, int(third))
    else:
        if third <= 0 or last < first or (last - first) / third > 10_000:
            raise ValueError(f"{rule}; got {ends!r}")
        values = first + third * np.arange(int(np.floor((last - first) / third + 1e-9)) + 1)
    return [round(float(value), 12) for value in values]


def plain(value: object) -> Any:
    """A parameter's value in the form that JSON and YAML hold."""
    if isinstance(value, Distribution):
        return value.plain()
    if isinstance(value, Parameterized):
        return {value.name: value.values()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def _items(value: object) -> Sequence[object]:
    """The items of a list; any other value, a method among them, is its only item."""
    return value if isinstance(value, (list, tuple)) and not isinstance(value, Method) else [value]


def _declare(parameter: Parameter, default: object) -> Any:
    """A dataclass field; Any, since a checker must see the type that the class gives it."""
    return field(default=default, metadata={"parameter": parameter})


def number(
    help_: str,
    default: object = MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    option: str | None = None,
) -> Any:
    """A real number in [low, high]; text such as "2/255" is read as a quotient."""
    return _declare(Parameter("number", help_, low, high, option=option), default)


def integer(
    help_: str,
    default: object = MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    option: str | None = None,
    unsaid: bool = False,
) -> Any:
    """A whole number in [low, high]; unsaid: see `Parameter`."""
    return _declare(Parameter("integer", help_, low, high, option=option, unsaid=unsaid), default)


def integers(help_: str, default: object = MISSING, *, low: float | None = None, high: float | None = None) -> Any:
    """A whole number in [low, high] or a list of them, kept sorted; the list is one value and not an axis."""
    return _declare(Parameter("integers", help_, low, high), default)


def pair(help_: str, default: object = MISSING, *, low: float | None = None, high: float | None = None) -> Any:
    """Two whole numbers [lo, hi] within [low, high]; an axis is a list of pairs."""
    return _declare(Parameter("pair", help_, low, high), default)


def flag(help_: str, default: object = MISSING, option: str | None = None) -> Any:
    """True or false."""
    return _declare(Parameter("flag", help_, option=option), default)


def choice(help_: str, choices: tuple[str, ...], default: object = MISSING, option: str | None = None) -> Any:
    """One of a few words."""
    return _declare(Parameter("choice", help_, choices=choices, option=option), default)


def text(help_: str, default: object = MISSING) -> Any:
    """Any text that is not empty, such as a path."""
    return _declare(Parameter("text", help_), default)


def factory(help_: str, default: object = MISSING) -> Any:
    """A function of a person's own by its dotted name, package.module:function, whose code runs."""
    return _declare(Parameter("factory", help_), default)


def ratio(help_: str, default: object = MISSING, *, unsaid: bool = False) -> Any:
    """A mixup ratio in [0, 1], or a distribution of it (paper, App. B.1). unsaid: as `Parameter` says."""
    return _declare(Parameter("ratio", help_, low=0.0, high=1.0, unsaid=unsaid), default)


def methods(help_: str, registry: "Registry[Any]", default: object = MISSING) -> Any:
    """One or several methods of a registry, in order; each may have axes; the list itself is one value, not an axis."""
    return _declare(Parameter("methods", help_, registry=registry), default)


T = TypeVar("T", bound="Parameterized")
RANGES = ("linspace", "arange")  # how a sweep file may write the values of a parameter that is a number


@dataclass(frozen=True)
class Parameterized:
    """A frozen value that a sweep file can name: `name: {parameter: value, …}`."""

    name: ClassVar[str]
    version: ClassVar[int] = 1  # raise it when the same parameters give other results: it is part of every key

    def __post_init__(self) -> None:
        for key, parameter in self.parameters().items():
            value = getattr(self, key)
            if value is not None or default_of(type(self), key) is not None:
                object.__setattr__(self, key, parameter.parse(f"{self.name}.{key}", value))

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """Name -> Parameter, in the order of the class."""
        return dict(_declared(cls))

    @classmethod
    def required(cls) -> list[str]:
        """The parameters that a sweep must give."""
        return [key for key in cls.parameters() if default_of(cls, key) is MISSING]

    @classmethod
    def make(cls: type[T], values: object) -> T:
        """Build the method from what a person wrote: a mapping, or the value of the first parameter alone.

        Raises ValueError for an unknown, missing or bad parameter.
        """
        written = cls.as_mapping(values)
        missing = [key for key in cls.required() if key not in written]
        if missing:
            raise ValueError(f"{cls.name} needs {', '.join(missing)}; got {', '.join(written) or 'nothing'}")
        return cls(**written)

    @classmethod
    def as_mapping(cls, written: object) -> Mapping[str, object]:
        """What a person wrote as values by parameter: `{npz: file}` is short for `{npz: {path: file}}`.

        Raises ValueError for an unknown parameter, and for a value where there is no parameter.
        """
        known = list(cls.parameters())
        first = next(iter(cls.parameters().values()), None)
        named = first.registry if first is not None else None
        if isinstance(written, Mapping) and not (named is not None and set(written) <= {*named} - {*known}):
            for key in written:
                if key not in known:
                    raise unknown(f"parameter of {cls.name}", key, known)
            return written
        if not known:
            raise ValueError(f"{cls.name} has no parameters; got {written!r}")
        return {known[0]: written}

    def values(self) -> dict[str, Any]:
        """Every parameter with its value as JSON holds it, defaults written out, but for those that stay unsaid."""
        return {
            key: plain(getattr(self, key))
            for key, parameter in self.parameters().items()
            if not (parameter.unsaid and getattr(self, key) == default_of(type(self), key))
        }


def default_of(cls: type[Parameterized], key: str) -> Any:
    """A parameter's default; `dataclasses.MISSING` where a sweep must give it."""
    return _defaults(cls)[key]


# A plan of a thousand cells asks for both of these a hundred thousand times; a class does not change once it is declared.
_DECLARED: dict[type, dict[str, Parameter]] = {}
_DEFAULTS: dict[type, dict[str, Any]] = {}


def _declared(cls: type[Parameterized]) -> dict[str, Parameter]:
    if cls not in _DECLARED:
        _DECLARED[cls] = {f.name: f.metadata["parameter"] for f in fields(cls) if "parameter" in f.metadata}
    return _DECLARED[cls]


def _defaults(cls: type[Parameterized]) -> dict[str, Any]:
    if cls not in _DEFAULTS:
        _DEFAULTS[cls] = {f.name: f.default for f in fields(cls)}
    return _DEFAULTS[cls]


def _refuse_class(noun: str, cls: type) -> None:
    """Raise ValueError for a class that cannot be a method of its kind."""
    title = f"{noun} {cls.__module__}.{cls.__qualname__}"
    if not issubclass(cls, Parameterized):
        raise ValueError(f"{title} must be a subclass of the class of its kind, such as RandomTransform or Attack")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or re.fullmatch(r"[a-z_][a-z0-9_]*", name) is None:
        raise ValueError(f"{title} must have a `name` of small letters, digits and _, as files call it; got {name!r}")
    if any(isinstance(value, Field) for value in vars(cls).values()):
        raise ValueError(
            f"{title} must be a frozen dataclass, or it has no parameters: @dataclass(frozen=True) above it"
        )
    for each in fields(cls) if is_dataclass(cls) else ():
        if each.init and "parameter" not in each.metadata:
            raise ValueError(
                f"{title}: `{each.name}` must be declared by number(...), integer(...) or another function of mi_ray.parameters, "
                "or files could not give it a value and keys would not hold it; what is no parameter is a ClassVar"
            )
        if each.type in (int, "int") and getattr(each.metadata.get("parameter"), "kind", "") == "number":
            raise ValueError(
                f"{title}: `{each.name}` is a whole number, and must be declared by integer(...), not number(...)"
            )
    open_ = [key for key in dir(cls) if getattr(getattr(cls, key, None), "__isabstractmethod__", False)]
    if open_:
        raise ValueError(f"{title} must write {', '.join(f'`{key}`' for key in open_)}")


PLUGINS = ("attack", "defense", "objective")  # what `plugins` of a sweep may register


class Registry(Generic[T]):
    """The methods of one kind by name, in the order in which they were registered."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._classes: dict[str, type[T]] = {}

    def register(self, cls: type[T]) -> type[T]:
        """Class decorator. Raises ValueError for a class without a name or without a method that it must write, and when
        another class has the name already."""
        _refuse_class(self.noun, cls)
        previous = self._classes.get(cls.name)
        if previous is not None and (previous.__module__, previous.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"the {self.noun} name {cls.name!r} is taken by {previous.__module__}")
        self._classes[cls.name] = cls
        return cls

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._classes:
            error = unknown(self.noun, name, list(self._classes))
            own = "; one of your own needs its module in `plugins`" if self.noun in PLUGINS else ""
            raise ValueError(f"{error}{own}")
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def make(self, name: str, values: object = None) -> T:
        """The method of that name with those parameters. Raises ValueError, naming what is known."""
        return self[name].make({} if values is None else values)


def product(axes: Mapping[str, Axis]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes' values."""
    for values in itertools.product(*(axis.values for axis in axes.values())):
        yield dict(zip(axes, values, strict=True))


def expand(method: type[Parameterized], written: object, option: Callable[[str], object]) -> dict[str, Axis]:
    """The axes that a sweep file's entry spans, one for every parameter of the method, in the order of its class.

    written: what the file says. option: the study's value of a named option, for parameters left out.
    Raises ValueError for an unknown or missing parameter, or a value that is not allowed.
    """
    asked = method.as_mapping(written)
    axes: dict[str, Axis] = {}
    for key, parameter in method.parameters().items():
        if key in asked:
            axes[key] = parameter.axis(f"{method.name}.{key}", asked[key], option)
        elif parameter.option is not None:
            axes[key] = Axis((option(parameter.option),))
        elif default_of(method, key) is MISSING:
            raise ValueError(f"{method.name} needs {key}: {parameter.allowed()}; the file leaves it out")
        else:
            axes[key] = Axis((default_of(method, key),))
    return axes


def kind_of(value: object) -> str:
    """What a value is, in a word: its type's name; nothing for None."""
    return "nothing" if value is None else f"a {type(value).__name__}"
