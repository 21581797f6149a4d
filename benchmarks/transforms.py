"""CPU seconds of each defense's transformation against the forward passes that it feeds: `python -m benchmarks.transforms`.

One thread; a chunk of five executions of a batch of 50 images of 32 x 32 pixels, as a study computes it. The two networks are
those of the other benchmarks, with fresh weights, folded as in a study. A share is the median over turns of a defense's CPU
seconds a copy over those of a pass in the same turn, so that what else the machine does falls on both.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from mi_ray.classifiers import build_classifier, prepared
from mi_ray.defenses import DEFENSES, RandomTransform
from mi_ray.defenses.base import chunk_of
from mi_ray.randomness import Draws, Key
from mi_ray.sample_pool import SamplePool

TURNS, POINTS, LIMIT = 5, 50, 0.10
NETWORKS = {
    "resnet_small, 691,834 parameters": {"architecture": "resnet_small", "arguments": {"width": 48}},
    "mi_resnet50, 4,752,586 parameters": {"architecture": "mi_resnet50", "arguments": {}},
}
SETTINGS: dict[str, object] = {
    "gaussian_noise": {"sigma": 0.1},
    "random_rotation": {"degrees": 20},
    "random_resize": {"crop": [20, 28]},
    "resize_pad": {"side": [20, 28]},
    "mi_ol": {"lam": 0.5},
    "flip_crop": {},
    "jpeg": {"quality": 75},
    "bit_depth": {"bits": 4},
    "greyscale": {},
    "total_variation": {},
    "barrage": {},
    "chain": [{"random_resize": {"crop": [20, 28]}}, {"mi_ol": {"lam": 0.5}}],
}


def seconds(call: Callable[[], object]) -> float:
    """CPU seconds of this process that a call takes."""
    began = time.process_time()
    call()
    return time.process_time() - began


def main() -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(POINTS, 3, 32, 32, generator=generator)
    pool = SamplePool(torch.rand(100, 3, 32, 32, generator=generator), list(range(10)) * 10)
    predicted = torch.arange(POINTS) % 10
    base = {"classes": 10, "mean": [0.5] * 3, "std": [0.5] * 3}
    networks = [prepared(build_classifier({**base, **about}), x.device, "fp32") for about in NETWORKS.values()]
    components = {name: DEFENSES.make(name, values) for name, values in SETTINGS.items()}
    shares: dict[str, list[list[float]]] = {name: [] for name in SETTINGS}
    with torch.no_grad():
        for turn in range(TURNS + 1):
            passes = [seconds(partial(network, x)) / POINTS for network in networks]
            for name, component in components.items():
                assert isinstance(component, RandomTransform)
                number = chunk_of(component)
                make_draws = partial(Draws, Key(0, "bench", draw=turn), range(POINTS), number, 0, x.device)
                spent = seconds(partial(component.copies, x, make_draws, predicted, pool)) / (POINTS * number)
                if turn:  # The first one warms up.
                    shares[name].append([spent / each for each in passes])
    print("| defense | " + " | ".join(f"of a pass of {name}" for name in NETWORKS) + " |\n| --- | --- | --- |")
    for name, found in shares.items():
        told = [statistics.median(column) for column in zip(*found, strict=True)]
        marked = (f"{100 * share:.1f} %{'' if share <= LIMIT else ' (above 10 %)'}" for share in told)
        print(f"| `{name}` | {' | '.join(marked)} |")


if __name__ == "__main__":
    main()
