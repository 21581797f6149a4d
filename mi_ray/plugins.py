"""Plugins: the contract that every attack, defense and objective keeps, and what holds a person's own to it."""

import contextlib
import importlib.util
import itertools
import keyword
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mi_ray.attacks import ATTACKS, Adversarial, Attack, ImagesAttack, OutsideBallError
from mi_ray.attacks.criterion import criterion
from mi_ray.classifiers import Classifier, build_classifier
from mi_ray.data import Dataset
from mi_ray.defenses import DEFENSES, DefendedClassifier, Defense, RandomTransform, predict
from mi_ray.defenses.base import log_answer
from mi_ray.device import PassCounter
from mi_ray.figures.draw import known_figures
from mi_ray.objectives import OBJECTIVES, Objective
from mi_ray.own_code import look_in, own_place
from mi_ray.parameters import Parameter, Parameterized, Registry, unknown
from mi_ray.randomness import Key
from mi_ray.sample_pool import SamplePool
from mi_ray.study.trying import look_problems, objective_problems, transformation_problems, try_attack
from mi_ray.sweep_files import PACKAGED, make_folder
from mi_ray.threat_model import Goal, Norm, ThreatModel

KINDS: dict[str, Registry[Any]] = {"attack": ATTACKS, "defense": DEFENSES, "objective": OBJECTIVES}
CLASSES = 4
RADII: Mapping[Norm, float] = {"linf": 8 / 255, "l2": 1.0, "l1": 5.0, "spatial": 1.0}
POINTS = range(100, 106)
NEW = PACKAGED / "new"  # what `mi-ray new` writes
STATES = itertools.count(1)
Problems = Iterator[str]


def new_plugin(kind: str, name: str, folder: str | Path = ".") -> list[Path]:
    """Write a working attack, defense or objective of that name and its test, or a figure; returns the files.

    Raises ValueError for another kind, for a name that Python cannot import or that mi_ray has already, and where one of the
    files is there.
    """
    kinds = sorted(file.stem for file in NEW.glob("*.py") if not file.stem.startswith("test_"))
    if kind not in kinds:
        raise unknown("kind of plugin", kind, kinds)
    if not name.isidentifier() or not name.islower() or keyword.iskeyword(name):
        raise ValueError(f"a plugin's name must be a Python name in lower case, as in my_{kind}; got {name!r}")
    files = {Path(folder) / f"{name}.py": f"{kind}.py"}
    if kind != "figure":  # Its contract is the list that `make` returns, which drawing it checks.
        files[Path(folder) / f"test_{name}.py"] = "test_plugin.py"
    there = [str(file) for file in files if file.exists()]
    if there:
        raise ValueError(f"nothing is overwritten: {', '.join(there)} must not be there; give another name or folder")
    if name in (known_figures() if kind == "figure" else KINDS[kind]):
        raise ValueError(f"a plugin's name must be of no {kind} of mi_ray; got {name!r}")
    if name in sys.builtin_module_names or PathFinder.find_spec(name) is not None:
        raise ValueError(
            f"a plugin's name must be of no module that is installed, which a sweep would import in its place; got {name!r}"
        )
    make_folder(folder)
    for file, source in files.items():
        text = (NEW / source).read_text(encoding="utf-8")
        class_name = name.title().replace("_", "")
        file.write_text(text.replace("NAME", name).replace("CLASS", class_name).replace("KIND", kind), encoding="utf-8")
    return list(files)


def contract_failures(file: str | Path, begun: Callable[[str], None] = lambda what: None) -> list[str]:
    """What a plugin's classes do not keep of their contracts, a line each; nothing where all is well.

    file: a Python file, which is imported: its code runs. begun: is told of each class whose turn it is, since one may take
    long. Raises ValueError where the file registers nothing.
    """
    failures = []
    path = Path(file)
    try:
        methods = _registered(path)
    except (Exception, SystemExit) as error:  # The code is a person's own, and may raise anything.
        return [" ".join(f"{path.name} must be importable: {_raised(error)}".split())]
    if not methods:
        raise ValueError(
            f"{path} must register an attack, a defense or an objective; it registers none (@ATTACKS.register, "
            "@DEFENSES.register or @OBJECTIVES.register above the class does; a figure is tried by drawing it)"
        )
    for kind, method in methods:
        begun(f"{kind} {method.name}")
        failures += [f"{kind} {method.name}: {problem}" for problem in _told(CONTRACTS[kind], method)]
    return [" ".join(failure.split()) for failure in failures]


def _told(checks: Callable[[Any], Problems], method: type[Parameterized]) -> Problems:
    """What the checks of one method find, and what it raises as the last of them."""
    example: dict[str, Any] = {}
    try:
        if not (method.__doc__ or "").strip() or (method.__doc__ or "").startswith(f"{method.__name__}("):
            yield "it must have a docstring, whose first sentence `mi-ray list` shows"
        example = _example(method)
        yield from checks(method.make(example))
    except (Exception, SystemExit) as error:  # as above
        given = ", ".join(f"{key} = {value}" for key, value in example.items())
        chosen = f"; it was tried with {given}, since a parameter without a default gets a value of its range"
        yield f"it must run; {_raised(error)}{chosen if given else ''}"


def _raised(error: BaseException) -> str:
    """What a plugin's code raised, and the line of it that did."""
    return f"{type(error).__name__}: {error}{own_place(error)}"


def _registered(path: Path) -> list[tuple[str, type[Parameterized]]]:
    """(kind, class) of everything that a file registers, after importing it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} must be a Python file")
    look_in(path.resolve().parent)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    every = [(kind, registry[name]) for kind, registry in KINDS.items() for name in registry]
    return [(kind, method) for kind, method in every if method.__module__ == path.stem]


def _example(method: type[Parameterized]) -> dict[str, Any]:
    """A value in the middle of the range of each parameter that has no default.

    A class may refuse some, such as whole numbers that are no power of two: then it is asked for lower ones.
    """
    required = {key: method.parameters()[key] for key in method.required()}
    examples = [{key: _middle(parameter, above) for key, parameter in required.items()} for above in (2, 1, 0)]
    for example in examples:
        with contextlib.suppress(ValueError):
            method.make(example)
            return example
    return examples[0]


def _middle(parameter: Parameter, above: int) -> Any:
    """A value of a parameter. above: how far above the lowest a whole number is."""
    low = 0.0 if parameter.low is None else parameter.low
    if parameter.kind in ("integer", "integers"):
        return _whole(low + above, parameter.high)
    high = low + 1.0 if parameter.high is None else parameter.high
    if parameter.kind == "choice":
        return parameter.choices[0]
    known = {
        "flag": True,
        "pair": [int(low), _whole(low + above, parameter.high)],
        "text": "text",
        "factory": "torch.nn:Identity",
    }
    return known.get(parameter.kind, low + 0.3 * (high - low))


def _whole(wanted: float, high: float | None) -> int:
    """That whole number; the highest, where that is less."""
    return int(wanted if high is None else min(wanted, high))


def _images(height: int = 16, width: int = 16) -> Tensor:
    """[6, 3, H, W], each with pixels at both ends of the box."""
    found = torch.rand(len(POINTS), 3, height, width, generator=torch.Generator().manual_seed(0))
    found[:, 0, 0, 0], found[:, 0, 0, 1] = 0, 1
    return found


def _classifier() -> Classifier:
    """An untrained classifier whose answers differ from image to image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        normal = {"mean": [0.5] * 3, "std": [0.25] * 3}
        f = build_classifier(
            {"architecture": "cnn_small", "arguments": {"width": 4}, "classes": CLASSES, **normal}
        ).eval()
        torch.nn.init.normal_(cast("torch.nn.Linear", cast("torch.nn.Sequential", f.network)[-1]).weight, std=3.0)
    return f.requires_grad_(False)


def _pool(side: tuple[int, int] = (16, 16)) -> SamplePool:
    images = np.random.default_rng(2).integers(0, 256, (8 * CLASSES, *side, 3), np.uint8)
    return SamplePool(images, np.arange(8 * CLASSES) % CLASSES, classes=CLASSES)


@contextmanager
def _another_state() -> Iterator[None]:
    """torch's own generator in a state that no earlier run had: what is keyed does not ask it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(next(STATES))
        yield


def _attack(attack: Attack) -> Problems:
    """The contract of an attack: shapes, ball and box, keyed randomness, honest cost."""
    f, problems = _classifier(), list(_declared(attack))
    yield from problems
    if problems:
        return
    model: torch.nn.Module = f
    if attack.needs_defense:
        model = DefendedClassifier(f, DEFENSES.make("mi_ol", {"lam": 0.6}), _pool(), executions=5)
    goals: tuple[Goal, ...] = ("untargeted", "targeted")
    for goal, norm in itertools.product(goals, attack.norms):
        threat = ThreatModel(RADII[norm], goal, norm)
        try:
            attack.admit(threat, CLASSES)
        except ValueError:
            continue  # It says itself that it has no such goal.
        for problem in _attacked(attack, model, threat):
            yield f"{goal}, {norm}: {problem}"
    for norm in attack.norms:
        yield from _counted_behind(attack, norm) if attack.needs_defense else _counted(attack, f, norm)
    if isinstance(attack, ImagesAttack):
        yield from _drawn_anew(attack, f)


def _declared(attack: Attack) -> Problems:
    """What an attack says of itself, without which none of the rest can be asked."""
    stops, norms = attack.stops(), attack.norms
    if not isinstance(stops, tuple) or not stops or list(stops) != sorted(set(stops)) or min(stops) < 1:
        yield f"stops() must be a tuple of increasing whole numbers from 1 on; got {stops}"
    if not isinstance(norms, (tuple, list)) or not norms or not set(norms) <= set(RADII):
        yield f"norms must be a tuple of one or several of {', '.join(RADII)}, as in ('linf',); got {norms!r}"


class _Watched(DefendedClassifier):
    """F behind a defense, which notes at which place in the random numbers each gradient was taken."""

    def __init__(self, f: Classifier) -> None:
        super().__init__(f, DEFENSES.make("mi_ol", {"lam": 0.6}), _pool(), executions=5)
        self.places: list[Key] = []

    def _start(self, x: Tensor) -> tuple[Key, Sequence[int]]:
        found = super()._start(x)
        if torch.is_grad_enabled() and x.requires_grad:
            self.places.append(found[0])
        return found


def _drawn_anew(attack: ImagesAttack, f: Classifier) -> Problems:
    """Whether the steps of an attack meet other draws of a random defense each: one that fits a single draw is weak."""
    model, norm = _Watched(f), attack.norms[0]
    # What it fails by is told of already, and a goal or a model it may refuse itself.
    with contextlib.suppress(OutsideBallError, ValueError):
        _crafted(attack, model, ThreatModel(RADII[norm], norm=norm), _images(), slice(None))
    if len(model.places) > 2 and len(set(model.places)) == 1:
        yield (
            f"behind a random defense all of its {len(model.places)} gradients meet the same draws and fit these alone: "
            "`batch.bound(model, step=step)` draws anew in each step"
        )


def _crafted(attack: Attack, model: torch.nn.Module, threat: ThreatModel, x: Tensor, places: slice) -> Adversarial:
    labels = criterion(threat).labels(torch.arange(len(x)) % CLASSES, CLASSES, 0, POINTS)
    with _another_state():
        return attack.craft(model, x[places], labels[places], threat, seed=3, points=POINTS[places])


def _attacked(attack: Attack, model: torch.nn.Module, threat: ThreatModel) -> Problems:
    x, every = _images(), slice(None)
    try:
        found = _crafted(attack, model, threat, x, every)
    except OutsideBallError as error:
        yield str(error)
        return
    restarts, stops = len(found.images), len(attack.stops())
    wanted = {
        "images": [restarts, stops, *x.shape],
        "loss": [restarts, stops, len(x)],
        "success": [restarts, stops, len(x)],
    }
    for name, shape in wanted.items():
        if list(getattr(found, name).shape) != shape:
            yield f"{name} must have the shape {shape}; got {list(getattr(found, name).shape)}"
            return
    if not torch.equal(_crafted(attack, model, threat, x, every).images, found.images):
        yield "the same seed must give the same images: draw from batch.key and batch.points alone"
    some = _crafted(attack, model, threat, x, slice(2, 5)).images
    if (some - found.images[:, :, 2:5]).abs().max() > 1e-5:
        yield "an image must come out the same in any batch: draw from batch.points, and never average over a batch"
    if attack.needs_defense:
        return
    other = _images(12, 20)
    shape = list(_crafted(attack, model, threat, other, every).images.shape[2:])
    if shape != list(other.shape):
        yield f"images of any size must keep it: of {list(other.shape)} it makes {shape}"


def _counted(attack: Attack, f: Classifier, norm: Norm) -> Problems:
    """Whether `cost` says what an attack on F really passes through it."""
    said = attack.cost()
    if len(said) != 2 or not all(isinstance(each, int) and each >= 0 for each in said):
        yield f"cost() must be (forward, backward) passes, whole numbers; got {said}"
        return
    f.passes = PassCounter()
    x = _images()
    with contextlib.suppress(OutsideBallError):  # Images outside the ball are told of already.
        _crafted(attack, f, ThreatModel(RADII[norm], norm=norm), x, slice(None))
    made = tuple(passes / len(x) for passes in f.passes.take())
    over = any(m > s for m, s in zip(made, said, strict=True))
    if over or (made != said and not attack.stops_early):
        yield (
            f"cost() must be the passes of one image, {made[0]:g} forward and {made[1]:g} backward; it says {said}"
            + (_remedy(attack, made, said) if isinstance(attack, ImagesAttack) else "")
        )


def _remedy(attack: ImagesAttack, made: tuple[float, ...], said: tuple[int, int]) -> str:
    """What `passes` has to say, which is less than the cost: success is judged by a pass more, which is not the author's.

    Of an attack that stops early `passes` is the most that it makes: what it was below in this run says nothing.
    """
    more = [max(0, m - s) if attack.stops_early else m - s for m, s in zip(made, said, strict=True)]
    if not all(float(each).is_integer() for each in more):
        return ": it must be the same for each image, or the most of one, with `stops_early = True`"
    forward, backward = (own + each for own, each in zip(attack.passes, more, strict=True))
    return f": `passes` must be ({forward:g}, {backward:g}), without the pass by which its success is judged"


def _counted_behind(attack: Attack, norm: Norm) -> Problems:
    """What a plan says of an attack through a defense: whether its passes are at least those that it makes."""
    images = (255 * _images()).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    labels = np.arange(len(images)) % CLASSES
    dataset = Dataset("plugin", CLASSES, images, labels, images, labels)
    try:
        try_attack(
            attack,
            ThreatModel(RADII[norm], norm=norm),
            dataset,
            DEFENSES.make("mi_ol", {"lam": 0.6}),
            lambda part: _pool(),
        )
    except ValueError as error:
        yield str(error).removeprefix(f"attack {attack.name}: ")


def _defense(defense: Defense) -> Problems:
    """The contract of a defense: probabilities, the identity, keyed randomness, gradients, any size."""
    f, x = _classifier(), _images()
    yield from look_problems(defense)
    for part in defense.components():
        yield from _transformation(part, x)
    p = _predicted(f, defense, x)
    if list(p.shape) != [len(x), CLASSES] or not p.isfinite().all() or (p.sum(1) - 1).abs().max() > 1e-4:
        yield f"it must answer with probabilities [B, {CLASSES}] that are finite and sum to 1"
        return
    yield from _identity(f, defense, x)
    if not torch.equal(_predicted(f, defense, x), p):
        yield "the same seed must give the same answer: draw from `draws` alone"
    if (_predicted(f, defense, x[2:5], POINTS[2:5]) - p[2:5]).abs().max() > 1e-5:
        yield "a point must be answered the same in any batch"


def _identity(f: Classifier, defense: Defense, x: Tensor) -> Problems:
    identity = type(defense).identity()
    if identity is None:
        return
    own, parts = f(x).log_softmax(1), defense.components()
    expected = log_answer(parts[0], own[None]).exp() if len(parts) == 1 else own.exp()
    if (_predicted(f, type(defense).make(identity), x) - expected).abs().max() > 1e-5:
        yield "with the parameters of identity() the probabilities must be those of F itself"


def _predicted(f: Classifier, defense: Defense, x: Tensor, points: range = POINTS) -> Tensor:
    with _another_state(), torch.no_grad():
        return predict(f, defense, x, _pool(), executions=5, seed=3, points=points)


def _transformation(part: RandomTransform, x: Tensor) -> Problems:
    """What is tried before any work too, on images of two sizes."""
    for images in (x, _images(12, 20)):
        try:
            part.check_images(images.shape[2], images.shape[3])
        except ValueError:
            continue  # The defense says itself that it does not support this size.
        pool = _pool((images.shape[2], images.shape[3])) if part.needs_pool() else None
        problems = [*transformation_problems(part, images, POINTS, pool, gradients=True)]
        yield from (f"transform must {problem}" for problem in problems)
        if problems:
            return


def _objective(objective: Objective) -> Problems:
    """The contract of an objective, on an untrained network."""
    x = _images()
    with torch.random.fork_rng(devices=[]):
        yield from objective_problems(objective, _classifier().requires_grad_(True), x, torch.arange(len(x)) % CLASSES)


CONTRACTS: dict[str, Callable[[Any], Problems]] = {"attack": _attack, "defense": _defense, "objective": _objective}
