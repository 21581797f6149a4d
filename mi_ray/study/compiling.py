"""`compile: auto`: which classifiers of a study are computed by compiled graphs.

The choice decides keys, so that it is made by planned passes and the kind of processor, and never by a clock.
"""

from collections.abc import Iterator

import torch

from mi_ray.classifiers import build_classifier, of_our_architecture
from mi_ray.device import has_bf16
from mi_ray.graphs import compiler
from mi_ray.plan.planner import Planner
from mi_ray.plan.work import ClassifierWork

# Multiplications with addition from which on graphs pay: on one core an eager network does them in about five minutes, of
# which graphs save more than the minute or two that a machine compiles for them (benchmarks/README.md).
LEAST = {"bf16": 1e14, "fp32": 3e13}
ONE_AT_A_TIME = (
    "compile: auto: a worker runs one graph at a time, so that more than one CPU a block stands idle; set "
    "resources.block.cpus to 1"
)


def choose(planner: Planner, passes: int) -> tuple[frozenset[str], list[str]]:
    """(keys of the classifiers that are computed by graphs, what a person is told of the choice).

    passes: planned for the whole study, both ways together, of which each classifier is taken to have its share.
    """
    found, told = set[str](), []
    for work in planner.classifiers:
        why = next(_against(planner, work, passes / len(planner.classifiers)), None)
        if why is None:
            found.add(work.key)
        told.append(f"compile: auto: {work.entry.name}: {why or 'compiled graphs, which each machine makes once'}")
    if found and planner.sweep.resources.block.cpus > 1:
        told.append(ONE_AT_A_TIME)
    return frozenset(found), told


def _against(planner: Planner, work: ClassifierWork, passes: float) -> Iterator[str]:
    """Reasons not to compile a classifier, the cheapest to find out first."""
    if planner.facts.device != "cpu":
        yield "not compiled, since graphs are for CPUs; `reduce-overhead` is for GPUs"
    if compiler() is None:
        yield "not compiled, since this machine has no C++ compiler (g++)"
    precision = planner.works.precision_of(work.key)
    if not of_our_architecture(work.description) and precision not in planner.facts.folded.get(work.key, ()):
        yield "not compiled, since its network is not folded"
    kind = precision if has_bf16(torch.device("cpu")) else "fp32"
    planned = passes * multiply_adds(work, planner.facts.side)
    if planned < LEAST[kind]:
        yield f"not compiled, since {planned:.1e} multiplications are planned on it and graphs pay from {LEAST[kind]:.0e} on"


def multiply_adds(work: ClassifierWork, side: tuple[int, int]) -> int:
    """Multiplications with addition that one image takes through a classifier, once. side: its height and width."""
    from torch.utils.flop_counter import FlopCounterMode

    classifier = build_classifier(work.description).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        classifier(torch.full((1, len(classifier.mean.flatten()), *side), 0.5))
    return int(counter.get_total_flops()) // 2
