"""Declared parameters: parsing, axes of a grid, error messages, registries; and the threat model."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from mi_ray.parameters import (
    Axis,
    Distribution,
    Parameter,
    Parameterized,
    Registry,
    choice,
    expand,
    factory,
    flag,
    integer,
    integers,
    number,
    pair,
    plain,
    ratio,
    text,
    unknown,
)
from mi_ray.threat_model import ThreatModel, parse_number


@dataclass(frozen=True)
class Sample(Parameterized):
    """One parameter of each kind."""

    name: ClassVar[str] = "sample"
    strength: float = number("how strong", low=0.0, high=2.0)
    count: int = integer("how many", 3, low=1)
    stops: tuple[int, ...] = integers("where to stop", (10,), low=1)
    crop: tuple[int, int] = pair("sides", (1, 2), low=1)
    fast: bool = flag("whether", False, option="eight_bit")
    mode: str = choice("which", ("a", "b"), "a")
    lam: float | Distribution = ratio("share", 0.5)
    path: str = text("file", None)
    net: str = factory("network", "torch.nn:Identity")


def axis(key: str, written: Any) -> Axis:
    return expand(Sample, {"strength": 1, key: written}, lambda name: name == "eight_bit")[key]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("8/255", 8 / 255),
        ("1e-2", 0.01),
        (3, 3.0),
        (0.25, 0.25),
        ("-1/4", -0.25),
        ("0.5/255", 0.5 / 255),
        ("1e-2/3", 0.01 / 3),
        (" 2.5 / 0.5 ", 5.0),
        ("0/3", 0.0),
        ("1e-999999999/2", 0.0),
        ("1/-4", -0.25),
    ],
)
def test_numbers_are_read_as_people_write_them(written: Any, value: float) -> None:
    assert parse_number("x", written) == value


NO_QUOTIENTS = ["nan/1", "1/nan", "inf/2", "1/inf", "1.5/0.0", "/2", "2/", "/", "1e999999999/2", "1e300/1e-300"]


@pytest.mark.parametrize(
    "written", ["8/0", "eight", "", "nan", "inf", float("inf"), True, None, [1], "1/2/3", 10**400, *NO_QUOTIENTS]
)
def test_what_is_no_finite_number_is_refused_with_the_value(written: Any) -> None:
    with pytest.raises(ValueError, match="x must be a finite number or a fraction such as 8/255") as error:
        parse_number("x", written)
    assert repr(written) in str(error.value)


@pytest.mark.parametrize(
    ("key", "written", "rule"),
    [
        ("strength", -0.1, "a number in [0, 2]"),
        ("strength", "8/0", "a number in [0, 2]"),
        ("count", 0, "a whole number in [1, ∞]"),
        ("count", 2.0, "a whole number"),
        ("count", True, "a whole number"),
        ("stops", [5, 5], "a list of distinct ones"),
        ("stops", [], "a list of distinct ones"),
        ("stops", 0, "a whole number, or a list"),
        ("crop", [3, 2], "two whole numbers [lo, hi], lo <= hi, in [1, ∞]"),
        ("crop", [0, 2], "two whole numbers"),
        ("crop", [1, 2, 3], "two whole numbers"),
        ("crop", 3, "two whole numbers"),
        ("fast", "yes", "true or false"),
        ("mode", "c", "one of a, b"),
        ("lam", 1.5, "a number in [0, 1], or {beta: [a, b]}, {uniform: [a, b]} or {quantiles: [lowest, …, highest]}"),
        ("lam", -0.01, "a number in [0, 1]"),
        ("lam", {"beta": "12"}, "{beta: [a, b]}"),
        ("lam", {"uniform": {0: 0, 1: 1}}, "{uniform: [a, b]}"),
        ("lam", {"beta": [0, 1]}, "{beta: [a, b]}"),
        ("lam", {"uniform": [0.5, 0.2]}, "{uniform: [a, b]}"),
        ("lam", {"uniform": [0.5, 1.2]}, "{uniform: [a, b]}"),
        ("lam", {"gamma": [1, 1]}, "{beta: [a, b]}"),
        ("lam", {"beta": [1, 1], "uniform": [0, 1]}, "{beta: [a, b]}"),
        ("path", "", "text"),
        ("path", 5, "text"),
        ("net", "nets.build", "package.module:function"),
        ("net", "../nets:build", "package.module:function"),
        ("net", "os:system()", "package.module:function"),
        ("net", None, "package.module:function"),
    ],
)
def test_a_bad_value_is_refused_with_the_rule_and_the_value(key: str, written: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"^sample\.{key} must be ") as error:
        Sample.make({"strength": 1, key: written})
    assert rule in str(error.value)
    assert str(error.value).endswith(f"got {written!r}")
    with pytest.raises(ValueError, match=rf"sample\.{key}"):
        axis(key, written)


def test_values_are_canonical_however_they_are_written() -> None:
    made = Sample.make({"strength": "1/2", "stops": [50, 10], "crop": [2, 3], "lam": {"beta": [2, "1/2"]}})
    assert (made.strength, made.stops, made.crop, made.lam) == (0.5, (10, 50), (2, 3), Distribution("beta", (2.0, 0.5)))
    assert made.values() == {
        "strength": 0.5,
        "count": 3,
        "stops": [10, 50],
        "crop": [2, 3],
        "fast": False,
        "mode": "a",
        "lam": {"beta": [2.0, 0.5]},
        "path": None,
        "net": "torch.nn:Identity",
    }
    assert Sample.make(made.values() | {"path": "x"}) == Sample.make(
        {"strength": 0.5, "stops": [10, 50], "crop": [2, 3], "lam": Distribution("beta", (2, 0.5)), "path": "x"}
    )


def test_a_bare_value_is_the_first_parameters() -> None:
    assert Sample.make(0.5) == Sample.make({"strength": 0.5})


def test_unknown_and_missing_parameters_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"unknown parameter of sample 'strenght' \(did you mean 'strength'\?\); known"
    ):
        Sample.make({"strenght": 1})
    with pytest.raises(
        ValueError, match=r"unknown parameter of sample 'strenght' \(did you mean 'strength'\?\); known"
    ):
        expand(Sample, {"strenght": 1}, bool)
    with pytest.raises(ValueError, match="sample needs strength; got count"):
        Sample.make({"count": 2})
    with pytest.raises(ValueError, match="sample needs strength: a number"):
        expand(Sample, {"count": 2}, bool)


def test_a_method_without_parameters_takes_no_value() -> None:
    @dataclass(frozen=True)
    class Bare(Parameterized):
        name: ClassVar[str] = "bare"

    assert Bare.make({}) == Bare()
    with pytest.raises(ValueError, match="bare has no parameters; got 3"):
        Bare.make(3)


@pytest.mark.parametrize(
    ("written", "values"),
    [
        (0.5, (0.5,)),
        ([0.1, "1/2"], (0.1, 0.5)),
        ({"linspace": [0, 1, 5]}, (0.0, 0.25, 0.5, 0.75, 1.0)),
        ({"linspace": [0.3, 0.3, 1]}, (0.3,)),
        ({"arange": [0, 1, 0.5]}, (0.0, 0.5, 1.0)),
        ({"arange": [0.1, 0.4, 0.1]}, (0.1, 0.2, 0.3, 0.4)),
        ({"arange": [0, 1, 0.4]}, (0.0, 0.4, 0.8)),
        ({"arange": [0.2, 0.2, 1]}, (0.2,)),
        ({"arange": [0, "1/2", "1/4"]}, (0.0, 0.25, 0.5)),
    ],
)
def test_an_axis_of_numbers_includes_its_end_where_a_step_lands_on_it(written: Any, values: tuple[float, ...]) -> None:
    assert axis("strength", written).values == values
    spaced = isinstance(written, dict)
    assert axis("strength", written).span == ((min(values), max(values)) if spaced else None)


def test_the_papers_range_of_lambda_has_seventeen_values_with_both_ends() -> None:
    values = axis("lam", {"arange": [0.2, 1.0, 0.05]}).values
    assert (len(values), values[0], values[-1]) == (17, 0.2, 1.0)
    assert values == tuple(round(0.2 + 0.05 * step, 12) for step in range(17))


@pytest.mark.parametrize(
    "written",
    [
        {"linspace": [0, 1]},
        {"linspace": [0, 1, 0]},
        {"linspace": [0, 1, 2.5]},
        {"linspace": [0, 1, 10_001]},
        {"linspace": 3},
        {"arange": [0, 1, 0]},
        {"arange": [0, 1, -0.1]},
        {"arange": [1, 0, 0.1]},
        {"arange": [0, 1, 1e-5]},
        {"arange": [0, 1]},
        {"arange": None},
    ],
)
def test_a_badly_formed_range_is_refused_with_its_form(written: dict[str, Any]) -> None:
    ((how, ends),) = written.items()
    with pytest.raises(ValueError, match=rf"sample.strength: {how} must be \[first, last, ") as error:
        axis("strength", written)
    assert str(error.value).endswith(f"got {ends!r}")


def test_values_of_a_range_obey_the_bounds_too() -> None:
    with pytest.raises(ValueError, match=r"sample.strength must be a number in \[0, 2\]; got 3.0"):
        axis("strength", {"linspace": [0, 3, 4]})
    with pytest.raises(ValueError, match=r"sample.count must be a whole number"):
        axis("count", {"linspace": [1, 3, 4]})


def test_a_range_of_whole_numbers_has_whole_values_and_nothing_between_them() -> None:
    for written in ({"linspace": [1, 3, 3]}, {"arange": [1, 3, 1]}):
        assert axis("count", written) == Axis((1, 2, 3))


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("strength", [1, 1.0]),
        ("strength", ["1/2", 0.5]),
        ("mode", ["a", "a"]),
        ("crop", [[1, 2], [1, 2]]),
        ("lam", [{"beta": [1, 1]}, {"beta": [1.0, 1]}]),
        ("strength", {"linspace": [0.3, 0.3, 3]}),
    ],
)
def test_an_axis_that_names_a_value_twice_is_refused(key: str, written: Any) -> None:
    with pytest.raises(ValueError, match=f"sample.{key} must not name a value twice"):
        axis(key, written)


def test_an_empty_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sample.strength must have at least one value"):
        axis("strength", [])


def test_a_pair_is_one_value_and_a_list_of_pairs_an_axis() -> None:
    assert axis("crop", [16, 24]).values == ((16, 24),)
    assert axis("crop", [[16, 24]]).values == ((16, 24),)
    assert axis("crop", [[16, 24], [20, 28]]).values == ((16, 24), (20, 28))
    with pytest.raises(ValueError, match=r"sample.crop must be two whole numbers"):
        axis("crop", [[16, 24], 20])


def test_a_list_of_stops_is_one_value_and_lists_of_other_kinds_are_axes() -> None:
    assert axis("stops", [50, 10]).values == ((10, 50),)
    assert axis("fast", [False, True]).values == (False, True)
    assert axis("lam", [0.5, {"uniform": [0.2, 0.8]}]).values == (0.5, Distribution("uniform", (0.2, 0.8)))


def test_what_is_left_out_comes_from_the_studys_option_then_from_the_default() -> None:
    axes = expand(Sample, {"strength": [0.5, 1]}, lambda name: name == "eight_bit")
    assert list(axes) == list(Sample.parameters())
    assert {key: axes[key].values for key in ("fast", "count", "path")} == {
        "fast": (True,),
        "count": (3,),
        "path": (None,),
    }
    assert expand(Sample, {"strength": 1, "fast": False}, lambda name: True)["fast"].values == (False,)


def test_plain_values_survive_json() -> None:
    assert plain((1, 2)) == [1, 2]
    assert plain(Distribution("beta", (1.0, 2.0))) == {"beta": [1.0, 2.0]}
    assert plain("a") == "a"


def test_every_kind_says_what_it_allows() -> None:
    allowed = {key: parameter.allowed() for key, parameter in Sample.parameters().items()}
    assert allowed["strength"] == "a number in [0, 2]"
    assert allowed["count"] == "a whole number in [1, ∞]"
    assert Parameter("number", "h", high=3).allowed() == "a number in [-∞, 3]"
    assert all(allowed.values())


def test_a_registry_knows_its_names_and_refuses_others_and_a_second_owner() -> None:
    registry: Registry[Parameterized] = Registry("thing")
    registry.register(Sample)
    registry.register(Sample)  # the same class again, as a reload does
    assert list(registry) == ["sample"]
    assert registry.make("sample", 1) == Sample.make(1)
    with pytest.raises(ValueError, match=r"unknown thing 'sampel' \(did you mean 'sample'\?\); known: sample"):
        registry["sampel"]
    impostor = type("Impostor", (Parameterized,), {"name": "sample"})
    same_name = type("Sample", (Parameterized,), {"name": "sample", "__module__": "another"})
    for other in (impostor, same_name):
        with pytest.raises(ValueError, match="the thing name 'sample' is taken by"):
            registry.register(other)


def test_an_unknown_name_with_nothing_known_or_nothing_close_gets_no_hint() -> None:
    assert str(unknown("figure", "x", [])) == "unknown figure 'x'; known: none"
    assert str(unknown("figure", "zzz", ["fig3b"])) == "unknown figure 'zzz'; known: fig3b"


@pytest.mark.parametrize("epsilon", [-0.01, 1.01, "-1/255"])
def test_a_threat_model_refuses_a_radius_outside_the_pixel_range(epsilon: Any) -> None:
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\]"):
        ThreatModel(epsilon)


@pytest.mark.parametrize(
    ("field", "allowed"),
    [
        ("goal", "untargeted, targeted"),
        ("norm", "linf, l2, l1, spatial"),
        ("knowledge", "oblivious, black_box, adaptive"),
    ],
)
def test_a_threat_model_refuses_unknown_words(field: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be one of {allowed}; got 'x'"):
        ThreatModel(0.1, **{field: "x"})


def test_a_threat_model_reads_fractions() -> None:
    assert ThreatModel("8/255") == ThreatModel(8 / 255)  # type: ignore[arg-type]


def test_a_field_that_files_could_not_give_a_value_is_refused_and_a_cache_is_not() -> None:
    @dataclass(frozen=True)
    class Plain(Parameterized):
        """A field without a rule."""

        name: ClassVar[str] = "plain"
        sigma: float = 0.1

    @dataclass(frozen=True)
    class Cached(Parameterized):
        """A field that nobody gives a value."""

        name: ClassVar[str] = "cached"
        kept: dict[int, int] = field(init=False, default_factory=dict)

    with pytest.raises(ValueError, match=r"`sigma` must be declared by number\(...\), integer"):
        Registry[Any]("sample").register(Plain)
    assert Registry[Any]("sample").register(Cached) is Cached


def test_a_whole_number_that_is_declared_as_a_real_one_is_refused() -> None:
    @dataclass(frozen=True)
    class Steps(Parameterized):
        """Steps."""

        name: ClassVar[str] = "steps"
        steps: int = number("how many", 10)

    with pytest.raises(
        ValueError, match=r"`steps` is a whole number, and must be declared by integer\(...\), not number"
    ):
        Registry[Parameterized]("attack").register(Steps)
