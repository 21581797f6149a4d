"""NAME: an attack of yours, named by a sweep beside it with `plugins: [NAME]` and `- {NAME: {}, epsilon: 8/255}`."""

from dataclasses import dataclass

import torch

from mi_ray.attacks import ATTACKS, ImagesAttack
from mi_ray.parameters import number


@ATTACKS.register
@dataclass(frozen=True)
class CLASS(ImagesAttack):
    """One step along the sign of the gradient (Goodfellow et al., 2015). Change this one."""

    name = "NAME"
    passes = (1, 1)  # forward and backward passes of the model for one image; a property where a parameter decides
    share: float = number("how far the step goes, as a share of epsilon", 1.0, low=0.0, high=1.0)

    def images(self, model, batch):  # -> images like batch.x, [B, C, H, W]
        x = batch.x.clone().requires_grad_()
        with batch.bound(model):
            loss = batch.criterion.loss(model(x), batch.labels).sum()
        return batch.projected(batch.x + self.share * batch.epsilon * torch.autograd.grad(loss, x)[0].sign())
