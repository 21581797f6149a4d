"""Compiled graphs: they answer as the network does, the same for every process, and nobody compiles what is there."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import mi_ray.graphs
from mi_ray.attacks import ATTACKS
from mi_ray.classifiers import Classifier, prepared, wrap_classifier
from mi_ray.graphs import Graphs, Library, compiler
from mi_ray.study.batches import BlockInput, attack_outputs, undefended_outputs
from mi_ray.threat_model import ThreatModel

SIZE = 10
# Compiling a library takes half a minute of processor time, so that what `make test` runs has torch interpret the graphs instead.
pytestmark = pytest.mark.timeout(900)


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


def interpreted(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Library:
    """In a library's place: the graph itself, on inputs of the shapes and strides that a library would be compiled for."""
    expected = [(each.shape, each.stride(), each.dtype) for each in inputs]

    def run(given: Sequence[Tensor]) -> list[Tensor]:
        assert [(each.shape, each.stride(), each.dtype) for each in given] == expected
        with torch.no_grad():
            return list(graph(*given))

    return run


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Classifier:
    """The network with its graphs, which torch interprets."""
    monkeypatch.setattr(mi_ray.graphs, "_library", interpreted)
    return with_graphs()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Classifier, Path]]:
    """The network with its graph of forward passes made, and the folder in which `mi_ray/graphs` has its library."""
    if compiler() is None:
        pytest.skip("this machine has no C++ compiler")
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        found = with_graphs()
        with torch.no_grad():
            found(images())
        yield found, folder


def libraries(folder: Path) -> list[Path]:
    """The libraries that are in a cache, beside which there is nothing but their locks and what tried the processor."""
    files = [path for path in (folder / "mi_ray" / "graphs").iterdir() if path.is_file()]
    assert {path.suffix for path in files} == {".so", ".lock"}
    return [path for path in files if path.suffix == ".so"]


def test_graphs_answer_and_lead_back_as_the_network_does(traced: Classifier) -> None:
    with torch.no_grad():
        torch.testing.assert_close(traced(images()), network()(images()))
    torch.testing.assert_close(gradient(traced, images()), gradient(network(), images()))


@pytest.mark.long  # A library is compiled for half a minute; in `make test` torch interprets what it is compiled from.
def test_a_library_answers_as_the_network_does(compiled: tuple[Classifier, Path]) -> None:
    found, folder = compiled
    with torch.no_grad():
        torch.testing.assert_close(found(images()), network()(images()))
    assert len(libraries(folder)) == 1


@pytest.mark.long  # Two more libraries; in `make test` torch interprets what they are compiled from.
def test_the_libraries_of_a_gradient_lead_back_as_the_network_does_and_are_loaded_by_another_process(
    compiled: tuple[Classifier, Path], tmp_path: Path
) -> None:
    found, folder = compiled
    torch.testing.assert_close(gradient(found, images()), gradient(network(), images()))
    assert len(libraries(folder)) == 3
    slope = elsewhere(folder, "t.gradient(g, t.images())", tmp_path / "f")
    assert torch.equal(slope, gradient(found, images()))


def elsewhere(folder: Path, what: str, file: Path) -> Tensor:
    """What another process without a compiler makes with `g`, the network with its graphs, of `t`, this module."""
    script = (
        "import sys, torch, test_graphs as t\n"
        "from mi_ray.graphs import compiler\n"
        "assert compiler() is None\n"
        "g = t.with_graphs()\n"
        f"torch.save({what}, sys.argv[1])\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules\n"
    )
    environment = {"PATH": "", "XDG_CACHE_HOME": str(folder), "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(file)], env=environment, check=True)
    made: Tensor = torch.load(file, weights_only=True)
    return made


@pytest.mark.long  # A library is compiled for half a minute; in `make test` torch interprets what it is compiled from.
def test_another_process_loads_what_is_there_without_a_compiler_and_answers_bit_for_bit(
    compiled: tuple[Classifier, Path], tmp_path: Path
) -> None:
    found, folder = compiled
    with torch.no_grad():
        assert torch.equal(elsewhere(folder, "torch.no_grad()(g)(t.images())", tmp_path / "f"), found(images()))


@pytest.mark.parametrize("count", [8, 9])
def test_a_batch_that_is_nearly_full_is_filled_up(traced: Classifier, count: int) -> None:
    """Each image's numbers are those that it has in the full batch, bit for bit, so that a graph has run."""
    with torch.no_grad():
        assert torch.equal(traced(images(count)), traced(images())[:count])
    assert torch.equal(gradient(traced, images(count)), gradient(traced, images())[:count])


@pytest.mark.parametrize("count", [1, 7])
def test_a_batch_far_from_every_size_is_computed_without_graphs(traced: Classifier, count: int) -> None:
    assert traced.graphs is not None
    with torch.no_grad():
        assert torch.equal(traced(images(count)), network()(images(count)))
        traced(images(2 * SIZE))
    assert torch.equal(gradient(traced, images(count)), gradient(network(), images(count)))
    assert not traced.graphs._made


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_images_in_another_precision_are_computed_without_graphs(traced: Classifier, precision: torch.dtype) -> None:
    assert traced.graphs is not None
    with torch.no_grad():
        expected = network()(images().to(precision))
        assert torch.equal(traced(images().to(precision)), expected)
        assert not traced.graphs._made
        traced(images())
        assert torch.equal(traced(images().to(precision)), expected)


def test_a_point_has_the_same_numbers_in_whatever_block_and_lane_it_is_computed(traced: Classifier) -> None:
    x, y, pgd = images(3 * SIZE), torch.arange(3 * SIZE) % 10, ATTACKS.make("pgd", {"steps": [3]})

    def rows(start: int, stop: int, lanes: int) -> tuple[Tensor, Tensor]:
        """(what PGD makes of a range of points, the outputs on that)."""
        block = BlockInput(x[start:stop], range(start, stop), 0, SIZE, lanes)
        made = attack_outputs(traced, pgd, block, y[start:stop], 10, ThreatModel(8 / 255))[0].images[0, 0]
        return made, undefended_outputs(traced, BlockInput(made, range(start, stop), 0, SIZE, lanes))

    whole = rows(0, 3 * SIZE, 1)
    assert not torch.equal(whole[0], x)
    for lanes, cuts in ((1, (0, SIZE, 3 * SIZE)), (3, (0, 3 * SIZE))):
        parts = [rows(start, stop, lanes) for start, stop in itertools.pairwise(cuts)]
        for place in (0, 1):
            assert torch.equal(torch.cat([part[place] for part in parts]), whole[place])


def test_passes_are_counted_with_graphs_as_without(traced: Classifier) -> None:
    for each in (traced, network()):
        each.passes.take()
        gradient(each, images(8))
        with torch.no_grad():
            each(images(9))
        assert each.passes.take() == (17, 8)


@pytest.mark.long  # A library is compiled for half a minute; in `make test` torch interprets what it is compiled from.
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


def test_what_another_process_has_tidied_up_meanwhile_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "build-1").mkdir()
    (tmp_path / "new").write_text("")
    os.utime(tmp_path / "build-1", (0, 0))
    mi_ray.graphs._remove_unused(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"gone", "new"}
