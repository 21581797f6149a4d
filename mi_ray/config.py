"""A sweep file (YAML) as frozen, validated values; the presets and what each of their options means.

An unknown key is an error that lists the known ones. What needs the registries (the parameters of an attack or a
defense) is validated by `plan`, before any work starts.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mi_ray.parameters import unknown
from mi_ray.threat_model import Goal, Knowledge, ThreatModel, parse_number

Named = tuple[str, Any]  # a method as a file names it: (name, what is written under the name)


def named(written: object) -> Named:
    """`name`, `{name: value}` or `{name: {parameter: value}}` as (name, value); raises ValueError for others."""
    if isinstance(written, str):
        return written, {}
    if isinstance(written, Mapping) and len(written) == 1:
        ((name, value),) = written.items()
        return str(name), {} if value is None else value
    raise ValueError(f"must be a name, or one name with its parameters ({{name: {{…}}}}); got {written!r}")


def _listed(written: object) -> object:
    return list(written) if isinstance(written, (list, tuple)) else [written]


def _listed_if_any(written: object) -> object:
    return None if written is None else _listed(written)


def _epsilon(written: object) -> float:
    return ThreatModel(parse_number("epsilon", written)).epsilon


Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
NamedField = Annotated[Named, BeforeValidator(named)]


def _named_if_any(written: object) -> Named | None:
    return None if written is None else named(written)


# A module by its dotted name: what is imported is found on Python's path, never by a path that the file names.
Module = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
NUMBERS = (int, float, int | None, float | None)  # pydantic would take true for 1


class Strict(BaseModel):
    """Frozen; an unknown key is refused with the list of the known ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise unknown("key", key, list(cls.model_fields))
                if isinstance(data[key], bool) and cls.model_fields[key].annotation in NUMBERS:
                    raise ValueError(f"{key} must be a number; got {str(data[key]).lower()}")
        return data


class Options(Strict):
    """Every choice on which the paper's text, its released code and good practice differ (docs/methods.md).

    A preset is one setting of all of them; `options:` in a sweep file overrides single ones.
    """

    attack_labels: Literal["true", "predicted"] = "true"
    pool_split: Literal["train", "test"] = "train"
    pool_augmented: bool = False
    pool_limit_mi_pl: int | None = Field(None, ge=1)
    executions: int = Field(30, ge=1)
    executions_mi_pl: int | None = Field(None, ge=1)
    executions_mi_combined: int | None = Field(None, ge=1)
    combined_executions_pl: int | None = Field(None, ge=1)
    combined_accept: Literal["undefended", "pl_average"] = "undefended"
    combined_statistic: Literal["predicted_class", "maximum"] = "predicted_class"
    eight_bit: bool = False
    rotation_interpolation: Literal["bilinear", "nearest"] = "bilinear"
    adaptive_attack: Literal["eot_pgd", "averaged"] = "eot_pgd"
    draws: int = Field(3, ge=1)


class TrainingOptions(Strict):
    """What a preset changes in training; `training_preset` switches it alone."""

    inner_labels: Literal["true", "predicted"] = "true"
    first_epoch_at_lower_rate: Literal["drop", "drop_minus_one"] = "drop"


Preset = Literal["honest", "as_published"]
PRESETS: dict[str, tuple[Options, TrainingOptions, Literal["drawn", "first"]]] = {
    "honest": (Options(), TrainingOptions(), "drawn"),
    "as_published": (
        Options(
            attack_labels="predicted",
            pool_split="test",
            pool_augmented=True,
            pool_limit_mi_pl=1000,
            executions_mi_pl=10,
            executions_mi_combined=15,
            combined_executions_pl=5,
            combined_accept="pl_average",
            combined_statistic="maximum",
            eight_bit=True,
            rotation_interpolation="nearest",
            adaptive_attack="averaged",
            draws=1,
        ),
        TrainingOptions(inner_labels="predicted", first_epoch_at_lower_rate="drop_minus_one"),
        "first",
    ),
}


class Points(Strict):
    """The evaluated test points. Of `count`, the first `selection` serve only to choose settings by their result;
    every reported accuracy is of the others."""

    count: int = Field(1000, ge=1)
    selection: int = Field(0, ge=0)
    order: Literal["drawn", "first"] | None = None

    @model_validator(mode="after")
    def _some_are_reported(self) -> "Points":
        if self.selection >= self.count:
            raise ValueError(
                f"points.selection must be less than points.count, so that some are reported; got {self.selection} "
                f"of {self.count}"
            )
        return self


class Training(Strict):
    """How a classifier is trained (METHODS: momentum SGD). `batch_size` is global, over all workers."""

    epochs: int = Field(200, ge=1)
    batch_size: int = Field(64, ge=1)
    lr: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    lr_drops: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    warmup: int = Field(0, ge=0)
    flip: bool = True
    crop_padding: int = Field(4, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True


class ClassifierEntry(Strict):
    """A classifier to train (architecture, objective), or a user's own (factory, weights)."""

    name: str = Field(min_length=1)
    architecture: NamedField | None = None
    objective: NamedField = ("erm", {})
    training: Training = Training()
    workers: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    factory: str | None = Field(None, pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    arguments: dict[str, Any] = {}
    weights: str | None = None
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @model_validator(mode="after")
    def _trained_or_own(self) -> "ClassifierEntry":
        if (self.architecture is None) == (self.factory is None):
            raise ValueError(f"classifier {self.name!r} must have either `architecture` or `factory`")
        if self.factory is not None and self.weights is None:
            raise ValueError(f"classifier {self.name!r} has a factory and so must name its `weights` file")
        if any(s <= 0 for s in self.std) or not len(self.mean) == len(self.std) == 3:
            raise ValueError(
                f"classifier {self.name!r}: mean and std need one entry for each of 3 channels, std > 0; got "
                f"{list(self.mean)} and {list(self.std)}"
            )
        if self.training.batch_size % self.workers:
            raise ValueError(
                f"classifier {self.name!r}: the global batch_size must divide evenly over the workers; "
                f"got {self.training.batch_size} over {self.workers}"
            )
        return self


def _one_method(data: Any, keys: Iterable[str], what: str) -> dict[str, Any]:
    """What is written under the keys, each as a list, and the one other key as the method."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{what}; got {data!r}")
    known = {key: data[key] for key in keys if key in data}
    rest = {key: value for key, value in data.items() if key not in known}
    if len(rest) != 1:
        raise ValueError(f"{what}; got the methods {list(rest) or 'none'}")
    return {"method": named(rest), **known}


Names = Annotated[tuple[str, ...] | None, BeforeValidator(_listed_if_any)]
ADAPTIVE = "adaptive"  # as an attack's name: whichever attack the option `adaptive_attack` names


class AttackEntry(Strict):
    """One attack under one or several threat models: `{pgd: {steps: [10]}, epsilon: 8/255, goal: untargeted}`.

    knowledge: oblivious attacks are handed F, adaptive ones F behind each defense setting. classifiers, defenses: the
    only ones that are attacked; left out, all (adaptive attacks never attack `none`).
    """

    method: Named
    epsilon: Annotated[
        tuple[Annotated[float, BeforeValidator(_epsilon)], ...], BeforeValidator(_listed), Field(min_length=1)
    ]
    goal: Annotated[tuple[Goal, ...], BeforeValidator(_listed), Field(min_length=1)] = ("untargeted",)
    knowledge: Knowledge = "oblivious"
    classifiers: Names = None
    defenses: Names = None

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        rule = "an attack is one method with its threat model, such as {pgd: {steps: 10}, epsilon: 8/255, goal: untargeted}"
        return _one_method(data, ("epsilon", "goal", "knowledge", "classifiers", "defenses"), rule)

    @model_validator(mode="after")
    def _defenses_are_for_adaptive_attacks(self) -> "AttackEntry":
        if self.knowledge == "oblivious" and (self.defenses is not None or self.method[0] == ADAPTIVE):
            raise ValueError(
                f"an oblivious attack knows no defense: {self.method[0]} needs `knowledge: adaptive`, or no `defenses`"
            )
        return self

    def document(self) -> dict[str, Any]:
        """As a file would say it."""
        return {**self.model_dump(mode="json", exclude={"method"}), **dict([self.method])}


class DefenseEntry(Strict):
    """A defense with its axes: `none`, `{mi_ol: {lam: 0.5}}` or `{mi_ol: {lam: 0.5}, classifiers: [mixup]}`."""

    method: Named
    classifiers: Names = None

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        rule = "a defense must be a name, or one name with its parameters ({name: {…}}, and perhaps classifiers: […])"
        return _one_method({data: {}} if isinstance(data, str) else data, ("classifiers",), rule)

    def document(self) -> dict[str, Any]:
        """As a file would say it."""
        return {**self.model_dump(mode="json", exclude={"method"}), **dict([self.method])}


class Checks(Strict):
    """How much is spent on the checks that judge an attack (docs/checks.md): `cheap` ones read stored rows alone;
    `subset` also runs stronger and control attacks on the first `points` points, `full` on all."""

    level: Literal["cheap", "subset", "full"] = "subset"
    points: int = Field(100, ge=1)


def _checks(written: object) -> object:
    return {"level": written} if isinstance(written, str) else written


EACH_OPTION = "each_option"


class OptunaSearch(Strict):
    """Multi-objective search for the frontier: `trials` settings a classifier, told to the sampler in fixed rounds."""

    sampler: Literal["tpe", "nsgaii"] = "nsgaii"
    trials: int = Field(64, ge=1)
    round: int = Field(8, ge=1)


UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def _bytes(written: object) -> object:
    """`auto`, a number of bytes, or a number with a unit, as in 2 GiB. Raises ValueError for other text."""
    if not isinstance(written, str):
        return written
    if written == "auto":
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", written)
    if found is None or found[2].upper() not in UNITS:
        raise ValueError(f"must be auto, bytes, or a number with B, kB, MB, GB, KiB, MiB or GiB; got {written!r}")
    return int(float(found[1]) * UNITS[found[2].upper()])


class BlockResources(Strict):
    """What one block of points (an attack task or a defense trial) asks of Ray.

    time_limit: seconds after which a running block is taken to hang: it is stopped and tried again, then reported.
    memory_budget: bytes that its canonical batches in flight may take, `auto` by what is free: how many there are,
    never their shape.
    """

    points: int = Field(200, ge=1)
    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)
    time_limit: float | None = Field(None, gt=0)
    memory_budget: Annotated[int | None, BeforeValidator(_bytes)] = Field(None, ge=1)


class TrainResources(Strict):
    """What one training worker asks of Ray."""

    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)


class Resources(Strict):
    """How work is spread: no value here changes a result, but for whether blocks and training ask for GPUs."""

    block: BlockResources = BlockResources()
    train: TrainResources = TrainResources()
    trials_at_once: int | None = Field(None, ge=1)


def _search(written: object) -> object:
    if written == "grid":
        return None
    name, value = named(written)
    if name != "optuna":
        raise unknown("search", name, ["grid", "optuna"])
    return value


class Sweep(Strict):
    """One study: classifiers x attacks x defenses with their grids, on one dataset."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=100)  # a folder's name: never a path
    preset: Preset = "honest"
    training_preset: Preset | None = None
    options: dict[str, Any] = {}
    seed: int = Field(0, ge=0, lt=2**63)
    dataset: NamedField = ("digits", {})
    pool: Annotated[Named | None, BeforeValidator(_named_if_any)] = None
    points: Points = Points()
    classifiers: tuple[ClassifierEntry, ...] = Field(min_length=1)
    attacks: tuple[AttackEntry, ...] = Field(min_length=1)
    defenses: tuple[DefenseEntry, ...] = Field(min_length=1)
    executions: Annotated[Counts | None, BeforeValidator(_listed_if_any)] = None
    draws: int | None = Field(None, ge=1)
    search: Annotated[OptunaSearch | None, BeforeValidator(_search)] = None
    checks: Annotated[Checks, BeforeValidator(_checks)] = Checks()
    variants: Literal["each_option"] | dict[str, dict[str, Any]] = {}
    counterparts: bool = False
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    compile: Literal["default", "reduce-overhead"] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch: int = Field(50, ge=1)
    resources: Resources = Resources()
    plugins: tuple[Module, ...] = ()
    figures: tuple[Module, ...] = ("fig3b", "frontier_table")

    @model_validator(mode="after")
    def _coherent(self) -> "Sweep":
        names = [entry.name for entry in self.classifiers]
        if len(set(names)) != len(names):
            raise ValueError(f"classifiers must have different names; got {', '.join(names)}")
        if self.search is not None and self.points.selection == 0:
            raise ValueError(
                "search: optuna chooses settings by their result, so points.selection must be above 0; got 0"
            )
        real = [entry for entry in self.defenses if entry.method[0] != "none"]
        bare = [name for name in names if not any(e.classifiers is None or name in e.classifiers for e in real)]
        if self.search is not None and bare:
            raise ValueError(f"search: optuna needs a defense to search on each classifier; {bare[0]} has only `none`")
        if self.search is not None and self.variants:
            raise ValueError("search: optuna searches one set of options; leave `variants` out")
        asked = [entry.classifiers for entry in self.attacks] + [entry.classifiers for entry in self.defenses]
        for name in (name for some in asked for name in some or ()):
            if name not in names:
                raise unknown("classifier", name, names)
        attackable = list(dict.fromkeys(entry.method[0] for entry in real))
        for name in (name for entry in self.attacks for name in entry.defenses or ()):
            if name not in attackable:
                raise unknown("defense to attack", name, attackable)
        if self.variants != EACH_OPTION and "" in self.variants:
            raise ValueError("variants must have names; the study itself is the one without")
        self.resolved_variants()
        return self

    def document(self) -> dict[str, Any]:
        """The sweep as a file would say it, every default and option written out; `load_sweep` reads it back."""
        found = self.model_dump(mode="json")
        found["dataset"] = dict([self.dataset])
        found["options"] = self.resolved_options().model_dump()
        found["pool"] = None if self.pool is None else dict([self.pool])
        found["defenses"] = [entry.document() for entry in self.defenses]
        found["attacks"] = [entry.document() for entry in self.attacks]
        found["search"] = "grid" if self.search is None else {"optuna": self.search.model_dump()}
        for written, entry in zip(found["classifiers"], self.classifiers, strict=True):
            written["objective"] = dict([entry.objective])
            written["architecture"] = None if entry.architecture is None else dict([entry.architecture])
        return found

    @property
    def names_code(self) -> bool:
        """Whether it names a person's own modules, whose code then runs."""
        own = any(entry.factory is not None for entry in self.classifiers)
        return bool(self.plugins) or own or any("." in figure for figure in self.figures)

    def resolved_options(self) -> Options:
        """The preset's options with the file's own on top; raises ValueError for an unknown one."""
        return _options(PRESETS[self.preset][0], self.options)

    def resolved_variants(self) -> dict[str, Options]:
        """The options of the study itself, under "", then those of each variant.

        `each_option`: the whole preset as_published, then each option that it changes, switched alone.
        Raises ValueError for an unknown option, and for a variant that changes nothing.
        """
        own = self.resolved_options()
        if isinstance(self.variants, str):
            honest, published = (PRESETS[name][0].model_dump() for name in ("honest", "as_published"))
            changed = {name: value for name, value in published.items() if value != honest[name]}
            every = {"as_published": changed, **{name: {name: value} for name, value in changed.items()}}
            found = {name: _options(own, changes) for name, changes in every.items()}
            found = {name: options for name, options in found.items() if options != own}
        else:
            found = {name: _options(own, changes) for name, changes in self.variants.items()}
            same = [name for name, options in found.items() if options == own]
            if same:
                raise ValueError(f"variants must change an option of the study; these do not: {', '.join(same)}")
        return {"": own, **found}

    def training_options(self) -> TrainingOptions:
        """What the (training) preset says of training."""
        return PRESETS[self.training_preset or self.preset][1]

    def points_order(self) -> Literal["drawn", "first"]:
        """How the evaluated points are taken from the test split."""
        return self.points.order or PRESETS[self.preset][2]

    def executions_of(self, defense: str, options: Options) -> tuple[int, ...]:
        """The requested numbers of executions N of a defense: the file's, else those of the options."""
        if self.executions is not None:
            return tuple(sorted(set(self.executions)))
        return (int(getattr(options, f"executions_{defense}", None) or options.executions),)

    def draws_of(self, options: Options) -> int:
        """Independent draws of N executions per point: the file's, else those of the options."""
        return self.draws or options.draws


def _options(base: Options, changes: Mapping[str, Any]) -> Options:
    try:
        return Options.model_validate({**base.model_dump(), **changes})
    except ValidationError as error:
        raise ValueError("options: " + first_problem(error)) from error


def first_problem(error: ValidationError) -> str:
    """The most telling of pydantic's problems as one line: where, the rule, the value."""
    problem = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    text = problem["msg"].removeprefix("Value error, ")
    shown = problem.get("input")
    if problem["type"] != "value_error" and problem["type"] != "missing":
        text += f"; got {shown!r}"
    return f"{where}: {text}" if where else text
