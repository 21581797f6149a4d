"""Denoisers for `purify`: a small network, and training it to take noise away from the images of a dataset."""

import inspect
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mi_ray.data import SOURCES, batches, to_unit
from mi_ray.device import exact_arithmetic, on_device
from mi_ray.networks import OwnNetwork, fit_weights, read_weights, state_bytes
from mi_ray.parameters import kind_of, read_method

WIDTH, DEPTH = 16, 5
DIGITS = Path(__file__).parent / "digits_denoiser.safetensors"


class ResidualDenoiser(nn.Module):
    """Convolutions that tell the noise in an image, which is then subtracted (Zhang et al., 2017), at any noise level.

    Unlike theirs it has no batch norms, so that an image is denoised the same whatever it was trained beside. width: channels.
    depth: layers, each of which looks one pixel farther.
    """

    def __init__(self, width: int = WIDTH, depth: int = DEPTH) -> None:
        super().__init__()
        sizes = [3, *[width] * (depth - 1), 3]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
        self.noise = nn.Sequential(*layers[:-1])

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """The images without what it takes for noise."""
        return x - self.noise(x)


def digits_denoiser() -> nn.Module:
    """A small denoiser of digits that comes with the program, as `train_denoiser("digits", …)` leaves it by its defaults."""
    network = ResidualDenoiser()
    fit_weights(network, read_weights(DIGITS), f"{DIGITS.name} must hold the weights of a ResidualDenoiser")
    return network


def denoised(
    network: nn.Module, images: Float[Tensor, "B C H W"], sigma: float | Float[Tensor, "B"]
) -> Float[Tensor, "B C H W"]:
    """What a denoiser makes of images with noise of standard deviation σ, of which it is told where it asks.

    Raises ValueError unless that is one tensor of their shape.
    """
    if "sigma" in inspect.signature(network.forward).parameters:
        levels = torch.as_tensor(sigma, device=images.device).expand(len(images))
        found: object = network(images, sigma=levels)
    else:
        found = network(images)
    if isinstance(found, Tensor) and found.shape == images.shape:
        return found
    what = list(found.shape) if isinstance(found, Tensor) else kind_of(found)
    raise ValueError(f"a denoiser must return images of the shape that it is given, {list(images.shape)}; got {what}")


def denoise_loss(
    network: nn.Module, x: Float[Tensor, "B 3 H W"], sigma: tuple[float, float], rng: np.random.Generator
) -> Float[Tensor, ""]:
    """The objective of a denoiser: mean |D(x + σn) - x|² over pixels, n of unit normals, σ ~ U(low, high) for each image.

    x: clean images in [0, 1]. sigma: (low, high), in [0, 1] pixels. rng: draws all that is random.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    level = on_device(rng.uniform(*sigma, (len(x), 1, 1, 1)).astype(np.float32), x.device)
    noisy = x + level * on_device(torch.randn(x.shape, generator=generator), x.device)
    return F.mse_loss(denoised(network, noisy, level.flatten()), x)


class Denoised(NamedTuple):
    """Mean squared errors over the pixels of all test images with noise of the largest σ: as they are, and denoised."""

    noisy: float
    denoised: float


def train_denoiser(
    dataset: object,
    file: str | Path,
    *,
    factory: str = "mi_ray.denoising:ResidualDenoiser",
    sigma: tuple[float, float] = (0.0, 0.3),
    epochs: int = 20,
    batch_size: int = 16,
    lr: float = 3e-3,
    seed: int = 0,
    device: str = "cpu",
) -> Denoised:
    """Train a denoiser on the train split, in this process, and write its weights as safetensors; returns its test errors.

    dataset: as a sweep file has it, such as "digits". file: where the weights go, for `purify: {factory: …, weights: …}`.
    factory: builds the network. sigma: lowest and highest σ of the noise, in [0, 1] pixels. It minimises `denoise_loss` by Adam
    (Kingma and Ba, 2015), whose rate falls from lr to 0 along a cosine; the seed repeats it on the same kind of machine.
    Raises ValueError for a range, a file, a dataset or a network that cannot be.
    """
    low, high = sigma
    if not 0 <= low <= high or min(epochs, batch_size) < 1:
        raise ValueError(
            f"sigma must be two numbers 0 <= low <= high, epochs and batch_size at least 1; got {low:g} and {high:g}, "
            f"{epochs}, {batch_size}"
        )
    if not Path(file).resolve().parent.is_dir():
        raise ValueError(f"file must lie in a folder that is there; got {file}")
    data, place = SOURCES.make(*read_method(dataset)).load(), torch.device(device)
    exact_arithmetic(place)
    network = OwnNetwork(factory).read().requires_grad_(True).train().to(place)
    if not list(network.parameters()):
        raise ValueError(f"factory {factory} must return a network with weights to train; it has none")
    optimizer = torch.optim.Adam(network.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    total = len(data.train_labels)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)  # A network's dropout draws of torch's own generators.
        for epoch in range(epochs):
            for step, chosen in batches(seed, epoch, total, min(batch_size, total), 0, 1):
                x = on_device(to_unit(data.train_images[np.sort(chosen)]), place)
                loss = denoise_loss(network, x, sigma, np.random.default_rng([seed, epoch, step]))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            schedule.step()
    Path(file).write_bytes(state_bytes(network))
    return _errors(network.eval(), to_unit(np.asarray(data.test_images)), high, seed)


@torch.no_grad()
def _errors(network: nn.Module, clean: Float[Tensor, "N 3 H W"], sigma: float, seed: int) -> Denoised:
    generator, errors = torch.Generator().manual_seed(seed), []
    place = next(network.parameters()).device
    for x in clean.split(250):
        noisy = x + sigma * torch.randn(x.shape, generator=generator)
        found = denoised(network, noisy.to(place), sigma).cpu()
        errors.append([float(((images - x) ** 2).sum()) for images in (noisy, found)])
    return Denoised(*(sum(column) / clean.numel() for column in zip(*errors, strict=True)))
