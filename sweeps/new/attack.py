"""NAME: an attack of yours, named by a sweep beside it with `plugins: [NAME]` and `- {NAME: {}, epsilon: 8/255}`."""

from dataclasses import dataclass

import torch

from mi_ray.attacks import ATTACKS, ImagesAttack
from mi_ray.parameters import number


@ATTACKS.register
@dataclass(frozen=True)
class CLASS(ImagesAttack):
    """Ten steps along the sign of the gradient (Madry et al., 2018). Change this one."""

    name = "NAME"
    passes = (10, 10)  # forward and backward passes of the model for one image; a property where a parameter decides
    share: float = number("how far each step goes, as a share of epsilon", 0.25, low=0.0, high=1.0)

    def images(self, model, batch):  # -> images like batch.x, [B, C, H, W]
        x = batch.x
        for step in range(10):
            x = x.detach().requires_grad_()
            with batch.bound(model, step=step):  # other draws of a random defense in each step
                loss = batch.criterion.loss(model(x), batch.labels).sum()
            x = batch.stepped(x, self.share * batch.epsilon, torch.autograd.grad(loss, x)[0])
        return x.detach()
