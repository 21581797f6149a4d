"""Purification: what a step does, its gradient and the memory that it takes, and what of a denoiser is in the keys."""

import io
import re
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.studies import compute, tiny
from helpers.sweeps import sweep
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mi_ray.study.duration
from mi_ray import Attack, DefendedClassifier, ThreatModel, make_attack, make_defense, predict, train_denoiser
from mi_ray.cluster.session import Session
from mi_ray.data import Digits, to_unit
from mi_ray.denoising import DEPTH, WIDTH, denoised
from mi_ray.networks import OwnNetwork, hand_over, state_bytes
from mi_ray.randomness import Draws, Key
from mi_ray.store.manifest import fingerprint
from mi_ray.study.denoisers import denoiser_passes
from mi_ray.study.estimate import estimate
from mi_ray.study.prepare import prepare
from mi_ray.study.workbench import Workbench

CPU = torch.device("cpu")
KEY, POINTS = Key(3, "attack", "some_attack", step=2), range(40, 48)
SMALL = f"{__name__}:Small"


class Small(nn.Sequential):
    """A smooth denoiser of a few weights."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1))


class Dropped(nn.Sequential):
    """A denoiser with a dropout, which is there in training alone."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(4, 3, 3, padding=1))


class Told(nn.Module):
    """Subtracts the noise level that it is told."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (len(x),)
        return x - sigma[:, None, None, None]


def copies(x: Tensor, executions: int = 4, points: Any = POINTS, factory: str = SMALL, **values: Any) -> Tensor:
    made: Any = make_defense("purify", factory=factory, **{"noise": 0.1, **values})
    return made.copies(x, lambda: Draws(KEY, points, executions, 0, CPU), torch.zeros(len(x), dtype=torch.int64), None)


def noises(steps: int, executions: int = 4) -> list[Tensor]:
    draws = Draws(KEY, POINTS, executions, 0, CPU)
    return [draws.normal_images((3, 32, 32)) for _ in range(steps)]


# What a step does


def test_each_step_adds_noise_of_its_own_and_denoises(batch: Any) -> None:
    network, expected = OwnNetwork(SMALL).read(), batch[0]
    for noise in noises(3):
        expected = network((expected + 0.1 * noise).flatten(0, 1)).unflatten(0, (4, 8))
    assert torch.equal(copies(batch[0], steps=3), expected)
    first, second = noises(2)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.01


def test_without_noise_it_draws_nothing_and_is_one_execution(classifier: nn.Module, batch: Any) -> None:
    still = make_defense("purify", factory=SMALL, noise=0, steps=2)
    assert (still.is_random(), still.executions_of(0, 30)) == (False, 1)
    assert torch.equal(
        copies(batch[0], 1, noise=0, steps=2)[0], OwnNetwork(SMALL).read()(OwnNetwork(SMALL).read()(batch[0]))
    )


def test_a_denoiser_that_asks_is_told_the_noise_of_each_image(batch: Any) -> None:
    found = copies(batch[0], factory=f"{__name__}:Told", noise=0.25)
    torch.testing.assert_close(found, batch[0] + 0.25 * noises(1)[0] - 0.25)


def test_noise_is_the_same_whatever_images_are_computed_together(batch: Any) -> None:
    whole = copies(batch[0], steps=3)
    parts = [copies(batch[0][some], points=list(POINTS)[some], steps=3) for some in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-6)
    order = [5, 2, 7, 0, 1, 6, 4, 3]
    assert torch.equal(copies(batch[0][order], points=[POINTS[i] for i in order], steps=3), whole[:, order])


def test_neighbouring_settings_share_their_noise(batch: Any) -> None:
    small, large = (copies(batch[0], factory="torch.nn:Identity", noise=noise) - batch[0] for noise in (0.1, 0.3))
    torch.testing.assert_close(3 * small, large)


def test_it_works_within_a_chain(batch: Any, classifier: nn.Module) -> None:
    inner: Any = {"purify": {"factory": SMALL, "noise": 0.1, "steps": 2}}
    values = inner["purify"]
    alone, chained = make_defense("purify", **values), make_defense("chain", of=[inner])
    found = [predict(classifier, each, batch[0], executions=7, seed=5) for each in (alone, chained)]
    assert torch.equal(*found)
    (component,) = chained.components()
    assert [part.networks() for part in component.within()] == [(OwnNetwork(SMALL),)]


# Gradients


def gradient(x: Tensor, weight: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad((make(leaf) * weight).sum(), leaf)[0]


def test_the_exact_gradient_of_several_steps_is_that_of_autograd(batch: Any) -> None:
    weight, network = torch.randn(4, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), OwnNetwork(SMALL).read()

    def plain(x: Tensor) -> Tensor:
        images = x.expand(4, *x.shape)
        for noise in noises(5):
            images = network((images + 0.1 * noise).flatten(0, 1)).unflatten(0, (4, 8))
        return images

    expected = gradient(batch[0], weight, plain)
    assert expected.abs().max() > 0
    assert torch.equal(gradient(batch[0], weight, lambda x: copies(x, steps=5)), expected)


def test_the_gradient_of_the_surrogate_is_that_of_the_identity(batch: Any) -> None:
    weight = torch.randn(4, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = gradient(batch[0], weight, lambda x: copies(x, steps=3, gradient="identity"))
    torch.testing.assert_close(found, weight.sum(0))
    torch.testing.assert_close(
        copies(batch[0].clone().requires_grad_(), steps=3, gradient="identity"), copies(batch[0], steps=3)
    )


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are made and still there, and the most there have been at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for made in (each for each in tree_leaves(found) if isinstance(each, Tensor)):
            storage = made.untyped_storage()
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return found

    def _gone(self, cdata: int, size: int) -> None:
        self._seen.discard(cdata)
        self.now -= size


def most_memory(x: Tensor, steps: int, gradient_of: str = "exact") -> int:
    leaf = x.clone().requires_grad_()
    with _Live() as live:
        found = copies(leaf, 5, factory="mi_ray.denoising:ResidualDenoiser", steps=steps, gradient=gradient_of)
        torch.autograd.grad(found.sum(), leaf)
    return live.most


def test_twenty_steps_take_little_more_memory_than_two(batch: Any) -> None:
    one, two, twenty = (most_memory(batch[0], steps) for steps in (1, 2, 20))
    # The count sees what is kept: without checkpoints, each of five executions keeps a map for each of four layers.
    assert one > 5 * (DEPTH - 1) * WIDTH / 3 * batch[0].nbytes
    assert two < 1.3 * one
    assert twenty < 2 * two


# Content keys, and the way to workers


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a denoiser of one's own, from which it may be imported."""
    (tmp_path / "nets_of_purify.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets_of_purify", raising=False)
    write(7)
    return tmp_path


NETS = "import torch\n\n\ndef build():\n    return torch.nn.Conv2d(3, 3, 1)\n"
VALUES = {"factory": "nets_of_purify:build", "weights": "net.safetensors", "noise": 0.1}


def write(seed: int) -> None:
    torch.manual_seed(seed)
    network = nn.Conv2d(3, 3, 1)
    save_file({name: value.detach() for name, value in network.state_dict().items()}, "net.safetensors")


def sweep_of(**values: Any) -> Any:
    return sweep(defenses=[{"purify": {**VALUES, **values}}, {"gaussian_noise": {"sigma": 0.1}}])


def keys(**values: Any) -> dict[str, str]:
    plan = prepare(sweep_of(**values)).plan()
    return {f"{work.component and work.component.name} {work.inputs.stop}": work.key for work in plan.outputs}


def again(keys_before: dict[str, str]) -> set[str]:
    after = keys()
    assert after.keys() == keys_before.keys()
    return {name for name in after if after[name] != keys_before[name]}


def test_a_changed_file_changes_the_keys_of_its_outputs_and_an_untouched_one_does_not(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    purified = {"purify 0", "purify 2"}
    before = keys()
    assert purified < before.keys()
    assert again(before) == set()
    (own / "nets_of_purify.py").write_text(NETS.replace("\n\n\n", "\n# Says nothing new.\n\n"))
    assert again(before) == set()
    write(8)
    assert again(before) == purified
    write(7)
    assert again(before) == set()
    (own / "nets_of_purify.py").write_text(f"{NETS}    # and more\n\n\nMORE = 1\n")
    with pytest.raises(ValueError, match=r"nets_of_purify\.py was changed since this process imported it"):
        keys()
    monkeypatch.setattr("mi_ray.study.sources._IMPORTED", {})  # as a new process has it
    assert again(before) == purified


def test_an_attack_through_it_has_its_network_in_its_key(own: Path) -> None:
    def attacked() -> dict[str, str]:
        attacks = [{"eot_pgd": {"steps": 1}, "epsilon": 0.1, "knowledge": "adaptive"}]
        plan = prepare(
            sweep(attacks=attacks, defenses=[{"chain": [{"purify": VALUES}]}, {"gaussian_noise": 0.1}])
        ).plan()
        return {work.defense.name: work.key for work in plan.attacks if work.defense}

    before = attacked()
    assert attacked() == before
    write(8)
    after = attacked()
    assert {name for name in after if after[name] != before[name]} == {"chain"}


def test_a_finished_study_is_looked_at_again_when_a_denoiser_has_changed(own: Path) -> None:
    before = fingerprint(sweep_of())
    assert fingerprint(sweep_of()) == before
    (own / "nets_of_purify.py").write_text(f"{NETS}\n\nMORE = 1\n")
    second = fingerprint(sweep_of())
    write(8)
    assert len({before, second, fingerprint(sweep_of())}) == 3
    assert sweep_of().factories == ("nets_of_purify:build",)
    assert sweep_of().names_code


def test_a_worker_is_handed_the_weights_and_reads_no_file(own: Path, tmp_path: Path, request: Any) -> None:
    request.addfinalizer(lambda: hand_over({}))
    one = tiny(tmp_path / "store", defenses=[{"purify": {**VALUES, "steps": 2}}], points={"count": 20})
    Path("net.safetensors").unlink()
    compute(one)
    work = one.work("purify")
    stored = torch.from_numpy(one.bench.results.probabilities(work, 0, 20))[0, 0]
    write(7)
    hand_over({})
    made = make_defense("purify", **VALUES, steps=2)
    x, model = one.bench.clean(0, 20), one.bench.classifier(work.classifier, "fp32")
    found = predict(model, made, x, executions=1, seed=0, points=one.study.points[:20])
    torch.testing.assert_close(found, stored, rtol=0, atol=1e-5)
    write(8)
    other = predict(model, made, x, executions=1, seed=0, points=one.study.points[:20])
    assert (other - stored).abs().max() > 1e-3  # the file that is read has changed
    Workbench(one.bench.data)
    assert torch.equal(predict(model, made, x, executions=1, seed=0, points=one.study.points[:20]), found)


def test_a_process_reads_a_file_again_once_its_study_has_ended(own: Path, tmp_path: Path, request: Any) -> None:
    """A notebook goes on after a study, perhaps with other weights in the same file."""
    request.addfinalizer(lambda: hand_over({}))
    one = tiny(tmp_path / "store", defenses=[{"purify": VALUES}], points={"count": 20})
    session = Session(one.study, one.store, None, Console(file=io.StringIO()))
    made, x = make_defense("purify", **VALUES), torch.rand(2, 3, 32, 32)
    (network,) = made.networks()  # type: ignore[attr-defined]
    before = network.on(CPU)(x)
    write(8)
    assert torch.equal(network.on(CPU)(x), before)  # all of a study has one network, whatever becomes of the file
    session.close()
    assert not torch.equal(network.on(CPU)(x), before)


def test_what_a_factory_draws_is_always_the_same_and_disturbs_nobody(batch: Any) -> None:
    state = torch.get_rng_state()
    assert state_bytes(OwnNetwork(SMALL).read()) == state_bytes(OwnNetwork(SMALL).read())
    assert torch.equal(torch.get_rng_state(), state)
    network = OwnNetwork(SMALL).read()
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


# Training a denoiser


def test_training_takes_noise_away_and_a_seed_repeats_it(tmp_path: Path, batch: Any) -> None:
    digits, data = Digits().load(), tmp_path / "few.npz"
    train = {"x_train": digits.train_images[:96], "y_train": digits.train_labels[:96]}
    np.savez(data, **train, x_test=digits.test_images[:32], y_test=digits.test_labels[:32])
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    rest: Any = {"factory": SMALL, "sigma": (0.3, 0.3), "epochs": 15, "lr": 0.02}
    first, second, other = (
        train_denoiser({"npz": str(data)}, file, seed=seed, **rest) for file, seed in zip(files, (0, 0, 1), strict=True)
    )
    assert first.noisy == pytest.approx(0.09, rel=0.02)
    assert first.denoised < first.noisy / 2
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert first == second != other
    network = Small()
    network.load_state_dict(load_file(files[0]))
    purified = copies(batch[0], 1, weights=str(files[0]), noise=0.3)[0]
    torch.testing.assert_close(purified, denoised(network, batch[0] + 0.3 * noises(1, 1)[0][0], 0.3))


def test_a_seed_repeats_a_dropout_too_and_disturbs_nobody(tmp_path: Path) -> None:
    digits, data = Digits().load(), tmp_path / "few.npz"
    few = {"x_train": digits.train_images[:8], "y_train": digits.train_labels[:8]}
    np.savez(data, **few, x_test=digits.test_images[:8], y_test=digits.test_labels[:8])
    state, found = torch.get_rng_state(), []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        file = tmp_path / f"{name}.safetensors"
        train_denoiser({"npz": str(data)}, file, factory=f"{__name__}:Dropped", epochs=1, seed=seed)
        found.append(file.read_bytes())
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sigma": (0.3, 0.1)}, r"0 <= low <= high, .* got 0.3 and 0.1"),
        ({"sigma": (-0.1, 0.1)}, r"0 <= low <= high, .* got -0.1 and 0.1"),
        ({"epochs": 0}, r"epochs and batch_size at least 1; got .*, 0, 16"),
        ({"dataset": "digit"}, r"unknown dataset 'digit' \(did you mean 'digits'\?\)"),
        ({"file": "absent/net.safetensors"}, r"a folder that is there; got absent/net.safetensors"),
        ({"factory": "torch.nn:Flatten"}, r"factory torch.nn:Flatten must return a network with weights to train"),
        ({"factory": "nets:build"}, r"there is no such module"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: Any, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        train_denoiser(**{"dataset": "digits", "file": "net.safetensors", **changes})
    assert list(tmp_path.iterdir()) == []


def test_the_denoiser_that_comes_with_the_program_takes_noise_away(digits: Any) -> None:
    x, generator = to_unit(digits.test_images), torch.Generator().manual_seed(0)
    noisy = x + 0.3 * torch.randn(x.shape, generator=generator)
    with torch.no_grad():
        found = denoised(OwnNetwork("mi_ray.denoising:digits_denoiser").read(), noisy, 0.3)
    assert ((found - x) ** 2).mean() < 0.05 * ((noisy - x) ** 2).mean()


@pytest.mark.long  # Numbers of the documentation: a measurement, of many images and steps.
def test_a_denoiser_of_digits_helps_against_whoever_does_not_go_through_it_and_hardly_otherwise(
    classifier: nn.Module, digits: Any
) -> None:
    x, y = to_unit(digits.test_images[:100]), torch.from_numpy(digits.test_labels[:100])
    values = {"factory": "mi_ray.denoising:digits_denoiser", "noise": 0}
    pgd, through = make_attack("pgd", steps=20, step_size=0.01), make_attack("eot_pgd", steps=20, step_size=0.01, eot=1)

    def attacked(attack: Attack, model: nn.Module) -> Tensor:
        return attack.craft(model, x, y, ThreatModel(0.05), seed=1).images[0, -1]

    def right(images: Tensor, f: nn.Module) -> float:
        return 100 * (f(images).argmax(1) == y).float().mean().item()

    exact, surrogate = (
        DefendedClassifier(classifier, make_defense("purify", **values, gradient=of)) for of in ("exact", "identity")
    )
    oblivious = attacked(pgd, classifier)
    found = [right(x, classifier), right(oblivious, classifier), right(oblivious, exact)]
    found += [right(attacked(through, surrogate), exact), right(attacked(through, exact), exact)]
    told = re.search(
        r"gets (\d+) % right, and (\d+) % after PGD.*gets (\d+) % of those right, (\d+) % after .*identity, and (\d+) %",
        (Path(__file__).parents[2] / "docs/methods.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert told is not None
    assert found == pytest.approx([float(number) for number in told.groups()], abs=8)
    assert abs(right(x, exact) - found[0]) <= 3


# What it costs


@pytest.mark.parametrize(("steps", "gradient_of"), [(3, "exact"), (3, "identity")])
def test_planned_passes_through_a_denoiser_are_those_that_are_made(
    steps: int, gradient_of: str, tmp_path: Path, request: Any
) -> None:
    request.addfinalizer(lambda: hand_over({}))
    attacks = [
        {"pgd": {"steps": 1}, "epsilon": 0.1},
        {"eot_pgd": {"steps": [1, 2]}, "epsilon": 0.1, "knowledge": "adaptive"},
    ]
    values = {"factory": SMALL, "noise": 0.1, "steps": steps, "gradient": gradient_of}
    defenses = [{"chain": [{"gaussian_noise": 0.1}, {"purify": values}]}]
    one = tiny(tmp_path, attacks=attacks, defenses=defenses, points={"count": 20})
    made, network = [0, 0], OwnNetwork(SMALL).on(CPU)
    make_defense("purify", **values).check_images(32, 32)  # tried once a process, which is counted by nobody

    def forwards(module: nn.Module, images: Any) -> None:
        made[0] += len(images[0])

    def backwards(module: nn.Module, reached: Any, came: Any) -> None:
        made[1] += len(came[0])

    hooks = [network.register_forward_pre_hook(forwards), network.register_full_backward_hook(backwards)]
    request.addfinalizer(lambda: [hook.remove() for hook in hooks])
    compute(one)
    assert made[0] > 0
    assert (made[1] > 0) == (gradient_of == "exact")
    assert denoiser_passes(one.study, one.plan) == {OwnNetwork(SMALL): tuple(made)}


def test_a_plan_says_what_its_denoisers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mi_ray.study.duration, "MEASURE_SECONDS", 0.01)
    study = prepare(sweep(defenses=[{"purify": {"factory": SMALL, "noise": 0.1, "steps": 2}}], draws=1))
    passes = denoiser_passes(study, study.plan())[OwnNetwork(SMALL)]
    assert passes[0] >= 40 * 2 * 2 * 30  # points, steps, clean and attacked, executions
    (line,) = [line for line in estimate(study, None).lines if SMALL in line]
    assert f"{passes[0]:,} forward and 0 backward passes through it are in no count of passes" in line
