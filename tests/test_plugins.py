"""A new plugin works as it is written, and each way of breaking its contract is a line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from helpers.sweeps import sweep

import mi_ray
from mi_ray.defenses import DEFENSES
from mi_ray.parameters import Parameterized, choice, flag, integer, integers, number, pair, text
from mi_ray.plugins import KINDS, _example, contract_failures, new_plugin
from mi_ray.study.prepare import prepare


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The registries, the modules and the path are afterwards what they were."""
    before = {kind: dict(registry._classes) for kind, registry in KINDS.items()}
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for kind, registry in KINDS.items():
        registry._classes = before[kind]
    for name in set(sys.modules) - modules:
        if name.startswith(("my_", "broken_")):
            del sys.modules[name]


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_new_writes_keeps_its_contract_and_is_never_overwritten(kind: str, tmp_path: Path) -> None:
    plugin, test = new_plugin(kind, f"my_{kind}", tmp_path)
    begun: list[str] = []
    assert contract_failures(plugin, begun.append) == []
    assert begun == [f"{kind} my_{kind}"]
    assert f"every {kind} keeps" in test.read_text()
    with pytest.raises(ValueError, match="nothing is overwritten"):
        new_plugin(kind, f"my_{kind}", tmp_path)


def test_a_new_attack_takes_fifteen_lines(tmp_path: Path) -> None:
    text = new_plugin("attack", "my_attack", tmp_path)[0].read_text()
    body = text.split('"""', 2)[2]
    lines = [line for line in body.splitlines() if line.strip() and not line.startswith(("from ", "import "))]
    assert len(lines) <= 15


def test_its_own_test_passes(tmp_path: Path) -> None:
    new_plugin("defense", "my_defense", tmp_path)
    path = {**os.environ, "PYTHONPATH": str(Path(mi_ray.__file__).parent.parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_my_defense.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=path)
    assert done.returncode == 0, done.stdout


GRADIENT = "autograd.grad(loss, x)[0])"
ATTACK = [
    ("return x.detach()", "return 2 * x.detach() + 1", "must stay within epsilon"),
    (
        "x = batch.stepped(x, self.share * batch.epsilon, torch",
        "x = x + 9 * batch.epsilon * torch.sign(torch",
        "must stay within epsilon",
    ),
    (
        "passes = (10, 10)",
        "passes = (20, 10)",
        "of one image, 11 forward and 10 backward; it says (21, 10): `passes` must be (10, 10), without the pass",
    ),
    ("passes = (10, 10)", "passes, stops_early = (5, 20), True", "it says (6, 20): `passes` must be (10, 20), without"),
    (
        "return x.detach()",
        "model(x[:1]); return x.detach()",
        "it says (11, 10): it must be the same for each image, or",
    ),
    (GRADIENT, GRADIENT[:-1] + " * (torch.rand_like(x) - 0.5))", "the same seed must give the same images"),
    (
        GRADIENT,
        GRADIENT[:-1] + " * (batch.labels == 1).float().mean())",
        "an image must come out the same in any batch",
    ),
    ("return x.detach()", "return x.detach() * float('nan')", "must be finite numbers"),
    (
        "passes = (10, 10)",
        "passes = (1, 1); needs_defense = True",
        "its passes (`passes`, or `cost`) must be those of one image, at least",
    ),
    (
        "passes = (10, 10)",
        "passes = (10, 10); stops = lambda self: [1]",
        "stops() must be a tuple of increasing whole numbers",
    ),
    ("return x.detach()", "return batch.x.detach().mul_(0.9)", "must leave batch.x as it is; it wrote into it"),
    (
        "return x.detach()",
        "model.train(); return x.detach()",
        "must leave the model in evaluation mode",
    ),
    ("model, step=step", "model", "behind a random defense all of its 10 gradients meet the same draws"),
    ("self.share *", "self.sharp *", "has no attribute 'sharp' (my_plugin.py, line 26)"),
    ("return x.detach()", "raise SystemExit(0)", "it must run; SystemExit: 0 (my_plugin.py, line "),
    ("passes = (10, 10)", "passes = (10, 10); norms = 'linf'", "norms must be a tuple of one or several of linf"),
    ("passes = (10, 10)", "passes = (10, 10); norms = ('l7',)", "as in ('linf',); got ('l7',)"),
    ("passes = (10, 10)", "passes = (10, 10); norms = ()", "as in ('linf',); got ()"),
    ("import torch\n", "import torch\nprint(\n", "my_plugin.py must be importable: SyntaxError"),
    ("import torch\n", "import torch\nraise SystemExit(3)\n", "my_plugin.py must be importable: SystemExit: 3"),
]
DEFENSE = [
    (
        "x + self.amplitude *",
        "x.mean(0, keepdim=True) + self.amplitude *",
        "a point must be answered the same in any batch",
    ),
    (
        "return x + ",
        "return x.detach() + ",
        "transform must let a gradient through, or `backward_transform` must",
    ),
    (
        "return x + ",
        "return x.sqrt() + ",
        "transform must let a finite gradient through, which attacks follow; it is NaN or infinite",
    ),
    (
        "return x + ",
        "return 255 * x + ",
        "transform must return pixels in [0, 1] or near it, as floating-point numbers",
    ),
    ("return x + ", "return x.round() + ", "let a gradient through, which attacks follow; it is zero in every pixel"),
    ("return x + ", "x.detach().mul_(0.9); return x + ", "it must leave the images as they are, which it writes into"),
    ('"amplitude": 0.0', '"amplitude": 0.3', "with the parameters of identity() the probabilities must be those of F"),
    ("draws.uniform(1)", "__import__('torch').rand(5, len(x), 1)", "the same seed must give the same answer"),
    ("draws.uniform(1)", "__import__('torch').rand(5, len(x), 1)", "must take its random numbers from `draws` alone"),
]
OBJECTIVE = [
    (
        "return cross_entropy(model(x)",
        "return cross_entropy(model(x).detach()",
        "the loss must have a gradient with respect",
    ),
    (
        "label_smoothing=self.smoothing)",
        "label_smoothing=self.smoothing).item()",
        "must return one number as a tensor, the mean over the batch; got a float",
    ),
    ("return cross_entropy(", "return float('nan') * cross_entropy(", "loss must be finite; on a few images it is nan"),
    ("return 1, 1", "return 1.5, 1", "cost() must be (forward, backward) passes, whole numbers; got (1.5, 1)"),
    (
        "label_smoothing=self.smoothing)",
        "reduction='none')",
        "loss must return one number as a tensor, the mean over the batch; got [6]",
    ),
    ("model(x), y", "model(x + __import__('torch').rand(1)), y", "the same rng must give the same loss"),
]
BROKEN = [(kind, *each) for kind, broken in zip(KINDS, (ATTACK, DEFENSE, OBJECTIVE), strict=True) for each in broken]


@pytest.mark.parametrize(("kind", "old", "new", "line"), BROKEN)
def test_each_breach_of_a_contract_is_a_line(kind: str, old: str, new: str, line: str, tmp_path: Path) -> None:
    plugin: Any = new_plugin(kind, "my_plugin", tmp_path)[0]
    text = plugin.read_text()
    assert old in text
    plugin.write_text(text.replace(old, new, 1))
    failures = contract_failures(plugin)
    assert any(line in failure for failure in failures), failures
    assert not any("\n" in failure for failure in failures)


def test_a_goal_that_an_attack_refuses_keeps_it_from_being_tried_on_no_other(tmp_path: Path) -> None:
    plugin = new_plugin("attack", "my_plugin", tmp_path)[0]
    refuses = "    def check(self, threat, classes):\n        if threat.goal == 'untargeted':\n            raise ValueError\n\n"
    text = plugin.read_text().replace(GRADIENT, GRADIENT[:-1] + " * (torch.rand_like(x) - 0.5))")
    plugin.write_text(text.replace("    def images(", f"{refuses}    def images("))
    failures = contract_failures(plugin)
    assert any("targeted, linf: the same seed" in failure for failure in failures), failures
    assert not any("untargeted" in failure for failure in failures), failures


def test_a_file_that_registers_nothing_and_names_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "broken_empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="must register an attack, a defense or an objective; it registers none"):
        contract_failures(tmp_path / "broken_empty.py")
    for name in ("My", "1st", "a-b"):
        with pytest.raises(ValueError, match="must be a Python name in lower case"):
            new_plugin("attack", name, tmp_path)
    for kind, name in (("attack", "pgd"), ("defense", "mi_ol"), ("objective", "mixup"), ("figure", "fig3b")):
        with pytest.raises(ValueError, match=f"must be of no {kind} of mi_ray; got '{name}'"):
            new_plugin(kind, name, tmp_path)
    assert not (tmp_path / "pgd.py").exists()
    with pytest.raises(ValueError, match="unknown kind of plugin 'table'; known: attack, defense, figure, objective"):
        new_plugin("table", "my_figure", tmp_path)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (3, 4), (0, 100), (5, None), (None, None)])
def test_the_example_of_a_parameter_is_one_that_it_takes(low: float | None, high: float | None) -> None:
    @dataclass(frozen=True)
    class Every(Parameterized):
        name: ClassVar[str] = "every"
        whole: int = integer("whole", low=low, high=high)
        several: tuple[int, ...] = integers("several", low=low, high=high)
        sides: tuple[int, int] = pair("sides", low=low, high=high)
        real: float = number("real", low=low, high=high)
        said: bool = flag("said")
        one: str = choice("one", ("a", "b"))
        word: str = text("word")

    values = _example(Every)
    assert {*values} == {*Every.required()}
    made = Every(**values)
    for value in (made.whole, *made.sides, made.real):
        assert (low if low is not None else value) <= value <= (high if high is not None else value)


def test_where_a_class_refuses_an_example_it_is_asked_for_a_lower_one() -> None:
    @dataclass(frozen=True)
    class Blocks(Parameterized):
        name: ClassVar[str] = "blocks"
        side: int = integer("side of a block, a power of two", low=1)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.side & (self.side - 1):
                raise ValueError(f"side must be a power of two; got {self.side}")

    assert _example(Blocks) == {"side": 2}


def test_norms_may_be_a_list(tmp_path: Path) -> None:
    plugin = new_plugin("attack", "my_plugin", tmp_path)[0]
    plugin.write_text(plugin.read_text().replace("passes = (10, 10)", "passes = (10, 10); norms = ['linf']"))
    assert contract_failures(plugin) == []


WINDOW = """
from dataclasses import dataclass
import torch.nn.functional as F
from mi_ray.defenses import DEFENSES, RandomTransform
from mi_ray.parameters import integer

@DEFENSES.register
@dataclass(frozen=True)
class Median(RandomTransform):
    \"\"\"The median of a window around each pixel.\"\"\"
    name, draws = "my_median", False
    window: int = integer("side of the window", low=1)
    def transform(self, x, draws, predicted, pool):
        if self.window % 2 == 0:
            raise ValueError(f"the window must be odd; got {self.window}")
        half = self.window // 2
        wide = F.pad(x, (half,) * 4, mode="reflect").unfold(2, self.window, 1).unfold(3, self.window, 1)
        return wide.flatten(-2).median(-1).values.expand(draws.executions, *x.shape)
    @classmethod
    def identity(cls):
        return {"window": 1}
"""


def test_the_example_of_an_open_whole_number_is_odd_from_one_on_and_an_error_says_what_it_was(tmp_path: Path) -> None:
    plugin = tmp_path / "my_median.py"
    plugin.write_text(WINDOW)
    assert contract_failures(plugin) == []
    DEFENSES._classes.pop("my_median")
    plugin = (
        tmp_path / "my_even.py"
    )  # Python takes a file of the same second and length for the one that it has compiled.
    plugin.write_text(WINDOW.replace("low=1", "low=2"))
    (failure,) = contract_failures(plugin)
    assert "the window must be odd; got 4 (my_even.py, line 15); it was tried with window = 4, since" in failure


SHIFTS = """
from dataclasses import dataclass
from typing import ClassVar
from mi_ray.defenses import DEFENSES, RandomTransform
from mi_ray.attacks import ATTACKS, ImagesAttack

@DEFENSES.register
@dataclass(frozen=True)
class Shifts(RandomTransform):
    name = "my_shifts"
    draws: ClassVar[bool] = False
    def transform(self, x, draws, predicted, pool):
        return x + 0.1 * draws.uniform(1)[..., None, None]
    @classmethod
    def identity(cls):
        return None

@ATTACKS.register
@dataclass(frozen=True)
class Walk(ImagesAttack):
    name = "my_walk"
    passes = (1, 1)
    def images(self, model, batch):
        x = batch.x
        for _ in range(3):
            x = x.clone().requires_grad_()
            with batch.bound(model):
                batch.criterion.loss(model(x), batch.labels).sum().backward()
            x = batch.projected(x.detach() + 0.01 * x.grad.sign())
        return x

@ATTACKS.register
@dataclass(frozen=True)
class InPlace(ImagesAttack):
    name = "my_steps_in_place"
    passes = (0, 0)
    def images(self, model, batch):
        adversarial = batch.x.detach()
        adversarial += 5 * batch.epsilon
        adversarial.clamp_(batch.x - batch.epsilon, batch.x + batch.epsilon)
        return adversarial.clamp_(0, 1)

@ATTACKS.register
@dataclass(frozen=True)
class Training(InPlace):
    name = "my_training_step"
    def images(self, model, batch):
        model.eval()
        found = batch.random_start()
        model.train()
        return found

@DEFENSES.register
@dataclass(frozen=True)
class Piles(RandomTransform):
    name = "my_piles"
    def transform(self, x, draws, predicted, pool):
        x += 0.1 * draws.normal_images(x.shape[1:])[0]
        return x.expand(draws.executions, *x.shape)
    @classmethod
    def identity(cls):
        return None
"""


def test_a_defense_that_draws_and_says_it_does_not_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my_shifts.py").write_text(SHIFTS)
    failures = contract_failures(tmp_path / "my_shifts.py")
    assert any(
        "defense my_shifts says `draws = False` and must not draw; its transform does" in each for each in failures
    )


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"defenses": ["my_shifts"], "attacks": [{"pgd": {"steps": 1}, "epsilon": 0.1}]}, "says `draws = False`"),
        ({"attacks": [{"my_walk": {}, "epsilon": 0.1}]}, "at least 4 forward and 3 backward; it says \\(2, 1\\)"),
        (
            {
                "defenses": [{"gaussian_noise": 0.1}],
                "attacks": [{"my_walk": {}, "epsilon": 0.1, "knowledge": "adaptive"}],
            },
            "and 15 backward behind gaussian_noise; it says",
        ),
        ({"attacks": [{"my_steps_in_place": {}, "epsilon": 0.1}]}, r"must leave batch\.x as it is"),
        ({"attacks": [{"my_training_step": {}, "epsilon": 0.1}]}, "must leave the model in evaluation mode"),
        (
            {"defenses": ["my_piles"], "attacks": [{"pgd": {"steps": 1}, "epsilon": 0.1}]},
            "must leave the images as they are",
        ),
    ],
)
def test_a_study_refuses_before_any_work_what_would_make_its_numbers_wrong(
    entry: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_shifts.py").write_text(SHIFTS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=told):
        prepare(sweep(plugins=["my_shifts"], checks="cheap", **entry))
