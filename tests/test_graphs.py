"""Compiled graphs: they answer as the network does, the same for every process, and nobody compiles what is there."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mi_ray.attacks import ATTACKS
from mi_ray.classifiers import Classifier, prepared, wrap_classifier
from mi_ray.graphs import Graphs, compiler
from mi_ray.study.batches import Block, attack_outputs, undefended_outputs
from mi_ray.threat_model import ThreatModel

SIZE = 10
pytestmark = pytest.mark.timeout(900)  # Three libraries are compiled, which takes a minute of processor time.


def network() -> Classifier:
    """A convolution, a rectifier that overwrites its input, and a linear layer, without graphs."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    plain = wrap_classifier(nn.Sequential(*layers), (0.5,) * 3, (0.25,) * 3, classes=10)
    return prepared(plain, torch.device("cpu"), "fp32")


def with_graphs() -> Classifier:
    """The same with graphs of one size for either kind of batch."""
    found = network()
    found.graphs = Graphs(found.answer, forward=[SIZE], gradient=[SIZE])
    return found


def images(count: int = SIZE) -> Tensor:
    """Images [count, 3, 8, 8] in [0, 1]."""
    return torch.rand(3 * SIZE, 3, 8, 8, generator=torch.Generator().manual_seed(1))[:count]


def gradient(answer: Classifier, x: Tensor) -> Tensor:
    """The gradient of the logits' squares."""
    leaf = x.clone().requires_grad_(True)
    return torch.autograd.grad(answer(leaf).square().sum(), leaf)[0]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Classifier, Path]]:
    """The network with its graphs made, and the folder in which `mi_ray/graphs` has their libraries."""
    if compiler() is None:
        pytest.skip("this machine has no C++ compiler")
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        found = with_graphs()
        with torch.no_grad():
            found(images())
        gradient(found, images())
        yield found, folder


def test_graphs_answer_and_lead_back_as_the_network_does(compiled: tuple[Classifier, Path]) -> None:
    found, folder = compiled
    with torch.no_grad():
        torch.testing.assert_close(found(images()), network()(images()))
    torch.testing.assert_close(gradient(found, images()), gradient(network(), images()))
    left = {path.suffix for path in (folder / "mi_ray" / "graphs").iterdir() if path.is_file()}
    assert left == {".so", ".lock"}
    assert len(list((folder / "mi_ray" / "graphs").glob("*.so"))) == 3


@pytest.mark.parametrize("count", [8, 9])
def test_a_batch_that_is_nearly_full_is_filled_up(compiled: tuple[Classifier, Path], count: int) -> None:
    """Each image's numbers are those that it has in the full batch, bit for bit, so that a graph has run."""
    found, _ = compiled
    with torch.no_grad():
        assert torch.equal(found(images(count)), found(images())[:count])
    assert torch.equal(gradient(found, images(count)), gradient(found, images())[:count])


@pytest.mark.parametrize("count", [1, 7])
def test_a_batch_far_from_every_size_is_computed_without_graphs(compiled: tuple[Classifier, Path], count: int) -> None:
    found, _ = compiled
    assert found.graphs is not None
    made = len(found.graphs._made)
    assert torch.equal(gradient(found, images(count)), gradient(network(), images(count)))
    with torch.no_grad():
        assert torch.equal(found(images(count)), network()(images(count)))
        found(images(2 * SIZE))
    assert len(found.graphs._made) == made == 2


def test_another_process_loads_what_is_there_without_a_compiler_and_answers_bit_for_bit(
    compiled: tuple[Classifier, Path], tmp_path: Path
) -> None:
    found, folder = compiled
    script = (
        "import sys, torch, test_graphs as t\n"
        "from mi_ray.graphs import compiler\n"
        "assert compiler() is None\n"
        "g = t.with_graphs()\n"
        "with torch.no_grad(): answer = g(t.images())\n"
        "torch.save([answer, t.gradient(g, t.images())], sys.argv[1])\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules\n"
    )
    environment = {"PATH": "", "XDG_CACHE_HOME": str(folder), "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "f")], env=environment, check=True)
    answer, slope = torch.load(tmp_path / "f", weights_only=True)
    with torch.no_grad():
        assert torch.equal(answer, found(images()))
    assert torch.equal(slope, gradient(found, images()))


def test_a_point_has_the_same_numbers_in_whatever_block_and_lane_it_is_computed(
    compiled: tuple[Classifier, Path],
) -> None:
    found, _ = compiled
    x, y, pgd = images(3 * SIZE), torch.arange(3 * SIZE) % 10, ATTACKS.make("pgd", {"steps": [3]})

    def rows(start: int, stop: int, lanes: int) -> tuple[Tensor, Tensor]:
        """(what PGD makes of a range of points, the outputs on that)."""
        block = Block(x[start:stop], range(start, stop), 0, SIZE, lanes)
        made = attack_outputs(found, pgd, block, y[start:stop], 10, ThreatModel(8 / 255))[0].images[0, 0]
        return made, undefended_outputs(found, Block(made, range(start, stop), 0, SIZE, lanes))

    whole = rows(0, 3 * SIZE, 1)
    assert not torch.equal(whole[0], x)
    for lanes, cuts in ((1, (0, SIZE, 3 * SIZE)), (3, (0, 3 * SIZE))):
        parts = [rows(start, stop, lanes) for start, stop in itertools.pairwise(cuts)]
        for place in (0, 1):
            assert torch.equal(torch.cat([part[place] for part in parts]), whole[place])


def test_passes_are_counted_with_graphs_as_without(compiled: tuple[Classifier, Path]) -> None:
    for each in (compiled[0], network()):
        each.passes.take()
        gradient(each, images(8))
        with torch.no_grad():
            each(images(9))
        assert each.passes.take() == (17, 8)


def test_other_weights_are_another_library(
    compiled: tuple[Classifier, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not there, and without a compiler it cannot be made."""
    other = with_graphs()
    next(other.parameters()).mul_(2)
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(ValueError, match=r"every machine needs a C\+\+ compiler; there is no g\+\+ here"),
        torch.no_grad(),
    ):
        other(images())


def test_code_is_loaded_from_a_folder_of_ones_own_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mi_ray" / "graphs"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="must belong to you and be writable by nobody else"), torch.no_grad():
        with_graphs()(images())
