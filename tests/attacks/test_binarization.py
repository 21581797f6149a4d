"""A proper attack solves the problems whose solution is known to exist; one that hardly moves, or meets no gradient, does not."""

import pytest
import torch
from torch import Tensor, nn

from mi_ray import make_defense
from mi_ray.attacks import ATTACKS, Adversarial
from mi_ray.attacks.binarization import _LastLayer
from mi_ray.classifiers import ARCHITECTURES, Classifier, wrap_classifier
from mi_ray.defenses import DefendedClassifier
from mi_ray.store.keys import canonical
from mi_ray.threat_model import Norm, ThreatModel

EPSILON, COUNT = 0.06, 4
RADII: dict[Norm, float] = {"linf": EPSILON, "l2": 1.0}
STEPS = {"steps": [20], "step_size": EPSILON / 4}


class Rounded(nn.Module):
    """A network that sees few grey levels, through which no gradient passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x * 64).round() / 64)  # type: ignore[no-any-return]


def network(masked: bool = False) -> Classifier:
    torch.manual_seed(0)
    made = ARCHITECTURES.make("cnn_small", {"width": 8}).build(10)
    return wrap_classifier(Rounded(made) if masked else made, classes=10)


def crafted(method: str, values: object, model: nn.Module, norm: Norm = "linf") -> Adversarial:
    """The test of an attack on some images of noise, whose labels mean nothing to it."""
    x = torch.rand(COUNT, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    attack = ATTACKS.make("binarization", {"of": canonical({method: values})})
    return attack.craft(model, x, torch.full((COUNT,), 3), ThreatModel(RADII[norm], norm=norm))


def solved(method: str, values: object, *, masked: bool = False, norm: Norm = "linf") -> float:
    success = crafted(method, values, network(masked), norm).success[0, 0]
    assert int((~success.isnan()).sum()) >= COUNT // 2  # so many problems could be made
    return float(success.nanmean())


@pytest.mark.parametrize(
    ("method", "values"),
    [("pgd", STEPS), ("eot_pgd", STEPS), ("apgd", {"steps": 20}), ("apgd", {"steps": 20, "loss": "dlr"})],
)
def test_a_sound_attack_solves_its_problems(method: str, values: object) -> None:
    assert solved(method, values) == 1.0


@pytest.mark.parametrize(("method", "values"), [("pgd", {**STEPS, "step_size": 0.25}), ("apgd", {"steps": 20})])
def test_a_sound_attack_solves_its_problems_in_l2(method: str, values: dict[str, object]) -> None:
    assert solved(method, values, norm="l2") == 1.0
    short = {**values, "step_size": 0.001, "random_start": False}
    assert method != "pgd" or solved(method, short, norm="l2") == 0.0


def test_an_attack_that_hardly_moves_solves_none() -> None:
    short = {"steps": [20], "step_size": 0.001 * EPSILON, "random_start": False}
    assert solved("pgd", short) == 0.0


def test_masked_gradients_lead_to_no_solution() -> None:
    assert solved("pgd", {**STEPS, "random_start": False}, masked=True) == 0.0


def test_passes_are_those_that_are_planned_and_two_runs_agree() -> None:
    model, values = network(), {**STEPS, "restarts": 2}
    model.passes.take()
    first = crafted("pgd", values, model)
    forward, backward = ATTACKS.make("binarization", {"of": canonical({"pgd": values})}).cost()
    assert model.passes.take() == (COUNT * forward, COUNT * backward)
    assert first.images.shape == (1, 1, COUNT, 3, 16, 16)
    assert torch.equal(first.images, crafted("pgd", values, network()).images)


def test_behind_a_defense_it_is_refused() -> None:
    with pytest.raises(ValueError, match="behind a defense"):
        crafted("pgd", STEPS, DefendedClassifier(nn.Identity(), make_defense("mi_ol", lam=0.6)))


def test_a_layer_whose_output_is_changed_before_it_is_the_answer_is_not_the_last_one() -> None:
    class Doubled(nn.Module):
        """Logits that no layer gives."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.layer(x.flatten(1))  # type: ignore[no-any-return]

    x, plain = torch.rand(5, 1, 2, 2), nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    assert isinstance(_LastLayer(plain, x).layer, nn.Linear)
    assert _LastLayer(Doubled(), x).layer is None
