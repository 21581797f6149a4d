"""Fig. 3(b): adversarial against clean accuracy, a panel for each classifier and ε, two lines for each defense.

A thin line is of the study's first attack, in the paper an oblivious one; a bold line is of the worst case of all attacks
at the same ε, point by point. Both go through the defense's settings, so that the way down from the one to the other at
the same clean accuracy is what the first attack did not find. In a study with one setting of each defense there are no lines to
draw: hollow markers are of the first attack and filled ones of the worst case, with that way down between them.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mi_ray.choice import SETTING, THREAT, chosen_on, curve, frontier
from mi_ray.figures.names import Names, Row, epsilon_text
from mi_ray.figures.panels import Estimated, Style, bars, cross_out, filled, framed, lines, save_drawing, styled
from mi_ray.figures.reading import at_largest_n, read_study
from mi_ray.figures.verdict_marks import checks_note
from mi_ray.store.blocks import Store
from mi_ray.threat_model import WORST_CASE

SHOWN = 0.30  # settings that give up more clean accuracy than this against no defense are counted, not drawn
CLEAN: Estimated = ("clean", "clean_low", "clean_high")
ADVERSARIAL: Estimated = ("adversarial", "adversarial_low", "adversarial_high")
BALL = ["norm", "epsilon"]
# What a study's first attack keeps in another ball, where its step may differ.
SAME_ATTACK = ["attack", "goal", "knowledge"]
MOST = 4  # as many balls are drawn; attacks in others are counted
FIRST, WORST = "first", "worst"  # the lines: of the study's first attack, and of the worst case
WRITTEN = [  # the columns of the CSV file
    *("classifier", "defense", "defense_params", "executions", "draws", "line", *THREAT, "points"),
    *(*CLEAN, *ADVERSARIAL, "curve", "undominated", "ringed", "shown", "verdict"),
]

# Inches: the width of one column of a paper, and of two; then the most panels that stand side by side.
COLUMN, PAGE, A_ROW = 3.3, 6.9, 3
HIGH = 2.5  # inches: a row of panels
PRINT = 7  # points: letters that can be read at that size
TITLE = 14  # letters of a panel's title in an inch of its width
WIDTHS = (0.7, 2.2)  # points: of thin and of bold lines
APART = 0.035  # bars of two settings are at least so much of an axis apart
# Markers of settings whose worst case has an adaptive attack in it, on a line whose other settings have none.
EDGED: Style = {"ls": "", "ms": 6.2, "mec": "black", "mew": 1.1}
LEAST = 10.0  # per cent: what an axis is taken to span where all settings lie at one place


def facts(cells: pd.DataFrame) -> pd.DataFrame:
    """The frontier table of a study's first attack and of its worst case, each defense at its largest N, in drawing order.

    Both are taken in each ball (norm and ε) that the first attack is made in, in at most `MOST` of them. An attack of the same
    method, goal and knowledge at another ε counts as the first attack too, whatever its step size and other parameters.
    `line`: `FIRST` or `WORST`; a study with one attack has no worst case.
    `curve`: whether the setting is on its defense's line: all settings of a defense with one axis, in the order of that axis; of
    one with several axes, the settings that no other of them dominates. `undominated`: whether no setting of any defense
    that is on the same kind of line in the same panel dominates it. Both are judged on the selection points where there
    are some. `ringed`: the undominated ones of the worst case, or of the first attack where the panel has no worst case.
    `shown`: whether it is drawn, which settings that give up more clean accuracy than `SHOWN` are not; all are in a study
    without an undefended cell. `attacks`: how many attacks in that ball the setting met. `others`: how
    many further attacks the study has that no line is of. Raises ValueError for a study without attacked cells.
    """
    table = frontier(cells)
    tested = table[table["attack"] != WORST_CASE]
    if tested.empty:
        raise ValueError("Fig. 3(b) needs finished cells with and without an attack; this study has none")
    alike = tested[(tested[SAME_ATTACK] == tested.iloc[0][SAME_ATTACK]).all(axis=1)].drop_duplicates(BALL)[:MOST]
    known = tested[THREAT].drop_duplicates()
    parts, told = [], 0
    for _, first in alike.iterrows():
        inside = tested[(tested[BALL] == first[BALL]).all(axis=1)].drop_duplicates([*SETTING, *THREAT])
        made = inside.groupby(SETTING).size().rename("attacks")
        parts.append(_in_one_ball(table, first).join(made, on=SETTING))
        told += len(inside[THREAT].drop_duplicates()) if (parts[-1]["line"] == WORST).any() else 1
    return pd.concat(parts, ignore_index=True).assign(others=len(known) - told)


def _in_one_ball(table: pd.DataFrame, first: "pd.Series[Any]") -> pd.DataFrame:
    """The rows of `facts` of one norm and ε. first: a row of the attack whose line is thin."""
    worst = (table["attack"] == WORST_CASE) & (table[BALL] == first[BALL]).all(axis=1)
    table = table.assign(line=np.where(worst, WORST, FIRST))[worst | (table[THREAT] == first[THREAT]).all(axis=1)]
    table = _judged(at_largest_n(table))
    parts = [_curve(group) for _, group in table.groupby(["classifier", "defense", "line"], sort=False)]
    ordered = pd.concat(parts, ignore_index=True)
    bare = ordered[ordered["defense"] == "none"].groupby("classifier")["clean"].max()
    least = ordered["classifier"].map(bare).astype(float).fillna(0.0) - SHOWN
    return ordered.assign(shown=ordered["clean"] >= least)


def _judged(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `undominated`, among the settings of a classifier on one kind of line, and `ringed`; see `facts`."""
    table = table.assign(undominated=False, ringed=False)
    for _, group in table.groupby(["classifier", "line"], sort=False):
        table.loc[group.index, "undominated"] = _best(group)
    for _, group in table.groupby("classifier", sort=False):
        competing = _competing(group)
        table.loc[competing.index, "ringed"] = _best(competing)
    return table


def _competing(group: pd.DataFrame) -> pd.DataFrame:
    """The rows among which rings are given: worst cases where there are some, with the bare classifier's only attack."""
    worst = group["line"] == WORST
    if not worst.any():
        return group
    bare = (group["defense"] == "none") & ~(group["defense"].where(worst) == "none").any()
    return group[worst | bare]


def _best(group: pd.DataFrame) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = group.index.isin(curve(group))
    return found


def _curve(group: pd.DataFrame) -> pd.DataFrame:
    settings = pd.DataFrame([json.loads(text) for text in group["defense_params"]], index=group.index)
    varied = [name for name in settings if len(set(settings[name].map(json.dumps))) > 1]
    if len(varied) == 1:
        by_axis = settings[varied[0]].map(json.dumps).map(json.loads).sort_values(key=lambda s: s.map(_order))
        return group.loc[by_axis.index].assign(curve=True)
    best = curve(group)
    others = group.drop(best).sort_values(["clean", "adversarial"], ascending=[True, False])
    return pd.concat([group.loc[best[::-1]].assign(curve=True), others.assign(curve=False)])


def _order(value: object) -> float:
    """A number by which an axis is sorted: of a pair, such as a range, its middle."""
    if isinstance(value, list):
        return float(sum(value) / len(value))
    return float(value) if isinstance(value, (int, float)) else 0.0


def apart(values: npt.ArrayLike, least: float) -> npt.NDArray[np.bool_]:
    """Which of the values, taken one after another, are at least so far from every one that was taken before."""
    kept: list[float] = []
    found = np.zeros(len(np.asarray(values)), bool)
    for at, value in enumerate(np.asarray(values, float)):
        if all(abs(value - other) >= least for other in kept):
            kept.append(float(value))
            found[at] = True
    return found


def _single(shown: pd.DataFrame) -> bool:
    """Whether no defense has more than one setting on its line, and some a worst case, so that there are only markers."""
    lines_of = shown[shown["curve"]].groupby([*BALL, "classifier", "defense", "line"])
    return bool((shown["line"] == WORST).any() and lines_of.size().max() == 1)


def _style(names: Names, defense: str, rows: pd.DataFrame, *, single: bool = False) -> Style:
    """How a defense's line under one attack is drawn: bold where the defense was known to an attack, or in a worst case.

    single: whether there are markers alone.
    """
    look, bold = names.look(defense), (rows["line"] == WORST).any() or (rows["knowledge"] == "adaptive").all()
    style: Style = {"color": look.colour, "marker": look.marker, "mew": 0.4, "clip_on": False}
    if defense == "none":
        return style | {"ls": "", "ms": 8 if bold else 6, "mew": 0.8, "mfc": look.colour if bold else "white"}
    if single:
        return style | {"ls": "", "ms": 6.2, "mew": 0.9, "mec": look.colour, "mfc": look.colour if bold else "white"}
    if not bold:
        return style | {"lw": WIDTHS[0], "ms": 3.2, "alpha": 0.8}
    dashes: Style = {"dashes": (2, 0.8)} if (rows["knowledge"] == "oblivious").any() else {}
    edge = "white" if look.marker in Line2D.filled_markers else look.colour
    return style | {"lw": WIDTHS[1], "ms": 4.6, "mec": edge} | dashes


def _mixed(on: pd.DataFrame) -> bool:
    """Whether an adaptive attack is in the worst cases of some settings of a line, and not of all."""
    return bool((on["line"] == WORST).all() and 0 < (on["knowledge"] == "adaptive").sum() < len(on))


def _panel(axes: Axes, panel: pd.DataFrame, names: Names, *, single: bool) -> None:
    """One classifier's lines at one ε, or, where these are `single`, its markers."""
    spans = [max(LEAST, float(100 * np.ptp(panel[name]))) for name in ("clean", "adversarial")]
    bare = panel[panel["defense"] == "none"].sort_values("line")
    for level in 100 * bare["adversarial"].tail(1):
        axes.axhline(level, color=names.look("none").colour, lw=0.7, ls=(0, (4, 3)), zorder=1)
    for (defense, line), rows in panel.groupby(["defense", "line"], sort=False):
        on, z = rows[rows["curve"]], 6 if defense == "none" else 4 if line == WORST else 3
        look = _style(names, str(defense), on, single=single)
        axes.plot(100 * on["clean"], 100 * on["adversarial"], **look, zorder=z)
        if _mixed(on) and not single:
            known = on[on["knowledge"] == "adaptive"]
            axes.plot(100 * known["clean"], 100 * known["adversarial"], **look | EDGED, zorder=z + 0.5)
    for defense, rows in panel.groupby("defense", sort=False) if single else ():
        colour = names.look(str(defense)).colour
        axes.plot(100 * rows["clean"], 100 * rows["adversarial"], color=colour, lw=0.9, alpha=0.6, zorder=2)
    ringed = panel[panel["ringed"]].sort_values(["adversarial", "clean"], ascending=False)
    x, y = 100 * ringed["clean"], 100 * ringed["adversarial"]
    ring: Style = {
        "s": 90 if single else 46,
        "facecolors": "none",
        "edgecolors": "black",
        "lw": 0.8,
        "zorder": 7,
        "clip_on": False,
    }
    axes.scatter(x, y, **ring)
    if single:  # There is room for the bars of all that compete, and not for rings alone.
        ringed = _competing(panel).sort_values(["ringed", "adversarial"], ascending=False)
        x, y = 100 * ringed["clean"], 100 * ringed["adversarial"]
    upright, level = apart(x, APART * spans[0]), apart(y, APART * spans[1])
    plain: Style = {
        "fmt": "none",
        "ecolor": "#333333",
        "elinewidth": 0.6,
        "capsize": 1.3,
        "zorder": 5,
        "clip_on": False,
    }
    axes.errorbar(x[upright], y[upright], yerr=bars(ringed[upright], ADVERSARIAL, 100), **plain)
    axes.errorbar(x[level], y[level], xerr=bars(ringed[level], CLEAN, 100), **plain)
    crossed = panel[panel["curve"]]
    cross_out(axes, 100 * crossed["clean"], 100 * crossed["adversarial"], crossed, size=12)


def draw(table: pd.DataFrame, names: Names, title: str, note: str) -> Figure:
    """The figure of `facts`, as wide as a column of a paper for one panel in a row and as two for several.

    The classifiers at one ε stand in rows of three at most, and each ε begins a row, but where each has one classifier alone;
    each panel says which it is where there are several. Each panel has axes of its own, since a classifier under a weaker or a
    stronger attack leaves accuracies of another range.
    """
    shown = table[table["shown"]]
    by_ball = shown.groupby(BALL, sort=False)
    rows = [[(ball, name) for name in dict.fromkeys(found["classifier"])] for ball, found in by_ball]
    several, single = len(rows) > 1, _single(shown)
    if several and max(map(len, rows)) == 1:
        rows = [[panel for row in rows for panel in row]]
    most = max(map(len, rows))
    across = -(-most // -(-most // A_ROW))
    rows = [row[at : at + across] for row in rows for at in range(0, len(row), across)]
    figure = Figure(figsize=(COLUMN if across == 1 else PAGE, HIGH * len(rows)))
    panels, heights = figure.subplots(len(rows), across, squeeze=False), HIGH * len(rows)
    for line, row in zip(panels, rows, strict=True):
        titles = []
        for axes in line[len(row) :]:
            axes.set_visible(False)
        for axes, (ball, classifier) in zip(line, row, strict=False):
            found = by_ball.get_group(ball)
            _panel(axes, found[found["classifier"] == classifier], names, single=single)
            told = f"{classifier}, ε = {epsilon_text(ball[1], ball[0])}" if several else classifier
            titles.append(filled(told, int(TITLE * figure.get_figwidth() / across)))
            axes.set_title(titles[-1], fontsize=PRINT + 0.5)
            axes.set_xlabel("Clean accuracy (%)")
        line[0].set_ylabel("Adversarial accuracy (%)")
        heights += max(told.count("\n") for told in titles) * 1.3 * (PRINT + 0.5) / 72
    handles = _handles(shown, names, single=single)
    figure.set_figheight(heights + framed(figure, title, note, handles, 5, size=PRINT - 0.5))
    return figure


def _handles(shown: pd.DataFrame, names: Names, *, single: bool) -> list[Line2D]:
    """The legend: no defense, the defenses, what thin and bold lines or hollow and filled markers are of, and the rings."""
    worst, first = shown[shown["line"] == WORST], shown[shown["line"] == FIRST]
    handles = []
    for defense in dict.fromkeys(shown["defense"]):
        style = _style(names, str(defense), worst if len(worst) else first, single=single)
        if defense == "none":
            style |= {"ls": (0, (4, 3)), "lw": 0.7}
        elif not single:
            style |= {"lw": 1.4, "dashes": (None, None)}
        handles.append(Line2D([], [], **style, label=names.defense(str(defense))))
    on = worst[worst["curve"] & (worst["defense"] != "none")].groupby([*BALL, "classifier", "defense"], sort=False)
    mixed = pd.Series({key: not single and _mixed(rows) for key, rows in on}, dtype=bool)
    for rows in (first, worst):
        for kind, some in rows[rows["curve"] & (rows["defense"] != "none")].groupby("knowledge", sort=False):
            places = pd.MultiIndex.from_frame(some[[*BALL, "classifier", "defense"]].drop_duplicates())
            if kind == "adaptive" and rows is worst and mixed.reindex(places).fillna(value=False).all():
                continue  # no line is of these alone
            style = _style(names, "", some, single=single) | {"color": "black", "marker": "s" if single else ""}
            style |= {"mec": "black", "mfc": "black" if some.iloc[0]["line"] == WORST else "white"} if single else {}
            handles.append(Line2D([], [], **style, label=_kind(some.iloc[0], str(kind), names)))
    if mixed.any():
        edged = {**EDGED, "color": "#cccccc", "marker": "s"}
        handles.append(Line2D([], [], **edged, label="Worst of adaptive ones too"))
    chosen = "Undominated on selection" if (shown["choosing_points"] > 0).all() else "Undominated"
    handles.append(Line2D([], [], ls="", marker="o", ms=6.5, mfc="none", mec="black", mew=0.8, label=chosen))
    return handles


def _kind(row: Row, knowledge: str, names: Names) -> str:
    if row["line"] == FIRST:
        return f"{names.attack(row)} ({knowledge})"
    return "Worst case" if knowledge == "adaptive" else "Worst of oblivious ones"


def describe(table: pd.DataFrame, names: Names) -> tuple[str, str]:
    """The title, and the note that says on how many points, how the rings were chosen, and what is left out."""
    row, known = table.iloc[0], [found for _, found in table.groupby(BALL, sort=False)]
    chosen, hidden = int(row["choosing_points"]), int((~table["shown"] & (table["line"] == FIRST)).sum())
    off = int((table["shown"] & ~table["curve"] & (table["line"] == FIRST)).sum())
    picked = chosen_on(chosen) + (", so that one may be dominated on those shown" if chosen else "")
    # Where there are markers alone all have bars, and no defense has several settings of which a line shows some.
    barred, rings = ("", "") if _single(table) else (" of ringed settings", ", and curves over several axes")
    note = [
        f"{int(row['points'])} images{_executions(table)}; bars: 95 % intervals{barred}, where there is room",
        f"rings: undominated{rings}, chosen on {picked}",
        _worst_of(known),
    ]
    if off:
        note.append(
            f"settings of defenses with several axes that others of the same defense dominate, not shown: {off}"
        )
    if len(table[[*BALL, "classifier"]].drop_duplicates()) > 1:
        note.append("each panel has axes of its own")
    if row["others"]:
        note.append(f"further attacks of the study, not shown: {int(row['others'])}")
    if hidden:
        note.append(f"settings that give up over {100 * SHOWN:.0f} points of clean accuracy, not shown: {hidden}")
    called = names.threat(row) if len(known) == 1 else f"{names.attack(row)}, {row['goal']}"
    worst = ", and the worst case" if (table["line"] == WORST).any() else ""
    return f"{row['dataset']}: {called}{worst}", lines("; ".join(note), checks_note(table[table["shown"]]))


def _executions(table: pd.DataFrame) -> str:
    """The N of all settings that are drawn, which is the largest of each defense; nothing where they differ."""
    found = set(table.loc[table["defense"] != "none", "executions"])
    return f", N = {found.pop()}" if len(found) == 1 else ""


def _worst_of(known: Sequence[pd.DataFrame]) -> str:
    """What the worst case is taken over. known: the rows of each ε."""
    worst = pd.concat([rows[rows["line"] == WORST] for rows in known])
    counts = worst["attacks"].dropna().astype(int).tolist()
    if not counts:
        return "no worst case: the study has one attack at " + ("this ε" if len(known) == 1 else "each ε")
    several = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else f"{counts[0]}"
    return f"worst case: the worst of {several} attacks, point by point{_of_some(pd.concat(known))}"


def _of_some(known: pd.DataFrame) -> str:
    """Of how many settings there is a worst case, where an adaptive attack was kept to some: these alone have rings there."""
    real = known[known["defense"] != "none"].drop_duplicates(["classifier", "line", "defense", "defense_params"])
    counts = pd.crosstab(real["classifier"], real["line"])
    some = counts[(counts.get(WORST, 0) > 0) & (counts.get(WORST, 0) < counts.get(FIRST, 0))]
    if some.empty:
        return ""
    told = ", ".join(f"{found[WORST]} of {found[FIRST]} settings of {name}" for name, found in some.iterrows())
    return f" (known of {told}, which alone have rings there)"


def make(store: Store, study: str) -> list[str]:
    """Draw Fig. 3(b) of a study into its folder, as PNG and PDF, with its numbers as CSV."""
    cells, names = read_study(store, study)
    table = facts(cells)
    with styled(PRINT):
        figure = draw(table, names, *describe(table, names))
        return save_drawing(store, study, "fig3b", figure, table[WRITTEN])
