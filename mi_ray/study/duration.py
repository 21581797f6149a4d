"""How long a study takes on this machine: rates of its networks, measured; starts of processes; what runs side by side."""

import heapq
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mi_ray.classifiers import Classifier, build_classifier, prepared
from mi_ray.defenses import RandomTransform
from mi_ray.defenses.base import chunk_of
from mi_ray.denoising import denoised
from mi_ray.device import has_bf16
from mi_ray.networks import OwnNetwork
from mi_ray.own_code import own_code
from mi_ray.plan.cost import total
from mi_ray.plan.work import ClassifierWork, OutputWork, Passes, Plan, Work
from mi_ray.randomness import Draws, Key
from mi_ray.study.given import given_classifier
from mi_ray.study.prepare import Study

MEASURE_SECONDS = 0.1
COPIED = 10  # images of which each component of a defense makes copies
COPY_SECONDS = 0.01  # of each component of a defense, of which there may be many
# Seconds that no pass is made in, measured on two cores (benchmarks/README.md); they vary with a machine, not with a study.
COMMAND_STARTS = 6.0  # the command and Ray
ONE_WORKER_STARTS = 5.0  # the process of a training of one worker
WORKERS_START = 16.0  # the processes of another one, of which three in turn import torch or Ray Train
SETTINGS_START = 6.0  # the actors of settings
DRAWING = 6.0  # figures and page
A_CELL = 0.02  # records, verdict and drawing of a cell


def busy_places(study: Study, plan: Plan) -> int:
    """How many places the attacks can keep busy at once, or the outputs where nothing is attacked."""
    costs, count = study.planner.costs, study.planner.stored_points
    each = [sum(costs.of(work)) for work in plan.attacks or plan.outputs]
    size = min(study.sweep.resources.block.points, count)
    longest = max(each, default=1) * size
    return max(1, min(sum(each) * count // longest, len(each) * -(-count // size)))


def _rate(step: Callable[[], Any], images: int, seconds: float | None = None) -> float:
    """Images a second of a step, measured for so many seconds (`MEASURE_SECONDS` when left out).

    On a CPU these are seconds of the thread that computes, so that nothing else that the machine does at the moment counts. A
    GPU is waited for after each step, since a step only hands its work to it.
    """
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.thread_time

    def whole() -> None:
        step()
        if on_gpu:
            torch.cuda.synchronize()

    whole()
    began, done = clock(), 0
    while clock() - began < (seconds or MEASURE_SECONDS):
        whole()
        done += images
    return done / (clock() - began)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _network_of(study: Study, work: ClassifierWork) -> Classifier:
    """A network as large as the classifier, with any weights; a saved program has none before its file is read."""
    if work.entry.given_whole:
        return given_classifier(work.entry, study.planner.facts.classes, study.sweep.seed, work.description)
    return build_classifier(work.description)


def rates(study: Study, work: ClassifierWork) -> dict[str, float]:
    """Images a second of a classifier on one thread here: `forward`, `gradient` (of the image, both ways), `train`.

    In the precisions of the study; in fp32 where the study is for GPUs and this machine would emulate the other.
    """
    device = torch.device(study.planner.facts.device if torch.cuda.is_available() else "cpu")
    stands_in = device.type != study.planner.facts.device and not has_bf16(device)
    precision = "fp32" if stands_in else study.planner.works.precision_of(work.key)
    coarse = work.entry.training.precision == "bf16" and not stands_in
    height, width = study.planner.facts.side
    with _one_thread():
        plain = _network_of(study, work).to(device)
        fast = prepared(plain, device, precision)
        points = min(study.sweep.batch, len(study.points))
        chunk = torch.rand(points * study.planner.registries.chunk, 3, height, width, device=device)
        batch = chunk[:points].clone().requires_grad_(True)

        def gradient(model: torch.nn.Module) -> None:
            labels = torch.zeros(len(batch), dtype=torch.int64, device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=coarse and model is plain):
                loss = F.cross_entropy(model(batch), labels)
            loss.backward()

        with torch.no_grad():
            forward = _rate(lambda: fast(chunk), len(chunk))
        trained = float("inf") if work.objective is None else _rate(lambda: gradient(plain.train()), len(batch))
        return {"forward": forward, "gradient": _rate(lambda: gradient(fast), len(batch)), "train": trained}


def _measured(study: Study, works: Sequence[ClassifierWork]) -> list[dict[str, float]]:
    """The rates of each; networks that differ in their weights alone are measured once."""
    found: dict[str, dict[str, float]] = {}
    planned = study.planner.works.precision_of
    alike = [repr((w.description, w.objective is None, w.entry.training.precision, planned(w.key))) for w in works]
    for kind, work in zip(alike, works, strict=True):
        found[kind] = found.get(kind) or rates(study, work)
    return [found[kind] for kind in alike]


@dataclass(frozen=True)
class Duration:
    """How long what is left of a study takes on this machine.

    forward, gradient: images a second of its networks on one thread, by their mean time. core: seconds of passes and of the
    copies that defenses make, on one core. whole: seconds of the run on all cores, with all starts of processes. at_most:
    whether most of them are of attacks that leave fooled points alone, which are counted as if there were none.
    """

    forward: float
    gradient: float
    core: float
    whole: float
    at_most: bool = False

    def line(self) -> str:
        """What `mi-ray plan` says."""
        return (
            f"measured here on one thread: {self.forward:,.0f} forward passes and {self.gradient:,.0f} gradients a second; "
            f"what is left is {_in_words(self.core)} of passes on one core, and takes {'up to' if self.at_most else 'about'} "
            f"{_in_words(self.whole)} on the {_cores()} of this machine with all starts of processes"
        )


def duration(
    study: Study, plan: Plan, to_train: Sequence[ClassifierWork], attacks: Sequence[Passes], others: Sequence[Passes]
) -> Duration:
    """How long what is left takes: trainings, (forward, backward) passes of attacks, and those of all else."""
    works = plan.classifiers
    measured = _measured(study, works)
    mean = {name: len(measured) / sum(1 / each[name] for each in measured) for name in ("forward", "gradient")}
    train = {work.key: each["train"] for work, each in zip(works, measured, strict=True)}
    trainings = [(work, work.cost[1] / train[work.key]) for work in to_train if work.objective is not None]
    known: dict[str, tuple[float, float]] = {}

    def seconds(left: Sequence[Passes], works: Sequence[Work]) -> float:
        """Of passes that are left of these works, on one core, with the copies that their defenses make."""
        forward, backward = total(left)
        planned = sum(total(study.planner.costs.of(work) for work in works)) * study.planner.stored_points
        share = min(1.0, (forward + backward) / planned) if planned else 0.0
        copied = _copying(study, works, known) * share if share else 0.0
        return backward / mean["gradient"] + (forward - backward) / mean["forward"] + copied

    attacked, rest = seconds(attacks, plan.attacks), seconds(others, plan.outputs)
    core = attacked + rest + sum(alone for _, alone in trainings)
    whole = _length(study, plan, trainings, attacked, rest) if core else 0.0
    share = _share_of_early(study, plan)
    return Duration(mean["forward"], mean["gradient"], core, whole, share * attacked > core / 2)


def _share_of_early(study: Study, plan: Plan) -> float:
    """How much of the passes of all attacks is of those that leave fooled points alone."""
    methods = study.planner.registries.attacks
    costs = [(methods[work.method].stops_early, sum(study.planner.costs.of(work))) for work in plan.attacks]
    return sum(cost for early, cost in costs if early) / max(1, sum(cost for _, cost in costs))


def _cores() -> int:
    return os.cpu_count() or 1


def _copying(study: Study, works: Sequence[Work], known: dict[str, tuple[float, float]]) -> float:
    """Seconds on one core in which defenses transform images for these works, beside F's passes on what comes out.

    known: what was measured already; a component is measured once, whatever its parameters. What asks a network of its own
    is not in it.
    """
    planner, registry = study.planner, study.planner.registries.defenses
    count, found, made = planner.stored_points, 0.0, dict[str, list[RandomTransform]]()
    for work in works:
        method = work.component if isinstance(work, OutputWork) else getattr(work, "defense", None)
        if method is None:
            continue
        forward, backward = planner.costs.of(work)
        if (name := repr(method)) not in made:
            made[name] = [part for part in registry.make(*method).components() if not part.networks()]
        parts = made[name]
        known |= {part.name: _copy(study, part) for part in parts if part.name not in known}
        if each := [known[part.name] for part in parts]:
            alone, both = (sum(pair[i] for pair in each) / len(each) for i in (0, 1))
            found += count * (alone * (forward - backward) + both * backward)
    return found


def _copy(study: Study, component: RandomTransform) -> tuple[float, float]:
    """Seconds of one copy that a component makes of an image, measured here: without a gradient, and with one."""
    device = torch.device(study.planner.facts.device if torch.cuda.is_available() else "cpu")
    count, chunk = min(COPIED, study.sweep.batch), chunk_of(component)
    x = torch.rand(count, 3, *study.planner.facts.side, device=device)
    predicted = torch.zeros(count, dtype=torch.int64, device=device)
    pool = study.pool_of(component, device) if component.needs_pool() else None

    def copies(images: Tensor) -> Tensor:
        return component.copies(images, lambda: Draws(Key(0, "try"), range(count), chunk, 0, device), predicted, pool)

    def gradient() -> None:
        leaf = x.clone().requires_grad_(True)
        made = copies(leaf)
        if made.requires_grad:
            torch.autograd.grad(made.sum(), leaf)

    with _one_thread(), own_code(f"defense {component.name} must run on random images"):
        with torch.no_grad():
            alone = _rate(lambda: copies(x), count * chunk, COPY_SECONDS)
        return 1 / alone, 1 / _rate(gradient, count * chunk, COPY_SECONDS)


def _length(
    study: Study, plan: Plan, trainings: Sequence[tuple[ClassifierWork, float]], attacks: float, others: float
) -> float:
    """Seconds of a run on this machine: trainings, each with its seconds on one core, attacks, and all else on one core."""
    size, cores = study.sweep.resources, _cores()
    gpus = torch.cuda.device_count()  # None, and the plan is for another machine, of which this one knows nothing.
    places = max(1, int(min(cores // max(1.0, size.block.cpus), _fit(gpus, size.block.gpus))))
    # A training takes of the cores what it takes of what there is least of.
    share = max(size.train.cpus, cores * size.train.gpus / gpus if gpus else 0.0)
    pieces = [
        (work.entry.workers * share, _training_starts(work.entry.workers) + alone / work.entry.workers)
        for work, alone in trainings
    ]
    all_of_them = len(plan.classifiers)
    trained, idle = side_by_side(pieces, cores, since_start=len(trainings) < all_of_them)
    passes = attacks / min(places, busy_places(study, plan)) + others / places
    if attacks + others and study.sweep.precision != "auto":
        # Attacks and outputs of the classifiers that are trained run in what the other trainings leave free.
        meanwhile = min(idle, (attacks + others) * (1 - 1 / all_of_them))
        passes *= 1 - meanwhile / (attacks + others)
    return COMMAND_STARTS + trained + SETTINGS_START + passes + DRAWING + A_CELL * len(plan.cells)


def _fit(gpus: int, each: float) -> float:
    """How many pieces that each need so much of a GPU run on so many; without bounds where there is no GPU, or none is needed."""
    if not gpus or not each:
        return float("inf")
    return gpus // each if each >= 1 else gpus * int(1 / each + 1e-9)  # A piece has its part of one GPU.


def _training_starts(workers: int) -> float:
    return ONE_WORKER_STARTS if workers == 1 else WORKERS_START


def side_by_side(
    pieces: Sequence[tuple[float, float]], cores: int, *, since_start: bool = False
) -> tuple[float, float]:
    """When the last of these is done: (cores, seconds) each, begun in order once there is room; one always runs.

    Also how many seconds of cores nothing runs in meanwhile, since the start or since the first of them is done.
    """
    running, free, now, spans = list[tuple[float, float]](), float(cores), 0.0, list[tuple[float, float, float]]()
    for needs, seconds in pieces:
        while running and needs > free:
            now, freed = heapq.heappop(running)
            free += freed
        heapq.heappush(running, (now + seconds, needs))
        spans.append((now, now + seconds, min(needs, cores)))
        free -= needs
    last = max((end for _, end, _ in spans), default=0.0)
    first = 0.0 if since_start else min((end for _, end, _ in spans), default=0.0)
    busy = sum(needs * max(0.0, end - max(start, first)) for start, end, needs in spans)
    return last, cores * (last - first) - busy


def denoiser_line(study: Study, own: OwnNetwork, passes: Passes) -> str:
    """What a network within a defense is asked beside F, and how long that takes here on one thread."""
    device = torch.device(study.planner.facts.device if torch.cuda.is_available() else "cpu")
    x = torch.rand(study.planner.registries.chunk, 3, *study.planner.facts.side, device=device)

    def gradient() -> None:
        leaf = x.clone().requires_grad_(True)
        denoised(own.on(device), leaf, 0.0).sum().backward()

    with _one_thread():
        with torch.no_grad():
            forward = _rate(lambda: denoised(own.on(device), x, 0.0), len(x))
        both = _rate(gradient, len(x)) if passes[1] else 1.0
    seconds = (passes[0] - passes[1]) / forward + passes[1] / both
    return (
        f"{own.factory}: {passes[0]:,} forward and {passes[1]:,} backward passes through it are in no count of passes, nor in "
        f"that time; measured here on one thread they take {_in_words(seconds)} of one core"
    )


def _in_words(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
