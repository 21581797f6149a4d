"""foolbox and adv-lib attack a DefendedClassifier as they take any network, and find what our attacks find.

Two attacks agree where the 95 % interval of the difference between the accuracies that they leave, on the same points
and under the same draws, which neither has seen, lies within MARGIN on both sides of zero. That fails for an attack
that is worse, and also where there are too few points to tell.
"""

import copy
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_ray import DefendedClassifier, ThreatModel, make_attack, make_defense, predict, wrap_classifier
from mi_ray.data import to_unit
from mi_ray.statistics import PairedTest, paired_test

POINTS, EXECUTIONS, DRAWS, STEPS, MARGIN = 120, 5, 4, 10, 0.1
SCORING_SEED = 1000  # no attack draws by it
TEMPERATURE = 0.05  # at which the decision of MI-Combined is made smooth, for them as for us
EPSILON = {"cnn_small": 4.5 / 255, "foreign": 16 / 255}  # some points survive, others do not
DEFENSES = {
    "mi_ol": make_defense("mi_ol", lam=0.8),
    "mi_pl": make_defense("mi_pl", lam=0.6),
    "mi_combined": make_defense("mi_combined", lam_pl=0.6, lam_ol=0.8, threshold=0.2),
    "random_rotation": make_defense("random_rotation", degrees=20.0),
}
CASES = [(network, defense) for network in ("foreign", "cnn_small") for defense in DEFENSES]
FOREIGN_CASES = CASES[: len(DEFENSES)]


def split(*first: str, cases: Sequence[tuple[str, str]] = CASES) -> list[Any]:
    """The foreign network behind these defenses; behind the others, which other comparisons have, and our own it is long."""
    marks = {case: [] if case[0] == "foreign" and case[1] in first else [pytest.mark.long] for case in cases}
    return [pytest.param(*case, marks=marks[case]) for case in cases]


pytestmark = pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")  # foolbox's import


@pytest.fixture(scope="module")
def foolbox() -> ModuleType:
    return importlib.import_module("foolbox")


@pytest.fixture(scope="module")
def adv_lib() -> Iterator[ModuleType]:
    """adv-lib's attacks. They import visdom, which they use for plots alone: an empty module stands for it."""
    reason = "adv-lib is not installed: pip install --no-deps adv-lib (its dependency visdom does not build)"
    pytest.importorskip("adv_lib", reason=reason)
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("visdom") is None:
            patch.setitem(sys.modules, "visdom", ModuleType("visdom"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it compares versions by distutils
            attacks = importlib.import_module("adv_lib.attacks")
        yield attacks


@pytest.fixture(scope="module")
def networks(classifier: Any, digits: Any) -> dict[str, nn.Module]:
    """Ours, frozen, and one that is not of this package: smooth, without convolutions, its parameters trainable."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 64), nn.GELU(), nn.Linear(64, 10))
        x, y = to_unit(digits.train_images), torch.from_numpy(digits.train_labels)
        optimizer = torch.optim.SGD(made.parameters(), lr=0.05, momentum=0.9)
        for _ in range(15):
            for part in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(made(x[part]), y[part]).backward()
                optimizer.step()
    made.zero_grad(set_to_none=True)
    return {"cnn_small": classifier, "foreign": wrap_classifier(made)}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Their random starts come from torch's global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@dataclass(frozen=True)
class Case:
    """A network behind a defense, and the points to attack."""

    network: nn.Module
    defense: Any
    pool: Any
    x: Tensor
    y: Tensor
    epsilon: float

    @property
    def step_size(self) -> float:
        return self.epsilon / 5

    def defended(self, executions: int = EXECUTIONS) -> DefendedClassifier:
        return DefendedClassifier(self.network, self.defense, self.pool, executions, seed=7).eval()

    def for_them(self, executions: int = EXECUTIONS) -> nn.Module:
        """What their attacks get: the defended classifier, with the decision of MI-Combined made smooth."""
        return self.defended(executions).branch("whole", TEMPERATURE).eval()

    def ours(self, name: str = "eot_pgd", executions: int = EXECUTIONS, **parameters: Any) -> Tensor:
        return make_attack(name, steps=STEPS, **parameters)(
            self.defended(executions), self.x, self.y, ThreatModel(self.epsilon, knowledge="adaptive")
        )

    def right(self, images: Tensor) -> Tensor:
        """How many of DRAWS independent draws of the defense get each image right, [POINTS]."""
        assert (images - self.x).abs().max() <= self.epsilon + 1e-6
        assert images.min() >= 0
        assert images.max() <= 1
        draws = range(SCORING_SEED, SCORING_SEED + DRAWS)
        answers = [predict(self.network, self.defense, images, self.pool, EXECUTIONS, seed=seed) for seed in draws]
        return torch.stack([answer.argmax(1) == self.y for answer in answers]).sum(0)

    def compare(self, theirs: Tensor, ours: Tensor) -> PairedTest:
        """theirs: images. ours: how often each of our images is right, see `right`."""
        return paired_test(self.right(theirs).numpy(), ours.numpy(), DRAWS)


@pytest.fixture(scope="module")
def case(networks: dict[str, nn.Module], digits: Any, pool: Any) -> Callable[[str, str], Case]:
    x, y = to_unit(digits.test_images[:POINTS]), torch.from_numpy(digits.test_labels[:POINTS])
    return lambda network, defense: Case(networks[network], DEFENSES[defense], pool, x, y, EPSILON[network])


@pytest.fixture(scope="module")
def our_pgd(case: Any) -> Callable[[str, str], Tensor]:
    """How often our EOT-PGD's images are right, made once a case; its loss is a library's: CE of the answer."""
    made: dict[tuple[str, str], Tensor] = {}

    def right(network: str, defense: str) -> Tensor:
        if (network, defense) not in made:
            own = case(network, defense)
            made[network, defense] = own.right(own.ours(step_size=own.step_size, loss="cross_entropy_of_mean"))
        return made[network, defense]

    return right


def agrees(test: PairedTest) -> bool:
    return test.low > -MARGIN and test.high < MARGIN


def told_apart(test: PairedTest) -> bool:
    """Whether left is weaker by more than what agreement allows, also at the lower end of the interval."""
    return test.low > MARGIN


def foolbox_pgd(
    foolbox: ModuleType, model: nn.Module, own: Case, steps: int = STEPS, shorter: int = 1, eot: int = 1
) -> Tensor:
    """LinfPGD through foolbox's public interface; eot: calls of the model that foolbox's wrapper averages."""
    victim = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    if eot > 1:
        victim = foolbox.models.ExpectationOverTransformationWrapper(victim, n_steps=eot)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=own.step_size / shorter, steps=steps)
    _, clipped, _ = attack(victim, own.x, own.y, epsilons=own.epsilon)
    return clipped


def adv_lib_pgd(adv_lib: ModuleType, model: nn.Module, own: Case, steps: int = STEPS, shorter: int = 1) -> Tensor:
    """It returns an iterate that it has evaluated, never the one after the last step: that needs one step more."""
    return adv_lib.pgd_linf(
        model, own.x, own.y, own.epsilon, steps=steps + 1, absolute_step_size=own.step_size / shorter
    )


# Agreement behind a defense


@pytest.mark.parametrize(("network", "defense"), split("mi_ol"))
def test_foolbox_pgd_finds_what_our_eot_pgd_finds(
    network: str, defense: str, case: Any, our_pgd: Any, foolbox: ModuleType
) -> None:
    own = case(network, defense)
    test = own.compare(foolbox_pgd(foolbox, own.for_them(), own), our_pgd(network, defense))
    assert agrees(test), test


@pytest.mark.parametrize(("network", "defense"), split("random_rotation"))
def test_adv_lib_pgd_finds_what_our_eot_pgd_finds(
    network: str, defense: str, case: Any, our_pgd: Any, adv_lib: ModuleType
) -> None:
    own = case(network, defense)
    test = own.compare(adv_lib_pgd(adv_lib, own.for_them(), own), our_pgd(network, defense))
    assert agrees(test), test


@pytest.mark.long  # What one call of the model answers is what the tests above compare.
@pytest.mark.parametrize(("network", "defense"), [("foreign", "mi_ol"), ("foreign", "random_rotation")])
def test_foolbox_averages_calls_as_we_average_executions(
    network: str, defense: str, case: Any, foolbox: ModuleType
) -> None:
    own = case(network, defense)
    ours = own.ours(executions=2 * EXECUTIONS, step_size=own.step_size, loss="cross_entropy_of_mean")
    test = own.compare(foolbox_pgd(foolbox, own.for_them(), own, eot=2), own.right(ours))
    assert agrees(test), test


@pytest.mark.parametrize(("network", "defense"), split("mi_pl"))
def test_adv_lib_apgd_finds_what_our_apgd_finds(network: str, defense: str, case: Any, adv_lib: ModuleType) -> None:
    own = case(network, defense)
    theirs = adv_lib.apgd(
        own.for_them(), own.x, own.y, own.epsilon, float("inf"), n_iter=STEPS, loss_function="ce", eot_iter=1
    )
    test = own.compare(theirs, own.right(own.ours("apgd")))
    assert agrees(test), test


def test_the_mean_of_losses_finds_what_the_loss_of_the_mean_finds_behind_mixup(case: Any, our_pgd: Any) -> None:
    own = case("foreign", "mi_ol")
    test = own.compare(own.ours(step_size=own.step_size, loss="mean_cross_entropy"), our_pgd("foreign", "mi_ol"))
    assert agrees(test), test


# The same comparison fails for a weaker attack


@pytest.mark.parametrize(("network", "defense"), split("mi_ol"))
def test_one_step_of_foolbox_is_told_apart(
    network: str, defense: str, case: Any, our_pgd: Any, foolbox: ModuleType
) -> None:
    own = case(network, defense)
    test = own.compare(foolbox_pgd(foolbox, own.for_them(), own, steps=1), our_pgd(network, defense))
    assert told_apart(test), test


@pytest.mark.parametrize(("network", "defense"), split("mi_ol", cases=FOREIGN_CASES))
def test_foolbox_with_a_quarter_of_the_step_size_is_told_apart(
    network: str, defense: str, case: Any, our_pgd: Any, foolbox: ModuleType
) -> None:
    own = case(network, defense)
    weak = foolbox_pgd(foolbox, own.for_them(), own, shorter=4)
    test = own.compare(weak, our_pgd(network, defense))
    assert told_apart(test), test


@pytest.mark.parametrize(("network", "defense"), split("random_rotation", cases=FOREIGN_CASES[::3]))
def test_adv_lib_with_a_quarter_of_the_step_size_is_told_apart(
    network: str, defense: str, case: Any, our_pgd: Any, adv_lib: ModuleType
) -> None:
    own = case(network, defense)
    test = own.compare(adv_lib_pgd(adv_lib, own.for_them(), own, shorter=4), our_pgd(network, defense))
    assert told_apart(test), test


# Without a defense: image by image


def same_images(left: Tensor, right: Tensor) -> None:
    """All but the few pixels whose gradient is so near zero that rounding decides its sign."""
    assert ((left - right).abs() < 1e-5).float().mean() > 0.99


def test_foolbox_makes_our_images_on_a_foreign_network(case: Any, foolbox: ModuleType) -> None:
    own = case("foreign", "mi_ol")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=own.step_size, steps=STEPS, random_start=False)
    victim = foolbox.PyTorchModel(own.network, bounds=(0, 1), device="cpu")
    _, theirs, fooled = attack(victim, own.x, own.y, epsilons=own.epsilon)
    ours = make_attack("pgd", steps=STEPS, step_size=own.step_size, random_start=False)(
        own.network, own.x, own.y, ThreatModel(own.epsilon)
    )
    same_images(theirs, ours)
    assert torch.equal(own.network(ours).argmax(1) != own.y, fooled)


@pytest.mark.parametrize("network", ["foreign", pytest.param("cnn_small", marks=pytest.mark.long)])
def test_adv_lib_pgd_keeps_the_last_of_our_iterates_that_fools(network: str, case: Any, adv_lib: ModuleType) -> None:
    own = case(network, "mi_ol")
    theirs = adv_lib.pgd_linf(
        own.network, own.x, own.y, own.epsilon, steps=STEPS + 1, random_init=False, absolute_step_size=own.step_size
    )
    path = make_attack("pgd", steps=list(range(1, STEPS + 1)), step_size=own.step_size, random_start=False).craft(
        own.network, own.x, own.y, ThreatModel(own.epsilon)
    )
    expected = own.x
    fooled = torch.stack([own.network(images).argmax(1) != own.y for images in path.images[0]])
    for images, fools in zip(path.images[0], fooled, strict=True):
        expected = torch.where(fools[:, None, None, None], images, expected)
    same_images(theirs, expected)
    unfooled = ~fooled.any(0)
    assert 0 < unfooled.sum() < POINTS
    assert torch.equal(own.network(theirs).argmax(1) == own.y, unfooled)


@pytest.mark.long  # The steps of both are the same in test_adaptive_attacks.py.
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("network", EPSILON)
def test_adv_lib_apgd_leaves_the_accuracy_that_ours_leaves(
    network: str, loss: str, case: Any, adv_lib: ModuleType
) -> None:
    own = case(network, "mi_ol")
    theirs = adv_lib.apgd(own.network, own.x, own.y, own.epsilon, float("inf"), n_iter=STEPS, loss_function=loss)
    ours = make_attack("apgd", steps=STEPS, loss=loss)(own.network, own.x, own.y, ThreatModel(own.epsilon))
    right = [(own.network(images).argmax(1) == own.y).long().numpy() for images in (theirs, ours)]
    test = paired_test(*right, draws=1)
    assert agrees(test), test


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_log_probabilities_serve_an_attack_as_well_as_logits(loss: str, case: Any, adv_lib: ModuleType) -> None:
    own = case("foreign", "mi_ol")
    behind_nothing = DefendedClassifier(own.network, make_defense("none")).eval()
    assert not torch.allclose(behind_nothing(own.x), own.network(own.x))
    from_logits, from_log_probabilities = (
        adv_lib.pgd_linf(
            model,
            own.x,
            own.y,
            own.epsilon,
            steps=STEPS,
            random_init=False,
            absolute_step_size=own.step_size,
            loss_function=loss,
        )
        for model in (own.network, behind_nothing)
    )
    same_images(from_logits, from_log_probabilities)


# What a library needs of a module


class Watched(nn.Module):
    """A model that counts, for each point, the gradients that came back for its images, and those all zero."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.gradients, self.zero = 0, torch.zeros(POINTS, dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(self.see)
        answer: Tensor = self.model(x)
        return answer

    def see(self, gradient: Tensor) -> None:
        self.gradients += 1
        self.zero += (gradient == 0).flatten(1).all(1)


@pytest.mark.parametrize(("network", "defense"), split(*DEFENSES))
def test_a_gradient_reaches_every_image_at_every_step(
    network: str, defense: str, case: Any, foolbox: ModuleType
) -> None:
    own = case(network, defense)
    watched = Watched(own.defended()).eval()
    foolbox_pgd(foolbox, watched, own, steps=2)
    assert watched.gradients == 2
    assert not watched.zero.any()


def test_a_gradient_reaches_every_image_from_adv_lib(case: Any, adv_lib: ModuleType) -> None:
    own = case("foreign", "mi_combined")
    watched = Watched(own.defended()).eval()
    adv_lib_pgd(adv_lib, watched, own, steps=2)
    assert watched.gradients == 3
    assert not watched.zero.any()


@pytest.mark.parametrize("trainable", [False, True])
def test_an_attack_changes_nothing_of_the_network(trainable: bool, case: Any, foolbox: ModuleType, pool: Any) -> None:
    """Whether its parameters ask for gradients or not: in eval mode, and with what it held before."""
    own = case("cnn_small", "mi_ol")
    network = copy.deepcopy(own.network).requires_grad_(trainable)
    before = copy.deepcopy(network.state_dict())
    model = DefendedClassifier(network, own.defense, pool, EXECUTIONS, seed=7).eval()
    foolbox_pgd(foolbox, model, own, steps=2)
    assert not any(module.training for module in model.modules())
    assert {parameter.requires_grad for parameter in network.parameters()} == {trainable}
    for name, held in network.state_dict().items():
        assert torch.equal(held, before[name]), name


def test_trainable_parameters_change_no_image(case: Any, foolbox: ModuleType, adv_lib: ModuleType) -> None:
    own = case("foreign", "mi_ol")
    frozen = copy.deepcopy(own.network).requires_grad_(False)
    for attack, library in ((foolbox_pgd, foolbox), (adv_lib_pgd, adv_lib)):
        found = []
        for network in (own.network, frozen):
            torch.manual_seed(3)
            model = DefendedClassifier(network, own.defense, own.pool, EXECUTIONS, seed=7).eval()
            found.append(attack(library, model, own, steps=2))
        assert torch.equal(*found)


def test_each_call_draws_afresh_until_the_model_is_bound(case: Any, foolbox: ModuleType) -> None:
    """Why foolbox's own verdict and accuracy are one draw, and not the number to report."""
    from mi_ray.randomness import Key

    own = case("foreign", "random_rotation")
    model = own.defended()
    victim = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    assert not torch.equal(victim(own.x), victim(own.x))
    with model.bind(Key(0, "other library"), range(POINTS)):
        assert torch.equal(victim(own.x), victim(own.x))
