"""Images that other attacks made, on other classifiers too: what an adversary can do who never sees a gradient of this one."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, Batch, best_restart, score
from mi_ray.threat_model import NORMS, Norm

SCORING = 5  # draws of the attack's own, by which images are told apart


@final
@ATTACKS.register
@dataclass(frozen=True)
class Transfer(Attack):
    """Of the images that its entry names (`images: [{pgd: {steps: 50}, classifier: other}]`) the one that fails most often.

    They are made on the classifiers that are named there (Szegedy et al. 2014; Papernot et al. 2017), within the same ball,
    and asked of the attacked classifier, behind its defense where `knowledge` is black_box. Five draws of the attack's own
    choose, of equals the higher loss; the clean image is one of those that are chosen among.
    """

    name: ClassVar[str] = "transfer"
    display_name: ClassVar[str] = "Transfer"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    follows_gradients: ClassVar[bool] = False
    takes_images: ClassVar[bool] = True
    needs_images: ClassVar[bool] = True

    def stops(self) -> tuple[int, ...]:
        """One: it is read at its end."""
        return (1,)

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """The draws by which the clean image is scored."""
        return self.cost_of_an_image(parts), 0

    def cost_of_an_image(self, parts: tuple[int, ...] = ()) -> int:
        """The draws by which it is scored."""
        return (1 + sum(parts)) * (SCORING if parts else 1)

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """Score every image of every point in the same draws, and keep the best."""
        images = torch.stack([batch.x, *batch.given])
        loss, failed = score(model, images, batch, SCORING)
        best = torch.from_numpy(best_restart(failed.cpu().numpy(), loss.cpu().numpy())).to(images.device)
        at = (best, torch.arange(len(batch), device=images.device))
        unused = torch.full((1, 1, len(batch)), -1, device=images.device)
        return Adversarial(images[at][None, None], loss[at][None, None], failed[at][None, None], (1,), unused)
