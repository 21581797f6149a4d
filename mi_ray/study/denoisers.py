"""Passes through a person's own networks within defenses, which no count of passes of F has."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from mi_ray.defenses import DEFENSES, RandomTransform
from mi_ray.networks import OwnNetwork
from mi_ray.plan.cost import Costs
from mi_ray.plan.work import AttackWork, OutputWork, Passes, Plan, Work
from mi_ray.study.prepare import Study


def denoiser_passes(study: Study, plan: Plan) -> dict[OwnNetwork, Passes]:
    """(forward, backward) passes of images through each such network in a plan, whatever of it is stored; none of F."""
    forward, backward = Counter[OwnNetwork](), Counter[OwnNetwork]()
    for work, points in _works(study, plan):
        for part, passed in _through(study.planner.costs, work):
            for own in part.networks():
                plain, back = (part.network_passes(gradient) for gradient in (False, True))
                forward[own] += points * ((passed[0] - passed[1]) * plain[0] + passed[1] * back[0])
                backward[own] += points * passed[1] * back[1]
    return {own: (forward[own], backward[own]) for own in forward}


def _works(study: Study, plan: Plan) -> Iterator[tuple[Work, int]]:
    """Each piece of work of a plan and of its checks, with the number of points that it is done on."""
    studied = {work.key: work for work in (*plan.attacks, *plan.outputs)}
    yield from ((work, study.planner.stored_points) for work in studied.values())
    checked = plan.checked_points()
    for work in (*plan.check_attacks(), *plan.check_outputs()):
        if work.key not in studied:
            yield work, checked[work.key]


def _through(costs: Costs, work: Work) -> Iterator[tuple[RandomTransform, Passes]]:
    """Yields (transformation, (copies of a point that it makes, those with a gradient)) for each one in a piece of work."""
    if isinstance(work, OutputWork) and work.component is not None:
        made = DEFENSES.make(*work.component)
        yield from ((part, costs.of(work)) for part in _parts(made.components()[0]))
    if isinstance(work, AttackWork) and work.defense is not None:
        whole = costs.of(work)
        for at, component in enumerate(DEFENSES.make(*work.defense).components()):
            without = costs.of(replace(work, parts=tuple(0 if at == each else n for each, n in enumerate(work.parts))))
            yield from ((part, (whole[0] - without[0], whole[1] - without[1])) for part in _parts(component))


def _parts(component: RandomTransform) -> tuple[RandomTransform, ...]:
    return (component, *component.within())
