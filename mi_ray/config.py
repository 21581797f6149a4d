"""A sweep as frozen, validated values: every key of a sweep file with its meaning, and the presets.

An unknown key is an error that lists the known ones. The parameters of attacks, defenses, objectives, architectures and
datasets belong to their own classes, and are checked when the study is planned, before any work starts.
docs/sweep-file.md and the table of presets in docs/methods.md hold the same sentences as the fields here.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from mi_ray.parameters import Method, read_method, unknown
from mi_ray.refusals import FACTORY, MODULE, NAME, first_problem, shown
from mi_ray.threat_model import Goal, Knowledge, Norm, ThreatModel, parse_number
from mi_ray.zoo import zoo_card, zoo_names, zoo_weights


def _listed(written: object) -> object:
    return list(written) if isinstance(written, (list, tuple)) else [written]


def _listed_if_any(written: object) -> object:
    return None if written is None else _listed(written)


def _epsilon(written: object, info: ValidationInfo) -> float:
    """A radius in the entry's norm, which pydantic has read before; in the max norm where that is wrong itself."""
    return ThreatModel(parse_number("epsilon", written), norm=info.data.get("norm", "linf")).epsilon


def _no_flag(written: object) -> object:
    """The value; Pydantic alone would take `true` for 1. Raises ValueError for true and false."""
    if isinstance(written, bool):
        raise ValueError(f"must be a whole number; got {shown(written)}")
    return written


def _read_quotient(written: object) -> object:
    """A number that is written as a quotient, such as 125/255; everything else as it is."""
    return parse_number("it", written) if isinstance(written, str) and "/" in written else written


Real = Annotated[float, BeforeValidator(_read_quotient)]
Counts = Annotated[tuple[Annotated[int, BeforeValidator(_no_flag), Field(ge=1)], ...], Field(min_length=1)]
MethodField = Annotated[Method, BeforeValidator(read_method)]


def _method_if_any(written: object) -> Method | None:
    return None if written is None else read_method(written)


# A module by its dotted name: what is imported is found on Python's path, and never by a path that a file names.
Module = Annotated[str, Field(pattern=MODULE)]
NUMBERS = (int, float, int | None, float | None)  # Pydantic alone would take `true` for 1 here.


class Strict(BaseModel):
    """A mapping of a sweep file: frozen, and an unknown key is refused with the list of the known ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise unknown("key", key, list(cls.model_fields))
                if isinstance(data[key], bool) and cls.model_fields[key].annotation in NUMBERS:
                    raise ValueError(f"{key} must be a number; got {str(data[key]).lower()}")
        return data


class Options(Strict):
    """Every choice on which the paper's text, its released code and good practice differ.

    A preset is one setting of all of them; `options:` in a sweep file overrides single ones.
    """

    attack_labels: Literal["true", "predicted"] = Field(
        "true",
        description="The labels that an untargeted attack moves images away from: the true ones, or the classifier's own "
        "predictions, so that an image that it gets wrong is pushed back to right.",
    )
    pool_split: Literal["train", "test"] = Field(
        "train",
        description="The split that the sample pool of mixup inference is of: the train split less exact copies of test "
        "images, or the test split, which holds the image under attack.",
    )
    pool_augmented: bool = Field(
        False, description="Whether the pool's images are flipped and cropped at random, as in training."
    )
    pool_augmentation: Literal["fresh", "frozen"] = Field(
        "fresh",
        description="How often an image of an augmented pool is flipped and cropped: `fresh`, anew whenever it is drawn, or "
        "`frozen`, once, when the pool is made, as in the released code, whose attack_resnet_mixuptest_*.py keep what their "
        "loader hands them once.",
    )
    pool_limit_mi_pl: int | None = Field(
        None, ge=1, description="The number of images that MI-PL draws from; all of the pool when left out."
    )
    pool_limit_in_mi_combined: bool = Field(
        True,
        description="Whether that number holds for the MI-PL within MI-Combined too. It does not in the released code: "
        "attack_resnet_mixuptest_PL.py has 1,000 images, attack_resnet_mixuptest_Combined.py 10,000.",
    )
    executions: int = Field(
        30, ge=1, description="N of Alg. 1: the random executions whose softmax outputs are averaged."
    )
    executions_mi_pl: int | None = Field(None, ge=1, description="N of MI-PL, where it has one of its own.")
    executions_mi_combined: int | None = Field(
        None, ge=1, description="N of MI-Combined's MI-OL, where it has one of its own."
    )
    combined_executions_pl: int | None = Field(
        None, ge=1, description="N of MI-Combined's MI-PL, where it has one of its own."
    )
    combined_accept: Literal["undefended", "pl_average"] = Field(
        "undefended",
        description="What MI-Combined answers on an input that its detector accepts: F(x), as the text says, or the "
        "average of MI-PL.",
    )
    combined_statistic: Literal["predicted_class", "maximum"] = Field(
        "predicted_class",
        description="What MI-Combined compares with its threshold: F_ŷ(x) - F_MI-PL,ŷ(x), or max F(x) - max F_MI-PL(x), "
        "which may be of two different classes.",
    )
    eight_bit: bool = Field(
        False,
        description="Whether rotation, pad and resize pass through 8-bit images with truncation, where 63 of 256 grey "
        "levels fall by one.",
    )
    rotation_interpolation: Literal["bilinear", "nearest"] = Field(
        "bilinear", description="How a rotated image is interpolated."
    )
    adaptive_attack: Literal["eot_pgd", "averaged"] = Field(
        "eot_pgd", description="The attack that a sweep means by the name `adaptive`."
    )
    draws: int = Field(3, ge=1, description="Independent draws of N executions for each point.")


class TrainingOptions(Strict):
    """What a preset changes in training; `training_preset` switches it alone."""

    inner_labels: Literal["true", "predicted"] = Field(
        "true", description="The labels that the attack inside adversarial training moves images away from."
    )
    first_epoch_at_lower_rate: Literal["drop", "drop_minus_one"] = Field(
        "drop",
        description="The first epochs at a lower learning rate, counted from 0, where `lr_drops` leaves them out: one half "
        "and three quarters of all (100 and 150 of 200), or the ones before them (99 and 149).",
    )


Preset = Literal["honest", "as_published"]
PRESETS: dict[str, tuple[Options, TrainingOptions, Literal["drawn", "first"]]] = {
    "honest": (Options(), TrainingOptions(), "drawn"),
    "as_published": (
        Options(
            attack_labels="predicted",
            pool_split="test",
            pool_augmented=True,
            pool_augmentation="frozen",
            pool_limit_mi_pl=1000,
            pool_limit_in_mi_combined=False,
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
}  # for each preset its options, its options of training, and the order of the points


class Points(Strict):
    """The images of the test split that are attacked and defended."""

    count: int = Field(1000, ge=1, description="The number of images, at most the size of the test split.")
    selection: int = Field(
        0,
        ge=0,
        description="How many of them, the first, serve only to choose settings by their result; every reported accuracy "
        "is of the others. With none, settings are chosen on the points that are reported, which flatters them; figures and "
        "tables then say `optimistic`.",
    )
    order: Literal["drawn", "first"] | None = Field(
        None,
        description="Whether the images are drawn from the test split by the seed or are its first ones; the preset "
        "decides when left out.",
    )

    @model_validator(mode="after")
    def _some_are_reported(self) -> "Points":
        if self.selection >= self.count:
            raise ValueError(
                f"points.selection must be less than points.count, so that some are reported; got {self.selection} "
                f"of {self.count}"
            )
        return self


class Training(Strict):
    """How a classifier is trained: by stochastic gradient descent with momentum (paper, Sec. 4.1)."""

    epochs: int = Field(200, ge=1, description="Passes over the train split.")
    batch_size: int = Field(64, ge=1, description="Images of a step, over all workers together.")
    lr: Real = Field(0.01, gt=0, description="The learning rate at the beginning.")
    momentum: Real = Field(0.9, ge=0, lt=1, description="The momentum of SGD.")
    weight_decay: Real = Field(0.0, ge=0, description="The weight of the L2 penalty.")
    lr_drops: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        description="The epochs at which the rate falls tenfold; when left out, one half and three quarters of `epochs`.",
    )
    warmup: int = Field(
        0, ge=0, description="Epochs before the first one at `lr`; the rate rises over them, an epoch at a time."
    )
    flip: bool = Field(True, description="Whether images are flipped horizontally, each with probability 1/2.")
    crop_padding: int = Field(
        4, ge=0, description="Pixels of zero padding from which a crop of the image's own size is drawn; 0 is no crop."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="The arithmetic of the forward and backward passes.")
    channels_last: bool = Field(True, description="Whether images and weights lie in memory with the channels last.")


# The sources of networks by name that `mi_ray.named` registers, which imports torch and so is not imported here.
NETWORKS = ("timm", "torchvision", "huggingface", "robustbench", "torchscript", "exported")


def _on_one_line(name: str) -> str:
    """A classifier's name, which tables show and folders of curves have. Raises ValueError for one that cannot be that."""
    if len(name) > 100 or not name.isprintable() or not name.strip() or {*"/\\"} & {*name}:
        raise ValueError(f"must be at most 100 characters on one line, without / and \\; got {shown(name)}")
    return name


class ClassifierEntry(Strict):
    """A classifier to train, by its `architecture` and `objective`, one of your own, by its `weights` and its `factory` or
    `architecture`, one of the `zoo`, or one by the name that a library, a hub or a file gives it."""

    name: Annotated[str, AfterValidator(_on_one_line)] = Field(
        min_length=1, description="The name under which results know it, different from all others."
    )
    architecture: MethodField | None = Field(None, description="The network to train; `mi-ray list` names all.")
    objective: MethodField = Field(Method("erm", {}), description="What training minimises; `mi-ray list` names all.")
    training: Training = Field(Training(), description="How it is trained.")
    workers: int = Field(1, ge=1, description="Processes that train it together, each on its share of every batch.")
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        title="a whole number below 2^63",
        description="The seed of its initial weights and of its training; the sweep's when left out.",
    )
    factory: str | None = Field(
        None,
        pattern=FACTORY,
        description="A function of yours that builds the network, as `package.module:function`. Its code runs.",
    )
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of the factory, or for the source's network.")
    source: Method | None = Field(
        None,
        title="a name, or a mapping",
        description="A network by the name that one of these libraries, hubs or files gives it (docs/classifiers.md).",
    )
    weights: str | None = Field(
        None,
        description="The file with the network's weights, .safetensors or of `torch.save`, read as tensors alone; those that "
        "the factory or the source itself gives it when left out.",
    )
    input_size: int | None = Field(
        None,
        ge=1,
        description="The side in pixels to which the classifier itself resizes its images, bilinearly; what the source says "
        "of its weights, or the images' own size, when left out.",
    )
    zoo: str | None = Field(
        None,
        description="A trained classifier that comes with the program, by its name; its architecture, its weights and its "
        "normalisation come with it.",
    )
    mean: tuple[Real, ...] = Field(
        (0.5, 0.5, 0.5),
        description="What is subtracted from each channel of an image in [0, 1], before the network; of a network by name "
        "what its source says, when left out.",
    )
    std: tuple[Real, ...] = Field((0.5, 0.5, 0.5), description="What each channel is then divided by.")

    def answers_of(self, classes: int) -> dict[str, Any]:
        """What every description of a classifier says of its images and answers; it is part of keys."""
        size = {} if self.input_size is None else {"input_size": self.input_size}
        return {"classes": classes, "mean": list(self.mean), "std": list(self.std), **size}

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: object) -> object:
        if not isinstance(data, Mapping) or isinstance(data.get("source"), Method):
            return data
        named = [key for key in data if key in NETWORKS]
        if len(named) > 1 or "source" in data:
            raise ValueError(
                f"a classifier by name must have one of {', '.join(NETWORKS)}; got {', '.join(map(str, data))}"
            )
        rest = {key: value for key, value in data.items() if key not in named}
        return {**rest, "source": Method(named[0], data[named[0]])} if named else rest

    @model_validator(mode="after")
    def _trained_or_own(self) -> "ClassifierEntry":
        origins = {"architecture": self.architecture, "factory": self.factory, "zoo": self.zoo}
        given = [name for name, value in origins.items() if value is not None]
        given += [] if self.source is None else [self.source.name]
        if len(given) != 1:
            raise ValueError(
                f"classifier {self.name!r} must have one of `architecture`, `factory` and `zoo`, or one of "
                f"{', '.join(NETWORKS)}; got {' and '.join(given) or 'none of them'}"
            )
        if self.zoo is not None:
            self._refuse_beside_zoo(self.zoo)
        own = "factory" if self.factory is not None else "weights" if self.weights is not None else None
        if own and (self.training, self.objective, self.workers) != (Training(), Method("erm", {}), 1):
            raise ValueError(
                f"classifier {self.name!r} is your own, by its {own}, and is not trained here: leave out `training`, "
                "`objective` and `workers`"
            )
        if self.architecture is not None and self.arguments:
            raise ValueError(
                f"classifier {self.name!r}: `arguments` are for a factory; an architecture has its parameters under its name"
            )
        if max((*self.mean, *self.std), default=0) > 1:
            raise ValueError(
                f"classifier {self.name!r}: mean and std must be those of pixels in [0, 1], at most 1; got {list(self.mean)} "
                f"and {list(self.std)}: divide what is of 0..255 by 255"
            )
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

    def _refuse_beside_zoo(self, zoo: str) -> None:
        if zoo not in zoo_names():
            raise unknown("classifier of the zoo", zoo, zoo_names())
        known = ("arguments", "weights", "input_size", "mean", "std", "objective", "training", "workers", "seed")
        beside = [name for name in known if name in self.model_fields_set]
        if beside:
            raise ValueError(
                f"classifier {self.name!r} is of the zoo, which says all of it but its name; it has {', '.join(beside)} too"
            )

    def written_out(self) -> "ClassifierEntry":
        """The entry with what the zoo knows of it in place of its name there; any other entry as it is."""
        if self.zoo is None:
            return self
        card = zoo_card(self.zoo)
        known = {name: tuple(card[name]) for name in ("mean", "std")}
        made = {"architecture": Method(*card["architecture"]), "weights": str(zoo_weights(self.zoo)), "zoo": None}
        return self.model_copy(update={**known, **made})

    def document(self) -> dict[str, Any]:
        """The entry as a file would say it; what the zoo or its source says of it is left for them to say again."""
        if self.zoo is not None:
            return {"name": self.name, "zoo": self.zoo}
        unsaid = {"mean", "std"} - self.model_fields_set if self.source is not None else set()
        found = self.model_dump(mode="json", exclude={"source", *unsaid})
        found["objective"] = dict([self.objective])
        found["architecture"] = None if self.architecture is None else dict([self.architecture])
        return {**found, **dict([self.source])} if self.source is not None else found

    @property
    def given_whole(self) -> bool:
        """Whether its weights are known only once it is built: a network by name, or a factory's without a weights file."""
        return self.source is not None or (self.factory is not None and self.weights is None)


def _one_method(data: object, keys: Iterable[str], what: str) -> dict[str, object]:
    """What is written under the known keys, and the one other key as the method. Raises ValueError for none or two.

    It stands in the place of `Strict._known_keys`, which would refuse the method as a key that no field has.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{what}; got {shown(data)}")
    own = list(keys)
    known = {key: data[key] for key in own if key in data}
    rest = {key: value for key, value in data.items() if key not in known}
    if len(rest) != 1:
        meant = [f"{close[0]!r} by {key!r}" for key in rest if (close := get_close_matches(str(key), own, 1))]
        hint = f" (did you mean {' and '.join(meant)}?)" if meant else ""
        raise ValueError(f"{what}; got the methods {list(rest) or 'none'}{hint}")
    return {"method": read_method(rest), **known}


Names = Annotated[Annotated[tuple[str, ...], Field(min_length=1)] | None, BeforeValidator(_listed_if_any)]
ADAPTIVE = "adaptive"  # as an attack's name it means the attack that the option `adaptive_attack` names


class ImagesEntry(Strict):
    """An oblivious attack whose images another attack begins with: `{pgd: {steps: 50}, classifier: erm}`."""

    method: Method = Field(
        description="The attack with its parameters, under its own name; each of them has one value."
    )
    classifier: str | None = Field(
        None,
        description="The classifier that it is made on; the attacked one when left out, another one for a transfer.",
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        return _one_method(data, ("classifier",), "images are one attack, such as {pgd: {steps: 50}, classifier: erm}")

    def document(self) -> dict[str, Any]:
        """The entry as a file would say it."""
        return _entry_document(self, self.method)


class AttackEntry(Strict):
    """One attack under one or several threat models: `{pgd: {steps: [10]}, epsilon: 8/255, goal: untargeted}`."""

    method: Method = Field(
        description="The attack with its parameters, under its own name; `mi-ray list` names all. `adaptive` means the one "
        "that the option `adaptive_attack` names."
    )
    norm: Norm = Field(
        "linf",
        description="The norm that bounds the perturbation: `linf`, the largest change of a pixel; `l2`, the root of the sum "
        "of squares over all pixels and channels; `l1`, the sum of the sizes of all changes; or `spatial`, a "
        "rotation and shifts of the whole image (attack `spatial`).",
    )
    epsilon: Annotated[
        tuple[Annotated[float, BeforeValidator(_epsilon)], ...], BeforeValidator(_listed), Field(min_length=1)
    ] = Field(
        title="a number, or a list",
        description="The radius of the ball around each image, in [0, 1] pixels: at most 1 in the max norm (8/255 is usual), and "
        "at most the root of the number of pixels times channels in `l2` (0.5 is usual for 32 x 32 pixels), at "
        "most that number itself in `l1` (12 is usual there). In `spatial` a share: at 1 an image is turned by up to 30 "
        "degrees and shifted by up to a tenth of its side, either way.",
    )
    goal: Annotated[tuple[Goal, ...], BeforeValidator(_listed), Field(min_length=1)] = Field(
        ("untargeted",),
        title="`untargeted`, `targeted`, or both",
        description="Whether any wrong label is a success, or one target that is drawn for each point.",
    )
    knowledge: Knowledge = Field(
        "oblivious",
        description="What is attacked: the classifier F alone, or F behind each defense setting; `black_box` sees its answers "
        "alone (`square`, `random_noise`, `spatial`, `transfer`).",
    )
    classifiers: Names = Field(None, description="The only classifiers that are attacked; all when left out.")
    defenses: Annotated[
        Annotated[tuple[Annotated[Method, BeforeValidator(read_method)], ...], Field(min_length=1)] | None,
        BeforeValidator(_listed_if_any),
    ] = Field(
        None,
        description="The only defenses that an adaptive or black-box attack goes through; when left out all but `none` that it "
        "can be made on (one that abstains, as `reject` does, has to be evaded, and `averaged` needs a sample pool). A name "
        "stands for all settings of a defense, `{mi_ol: {lam: 0.6}}` for those that have these values.",
    )

    images: tuple[ImagesEntry, ...] = Field(
        (),
        description="Oblivious attacks of the same radius and goal whose images the attack begins with (`cascade`, `transfer`). "
        "They are part of what it is: nothing else that is stored is looked at.",
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        rule = "an attack is one method with its threat model, such as {pgd: {steps: 10}, epsilon: 8/255, goal: untargeted}"
        return _one_method(data, ("norm", "epsilon", "goal", "knowledge", "classifiers", "defenses", "images"), rule)

    @model_validator(mode="after")
    def _defenses_are_for_adaptive_attacks(self) -> "AttackEntry":
        if self.knowledge == "oblivious" and (self.defenses is not None or self.method.name == ADAPTIVE):
            raise ValueError(
                f"an oblivious attack knows no defense: {self.method.name} needs `knowledge: adaptive`, or no `defenses`"
            )
        return self

    def document(self) -> dict[str, Any]:
        """The entry as a file would say it."""
        found = _entry_document(self, self.method)
        if self.defenses is not None:
            found["defenses"] = [each.name if each.values == {} else dict([each]) for each in self.defenses]
        found["images"] = [entry.document() for entry in self.images]
        return found if self.images else {name: value for name, value in found.items() if name != "images"}


def _entry_document(entry: Strict, method: Method) -> dict[str, Any]:
    return {**entry.model_dump(mode="json", exclude={"method"}), **dict([method])}


class DefenseEntry(Strict):
    """A defense with its axes: `none`, `{mi_ol: {lam: 0.5}}` or `{mi_ol: {lam: 0.5}, classifiers: [mixup]}`."""

    method: Method = Field(
        description="The defense under its own name, with a value or several of each parameter: a list, "
        "`{linspace: [first, last, count]}` or `{arange: [first, last, step]}`. All combinations are settings."
    )
    classifiers: Names = Field(None, description="The only classifiers that it defends; all when left out.")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        rule = "a defense must be a name, or one name with its parameters ({name: {…}}, and perhaps classifiers: […])"
        return _one_method({data: {}} if isinstance(data, str) else data, ("classifiers",), rule)

    def document(self) -> dict[str, Any]:
        """The entry as a file would say it."""
        return _entry_document(self, self.method)


def _positive(written: object) -> float:
    value = parse_number("sigma", written)
    if not value > 0:
        raise ValueError(f"sigma must be above 0; got {value:g}")
    return value


Sigmas = tuple[Annotated[float, BeforeValidator(_positive)], ...]


class Certify(Strict):
    """Certificates by randomised smoothing of F's votes under Gaussian noise (Cohen, Rosenfeld and Kolter 2019): for each
    point a class and an L2 radius, right with probability 1 - alpha or more."""

    sigma: Annotated[Sigmas, BeforeValidator(_listed), Field(min_length=1)] = Field(
        title="a number, or a list",
        description="The standard deviation of the noise, in [0, 1] pixels; each value is certified by itself.",
    )
    n0: int = Field(100, ge=5, multiple_of=5, description="Votes that choose a point's class, in whole chunks of 5.")
    n: int = Field(
        1000,
        ge=5,
        multiple_of=5,
        description="Other votes, which bound the probability of that class; more give larger radii, and go on from what is "
        "stored. The paper has 100,000.",
    )
    alpha: Real = Field(0.001, gt=0, lt=1, description="The chance at most that a point's certificate is wrong.")
    radii: Annotated[tuple[Annotated[Real, Field(ge=0)], ...] | None, BeforeValidator(_listed_if_any)] = Field(
        None,
        min_length=1,
        title="a number, or a list",
        description="The L2 radii at which certified accuracy is reported; quarters of σ, as far as n can reach, when left out.",
    )
    classifiers: Names = Field(None, description="The only classifiers that are certified; all when left out.")

    @model_validator(mode="after")
    def _each_once(self) -> "Certify":
        if len({*self.sigma}) != len(self.sigma):
            raise ValueError(f"sigma must not name a value twice; got {[*self.sigma]}")
        return self


class Checks(Strict):
    """How much is spent on the checks that judge an attack (docs/checks.md)."""

    level: Literal["cheap", "subset", "full"] = Field(
        "subset",
        description="`cheap` reads stored rows alone; `subset` also runs control attacks: those that all attacks share on "
        "the first `points` points, an attack's own on fewer; `full` runs all of them on all points.",
    )
    points: int = Field(400, ge=1, description="The number of points of `subset`.")
    black_box: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether `subset` runs the black-box control: `auto` as far as all checks together cost no more than the "
        "study. `full` always does.",
    )
    binarization: int = Field(
        0,
        ge=0,
        description="On how many points each attack on the classifier alone also solves problems whose solution is known to "
        "exist (Zimmermann et al. 2022), which costs the attack again and 1,200 forward passes a point; 0 for none.",
    )


def _checks(written: object) -> object:
    """Checks as a mapping: one word is their level. Raises ValueError for what is neither, such as `checks: true`."""
    if not isinstance(written, (str, Mapping, Checks)):
        raise ValueError(f"must be cheap, subset, full, or a mapping of keys to values; got {shown(written)}")
    return {"level": written} if isinstance(written, str) else written


EACH_OPTION = "each_option"


def _storage(written: str) -> str:
    """Where a copy of a search is written. Raises ValueError for text that is neither a database's URL nor a journal file."""
    if "://" in written:
        if urlsplit(written).password is not None:
            raise ValueError(
                "must be a URL without a password, since it is written into the study's files: a password comes from the "
                "database's own file or variable, such as ~/.pgpass"
            )
    elif not written.endswith((".log", ".journal")):
        raise ValueError(
            f"must be a database's URL, such as sqlite:///search.db, or a journal file, whose name ends in .log or .journal; "
            f"got {shown(written)}"
        )
    return written


class OptunaSearch(Strict):
    """A search for the frontier with two objectives, clean and adversarial accuracy on the selection points, of which there
    have to be some.

    What it has tried are the study's cells, as those of a grid are: tables and figures show them, and `mi_ray.read_cells` has
    them with `selected` where none is better on the selection points. A setting that is chosen there goes, as it is written
    there, into a further sweep of the same store, for an adaptive attack through it or on other points.
    """

    sampler: Literal["tpe", "nsgaii"] = Field(
        "nsgaii",
        description="Optuna's sampler, which proposes the settings, at first at random: `nsgaii` crosses the best ones so far "
        "and draws a part anew, `tpe` models where good ones lie.",
    )
    trials: int = Field(64, ge=1, description="Settings that are tried on each classifier.")
    round: int = Field(
        8,
        ge=1,
        description="Settings that are proposed together, before the sampler is told their results; with `nsgaii` the size of "
        "its population too.",
    )
    storage: Annotated[str, AfterValidator(_storage)] | None = Field(
        None,
        description="Where a copy of the search is written, each round when it is complete, so that `optuna-dashboard` shows it "
        "while it runs: a database's URL, such as `sqlite:///search.db`, or a journal file, whose name ends in .log or .journal. "
        "Several searches may share it; a run writes its own there anew, in place of the copy of the run before. No result "
        "depends on it, and a study goes on where it fails.",
    )


UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def _bytes(written: object) -> object:
    """`auto`, a number of bytes, or a number with a unit, as in 2 GiB. Raises ValueError for other text."""
    if not isinstance(written, str):
        return written
    if written == "auto":
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", written)
    if found is None or found[2].upper() not in UNITS:
        raise ValueError(f"must be auto, bytes, or a number with B, kB, MB, GB, KiB, MiB or GiB; got {shown(written)}")
    return int(float(found[1]) * UNITS[found[2].upper()])


class BlockResources(Strict):
    """What one block of points, in an attack or in a trial of a defense setting, asks of Ray."""

    points: int = Field(200, ge=1, description="Points of a block, rounded down to whole batches, at least one batch.")
    cpus: Real = Field(1, gt=0, description="CPUs that a block reserves.")
    gpus: Real = Field(0, ge=0, description="GPUs that a block reserves; a fraction shares one.")
    time_limit: Real | None = Field(
        None,
        gt=0,
        description="Seconds after which a running block is taken to hang, is stopped and tried again; no limit when left "
        "out.",
    )
    memory_budget: Annotated[int | None, BeforeValidator(_bytes)] = Field(
        None,
        ge=1,
        title="`auto`, bytes, or text such as `2 GiB`",
        description="Bytes that a block's batches in flight may take; by what is free where it is `auto` or left out. It "
        "decides how many batches there are at once, and never their shape.",
    )


class TrainResources(Strict):
    """What one training worker asks of Ray."""

    cpus: Real = Field(
        1,
        gt=0,
        description="CPUs that a worker reserves, and its threads; part of a classifier's key where it trains on CPUs.",
    )
    gpus: Real = Field(
        0, ge=0, description="GPUs that a worker reserves; no part of one where a classifier has several workers."
    )


class Resources(Strict):
    """How work is spread. No value changes a result, except that blocks and trainings run on GPUs where they ask for some, and
    that a training on CPUs has as many threads as `train.cpus`, on which the last bits of its weights depend."""

    block: BlockResources = Field(BlockResources(), description="What a block of points asks of Ray.")
    train: TrainResources = Field(TrainResources(), description="What a training worker asks of Ray.")
    trials_at_once: int | None = Field(
        None, ge=1, description="Defense settings that run at the same time; as many as fit when left out."
    )


def _search(written: object) -> object:
    if written == "grid":
        return None
    name, value = read_method(written)
    if name == "grid":
        raise ValueError(f"grid has no parameters; got {shown(value)}")
    if name != "optuna":
        raise unknown("search", name, ["grid", "optuna"])
    return value


def _counterparts(written: object) -> object:
    if not isinstance(written, bool) and written != "mechanisms":
        raise ValueError(f"must be true, false or mechanisms; got {shown(written)}")
    return written


class Sweep(Strict):
    """One study: classifiers, attacks and defenses with their grids, on one dataset."""

    name: str = Field(
        pattern=NAME,  # It names a folder, and must never be a path.
        max_length=100,
        description="The study's name, and its folder in the store.",
    )
    preset: Preset = Field(
        "honest", description="The setting of all options (docs/methods.md) that the file itself leaves out."
    )
    training_preset: Preset | None = Field(
        None, description="The preset that training options come from; `preset` when left out."
    )
    options: dict[str, Any] = Field({}, description="Single options (docs/methods.md) that differ from the preset.")
    seed: int = Field(
        0, ge=0, lt=2**63, title="a whole number below 2^63", description="The seed of everything random."
    )
    dataset: MethodField = Field(
        Method("digits", {}), description="The images and labels; `mi-ray list` names all kinds of datasets."
    )
    pool: Annotated[Method | None, BeforeValidator(_method_if_any)] = Field(
        None,
        description="Another dataset whose images are mixed in by mixup inference; the dataset itself when left out.",
    )
    points: Points = Field(Points(), description="The images that are attacked and defended.")
    classifiers: tuple[ClassifierEntry, ...] = Field(min_length=1, description="The classifiers.")
    attacks: tuple[AttackEntry, ...] = Field(min_length=1, description="The attacks.")
    defenses: tuple[DefenseEntry, ...] = Field(min_length=1, description="The defenses.")
    executions: Annotated[Counts | None, BeforeValidator(_listed_if_any)] = Field(
        None,
        title="a whole number, or a list",
        description="N of Alg. 1; a list is read off one run. The options decide when left out.",
    )
    draws: int | None = Field(
        None, ge=1, description="Independent draws of N executions for each point; the option when left out."
    )
    search: Annotated[OptunaSearch | None, BeforeValidator(_search)] = Field(
        None,
        title="`grid`, or `optuna` with a mapping",
        description="Whether every setting is evaluated, as when left out, or Optuna searches for the frontier: among the "
        "settings, and between the values too where `linspace` or `arange` give a range.",
    )
    checks: Annotated[Checks, BeforeValidator(_checks)] = Field(
        Checks(),
        title="`cheap`, `subset`, `full`, or a mapping",
        description="What is spent on judging the attacks; `subset` when left out.",
    )
    certify: Certify | None = Field(
        None, description="What is certified beside the attacks (`certify`); nothing when left out."
    )
    variants: Literal["each_option"] | dict[str, dict[str, Any]] = Field(
        {},
        description="Other options under which the cells are evaluated too, by a name for each; `each_option`: all "
        "options that `as_published` changes together, then each of them alone.",
    )
    counterparts: Annotated[bool | Literal["mechanisms"], BeforeValidator(_counterparts)] = Field(
        False,
        description="Whether clean mixtures are evaluated too, as Fig. 2 needs them: one more pass an execution; with "
        "`mechanisms` also clean mixtures with the whole perturbation, which tell input transfer from perturbation "
        "shrinkage (Eq. 13): two more.",
    )
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32",
        description="The arithmetic of attacks and evaluation; `auto` takes bf16 where a paired check shows no difference.",
    )
    compile: Literal["auto", "default", "reduce-overhead"] | None = Field(
        None,
        description="`auto`: on a CPU, networks become compiled graphs, once a machine, where enough passes are planned; or a "
        "mode of `torch.compile`, which takes half a minute for each shape in each worker. On a CPU each needs a C++ compiler; "
        "not compiled when left out.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="The kind of device that blocks run on; `auto` is cuda where blocks ask for GPUs."
    )
    batch: int = Field(
        50,
        ge=1,
        description="Points of a canonical batch, the unit of all arithmetic; part of the key of every attack and output.",
    )
    resources: Resources = Field(Resources(), description="How work is spread over the machines.")
    plugins: tuple[Module, ...] = Field(
        (),
        description="Modules of yours, by dotted name, that register attacks, defenses and the like. Their code runs.",
    )
    figures: tuple[Module, ...] = Field(
        ("fig3b", "frontier_table"),
        description="The figures and tables to draw, which `mi-ray list` names, or modules of yours with `make`, such as "
        "my_package.my_figure.",
    )

    @model_validator(mode="after")
    def _classifiers_have_names_of_their_own(self) -> "Sweep":
        names = self._classifier_names
        if len(set(names)) != len(names):
            raise ValueError(f"classifiers must have different names; got {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _workers_share_no_gpu(self) -> "Sweep":
        """NCCL, by which the workers of one training exchange gradients, takes one process a GPU."""
        several, gpus = [entry.name for entry in self.classifiers if entry.workers > 1], self.resources.train.gpus
        if several and 0 < gpus < 1:
            raise ValueError(
                "resources.train.gpus must be 0 or a whole number where a classifier has several workers, which cannot share a "
                f"GPU; got {gpus:g} and {', '.join(several)}"
            )
        return self

    @model_validator(mode="after")
    def _a_search_has_what_it_needs(self) -> "Sweep":
        if self.search is None:
            return self
        if self.points.selection == 0:
            raise ValueError(
                "search: optuna chooses settings by their result, so points.selection must be above 0; got 0"
            )
        for name in self._classifier_names:
            if not any(entry.classifiers is None or name in entry.classifiers for entry in self._real_defenses):
                raise ValueError(f"search: optuna needs a defense to search on each classifier; {name} has only `none`")
        if self.variants:
            raise ValueError("search: optuna searches one set of options; leave `variants` out")
        return self

    @model_validator(mode="after")
    def _asked_for_classifiers_are_there(self) -> "Sweep":
        asked = [entry.classifiers for entry in self.attacks] + [entry.classifiers for entry in self.defenses]
        asked += [] if self.certify is None else [self.certify.classifiers]
        begun = (each.classifier for entry in self.attacks for each in entry.images if each.classifier is not None)
        for name in (*(name for some in asked for name in some or ()), *begun):
            if name not in self._classifier_names:
                raise unknown("classifier", name, self._classifier_names)
        return self

    @model_validator(mode="after")
    def _attacks_are_kept_to_defenses_that_are_there(self) -> "Sweep":
        defenses = list(dict.fromkeys(entry.method.name for entry in self._real_defenses))
        asked = [(at, *each) for at, entry in enumerate(self.attacks) for each in entry.defenses or ()]
        for at, name, values in asked:
            if name not in defenses:  # The mistake may as well be in `defenses`, so the line names both places.
                told = unknown("defense to attack", name, defenses)
                raise ValueError(f"attacks[{at}]: {told}, as `defenses` lists them")
            if values != {} and self.search is not None:
                raise ValueError(
                    "search: optuna proposes settings itself, so an attack names whole defenses; "
                    f"got defenses: [{{{name}: {shown(values)}}}]"
                )
        return self

    @model_validator(mode="after")
    def _variants_have_names_and_change_something(self) -> "Sweep":
        if self.variants != EACH_OPTION and "" in self.variants:
            raise ValueError("variants must have names; the study itself is the one without")
        self.resolved_variants()
        return self

    @property
    def _classifier_names(self) -> list[str]:
        return [entry.name for entry in self.classifiers]

    @property
    def _real_defenses(self) -> list["DefenseEntry"]:
        return [entry for entry in self.defenses if entry.method.name != "none"]

    def document(self) -> dict[str, Any]:
        """The sweep as a file would say it, with every default and option written out; `load_sweep` reads it back."""
        found = self.model_dump(mode="json")
        found["dataset"] = dict([self.dataset])
        found["options"] = self.resolved_options().model_dump()
        found["pool"] = None if self.pool is None else dict([self.pool])
        found["defenses"] = [entry.document() for entry in self.defenses]
        found["attacks"] = [entry.document() for entry in self.attacks]
        found["search"] = "grid" if self.search is None else {"optuna": self.search.model_dump(exclude_none=True)}
        found["classifiers"] = [entry.document() for entry in self.classifiers]
        return found

    @property
    def names_code(self) -> bool:
        """Whether it names a person's own modules, whose code then runs."""
        return bool(self.plugins or self.factories or self.own_figures)

    @property
    def own_figures(self) -> tuple[str, ...]:
        """The figures that are a person's own modules."""
        return tuple(name for name in self.figures if not (Path(__file__).parent / f"figures/{name}.py").is_file())

    @property
    def factories(self) -> tuple[str, ...]:
        """The functions of a person's own that build its classifiers, and networks within its defenses."""
        own = [entry.factory for entry in self.classifiers if entry.factory is not None]
        told = [text for entry in self.defenses for text in texts_in(entry.method.values)]
        theirs = (text for text in told if re.fullmatch(FACTORY, text) and not text.startswith("mi_ray."))
        return (*own, *theirs)

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
            found = {name: _options(own, changes) for name, changes in each_option().items()}
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

    def requested_executions(self, defense: str, options: Options) -> tuple[int, ...]:
        """The requested numbers of executions N of a defense: the file's, else those of the options."""
        if self.executions is not None:
            return tuple(sorted(set(self.executions)))
        return (int(getattr(options, f"executions_{defense}", None) or options.executions),)

    def requested_draws(self, options: Options) -> int:
        """Independent draws of N executions per point: the file's, else those of the options."""
        return self.draws or options.draws


def texts_in(value: object) -> Iterator[str]:
    """All texts among nested values; names of data files and of a person's own functions are among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(inner)


def each_option() -> dict[str, dict[str, Any]]:
    """What the variants `each_option` change: all that as_published changes together, then each of that alone."""
    honest, published = (PRESETS[name][0].model_dump() for name in ("honest", "as_published"))
    changed = {name: value for name, value in published.items() if value != honest[name]}
    return {"as_published": changed, **{name: {name: value} for name, value in changed.items()}}


def _options(base: Options, changes: Mapping[str, object]) -> Options:
    try:
        return Options.model_validate({**base.model_dump(), **changes})
    except ValidationError as error:
        raise ValueError("options: " + first_problem(error)) from error
