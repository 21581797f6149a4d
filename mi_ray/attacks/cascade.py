"""The strongest attack as one entry: attacks in a fixed order, cheap ones first, each on the points that still stand.

AutoAttack (Croce and Hein, 2020) does this for deterministic classifiers. Behind a random defense a point is settled only
when it fails in all of several draws, and which image is kept is decided by draws that report nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mi_ray.attacks.auto_pgd import Apgd
from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, Batch, Defended, score
from mi_ray.attacks.eot_pgd import EotPgd
from mi_ray.attacks.square import Square
from mi_ray.parameters import choice, integer
from mi_ray.threat_model import Norm, ThreatModel, step_of

SCORING = 5  # Independent draws by which each stage compares its own images.
FEW = 5  # Executions of a random defense that the first steps average.
NEAREST = 9  # Classes that the targeted stages aim at, as AutoAttack does.
TRIAL = 5  # A search by queries alone is tried with a fifth of its queries first.


@dataclass(frozen=True)
class Stage:
    """One attack of the cascade.

    executions: of the defense at each of its steps; the model's own where None. trial: whether it only tells on which points
    the next stage is worth its passes: those whose kept image it has improved on.
    """

    attack: Attack
    executions: int | None = None
    trial: bool = False


def _pgd(threat: ThreatModel, steps: int, **more: Any) -> EotPgd:
    """EOT-PGD on the logarithm of the mean answer; on F itself it is PGD."""
    share = 4 if steps <= 20 else 10
    return EotPgd(steps=(steps,), step_size=step_of(threat.epsilon, share, threat.norm), scoring_draws=SCORING, **more)


def _apgd(loss: Literal["ce", "dlr", "targeted_dlr"], steps: int, **more: Any) -> Apgd:
    return Apgd(loss=loss, steps=steps, scoring_draws=SCORING, **more)


def _square(queries: int) -> Square:
    return Square(queries=(queries,), schedule=queries, scoring_draws=1)


@final
@ATTACKS.register
@dataclass(frozen=True)
class Cascade(Attack):
    """An ensemble of attacks in a fixed order, each on the points that the ones before it have left standing.

    Points that fail on the clean image are never attacked, and images that are handed in (`images` of the entry in a sweep)
    are tried before anything is computed. Then EOT-PGD on the logarithm of the mean answer, first with few executions and
    then with all; APGD on the cross-entropy and on the difference-of-logits ratio of the mean answer; APGD towards each of
    the nearest classes; Square, by queries alone, its schedule scaled to its budget. Square is tried with a fifth of its queries
    first. Only points on which the trial finds a better image than the stages before it, as happens where gradients are masked,
    get all queries. Of a defense of several components the detector and the fallback are attacked as well. `thorough` begins
    all of it again from other random starts.

    Every stage's image is scored by `scoring_draws` draws of the attack's own: a point is settled when it fails in all of
    them, and of its images the one is kept that fails most often, of equals the one with the highest loss. Neither looks at
    a draw that reports, so that what is reported of the kept image is not biased by the choice. More draws choose better and
    settle fewer points by luck, for some passes more (benchmarks/README.md).
    """

    name: ClassVar[str] = "cascade"
    display_name: ClassVar[str] = "Cascade"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    stops_early: ClassVar[bool] = True
    takes_images: ClassVar[bool] = True
    effort: Literal["quick", "standard", "thorough"] = choice(
        "quick: EOT-PGD and APGD; standard: targeted APGD and Square as well; thorough: longer, and again from other starts",
        ("quick", "standard", "thorough"),
        "standard",
    )
    rounds: int = integer("how often all stages are run; `thorough` doubles it", 1, low=1)
    scoring_draws: int = integer(
        "independent draws by which the images of the stages are compared; a point that fails in all of them is settled",
        5,
        low=1,
        unsaid=True,
    )

    @property
    def revision(self) -> int:
        """One more for an effort with Square, which once took all of its queries on every point that stood."""
        return self.version + (self.effort != "quick")

    def stops(self) -> tuple[int, ...]:
        """One: it is read at its end."""
        return (1,)

    def stages(self, threat: ThreatModel, classes: int, parts: int) -> Iterator[Stage]:
        """The stages of one round, in order. parts: how many components the defense has; 0 for F itself.

        Where a label is to be reached, no stage chooses targets of its own.
        """
        long = self.effort == "thorough"
        if parts:
            yield Stage(_pgd(threat, 10), FEW)
        yield Stage(_pgd(threat, {"quick": 20, "standard": 50, "thorough": 100}[self.effort]))
        if parts > 1:
            yield Stage(_pgd(threat, 20, branch="fallback"))
            yield Stage(_pgd(threat, 20, branch="detector"))
        yield Stage(_apgd("ce", 100 if long else 50 if self.effort == "standard" else 20))
        if classes >= 4 and self.effort != "quick":
            yield Stage(_apgd("dlr", 100 if long else 30))
            if threat.leaves_label:
                aims = min(NEAREST, classes - 1)
                yield Stage(_apgd("targeted_dlr", 100 if long else 20, targets=aims), FEW if parts else None)
        if self.effort != "quick":
            queries, executions = 5000 if long else 1000, FEW if parts else None
            yield Stage(_square(queries // TRIAL), executions, trial=True)
            yield Stage(_square(queries), executions)

    def all_stages(self, threat: ThreatModel, classes: int, parts: int) -> list[Stage]:
        """The stages of every round; see `stages`."""
        rounds = self.rounds * (2 if self.effort == "thorough" else 1)
        return [stage for _ in range(rounds) for stage in self.stages(threat, classes, parts)]

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """An upper bound: every stage, on a point that no stage settles, with enough classes (`NEAREST` + 1) for all stages."""
        answers = self.scoring_draws if parts else 1
        # One forward pass more, which tells the number of classes.
        forward, backward = (1 + sum(parts)) * (1 + answers), 0
        for stage in self.all_stages(ThreatModel(0.0), NEAREST + 1, len(parts)):
            some = parts if stage.executions is None else tuple(min(each, FEW) for each in parts)
            passes = stage.attack.cost(some)
            forward, backward = forward + passes[0] + (1 + sum(parts)) * answers, backward + passes[1]
        return forward, backward

    def cost_of_an_image(self, parts: tuple[int, ...] = ()) -> int:
        """The draws by which it is scored."""
        return (1 + sum(parts)) * (self.scoring_draws if parts else 1)

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """Stage after stage on the points that stand."""
        parts = len(model.defense.components()) if isinstance(model, Defended) else 0
        kept = Kept(model, batch, self.scoring_draws)
        for number in range(len(batch.given)):
            standing = kept.standing()
            if len(standing) > 0:
                kept.offer(batch.given[number][standing], standing)
        stages = self.all_stages(batch.threat, kept.classes, parts) if batch.epsilon > 0 else []
        promising: Tensor | None = None
        for number, stage in enumerate(stages):
            standing = kept.standing()
            if promising is not None:
                standing = standing[torch.isin(standing, promising)]
            better = standing
            if len(standing) > 0:
                found = stage.attack.run(with_executions(model, stage.executions), of_stage(batch.of(standing), number))
                better = kept.offer(found.best(found.stops[-1]), standing)
            promising = better if stage.trial else None
        unused = torch.full((1, 1, len(batch)), -1, device=batch.x.device)
        return Adversarial(kept.image[None, None], kept.loss[None, None], kept.failed[None, None], (1,), unused)


class Kept:
    """Of each point of a batch the image that fails most often in the attack's own draws, the clean one to begin with."""

    def __init__(self, model: nn.Module, batch: Batch, draws: int) -> None:
        self.model, self.batch, self.draws = model, batch, draws
        self.image = batch.x.clone()
        first = batch.of(torch.zeros(1, dtype=torch.int64, device=batch.x.device))
        with torch.no_grad(), first.bound(model, step=0):
            self.classes = model(first.x).shape[1]
        loss, failed = score(model, batch.x[None], batch, draws)
        self.loss, self.failed = loss[0], failed[0]

    def standing(self) -> Int64[Tensor, "K"]:
        """The places of the points that were right in some draw."""
        return torch.nonzero(self.failed < 1)[:, 0]

    def offer(self, images: Float[Tensor, "K C H W"], places: Int64[Tensor, "K"]) -> Int64[Tensor, "better"]:
        """Score images of the points at these places, and keep each that is better than what is kept.

        Returns the places whose image was replaced, [better].
        """
        some = self.batch.of(places)
        loss, failed = (found[0] for found in score(self.model, images[None], some, self.draws))
        better = (failed > self.failed[places]) | ((failed == self.failed[places]) & (loss > self.loss[places]))
        at = places[better]
        self.image[at], self.loss[at], self.failed[at] = images[better], loss[better], failed[better]
        return at


def of_stage(batch: Batch, number: int) -> Batch:
    """The batch with random numbers that no other stage meets, nor the draws that score."""
    return replace(batch, key=batch.key.at(purpose=f"{batch.key.purpose}, stage {number}"))


def with_executions(model: nn.Module, executions: int | None) -> nn.Module:
    """The same defended classifier with other executions at each call; F itself as it is."""
    if not isinstance(model, Defended) or executions is None:
        return model
    made = model.branch("whole")
    made.executions = min(executions, made.executions)
    return made
