"""How a plan writes a training out."""

import pytest
from helpers.plans import FACTS, planner
from helpers.sweeps import classifier, sweep

from mi_ray.config import TrainingOptions
from mi_ray.plan.planner import Planner
from mi_ray.study.prepare import REGISTRIES, device_of


def test_the_device_of_blocks_is_what_the_sweep_says_else_what_its_blocks_reserve() -> None:
    gpus = {"block": {"gpus": 0.25}}
    assert [device_of(sweep()), device_of(sweep(resources=gpus))] == ["cpu", "cuda"]
    assert [device_of(sweep(resources=gpus, device=device)) for device in ("cpu", "cuda")] == ["cpu", "cuda"]
    with pytest.raises(ValueError, match=r"device: cuda needs resources.block.gpus above 0"):
        device_of(sweep(device="cuda"))


@pytest.mark.parametrize("option", list(TrainingOptions.model_fields))
def test_every_training_option_changes_what_a_classifier_is_trained_with(option: str) -> None:
    honest, published = planner(), planner(training_preset="as_published")
    settings = [
        {
            "inner_labels": made.classifiers[0].objective.values["inner_labels"],  # type: ignore[index]
            "first_epoch_at_lower_rate": made.works.training(made.classifiers[0].entry)["lr_drops"],
        }
        for made in (honest, published)
    ]
    assert settings[0][option] != settings[1][option]


def test_learning_rate_drops_are_written_out_and_the_files_own_win() -> None:
    drops = [
        planner(**changes).works.training(planner(**changes).classifiers[0].entry)["lr_drops"]
        for changes in (
            {},
            {"training_preset": "as_published"},
            {"classifiers": classifier(training={"lr_drops": [3], "epochs": 9})},
        )
    ]
    assert drops == [[100, 150], [99, 149], [3]]


@pytest.mark.parametrize(
    ("epochs", "preset", "drops"),
    [
        (200, "honest", [100, 150]),
        (200, "as_published", [99, 149]),
        (1, "honest", []),
        (2, "honest", [1]),
        (2, "as_published", []),
        (4, "as_published", [1, 2]),
    ],
)
def test_the_rate_drops_at_half_and_three_quarters_and_never_in_the_first_epoch(
    epochs: int, preset: str, drops: list[int]
) -> None:
    planner = Planner(
        sweep(classifiers=classifier(training={"epochs": epochs}), training_preset=preset), REGISTRIES, FACTS
    )
    assert planner.works.training(planner.classifiers[0].entry)["lr_drops"] == drops
