"""Whether other libraries' attacks, and Alg. 1 written again in a few lines, find on the zoo's networks what ours find.

python -m benchmarks.agreement DATA     DATA: the folder with CIFAR-10 in Hugging Face's Parquet layout

Both sides attack the same points with the same radius, steps and step size, each with its own random start. What they leave
is scored by the same draws, which neither has seen, and compared point by point: the two agree where the 95 % interval of
the difference has 0 in it. Writes benchmarks/agreement.csv, which docs/cifar10.md shows.
"""

import argparse
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from mi_ray import DefendedClassifier, ThreatModel, load_classifier, make_attack, make_defense, predict
from mi_ray.data import SOURCES, to_unit
from mi_ray.sample_pool import SamplePool
from mi_ray.statistics import paired_test

WRITTEN = Path(__file__).parent / "agreement.csv"
BATCH, DRAWS, SCORING_SEED = 50, 4, 1000
NETWORKS = {"interpolated_at": 8 / 255, "at": 8 / 255, "mixup": 2 / 255}  # the radius at which some points survive
BEHIND = {"interpolated_at": 0.6, "mixup": 0.5}  # λ of MI-OL (the paper's Table 4)
EXECUTIONS = 10
AGAIN = "Alg. 1 written again"
Counts = npt.NDArray[np.int64]
Images = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]


def ours(name: str, **parameters: Any) -> Images:
    """An attack of this package: (model, x, y, epsilon, steps) -> images."""

    def images(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int) -> Tensor:
        known = "adaptive" if isinstance(model, DefendedClassifier) else "oblivious"
        own = {} if name == "apgd" else {"step_size": epsilon / 8}
        return make_attack(name, steps=steps, **own, **parameters)(model, x, y, ThreatModel(epsilon, knowledge=known))

    return images


def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int) -> Tensor:
    """LinfPGD of foolbox."""
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=epsilon / 8, steps=steps)
    found: Tensor = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=epsilon)[1]
    return found


def torchattacks_pgd(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int) -> Tensor:
    """PGD of torchattacks."""
    import torchattacks

    found: Tensor = torchattacks.PGD(model, eps=epsilon, alpha=epsilon / 8, steps=steps)(x, y)
    return found


def torchattacks_apgd(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int) -> Tensor:
    """APGD on the cross-entropy, of torchattacks."""
    import torchattacks

    found: Tensor = torchattacks.APGD(model, eps=epsilon, steps=steps)(x, y)
    return found


def adv_lib_attacks() -> types.ModuleType:
    """adv_lib.attacks, with an empty module for visdom, which its logger imports and these attacks do not use."""
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))
    import adv_lib.attacks

    module: types.ModuleType = adv_lib.attacks
    return module


def adv_lib_pgd(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int) -> Tensor:
    """pgd_linf of adv-lib, which returns the last iterate that it has evaluated: the one before its last step."""
    options = {"steps": steps + 1, "absolute_step_size": epsilon / 8, "random_init": True}
    found: Tensor = adv_lib_attacks().pgd_linf(model, x, y, epsilon, **options)
    return found


def adv_lib_apgd(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int) -> Tensor:
    """APGD of adv-lib on the cross-entropy."""
    found: Tensor = adv_lib_attacks().apgd(model, x, y, epsilon, float("inf"), n_iter=steps, loss_function="ce")
    return found


def auto_attack_apgd(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int) -> Tensor:
    """APGD on the cross-entropy, as AutoAttack's package has it."""
    from pyautoattack.autopgd_base import APGDAttack

    found: Tensor = APGDAttack(model, n_iter=steps, eps=epsilon, device="cpu").perturb(x, y)
    return found


PGD: dict[str, Images] = {"foolbox": foolbox_pgd, "torchattacks": torchattacks_pgd, "adv-lib": adv_lib_pgd}
APGD: dict[str, Images] = {"torchattacks": torchattacks_apgd, "adv-lib": adv_lib_apgd, "pyautoattack": auto_attack_apgd}
GROUPS: dict[str, tuple[Images, dict[str, Images]]] = {
    "PGD": (ours("pgd"), PGD),
    "APGD-CE": (ours("apgd"), APGD),
}
BEHIND_GROUPS: dict[str, tuple[Images, dict[str, Images]]] = {
    "EOT-PGD": (ours("eot_pgd", loss="cross_entropy_of_mean"), PGD),
    "APGD-CE": (ours("apgd"), {"adv-lib": adv_lib_apgd, "pyautoattack": auto_attack_apgd}),
}


def algorithm_1(
    f: nn.Module, x: Tensor, pool: Tensor, labels: Tensor, lam: float, executions: int, same: bool, seed: int
) -> Tensor:
    """Alg. 1 with nothing of this package: the mean answer to x mixed with samples of the predicted class, or of any other.

    x: [B, C, H, W]; pool: [M, C, H, W] with its labels. same: MI-PL, else MI-OL, whose class is drawn first.
    """
    drawn = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels.numpy() == k) for k in range(10)]
    predicted = f(x).argmax(1).tolist()
    total = torch.zeros(len(x), 10)
    for _ in range(executions):
        wanted = [k if same else drawn.choice([c for c in range(10) if c != k]) for k in predicted]
        sampled = pool[[int(drawn.choice(classes[k])) for k in wanted]]
        total += torch.softmax(f(lam * x + (1 - lam) * sampled), dim=1)
    return total / executions


def in_batches(attack: Images, model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int) -> Tensor:
    """The attack's images, a batch at a time, each from the same state of torch's generator."""
    parts = []
    for at in range(0, len(x), BATCH):
        torch.manual_seed(at)
        parts.append(attack(model, x[at : at + BATCH], y[at : at + BATCH], epsilon, steps).detach())
    found = torch.cat(parts)
    assert (found - x).abs().max() <= epsilon + 1e-6
    return found


def counted(answer: Tensor, y: Tensor) -> Counts:
    """[B] 1 where the answer [B, K] is right, else 0."""
    return (answer.argmax(1) == y).long().numpy()


def compared(what: dict[str, Any], left: Counts, right: Counts, draws: int) -> dict[str, Any]:
    """A row: what each side leaves, and the difference with its interval. left, right: how often each point is right."""
    test = paired_test(left, right, draws)
    accuracies = {name: float(np.mean(side)) / draws for name, side in (("theirs", left), ("ours", right))}
    difference = {"difference": test.difference, "low": test.low, "high": test.high, "points": test.points}
    row = {**what, **accuracies, **difference, "agree": test.low <= 0 <= test.high}
    print(row, flush=True)
    return row


def attacks_on(name: str, x: Tensor, y: Tensor, pool: SamplePool) -> Iterator[dict[str, Any]]:
    """Rows of the libraries' attacks on one network of the zoo, undefended and behind MI-OL."""
    f, epsilon = load_classifier(f"zoo:{name}").requires_grad_(False), NETWORKS[name]
    told = {"classifier": name, "epsilon": epsilon}
    for group, (own, others) in GROUPS.items():
        mine = counted(f(in_batches(own, f, x, y, epsilon, 20)), y)
        for library, attack in others.items():
            theirs = counted(f(in_batches(attack, f, x, y, epsilon, 20)), y)
            yield compared(
                {**told, "defense": "none", "what": f"{group}, 20 steps", "library": library}, theirs, mine, 1
            )
    if name not in BEHIND:
        return
    defense = make_defense("mi_ol", lam=BEHIND[name])

    def right(images: Tensor) -> Counts:
        seeds = range(SCORING_SEED, SCORING_SEED + DRAWS)
        counts = [counted(predict(f, defense, images, pool, EXECUTIONS, seed=seed), y) for seed in seeds]
        return np.stack(counts).sum(axis=0)

    for group, (own, others) in BEHIND_GROUPS.items():
        model = DefendedClassifier(f, defense, pool, EXECUTIONS, seed=7).eval()
        mine = right(in_batches(own, model, x, y, epsilon, 10))
        for library, attack in others.items():
            theirs = right(in_batches(attack, model, x, y, epsilon, 10))
            what = {"defense": f"mi_ol {BEHIND[name]}", "what": f"{group}, 10 steps", "library": library}
            yield compared({**told, **what}, theirs, mine, DRAWS)


def algorithm_on(
    name: str, x: Tensor, y: Tensor, pool: SamplePool, images: Tensor, labels: Tensor
) -> Iterator[dict[str, Any]]:
    """Rows of Alg. 1 written again, on clean and on attacked images of one network."""
    f, epsilon, lam = load_classifier(f"zoo:{name}").requires_grad_(False), NETWORKS[name], BEHIND[name]
    attacked = in_batches(ours("pgd"), f, x, y, epsilon, 20)
    for kind in ("mi_ol", "mi_pl"):
        for inputs, of in ((x, "clean images"), (attacked, "PGD, 20 steps")):
            with torch.no_grad():
                again = algorithm_1(f, inputs, images, labels, lam, 30, kind == "mi_pl", seed=1)
                own = predict(f, make_defense(kind, lam=lam), inputs, pool, 30, seed=0)
            told = {"classifier": name, "epsilon": epsilon if inputs is attacked else 0.0, "defense": f"{kind} {lam}"}
            yield compared({**told, "what": of, "library": AGAIN}, counted(again, y), counted(own, y), 1)


def main() -> None:
    """Compare everything, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the folder with CIFAR-10 as Parquet")
    parser.add_argument(
        "--points", type=int, default=200, help="the first of the test images, for the libraries' attacks"
    )
    parser.add_argument("--algorithm-points", type=int, default=1000, help="as many for Alg. 1, which costs less")
    parser.add_argument("--only-algorithm", action="store_true", help="keep the rows of the libraries that are written")
    given = parser.parse_args()
    torch.set_num_threads(1)  # Batches of 50 of so small a network gain nothing from more.
    data = SOURCES.make("parquet", {"path": given.data}).load()
    most = max(given.points, given.algorithm_points)
    x, y = to_unit(data.test_images[:most]), torch.from_numpy(data.test_labels[:most]).long()
    images, labels = to_unit(data.train_images[:10_000]), torch.from_numpy(data.train_labels[:10_000]).long()
    pool = SamplePool(data.train_images[:10_000], data.train_labels[:10_000], "train", classes=10)
    if given.only_algorithm:
        written = pd.read_csv(WRITTEN)
        table = written[written["library"] != AGAIN]
    else:
        few = slice(given.points)
        table = pd.DataFrame([row for name in NETWORKS for row in attacks_on(name, x[few], y[few], pool)])
    many = slice(given.algorithm_points)
    rows = [row for name in BEHIND for row in algorithm_on(name, x[many], y[many], pool, images, labels)]
    table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    table.round(6).to_csv(WRITTEN, index=False)
    print(f"{int(table['agree'].sum())} of {len(table)} agree")


if __name__ == "__main__":
    main()
