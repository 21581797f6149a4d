"""NAME: a figure of yours, which a sweep beside it draws where it says `figures: [NAME]`."""

from matplotlib.figure import Figure

from mi_ray.figures.panels import save_drawing, show_percent, styled
from mi_ray.figures.reading import finished, read_study


def make(store, study):  # -> the paths of the files that it wrote, within the store
    """Accuracy under each attack against N, a line for each defense. Change this one."""
    cells, names = read_study(store, study)  # the rows of cells.parquet; docs/results.md has their columns
    done = finished(cells, "NAME needs finished cells")
    own = done[done["attack"] != "none"]
    with styled():
        figure = Figure(figsize=(4, 3), layout="constrained")
        axes = figure.subplots()
        for defense, rows in own.groupby("defense", sort=False):
            means = rows.groupby("executions")["accuracy"].mean()
            axes.plot(means.index, 100 * means, "o-", label=names.defense(defense))
        axes.set_xlabel("executions N")
        axes.set_ylabel("accuracy under attack, %")
        show_percent(axes)
        axes.legend()
        return save_drawing(store, study, "NAME", figure, own[["defense", "attack", "executions", "accuracy"]])
