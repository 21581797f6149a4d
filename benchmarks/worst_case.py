"""Whether the worst case of a random defense is biased, on a network of yours: `python -m benchmarks.worst_case --help`.

Some equally strong attacks, PGD from different random starts, are each answered by many draws of MI-OL. Three draws at a time
choose the attack at each point; what they then say of it is compared with all the other draws, which chose nothing.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import mi_ray
from benchmarks.verdict.run import network
from mi_ray.classifiers import set_weights
from mi_ray.data import Npz, to_unit
from mi_ray.defenses import DEFENSES, predict
from mi_ray.networks import read_weights
from mi_ray.sample_pool import SamplePool
from mi_ray.statistics import cross_fitted
from mi_ray.threat_model import ThreatModel

DRAWS, UNSEEN, BATCH = 3, 1000, 50  # Seeds from UNSEEN on are of the draws that answer.


def biases(right: npt.NDArray[np.bool_]) -> dict[str, tuple[float, float]]:
    """(bias, its standard error over points) of two estimates, from right [attacks, draws, points].

    least: the count of the attack with the fewest of three draws right, reported by these draws. cross-fitted: each draw
    under the attack that the two others choose. Both less what all draws but the three find of the same choices.
    """
    total, points = right.sum(1), np.arange(right.shape[2])
    found: dict[str, list[npt.NDArray[np.float64]]] = {"least": [], "cross-fitted": []}
    for at in range(0, right.shape[1] - DRAWS + 1, DRAWS):
        three = right[:, at : at + DRAWS]
        fresh = (total - three.sum(1)) / (right.shape[1] - DRAWS)
        counts = three.sum(1)
        found["least"].append(counts.min(0) / DRAWS - fresh[counts.argmin(0), points])
        chosen, answered = cross_fitted(three)
        found["cross-fitted"].append((answered - fresh[chosen, points]).mean(0))
    means = {name: np.mean(each, axis=0) for name, each in found.items()}
    return {name: (float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5)) for name, each in means.items()}


def main(arguments: list[str]) -> None:
    """Attack, answer, and print both biases in points of accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, help="an .npz archive with x_train, y_train, x_test, y_test")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--attacks", type=int, default=3)
    parser.add_argument("--draws", type=int, default=33)
    parser.add_argument("--epsilon", type=float, default=8 / 255)
    parser.add_argument("--lam", type=float, default=0.6)
    parser.add_argument("--executions", type=int, default=5)
    options = parser.parse_args(arguments)
    data = Npz(options.images).load()
    made = mi_ray.wrap_classifier(
        network({"resnet_small": {"width": 32}}, data.classes), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    )
    set_weights(made, read_weights(Path(options.weights)), options.weights)
    x, y = to_unit(data.test_images[: options.points]), torch.from_numpy(data.test_labels[: options.points]).long()
    pool = SamplePool(data.train_images, data.train_labels, "train", classes=data.classes)
    attack = mi_ray.make_attack("pgd", steps=20, step_size=options.epsilon / 4)
    defense = DEFENSES.make("mi_ol", {"lam": options.lam})
    right = np.zeros((options.attacks, options.draws, len(x)), np.bool_)
    for start in range(options.attacks):
        for low in range(0, len(x), BATCH):
            some = range(low, min(low + BATCH, len(x)))
            images = attack(made, x[list(some)], y[list(some)], ThreatModel(options.epsilon), seed=start, points=some)
            for draw in range(options.draws):
                answer = predict(made, defense, images, pool, options.executions, UNSEEN + draw, some)
                right[start, draw, list(some)] = (answer.argmax(1) == y[list(some)]).numpy()
        print(
            f"attack {start + 1}: {100 * right[start].mean():.2f} % of {right[start].size} answers are right",
            flush=True,
        )
    for name, (bias, error) in biases(right).items():
        print(f"{name}: {100 * bias:+.2f} points of bias, standard error {100 * error:.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
