"""What a study costs: pieces of work, what is stored, passes against cell by cell, and time from measured rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from mi_ray.attacks import ATTACKS
from mi_ray.classifiers import Precision
from mi_ray.config import Sweep
from mi_ray.device import has_bf16
from mi_ray.plan.cost import Costs, times, total
from mi_ray.plan.planner import Planner
from mi_ray.plan.work import ClassifierWork, Passes, Plan, Work, merged, merged_attacks
from mi_ray.statistics import detectable_difference
from mi_ray.store.blocks import Block, Store, missing_ranges
from mi_ray.store.files import DamagedFileError
from mi_ray.study.checks import BLACK_BOX, is_made_in
from mi_ray.study.denoisers import denoiser_passes
from mi_ray.study.duration import Duration, busy_places, denoiser_line, duration
from mi_ray.study.precision import check_passes, check_pays, decisions
from mi_ray.study.prepare import Study
from mi_ray.study.verdicts import further_draws

DIFFERING = 0.1  # the share of points on which two cells are taken to differ, where a plan says what it can tell apart
EMULATED = (
    "bf16: this machine's processor has no bfloat16 arithmetic and emulates it, many times slower than fp32. Set fp32 for "
    "trainings; precision: auto takes it by itself"
)


@dataclass(frozen=True)
class CostRow:
    """A kind of work: its pieces, how many are whole in the store, and passes in all and still to do."""

    name: str
    pieces: int
    stored: int
    planned: Passes
    left: Passes


@dataclass(frozen=True)
class StudyCost:
    """What a study would compute and what that costs.

    study: its name. cells: how many it has. points: how many a cell has, those that choose settings among them. rows: each
    kind of distinct work. lines: what follows from them, in words. time: how long what is left takes on this machine.
    """

    study: str
    cells: int
    points: int
    rows: list[CostRow]
    lines: list[str]
    time: Duration

    def __str__(self) -> str:
        """All of it as text, a line for each kind of work."""
        works = [
            f"{row.name}: {row.pieces:,} pieces, {row.stored:,} of them stored; {row.planned[0]:,} forward and "
            f"{row.planned[1]:,} backward passes, of which {row.left[0]:,} and {row.left[1]:,} are left"
            for row in self.rows
        ]
        return "\n".join([f"{self.study}: {self.cells:,} cells x {self.points:,} points", *works, *self.lines])


@dataclass(frozen=True)
class _Scope:
    """The store, if there is one, and how many first points of each work are wanted in it. costs: what works cost."""

    costs: Costs
    store: Store | None
    points: int

    def left(self, work: Work) -> Passes:
        """Passes still to do: of the points without a block, and of blocks that lack some of what is asked for."""
        blocks = [] if self.store is None else self.store.blocks(work.kind, work.key)
        lacking = {block: self._lacking(work, block) for block in blocks}
        covered: list[tuple[int, int]] = []
        found = []
        # Of blocks that overlap, as those of two studies may, that one counts of which the least is left to do.
        for block in sorted(blocks, key=lambda block: sum(lacking[block])):
            own = missing_ranges(covered, (block.start, min(block.stop, self.points)), self.points)
            found.append(times(lacking[block], sum(stop - start for start, stop in own)))
            covered.append((block.start, block.stop))
        gaps = missing_ranges(covered, (0, self.points), self.points)
        return total([*found, times(self.costs.of(work), sum(stop - start for start, stop in gaps))])

    def _lacking(self, work: Work, block: Block) -> Passes:
        """What each point of a stored block still costs; everything where the block is damaged."""
        assert self.store is not None
        try:
            return self.costs.lacking(work, self.store.block_facts(block))
        except DamagedFileError:
            return self.costs.of(work)

    def row(self, name: str, works: Sequence[Work], planned: Passes) -> CostRow:
        """The row of these works."""
        left = [self.left(work) for work in works]
        stored = sum(passes == (0, 0) for passes in left)
        return CostRow(name, len(works), stored if self.store else 0, planned, total(left))


def _left_to_train(works: Sequence[ClassifierWork], store: Store | None) -> list[ClassifierWork]:
    return [work for work in works if store is None or not store.exists(f"classifiers/{work.key}/classifier.json")]


def _training(works: Sequence[ClassifierWork], store: Store | None) -> CostRow:
    trained = [work for work in works if work.objective is not None]
    left = [work for work in _left_to_train(works, store) if work.objective is not None]
    planned = total(work.cost for work in works)
    return CostRow("train", len(trained), len(trained) - len(left), planned, total(work.cost for work in left))


def rows_of(study: Study, plan: Plan, store: Store | None) -> list[CostRow]:
    """Each kind of work of a plan, with what is stored of it."""
    planner = study.planner
    cost = planner.cost(plan)
    whole = _Scope(planner.costs, store, planner.stored_points)
    pair = {
        name: (cost[f"{name}_forward"], cost.get(f"{name}_backward", 0)) for name in ("attack", "evaluation", "checks")
    }
    certified = whole.row("certify", plan.votes(), (cost.get("certification_forward", 0), 0))
    return [
        _training(plan.classifiers, store),
        whole.row("attack", plan.attacks, pair["attack"]),
        whole.row("evaluate", plan.outputs, pair["evaluation"]),
        _checks(plan, whole, pair["checks"]),
        *([certified] if plan.certificates else []),
        *([] if study.sweep.search is None else [_searched(planner)]),
    ]


def _searched(planner: Planner) -> CostRow:
    """The settings of a search, all as if none of them were stored."""
    assert planner.sweep.search is not None
    passes = planner.search_passes()
    return CostRow("search", planner.sweep.search.trials * len(planner.classifiers), 0, passes, passes)


def _checks(plan: Plan, whole: _Scope, planned: Passes) -> CostRow:
    """What the checks need beside the study. Of work that both need, the check's part is what it asks for beyond it."""
    studied: dict[str, Work] = {work.key: work for work in plan.attacks}
    studied |= {work.key: work for work in plan.outputs}
    checks: list[Work] = list(plan.check_attacks())
    checks += plan.check_outputs()
    own, beyond = [], []
    for points, works in plan.by_points(checks):
        scope = replace(whole, points=points)
        own += [scope.left(work) for work in works if work.key not in studied]
        shared = [(scope.left(work), scope.left(studied[work.key])) for work in works if work.key in studied]
        beyond += [(more[0] - had[0], more[1] - had[1]) for more, had in shared]
    stored = sum(passes == (0, 0) for passes in own) if whole.store else 0
    return CostRow("checks", len(own), stored, planned, total([*own, *beyond]))


def _fewer(distinct: Passes, requested: Passes) -> str:
    """How many times fewer forward passes are done than requested, and passes of both ways.

    A study of few points has more instead, since what is stored is of whole batches, and of N in whole chunks.
    """
    forward, both = (requested[0] / max(distinct[0], 1)), sum(requested) / max(sum(distinct), 1)
    if forward < 1:
        return f"{1 / max(forward, 1e-9):.1f} times as many, since whole batches and chunks of N are stored"
    return f"{forward:.1f} times fewer, {both:.1f} with backward passes"


def requested_line(plan: Plan, cost: Mapping[str, int], points: int) -> str:
    """Cells and rows, and how many times the passes that are done would be needed cell by cell."""
    distinct = cost["attack_forward"] + cost["evaluation_forward"], cost["attack_backward"]
    requested = cost["naive_forward"], cost["naive_backward"]
    return (
        f"{len(plan.cells):,} cells x {points:,} points = {len(plan.cells) * points:,} rows; attack and evaluation: "
        f"{requested[0]:,} forward passes requested (cell by cell), {distinct[0]:,} distinct: {_fewer(distinct, requested)}"
    )


def resolution_line(points: int, draws: int) -> str:
    """What differences in accuracy a study can tell apart (`detectable_difference`), before it is paid for.

    points: those that are reported. draws: of each under a random defense.
    """
    apart, paired = detectable_difference(points), detectable_difference(points, DIFFERING)
    drawn = f", down to {100 * detectable_difference(points, DIFFERING, draws):.1f} where draws alone make them differ"
    return (
        f"can tell apart, in 8 of 10 studies like this one ({points:,} reported points): {100 * apart:.1f} points of accuracy "
        f"between two independent cells near 50 %; {100 * paired:.1f} points between two cells on the same points, if "
        f"{100 * DIFFERING:.0f} % of the points differ{drawn if draws > 1 else ''}"
    )


def estimate(study: Study, store: Store | None) -> StudyCost:
    """The cost of a study. A search's trials are named, not counted: what they need is known once they are proposed."""
    decided = decisions(store, study)
    emulated = study.planner.facts.device == "cpu" and not has_bf16(torch.device("cpu"))
    expected: dict[str, Precision] = {work.key: "fp32" for work in study.planner.classifiers if emulated}
    study = study.decided(expected | decided)
    plan = study.plan()
    rows = rows_of(study, plan, store)
    points, draws = study.sweep.points, study.sweep.requested_draws(study.planner.options)
    lines = [
        *study.notes,
        requested_line(plan, study.planner.cost(plan), points.count),
        resolution_line(points.count - points.selection, draws),
    ]
    if study.sweep.search is not None:
        lines.append(
            f"search: {study.sweep.search.trials} settings on each classifier, chosen as it goes, so that neither their passes "
            "are known before, which are counted as the mean of one setting of each defense, nor what of them is stored"
        )
    if study.sweep.precision == "auto" and not check_pays(study):
        lines.append(
            f"precision: auto means fp32 here: its check would take {check_passes(study):,} passes, more than a tenth of "
            "what the study takes"
        )
    elif study.sweep.precision == "auto":
        open_ = {
            w.entry.name: study.planner.works.precision_of(w.key) for w in plan.classifiers if w.key not in decided
        }
        if open_:
            planned = " and ".join(sorted(set(open_.values())))
            lines.append(f"precision: auto has not decided on {', '.join(open_)} yet; planned as {planned}")
    lines += study.kept_as_they_are()
    trained = {work.entry.training.precision for work in plan.classifiers if work.objective}
    if emulated and "bf16" in {study.sweep.precision, *trained}:
        lines.append(EMULATED)
    lines += _checks_line(study, rows)
    lines += long_step_lines(plan)
    lines += black_box_lines(plan)
    lines += bounds_lines(plan)
    lines.append(places_line(study, plan))
    attack, *others = (row.left for row in rows[1:])
    time = duration(study, plan, _left_to_train(plan.classifiers, store), [attack], others)
    lines.append(time.line())
    lines += [denoiser_line(study, own, passes) for own, passes in denoiser_passes(study, plan).items()]
    return StudyCost(study.sweep.name, len(plan.cells), points.count, rows, lines, time)


def places_line(study: Study, plan: Plan) -> str:
    """What of a cluster the study can use: as many blocks at once as the longest of them goes into all attacks."""
    block, train = study.sweep.resources.block, study.sweep.resources.train
    busy = busy_places(study, plan)
    workers = sum(work.entry.workers for work in plan.classifiers if work.objective is not None)
    trained = f"trainings take {_asked(workers, train.cpus, train.gpus)} side by side; " if workers else ""
    what = "attacks" if plan.attacks else "outputs"
    return (
        f"on a cluster: {trained}{what} keep up to {_asked(busy, block.cpus, block.gpus)} busy, since the longest block of "
        f"{min(block.points, study.planner.stored_points)} points is 1/{busy} of their passes"
    )


def _asked(count: int, cpus: float, gpus: float) -> str:
    """So many places of a size, in words."""
    return f"{count:,} x {cpus:g} CPU{f' and {gpus:g} GPU ({count * gpus:,.4g} GPUs)' if gpus else ''}"


def _checks_line(study: Study, rows: Sequence[CostRow]) -> list[str]:
    """That the checks cost more than the study, where they do, and how to spend less."""
    passes = {row.name: sum(row.planned) for row in rows}
    own = passes["attack"] + passes["evaluate"]
    if passes["checks"] <= own:
        return []
    return [
        f"the checks cost more than the study itself, {passes['checks']:,} passes against {own:,}: "
        f"{fewer_checks(study.sweep)}`checks: cheap` judges by stored rows alone, and `mi-ray sweep` shows the first "
        "frontier before it begins them"
    ]


def fewer_checks(sweep: Sweep) -> str:
    """How a file asks for checks on fewer points, which are whole batches; nothing where they are on one batch already."""
    if sweep.checks.level != "subset":
        return "`checks: subset`, "
    judged = min(sweep.checks.points, sweep.points.count)
    less = max(sweep.batch, judged // 4)
    return f"`checks: {{points: {less}}}` judges on fewer points, " if less < judged else ""


def black_box_lines(plan: Plan) -> list[str]:
    """That no black box is run, where it would cost too much or is not asked for; nothing where no check needs passes."""
    judged = [check.judged.inputs.threat for check in plan.checks if check.name == "reference"]
    able = any(threat.leaves_label and is_made_in(threat.norm, BLACK_BOX) for threat in judged)
    if not able or any(check.name == BLACK_BOX for check in plan.checks):
        return []
    return [
        "no attack is held against a black box, without which one whose gradients are masked can pass: "
        "`checks: {black_box: always}` runs it"
    ]


def long_step_lines(plan: Plan) -> list[str]:
    """Which attacks step from any side of their ball past the other, as one does whose step was meant in other units."""
    told = dict[str, None]()
    for work in plan.attacks:
        step, epsilon = ATTACKS.make(work.method, work.values).step_length, work.threat.epsilon
        if step is not None and 0 < 2 * epsilon <= step and not work.radii:
            told[f"{work.method} of step_size {step:g} in a ball of radius {epsilon:.3g}"] = None
    if not told:
        return []
    return [f"steps as long as their ball is wide, or longer, of which each ends on its edge: {'; '.join(told)}"]


def bounds_lines(plan: Plan) -> list[str]:
    """In which direction the passes of a plan may be wrong: both depend on what the study finds."""
    attacks = {work.method for work in (*plan.attacks, *plan.check_attacks())}
    early = sorted(name for name in attacks if ATTACKS[name].stops_early)
    open_ = [draws for draws in map(further_draws, plan.checks) if draws]
    lines = []
    if early:
        names = " and ".join(early)
        lines.append(f"passes of {names}: at most, since fooled points are left alone and counted as if they were not")
    if open_:
        lines.append(
            f"passes of checks: at least, since {len(open_):,} checks behind random defenses ask for up to {max(open_[0])} "
            "draws where fewer leave them open"
        )
    return lines


def distinct_and_requested(studies: Sequence[Study]) -> tuple[Passes, Passes, int]:
    """(distinct passes of several studies in one store, those requested cell by cell, cells)."""
    plans = [study.plan() for study in studies]
    points: dict[str, int] = {}
    owner: dict[str, Planner] = {}
    for study, plan in zip(studies, plans, strict=True):
        asked: list[Work] = list(plan.attacks)
        asked += plan.outputs
        for work in asked:
            points[work.key] = max(points.get(work.key, 0), study.planner.stored_points)
            owner[work.key] = study.planner
    works: list[Work] = list(merged_attacks(work for plan in plans for work in plan.attacks))
    works += merged(work for plan in plans for work in plan.outputs)
    each = [times(owner[work.key].costs.of(work), points[work.key]) for work in works]
    costs = [study.planner.cost(plan) for study, plan in zip(studies, plans, strict=True)]
    return (
        total(each),
        total((cost["naive_forward"], cost["naive_backward"]) for cost in costs),
        sum(len(plan.cells) for plan in plans),
    )


def together(studies: Sequence[Study]) -> str:
    """What several studies cost in one store, where work that they share is done once, against cell by cell."""
    distinct, requested, cells = distinct_and_requested(studies)
    return (
        f"together: {len(studies)} studies, {cells:,} cells; {requested[0]:,} forward passes requested (cell by cell), "
        f"{distinct[0]:,} distinct in one store: {_fewer(distinct, requested)}"
    )
