"""What a person follows a run with: TensorBoard, and any other of Ray Tune's callbacks. No result depends on it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import TBXLoggerCallback

from mi_ray.own_code import import_own, own_code
from mi_ray.parameters import kind_of

if TYPE_CHECKING:  # Importing it takes a second, which only runs that draw curves should pay.
    from tensorboardX import SummaryWriter

LONGEST = 200  # bytes of a folder's name


def load_callback(written: str) -> Callable[[], tune.Callback]:
    """The factory that `package.module:factory` names; the import runs a person's own code.

    Raises ValueError when there is no such factory.
    """
    rule = f"--callback must be package.module:factory, a callable; got {written!r}"
    module, colon, name = written.partition(":")
    factory = getattr(import_own(rule, module), name, None) if colon and module and name else None
    if not callable(factory):
        raise ValueError(rule)
    return cast("Callable[[], tune.Callback]", factory)


def _try_factory(written: str, factory: Callable[[], object]) -> None:
    """Raise ValueError where a factory fails, or makes something that Tune cannot call."""
    rule = f"--callback must be a factory of callbacks; {written}"
    with own_code(rule):
        made = factory()
    if not isinstance(made, tune.Callback):
        raise ValueError(f"{rule} must return a ray.tune.Callback; it returned {kind_of(made)}")


class Curves(TBXLoggerCallback):
    """Tune's TensorBoard callback, with one folder for each setting below a folder that stays."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __getstate__(self) -> dict[str, object]:
        """Keep nothing: Tune writes its callbacks down in order to restore a run, which we never do."""
        return {}

    def log_trial_start(self, trial: TuneTrial) -> None:
        """Begin the setting's curves in a folder named without Tune's number, so that a later run adds to it."""
        if trial in self._trial_writer:
            self._trial_writer[trial].close()
        name = _as_folder(str(trial).removesuffix(f"_{trial.trial_id}"))
        self._trial_writer[trial] = self._summary_writer_cls(str(self._folder / name), flush_secs=5)
        self._trial_result[trial] = {}


def _as_folder(name: str) -> str:
    """A name that a file system takes: of a long one its beginning, and a hash that tells it from others."""
    if len(name.encode()) <= LONGEST:
        return name
    return f"{name.encode()[:LONGEST].decode(errors='ignore')} {hashlib.sha256(name.encode()).hexdigest()[:12]}"


@dataclass
class Callbacks:
    """What is told of a run while it goes on.

    tensorboard: a folder for curves, None for none. factories: Tune callbacks, each as "package.module:factory". Raises
    ValueError when one cannot be imported, or makes no callback: each is called once before any work, for this alone.
    """

    tensorboard: str | None = None
    factories: Sequence[str] = ()
    _writers: dict[str, "SummaryWriter"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._loaded = [load_callback(written) for written in self.factories]
        for written, factory in zip(self.factories, self._loaded, strict=True):
            _try_factory(written, factory)
        # Tune changes the working directory, so a relative folder would be looked for elsewhere later.
        self._folder = None if self.tensorboard is None else Path(self.tensorboard).resolve()

    @property
    def listens(self) -> bool:
        """Whether anybody follows the settings of a sweep as Tune's trials."""
        return self._folder is not None or bool(self._loaded)

    def tune(self, study: str) -> list[tune.Callback]:
        """Tune's callbacks for one run of a study's trials."""
        own = [] if self._folder is None else [Curves(self._folder / study / "settings")]
        return [*own, *(factory() for factory in self._loaded)]

    def epoch(self, study: str, classifier: str, row: Mapping[str, float]) -> None:
        """Add an epoch of a training to its curves."""
        if self._folder is None:
            return
        from tensorboardX import SummaryWriter

        place = str(self._folder / study / "training" / classifier)
        if place not in self._writers:
            self._writers[place] = SummaryWriter(place, flush_secs=5)
        for name in ("loss", "train_accuracy", "test_accuracy", "lr"):
            self._writers[place].add_scalar(f"training/{name}", row[name], global_step=row["epoch"])

    def close(self) -> None:
        """Write what is not written yet."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
