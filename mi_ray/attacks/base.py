"""What an attack is: a batch of clean images with labels and a threat model -> images inside the ball and the pixel box."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mi_ray.attacks.balls import BALLS, Ball, distance
from mi_ray.attacks.criterion import Criterion, criterion
from mi_ray.device import NotFiniteError, refuse_not_finite
from mi_ray.parameters import Parameterized, Registry, kind_of
from mi_ray.randomness import Draws, Key
from mi_ray.threat_model import NORMS, Knowledge, Norm, ThreatModel

NOT_FINITE = 2**32  # What a gradient that is not finite counts as, among gradients that are zero (see `pgd.all_zero`).


@runtime_checkable
class Bindable(Protocol):
    """A model with randomness, such as F behind a defense, whose draws can be keyed."""

    def bind(self, key: Key, points: Sequence[int]) -> AbstractContextManager[None]:
        """The context in which draws depend on the key and the points alone."""


@runtime_checkable
class Defended(Protocol):
    """F behind a defense, as an attack sees it: what `DefendedClassifier` of mi_ray.defenses has and F itself has not.

    Told by all of these names, since attacks import no defense and a network of a person's own may well have a `branch`.
    """

    defense: Any

    def branch(self, which: str, temperature: float | None = None) -> Any:
        """The same model with what an adversary aims at: the "whole" defense, its "detector" or its "fallback"."""

    def chunks(self, x: Float[Tensor, "B C H W"]) -> Iterator[Float[Tensor, "E B L"]]:
        """log-probabilities of all executions, E at a time, each chunk with a graph of its own."""

    def copies(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "N B C H W"]:
        """The transformed copies that the last component classifies."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What an attack is handed, beside the model.

    x: clean images in [0, 1]. labels: the label of each image that is to be left, or reached, as the threat model's goal
    says (see `attack_labels`). key: what the random numbers are for. points: the images' indices in their dataset. All
    randomness comes from (key, points), so that a point meets the same numbers in whatever batch it is. given: what other
    attacks made of the images, for an attack that `takes_images`.
    """

    x: Float[Tensor, "B C H W"]
    labels: Int64[Tensor, "B"]
    threat: ThreatModel
    key: Key
    points: Sequence[int]
    given: Sequence[Float[Tensor, "B C H W"]] = ()

    @property
    def criterion(self) -> Criterion:
        """What the goal means for this batch: the loss to ascend, and when the goal is reached."""
        return criterion(self.threat)

    @property
    def epsilon(self) -> float:
        """The radius of the ball."""
        return self.threat.epsilon

    def __len__(self) -> int:
        return len(self.x)

    def of(self, some: Int64[Tensor, "K"]) -> "Batch":
        """Some of its points, by their places in the batch; each keeps its own random numbers."""
        points = [self.points[place] for place in some.tolist()]
        given = [images[some] for images in self.given]
        return replace(self, x=self.x[some], labels=self.labels[some], points=points, given=given)

    def at(self, **place: int) -> "Batch":
        """The same batch with other random numbers, those of another `restart`, `step` or `draw`."""
        return replace(self, key=self.key.at(**place))

    def bound(self, model: nn.Module, **place: int) -> AbstractContextManager[None]:
        """The context in which a random model draws for these points at that place; nothing for any other model."""
        return model.bind(self.key.at(**place), self.points) if isinstance(model, Bindable) else nullcontext()

    @cached_property
    def ball(self) -> Ball:
        """The images that the threat model allows, where its norm is one of pixels (`NORMS`)."""
        return BALLS[self.threat.norm](self.x, self.epsilon)

    def projected(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The nearest images in the ball around the clean ones and in the pixel box."""
        return self.ball.projected(x)

    def stepped(
        self, x: Float[Tensor, "B C H W"], size: float, direction: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """The images after a step of steepest ascent: project(x + size * sign(direction)) in the max norm (Eq. 18)."""
        return self.ball.ascended(x, size, direction)

    def draws(self) -> Draws:
        """The random numbers of each image, for something that is drawn once."""
        return Draws(self.key, self.points, 1, 0, self.x.device)

    def random_start(self) -> Float[Tensor, "B C H W"]:
        """A point uniform in the ball around each image, projected into the pixel box."""
        return self.ball.random_start(self.draws())


class OutsideBallError(AssertionError):
    """An attack has returned images that its threat model does not allow: the number that they give means nothing."""


@dataclass(frozen=True, eq=False)
class Adversarial:
    """What an attack found: every restart, at every requested stop.

    images: [restarts, stops, B, C, H, W]. loss: [restarts, stops, B], by which restarts of equal success are ranked, the higher
    the better: mostly the cross-entropy of the attacked label (negated where a target is sought), also where the attack ascends
    another loss, as APGD does; minus the distance in `minimum_norm`, minus the detector's gap in `evasion`.
    success: [restarts, stops, B], the share of the attack's own draws in which it reached its goal (0 or 1 where the model has
    no randomness). Loss and success are NaN for a single restart on F itself, where they choose nothing and a study has F's
    output on the images anyway. stops: the step counts.
    zero_gradients: [restarts, stops, B], at how many steps until then the whole gradient of a point was zero; -1 for an attack
    that does not count them. shares: [restarts, stops, B, 3], in the norm "spatial" the rotation and the shifts that make each
    image of its clean one (see `balls.transformed`); None in any other.
    """

    images: Float[Tensor, "R S B C H W"]
    loss: Float[Tensor, "R S B"]
    success: Float[Tensor, "R S B"]
    stops: tuple[int, ...]
    zero_gradients: Int64[Tensor, "R S B"]
    shares: Float[Tensor, "R S B three"] | None = None

    def best(self, stop: int) -> Float[Tensor, "B C H W"]:
        """For each point the restart with the highest success at that stop; of equals, the one with the highest loss."""
        at = self.stops.index(stop)
        success, loss = self.success[:, at].cpu().numpy(), self.loss[:, at].cpu().numpy()
        winner = torch.from_numpy(best_restart(success, loss)).to(self.images.device)
        return self.images[winner, at, torch.arange(len(winner), device=winner.device)]


@dataclass(frozen=True, eq=False)
class Begun:
    """Where a trajectory stands after `steps` steps, so that a longer one goes on from there.

    images: [restarts, B, C, H, W]. zero_gradients: [restarts, B], as `Adversarial` counts them.
    """

    steps: int
    images: Float[Tensor, "R B C H W"]
    zero_gradients: Int64[Tensor, "R B"]

    def of(self, part: slice) -> "Begun":
        """Where the same trajectories stand for some of the points."""
        return Begun(self.steps, self.images[:, part], self.zero_gradients[:, part])

    def restart(self, number: int) -> "Begun":
        """Where one restart stands, as if it were the only one."""
        return Begun(self.steps, self.images[number, None], self.zero_gradients[number, None])


def best_restart(success: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """For each point the restart that succeeds most often; of equals the one with the highest loss, then the first.

    success, loss: [restarts, B].
    """
    most = success == success.max(0)
    return np.where(most, loss, -np.inf).argmax(0)


@dataclass(frozen=True)
class Attack(Parameterized):
    """An attack on any module from [0, 1] images to logits or log-probabilities: F, or F behind a defense.

    A subclass writes `run`, `stops` and `cost`; the final methods check what goes in and what comes out.
    """

    display_name: ClassVar[str] = ""  # What figures call it; its name where this is empty.
    version: ClassVar[int] = 2  # In 1, success was judged in the gradients' precision.
    # The parameter that lists the stops of one run, such as "steps"; it is not in the attack's key.
    stop_parameter: ClassVar[str | None] = None
    needs_defense: ClassVar[bool] = False  # Whether it makes sense only against a DefendedClassifier.
    needs_pool: ClassVar[bool] = False  # Whether that defense must mix with a sample pool.
    takes_images: ClassVar[bool] = False  # Whether it begins with images of other attacks, which a sweep may name.
    # Whether it only chooses among such images, and has nothing to do without them.
    needs_images: ClassVar[bool] = False
    stops_early: ClassVar[bool] = False  # Whether fooled points are left alone: its cost is an upper bound.
    # Whether it uses the model's gradients, and is checked against attacks that do.
    follows_gradients: ClassVar[bool] = True
    # The norms that it can attack in: NORMS if `batch.ball` is all it needs.
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    # Whether it looks for the nearest image that reaches the goal: one run serves every epsilon.
    minimal: ClassVar[bool] = False
    # Whether a point at which it has found nothing comes back clean, so that how far that was moved says nothing of it.
    only_found: ClassVar[bool] = False
    goes_on: ClassVar[bool] = False  # Whether a longer run needs only the images at a stop, and `go_on` is written.

    @property
    def revision(self) -> int:
        """What its key says of its code: `version`, and more where a change concerns some values of its parameters alone."""
        return self.version

    @property
    def wraps(self) -> "Attack | None":
        """The attack that it runs on a problem of its own making, whose code then decides its result as well."""
        return None

    @property
    def by_accuracy(self) -> bool:
        """Whether lost accuracy is what it is after and can be judged by; an attack that evades a detector is after more."""
        return True

    @property
    def executions(self) -> int | None:
        """How many executions of a random defense it averages at each step (EOT); None leaves the number to the model."""
        eot: int | None = getattr(self, "eot", None)
        return eot

    @property
    def step_length(self) -> float | None:
        """How long each of its steps is in the threat model's norm; None where that is no parameter of it."""
        return None

    @property
    def keeps_box(self) -> bool:
        """Whether its images stay in [0, 1]. An attack that was published without that says False, which is stored."""
        return True

    def check(self, threat: ThreatModel, classes: int) -> None:
        """Raise ValueError where it cannot be run under that threat model on a classifier of that many classes."""

    @final
    def admit(self, threat: ThreatModel, classes: int) -> None:
        """Raise ValueError for a norm that it does not know, a step too long in it, and for what `check` refuses."""
        self._refuse_norm(threat)
        longest = threat.measure.longest_step
        if self.step_length is not None and self.step_length > longest:
            raise ValueError(
                f"{self.name}.step_size must be at most {longest:g} in the norm {threat.norm}; got {self.step_length:g}"
            )
        self.check(threat, classes)

    def _refuse_norm(self, threat: ThreatModel) -> None:
        if threat.norm not in self.norms:
            raise ValueError(
                f"norm must be one in which {self.name} attacks, {', '.join(self.norms)}; got {threat.norm}"
            )

    @abstractmethod
    def stops(self) -> tuple[int, ...]:
        """The step counts at which the result is wanted, increasing."""

    @abstractmethod
    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """(forward, backward) passes for one point, all restarts, up to the last stop.

        parts: passes of each component of the defense in one call of the model; none for F itself. A call is these
        and one pass for ŷ or F's own answer. What is computed twice to save memory is counted twice.
        """

    def cost_of_an_image(self, parts: tuple[int, ...] = ()) -> int:
        """Forward passes for one point of each set of images that it begins with; see `cost`."""
        return 0

    @abstractmethod
    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """Every restart at every stop. All randomness must come from the batch's key and points."""

    def go_on(self, begun: Begun, model: nn.Module, batch: Batch) -> Adversarial:
        """What `run` returns, without the steps that led to `begun`, beyond which all stops lie; written if `goes_on`."""
        raise ValueError(f"{self.name} must begin at the beginning: its images alone do not say where it stands")

    @final
    def craft(
        self,
        model: nn.Module,
        x: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, "B"],
        threat: ThreatModel,
        seed: int = 0,
        points: Sequence[int] | None = None,
        begun: Begun | None = None,
        given: Sequence[Float[Tensor, "B C H W"]] = (),
    ) -> Adversarial:
        """Every restart at every stop.

        labels: of each image the label to leave or to reach (see `attack_labels`). begun: where a stored trajectory of
        these points stands, from which the attack goes on. given: what other attacks made of the images.

        Raises ValueError when labels are missing, the images are not in [0, 1] or it does not know the norm, and when `run`
        returns something else than `Adversarial` with these shapes, writes into what it was handed or leaves the model in
        training mode; NotFiniteError when its images, or the gradients that led
        to them, are not finite; OutsideBallError when they leave the ball of radius epsilon or the pixel box.
        """
        self._refuse_norm(threat)
        if labels is None or len(labels) != len(x):
            raise ValueError(f"an attack needs one label an image; got {'None' if labels is None else len(labels)}")
        if x.ndim != 4 or x.min() < 0 or x.max() > 1:
            raise ValueError(f"images must be [B, C, H, W] in [0, 1]; got {list(x.shape)} in [{x.min()}, {x.max()}]")
        points = range(len(x)) if points is None else points
        if len(points) != len(x):
            raise ValueError(f"points must name each image once; got {len(points)} points for {len(x)} images")
        batch = Batch(x, labels, threat, Key(seed, "attack", self.name), points, given)
        with self._left_alone(model, batch):
            found = self.run(model, batch) if begun is None else self.go_on(begun, model, batch)
        self._refuse(found, batch)
        self._refuse_outside(found, batch)
        return found

    @contextmanager
    def _left_alone(self, model: nn.Module, batch: Batch) -> Iterator[None]:
        """Raise ValueError where the block writes into images or labels, or leaves the model in training mode.

        A step in place on `batch.x.detach()`, which has the clean images' memory, would measure its ball around itself; a model
        that is left in training mode answers otherwise to whoever comes next. Its mode is put back before anything is raised.
        """
        handed = {"batch.x": batch.x, "batch.labels": batch.labels}
        handed |= {f"batch.given[{place}]": images for place, images in enumerate(batch.given)}
        before = {name: tensor.clone() for name, tensor in handed.items()}
        # A frozen TorchScript module says nothing of a mode.
        evaluating = [module for module in model.modules() if not getattr(module, "training", True)]
        try:
            yield
        finally:
            changed = [module for module in evaluating if module.training]
            for module in changed:
                module.training = False
        if changed:
            raise ValueError(
                f"{self.name} must leave the model in evaluation mode, in which it is handed over; {len(changed)} of its modules "
                "are in training mode afterwards (model.train()?)"
            )
        for name, tensor in handed.items():
            if not torch.equal(tensor, before[name]):
                raise ValueError(
                    f"{self.name} must leave {name} as it is; it wrote into it (in place, or into its .detach(), which has the "
                    "same memory: take a .clone())"
                )

    def _refuse_outside(self, found: Adversarial, batch: Batch) -> None:
        """Raise OutsideBallError, which names the image that is farthest off, unless all are in the ball and the pixel box.

        Raised, and not asserted: `python -O` leaves assertions out, and a perturbation that is too large is no result.
        """
        threat, back = batch.threat, ": `batch.projected(x)` brings images back"
        farthest = distance(threat.norm, batch.x, found.images, found.shares).amax((0, 1))
        worst = int(farthest.argmax())
        if farthest[worst] > threat.epsilon + threat.tolerance:
            raise OutsideBallError(
                f"{self.name} must stay within epsilon = {threat.epsilon:g} of the clean image in the norm {threat.norm}; test "
                f"image {batch.points[worst]} is {farthest[worst]:g} away{back if threat.norm in NORMS else ''}"
            )
        if self.keeps_box:
            beyond = torch.maximum(-found.images, found.images - 1).flatten(3).amax((0, 1, 3))
            worst = int(beyond.argmax())
            if beyond[worst] > 0:
                low, high = found.images[:, :, worst].aminmax()
                raise OutsideBallError(
                    f"{self.name} must keep pixels in [0, 1]; those of test image {batch.points[worst]} lie in [{low:g}, "
                    f"{high:g}]{back}"
                )

    def _refuse(self, found: object, batch: Batch) -> None:
        """Raise ValueError for a result of another form, and NotFiniteError for one that is not finite."""
        if not isinstance(found, Adversarial):
            raise ValueError(f"{self.name}.run must return an Adversarial; got {kind_of(found)}")
        restarts = len(found.loss) if isinstance(found.loss, Tensor) and found.loss.ndim else 1
        kept = [restarts, len(self.stops()), len(batch)]
        told = {"loss": kept, "success": kept, "zero_gradients": kept, "images": [*kept, *batch.x.shape[1:]]}
        if batch.threat.norm == "spatial":
            told["shares"] = [*kept, 3]
        for name, shape in told.items():
            value: object = getattr(found, name)
            got = list(value.shape) if isinstance(value, Tensor) else kind_of(value)
            if got != shape:
                raise ValueError(f"{self.name}.run must return {name} {shape}, first restarts and stops; got {got}")
        if (found.zero_gradients >= NOT_FINITE).any():
            bad = (found.zero_gradients >= NOT_FINITE).any(1).any(0)
            raise NotFiniteError(
                f"{self.name} must follow finite gradients; that of the attacked model is NaN or infinite at "
                f"{int(bad.sum())} of {len(batch)} images, first at test image {batch.points[int(bad.int().argmax())]}"
            )
        refuse_not_finite(f"the images of {self.name}", found.images, 2, batch.points)

    @final
    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "B C H W"],
        y: Int64[Tensor, "B"] | Int64[np.ndarray, "B"],
        threat: ThreatModel,
        seed: int = 0,
        points: Sequence[int] | None = None,
        given: Sequence[Float[Tensor, "B C H W"]] = (),
    ) -> Float[Tensor, "B C H W"]:
        """Adversarial images at the last stop, the best restart of each point.

        y: the true labels (there is no default to predictions). When the goal is targeted, one target a point is
        drawn uniformly from the labels other than y, keyed by (seed, point). points: the images' indices in their
        dataset, 0..B-1 when left out. given: images that it begins with, or chooses among as `transfer` does, wherever they were
        made. Raises ValueError as `craft` and `check` do, and where an attack has nothing to do without such images.
        """
        if y is None:
            raise ValueError("an attack needs the true labels y; got None")
        if self.needs_images and not given:
            raise ValueError(f"{self.name} needs images that other attacks made of these: `given=[images, …]`")
        if given and not self.takes_images:
            raise ValueError(f"given must be left out: {self.name} begins with no other attack's images")
        y = torch.as_tensor(y, device=x.device)
        points = range(len(x)) if points is None else points
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        knowledge: Knowledge = "adaptive" if isinstance(model, Defended) else "oblivious"
        self.admit(replace(threat, knowledge=knowledge), classes)
        labels = attack_labels(y, classes, threat, seed, points)
        return self.craft(model, x, labels, threat, seed, points, given=given).best(self.stops()[-1])


ATTACKS: Registry[Attack] = Registry("attack")


def attack_labels(
    y: Int64[Tensor, "B"], classes: int, threat: ThreatModel, seed: int, points: Sequence[int]
) -> Int64[Tensor, "B"]:
    """The label that an attack works on, as the threat model's goal says: y itself, or a target."""
    return criterion(threat).labels(y, classes, seed, points)


def scorer(model: nn.Module) -> nn.Module:
    """What says whether an image fools F: F in fp32, where it was prepared in less for its gradients."""
    exact = getattr(model, "exact", ())
    return exact[0] if exact else model


def answering(model: nn.Module) -> nn.Module:
    """The model that a query asks: F in fp32, or the same defense before it."""
    if not isinstance(model, Defended):
        return scorer(model)
    asked = model.branch("whole")
    asked.classifier = scorer(asked.classifier)
    return asked


def score(
    model: nn.Module, images: Float[Tensor, "S B C H W"], batch: Batch, draws: int
) -> tuple[Float[Tensor, "S B"], Float[Tensor, "S B"]]:
    """(loss, success) of the model's answers, averaged over that many independent draws; over one if it is not random.

    Every restart and stop meets the same draws, which no step has used: a choice between them is paired, and is not
    made on what an attack was fitted to.
    """
    model = scorer(model)
    draws = draws if isinstance(model, Bindable) else 1
    losses, successes = torch.zeros(2, *images.shape[:2], device=images.device)
    for draw in range(1, draws + 1):
        with torch.no_grad(), batch.bound(model, restart=0, step=0, draw=draw):
            answers = torch.stack([model(at_stop).float() for at_stop in images])
        losses += batch.criterion.loss(answers, batch.labels) / draws
        successes += batch.criterion.reached(answers, batch.labels) / draws
    return losses, successes


def without_gradients(
    model: nn.Module, images: Float[Tensor, "S B C H W"], batch: Batch, stops: tuple[int, ...], draws: int
) -> Adversarial:
    """What an attack without gradients and restarts found, with its loss and success by that many draws."""
    loss, success = score(model, images, batch, draws)
    unused = torch.full((1, *loss.shape), -1, device=images.device)
    return Adversarial(images[None], loss[None], success[None], stops, unused)
