"""NAME: a figure of yours, which a sweep beside it draws where it says `figures: [NAME]`."""

from matplotlib.figure import Figure

from mi_ray.figures.names import parameters
from mi_ray.figures.panels import save_drawing, styled
from mi_ray.figures.reading import finished, read_study

THREAT = ["attack", "attack_params", "goal", "norm", "epsilon"]


def make(store, study):  # -> the paths of the files that it wrote, within the store
    """Accuracy under the study's first attack, a line a setting; hollow where a check refused it. Change this one."""
    cells, names = read_study(store, study)  # the rows of cells.parquet; docs/results.md has their columns
    done = finished(cells, "NAME needs finished cells")
    attacked = done[done["attack"] != "none"]
    if attacked.empty:
        raise ValueError("NAME needs finished cells under attack; this study has none")
    own = attacked[
        (attacked[THREAT] == attacked[THREAT].iloc[0]).all(axis=1)
    ]  # One attack: a mean of several says nothing.
    own = own[own["selected"] | (own["defense"] == "none")]  # the settings that no other beats, and no defense
    called = [f"{names.defense(row.defense)} {parameters(row.defense_params)}".strip() for row in own.itertuples()]
    labels = [
        f"{row.classifier}, {name}, N = {row.executions}" for name, row in zip(called, own.itertuples(), strict=True)
    ]
    with styled():
        figure = Figure(figsize=(6, 1 + 0.3 * len(own)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(own.itertuples()):
            ends = [[100 * (row.accuracy - row.accuracy_low)], [100 * (row.accuracy_high - row.accuracy)]]
            full = "none" if row.verdict == "failed" else "black"
            axes.errorbar(100 * row.accuracy, place, xerr=ends, fmt="o", color="black", mfc=full)
        axes.set_yticks(range(len(own)), labels)
        axes.set_xlabel("accuracy, %")
        figure.suptitle(f"under {names.threat(own.iloc[0])}", fontsize="medium")
        drawn = own[["classifier", "defense", "defense_params", "executions", "accuracy", "verdict"]]
        return save_drawing(store, study, "NAME", figure, drawn)
