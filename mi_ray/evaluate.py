"""One piece of work on one block of points -> numbers. No Ray, no files.

Arithmetic runs in canonical batches (`batch` points, and `CHUNK` executions of each), so that on one kind of machine a
point's numbers are the same bit for bit whatever block it is computed in. `lanes` of these batches are in flight at once.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mi_ray.attacks import Adversarial, Attack, Begun, attack_labels
from mi_ray.attacks.base import scorer
from mi_ray.defenses.base import EVALUATE, DefendedClassifier, RandomTransform, execute
from mi_ray.engine import side_by_side
from mi_ray.randomness import Key
from mi_ray.sample_pool import SamplePool
from mi_ray.threat_model import ThreatModel


def batches(total: int, batch: int) -> Iterator[slice]:
    """The canonical batches of a block of whole batches."""
    for start in range(0, total, batch):
        yield slice(start, min(start + batch, total))


def undefended_outputs(
    classifier: nn.Module, x: Float[Tensor, "P C H W"], batch: int, lanes: int = 1
) -> Float[Tensor, "P L"]:
    """F(x): softmax outputs."""

    def outputs(part: slice) -> Tensor:
        """Of one batch."""
        with torch.no_grad():
            return F.softmax(classifier(x[part]).float(), dim=1)

    return torch.cat(side_by_side(outputs, batches(len(x), batch), lanes, x.device))


def component_outputs(
    classifier: nn.Module,
    component: RandomTransform,
    x: Float[Tensor, "P C H W"],
    predicted: Int64[Tensor, "P"],
    points: Sequence[int],
    pool: SamplePool | None,
    executions: Sequence[int],
    draws: int,
    seed: int,
    batch: int,
    lanes: int = 1,
) -> Float[Tensor, "D M P L"]:
    """Mean softmax over the first N executions, for each of `draws` independent draws and each N in `executions`.

    points: the images' indices in the test split, which key their randomness. predicted: ŷ on these images.
    """

    def outputs(part: slice) -> Tensor:
        """Of one batch, every draw."""
        runs = []
        for draw in range(draws):
            key = Key(seed, EVALUATE, draw=draw)
            with torch.no_grad():
                log_p = execute(
                    classifier, component, x[part], predicted[part], pool, key, points[part], max(executions)
                )
            total = log_p.exp().cumsum(0)
            runs.append(torch.stack([total[n - 1] / n for n in executions]))
        return torch.stack(runs)

    return torch.cat(side_by_side(outputs, batches(len(x), batch), lanes, x.device), dim=2)


def attack_outputs(
    model: nn.Module,
    attack: Attack,
    x: Float[Tensor, "P C H W"],
    y: Int64[Tensor, "P"],
    classes: int,
    points: Sequence[int],
    threat: ThreatModel,
    labels: Literal["true", "predicted"],
    seed: int,
    batch: int,
    lanes: int = 1,
    begun: Begun | None = None,
) -> tuple[Adversarial, Int64[Tensor, "P"]]:
    """Adversarial images of a block and the labels that the attack worked on.

    labels "predicted": an untargeted attack leaves the model's own prediction on the clean image (the released code's
    "label guessing"), so that an image that the model gets wrong is pushed back towards right. begun: where a stored
    trajectory of these points stands, from which the attack goes on.
    """

    def crafted(part: slice) -> tuple[Adversarial, Tensor]:
        """Of one batch, with the labels that it worked on."""
        own = attack_labels(y[part], classes, threat, seed, points[part])
        if labels == "predicted" and threat.goal == "untargeted":
            own = _predicted(model, x[part])
        return attack.craft(model, x[part], own, threat, seed, points[part], begun and begun.of(part)), own

    done = side_by_side(crafted, batches(len(x), batch), lanes, x.device)
    images, loss, success, zeros = (
        torch.cat([getattr(found, name) for found, _ in done], dim=2)
        for name in ("images", "loss", "success", "zero_gradients")
    )
    return Adversarial(images, loss, success, attack.stops(), zeros), torch.cat([own for _, own in done])


def _predicted(model: nn.Module, x: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B"]:
    """F's own prediction, also where the model is F behind a defense; the one that a study has as ŷ, in fp32."""
    classifier = model.classifier if isinstance(model, DefendedClassifier) else model
    with torch.no_grad():
        found: Tensor = scorer(classifier)(x)
    return found.argmax(1)
