"""The command line's tables: facts of a study as frames and numbers, and their drawing in a terminal.

Each drawing is a rich renderable, or several, which whoever has a console prints.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mi_ray.choice import THREAT, chosen_on, frontier
from mi_ray.figures.names import Names, settings_apart
from mi_ray.figures.tables import percent, points
from mi_ray.figures.verdict_marks import mark
from mi_ray.statistics import of_variant
from mi_ray.threat_model import WORST_CASE

if TYPE_CHECKING:  # Reading frames imports it; a plan and a worker need not.
    import pandas as pd

UNDER = ["classifier", *THREAT]
STAGES = ("training", "attack", "evaluation", "checks")  # as counted in a manifest's `planned` and by a run


def frontier_facts(cells: "pd.DataFrame") -> "list[pd.DataFrame]":
    """The undominated settings and no defense, by clean accuracy: a frame for each classifier and attack that is shown.

    cells: rows of cells.parquet of one study. Of each classifier the study's first attack is shown and, where it has
    several, the worst case of all. Frames are rows of `mi_ray.choice.frontier`.
    """
    table = frontier(cells)
    best = table[table["undominated"] | (table["defense"] == "none")].sort_values(["classifier", "clean"])
    # A worst case is one attack, also for settings that have no adaptive attack among those it is the worst of.
    best.loc[best["attack"] == WORST_CASE, "knowledge"] = ""
    tested = table[table["attack"] != WORST_CASE]
    first = {tuple(rows.iloc[0][UNDER]) for _, rows in tested.groupby("classifier")}
    found = []
    for threat, rows in best.groupby(UNDER, sort=False):
        if rows["attack"].iloc[0] == WORST_CASE:
            found.append(_with_baseline(rows, tested, cells))
        elif threat in first:
            found.append(rows)
    return found


def _with_baseline(worst: "pd.DataFrame", tested: "pd.DataFrame", cells: "pd.DataFrame") -> "pd.DataFrame":
    """The worst cases of one ball with that of no defense, which has no cell of its own where it was attacked in one way.

    It has none either where another attack on it failed; then its worst case is unknown. cells: all of the study.
    """
    ball = ["classifier", "norm", "epsilon"]
    bare = tested[(tested["defense"] == "none") & (tested[ball] == worst[ball].iloc[0]).all(axis=1)]
    if len(bare) != 1 or (worst["defense"] == "none").any():
        return worst
    import pandas as pd

    from mi_ray.figures.reading import may_stand_for_worst

    if not may_stand_for_worst(bare, of_variant(cells)).all():
        return worst

    return pd.concat([worst, bare.assign(**worst[UNDER].iloc[0], undominated=False)]).sort_values("clean")


def frontier_tables(cells: "pd.DataFrame", names: Names) -> Iterator[Table]:
    """`frontier_facts` as tables; settings that are shown for comparison and are dominated are dim.

    A caption says which points the settings were chosen on.
    """
    for rows in frontier_facts(cells):
        first = rows.iloc[0]
        title = f"Frontier of {first['classifier']}: {names.threat(first)}"
        shown = _table(title, "Defense", "Parameters", right=("N", "Clean %", "Adversarial %"))
        for told, (_, row) in zip(settings_apart(rows), rows.iterrows(), strict=True):
            accuracies = [
                percent(*(row[f"{side}{end}"] for end in ("", "_low", "_high"))) for side in ("clean", "adversarial")
            ]
            accuracies[1] += f" {mark(row)}"
            setting = names.defense(row["defense"]), told, str(row["executions"])
            shown.add_row(*map(Text, (*setting, *accuracies)), style=None if row["undominated"] else "dim")
        shown.caption = Text(f"chosen on {chosen_on(int(first['choosing_points']))}", style="table.caption")
        shown.caption_justify = "left"
        yield shown


def verdict_facts(cells: "pd.DataFrame") -> tuple[dict[str, int], dict[str, int]]:
    """How many attacked cells have each verdict, and how many failed each check, the most frequent first.

    cells: rows of cells.parquet of one study.
    """
    attacked = cells[(cells["state"] == "done") & (cells["attack"] != "none")]
    counts = attacked["verdict"].value_counts()
    failed = Counter(
        name for text in attacked["checks"] for name, said in json.loads(text).items() if said["state"] == "failed"
    )
    order = [*(state for state in ("passed", "failed") if state in counts), *counts.index]
    verdicts = {str(state): int(counts[state]) for state in dict.fromkeys(order)}
    return verdicts, dict(failed.most_common())


def verdict_lines(cells: "pd.DataFrame") -> Iterator[Text]:
    """How many attacked cells can be trusted, and which checks the others failed."""
    verdicts, failed = verdict_facts(cells)
    said = ", ".join(f"{count} {state}" for state, count in verdicts.items())
    yield Text(f"checks of {sum(verdicts.values())} attacked cells: {said} (docs/checks.md)")
    if failed:
        yield Text(f"  failed: {', '.join(f'{name} in {count}' for name, count in failed.items())}")


def study_summary(cells: "pd.DataFrame", names: Names) -> Iterator[RenderableType]:
    """What a study found, for its end: its frontiers, and what its checks say."""
    yield from frontier_tables(cells, names)
    yield from verdict_lines(cells)


def passes_summary(planned: Mapping[str, int], counted: Mapping[str, int]) -> Iterator[RenderableType]:
    """Passes of a study as planned for an empty store (its manifest's `planned`), and as counted in this run."""
    heads = ("Forward planned", "Forward done now", "Backward planned", "Backward done now")
    shown = _table("Passes", "Work", right=heads)
    for what in (*STAGES, *(["certification"] if "certification_forward" in planned else [])):
        pairs = [found.get(f"{what}_{way}", 0) for way in ("forward", "backward") for found in (planned, counted)]
        shown.add_row(what, *(f"{value:,}" for value in pairs))
    yield shown
    distinct = planned["attack_forward"] + planned["evaluation_forward"]
    yield Text(
        f"attack and evaluation cell by cell: {planned['naive_forward']:,} forward passes, "
        f"{planned['naive_forward'] / max(distinct, 1):.1f} times the distinct ones; done now are counted as they "
        "happened: what was stored is not among them"
    )


class PlannedWork(Protocol):
    """A kind of work of a plan, and what there is to do of it."""

    @property
    def name(self) -> str:
        """What the work is."""

    @property
    def pieces(self) -> int:
        """How many pieces of it there are."""

    @property
    def stored(self) -> int:
        """How many of the pieces are whole in the store."""

    @property
    def planned(self) -> tuple[int, int]:
        """Forward and backward passes of all pieces."""

    @property
    def left(self) -> tuple[int, int]:
        """Forward and backward passes still to do."""


def plan_table(title: str, works: Iterable[PlannedWork]) -> Table:
    """What a study is planned to cost, a row for each kind of work."""
    shown = _table(title, "Work", right=("Pieces", "Stored", "Forward", "Backward", "Forward left", "Backward left"))
    for work in works:
        numbers = (work.pieces, work.stored, *work.planned, *work.left)
        shown.add_row(Text(work.name), *(f"{value:,}" for value in numbers))
    return shown


def states_table(states: Iterable[Sequence[str]]) -> Table:
    """How far each study of a store is. states: as `mi_ray.store.manifest.overviews` gives them."""
    shown = _table(None, "Study", "State", right=("Cells", "Done", "Failed", "Missing"))
    shown.add_column("Written")
    for column in shown.columns:  # A name is the way to its study, and goes on in the next line where it would be cut.
        column.overflow = "fold"
    for state in states:
        shown.add_row(*map(Text, state))
    return shown


def comparison_table(found: "pd.DataFrame", left: str, right: str, names: Names) -> Table:
    """Cells of two studies with their differences, in points of accuracy. found: of `mi_ray.figures.comparing.compared`."""
    title = f"A: {left}\nB: {right}\nB less A, points of accuracy with 95 % intervals, paired by point"
    shown = _table(title, "Classifier", "Attack", "Defense", right=("N", "A %", "B %", "B - A", "p", "Points"))
    told = zip(names.threats(found), settings_apart(found), found.to_dict("records"), strict=True)
    for threat, setting, row in told:
        difference = row["apart"] or points(row["difference"], row["low"], row["high"])
        p_value = "–" if row["apart"] else f"{row['p_value']:.2g}"
        if row["same_cell"]:
            difference, p_value = "the same cell", "–"
        parts = (
            row["classifier"],
            "Clean" if row["attack"] == "none" else threat,
            f"{names.defense(row['defense'])} {setting}".strip(),
            row["executions"],
            *(f"{100 * row[side]:.1f}" for side in ("left", "right")),
            difference,
            p_value,
            row["points"],
        )
        shown.add_row(*(Text(str(each)) for each in parts))
    fewer = found[found["points"] < found["reported"]]
    if len(fewer):
        shown.caption = Text(
            f"compared on the points of both studies alone, at the least {fewer['points'].min()} of {fewer['reported'].max()}: a "
            "sweep's seed draws its points, so that studies of other seeds share few. Networks of several training seeds are "
            "compared within one study, each with a seed of its own",
            style="table.caption",
        )
        shown.caption_justify = "left"
    return shown


def sweeps_table(sweeps: Mapping[str, str]) -> Table:
    """Sweeps by name, each with what it makes in a line."""
    shown = _table(None, "Sweep", "What it makes")
    for name, line in sweeps.items():
        shown.add_row(Text(name), Text(line))
    return shown


def _table(title: str | None, *left: str, right: Sequence[str] = ()) -> Table:
    """An empty table: its title, its columns of words on the left, its columns of numbers on the right."""
    named = None if title is None else Text(title, style="table.title")
    shown = Table(title=named, title_justify="left", box=None, padding=(0, 2))
    for head in left:
        shown.add_column(head)
    for head in right:
        shown.add_column(head, justify="right")
    return shown
