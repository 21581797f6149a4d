"""What drawn figures share: bars and bands of intervals, legends that fit, and settings that stay as they were."""

import io
from importlib.util import module_from_spec

import matplotlib as mpl
import pandas as pd
import pytest
from helpers.frames import NAMES
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from mi_ray.figures import panels
from mi_ray.figures.panels import ACCURACY, bars, curve, defense_handles, filled, framed, lines, show_percent, styled
from mi_ray.figures.tables import latex, markdown, percent, points


def estimated(*rows: tuple[float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(ACCURACY))


def test_bars_reach_from_the_value_to_the_ends_of_its_interval() -> None:
    found = bars(estimated((0.5, 0.4, 0.7), (0.2, 0.2, 0.5)), ACCURACY, 100)
    assert found == pytest.approx(pd.DataFrame([[10, 0], [20, 30]]).to_numpy())


def test_an_end_that_a_store_of_an_older_version_has_beyond_its_value_makes_no_negative_bar() -> None:
    assert bars(estimated((0.0, 1.7e-18, 0.1), (1.0, 0.9, 1 - 1e-16)), ACCURACY).min() == 0


def test_a_curve_has_a_band_and_a_single_point_a_bar() -> None:
    style = {"color": "black", "marker": "o"}
    several, alone = (Figure().subplots() for _ in range(2))
    rows = estimated((0.5, 0.4, 0.7), (0.2, 0.1, 0.5))
    curve(several, [1, 2], rows, ACCURACY, style, 100)
    assert several.get_lines()[0].get_ydata().tolist() == [50, 20]
    assert several.collections[0].get_datalim(several.transData).intervaly == pytest.approx([10, 70])
    curve(alone, [1], rows.head(1), ACCURACY, style, 100)
    assert alone.get_lines()[-1].get_ydata().tolist() == [50]
    (segment,) = alone.collections[0].get_segments()
    assert segment[:, 1] == pytest.approx([40, 70])


def test_an_axis_of_accuracies_has_room_for_marks_at_both_ends() -> None:
    axes = Figure().subplots()
    show_percent(axes)
    low, high = axes.get_ylim()
    assert low < 0
    assert high > 100
    assert axes.get_yticks().tolist() == [0, 20, 40, 60, 80, 100]


def test_a_legend_has_fewer_columns_where_its_figure_is_narrow() -> None:
    handles = [Line2D([], [], label=f"a label of many letters, number {at}") for at in range(3)]
    columns = {}
    for width in (2, 6, 30):
        figure = Figure(figsize=(width, 3))
        framed(figure, "title", "first\nsecond", handles, 3)
        columns[width] = figure.legends[0]._ncols
        assert figure.get_suptitle() == "title"
    assert columns == {2: 1, 6: 2, 30: 3}


@pytest.mark.parametrize("entries", [1, 5, 9])
@pytest.mark.parametrize("note", ["first", "first\nsecond\nthird\nfourth"])
@pytest.mark.parametrize("size", [7.5, 8.0])
def test_the_height_that_is_left_beside_the_panels_is_that_of_title_note_and_legend(
    entries: int, note: str, size: float
) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    figure.subplots()
    height = framed(figure, "title", note, [Line2D([], [], label=f"number {at}") for at in range(entries)], 3, size)
    drawn = FigureCanvasAgg(figure)
    drawn.draw()
    (title,), (legend,) = figure.texts, figure.legends
    needed = sum(part.get_window_extent(drawn.get_renderer()).height for part in (title, legend)) / figure.dpi
    assert needed < height < needed + 0.1  # inches: less than another line of text is high


def test_legends_show_defenses_as_the_study_does() -> None:
    bare, other = defense_handles(NAMES, ["none", "mi_ol"])
    assert (other.get_label(), other.get_color(), other.get_marker()) == ("MI-OL", "#D55E00", "X")
    assert bare.get_markersize() > other.get_markersize()


def test_drawing_leaves_the_settings_of_matplotlib_as_they_were() -> None:
    before, backend = dict(mpl.rcParams), mpl.get_backend()
    with styled():
        assert mpl.rcParams["axes.grid"] is True
    assert dict(mpl.rcParams) == before
    assert mpl.get_backend() == backend


def test_text_in_a_pdf_is_truetype_which_journals_ask_for() -> None:
    """In the module as it is on disk, since the tests have the other figures written with a font that is quicker to embed."""
    (fresh := module_from_spec(panels.__spec__)).__spec__.loader.exec_module(fresh)
    with fresh.styled():
        figure, buffer = Figure(), io.BytesIO()
        figure.text(0.5, 0.5, "text")
        figure.savefig(buffer, format="pdf")
    assert b"/CIDFontType2" in buffer.getvalue()
    assert b"/Type3" not in buffer.getvalue()


def test_notes_leave_out_what_says_nothing() -> None:
    assert lines("a", "", "b") == "a\nb"


def test_numbers_are_written_in_per_cent_with_their_intervals() -> None:
    assert percent(0.0, 0.0, 0.036) == "0.0 [0.0, 3.6]"
    assert percent(float("nan"), 0.1, 0.2) == "–"
    assert points(-0.012, -0.03, 0.004) == "-1.2 [-3.0, +0.4]"


def test_latex_escapes_what_it_would_take_for_its_own() -> None:
    text = latex(pd.DataFrame({"A": ["crop & pad"], "B": ["a_b"], "C": ["5 %"], "D": ["≤ 1 ✗"]}), "note")
    assert r"crop \& pad & a\_b & 5 \% & $\le$ 1 $\times$ \\" in text
    assert r"\begin{tabular}{lllr}" in text
    named = latex(pd.DataFrame({name: [r"C# {x}$1 ^~\y"] for name in "abc"}), "note")
    assert r"C\# \{x\}\$1 \textasciicircum{}\textasciitilde{}\textbackslash{}y" in named


def test_a_name_that_is_html_stays_a_name_in_a_markdown_table() -> None:
    told = markdown(pd.DataFrame({"<Name>": ["R&D </b>", "&lt; < 0.001"]}), "p < 0.05").splitlines()
    assert (told[0], told[2], told[3]) == ("| &lt;Name> |", "| R&D &lt;/b> |", "| &amp;lt; < 0.001 |")
    assert told[-1] == "p < 0.05"


def test_a_name_with_a_bar_is_one_cell_of_a_markdown_table() -> None:
    assert markdown(pd.DataFrame({"Name": ["a|b"]}), "note").splitlines()[2] == r"| a\|b |"


def test_a_figure_looks_the_same_whatever_the_callers_settings_are_and_leaves_them() -> None:
    def drawn() -> bytes:
        with styled(), io.BytesIO() as file:
            figure = Figure()
            axes = figure.add_subplot()
            axes.plot([1, 2], [1, 3], label="a")
            axes.legend()
            figure.savefig(file, format="png")
            return file.getvalue()

    plain = drawn()
    with mpl.rc_context({"lines.linewidth": 7.0, "axes.facecolor": "red", "font.size": 20.0, "image.cmap": "gray"}):
        assert drawn() == plain
        assert mpl.rcParams["lines.linewidth"] == 7.0


def test_dollar_signs_in_names_are_letters_and_no_mathematics() -> None:
    """Two of them in a name were taken for a formula, which is in italics or cannot be read at all."""
    name = "sold for $5_ or $_"
    with styled(), io.BytesIO() as file:
        figure = Figure(figsize=(6, 3))
        figure.add_subplot().set_title(name)
        handle = Line2D([], [], label=name)
        framed(figure, name, name, [handle], 2)
        figure.savefig(file)
        texts = [text for text in figure.findobj(Text) if text.get_text() == name]
        assert len(texts) == 4
        assert not any(text.get_parse_math() for text in texts)
        formula = Figure(figsize=(6, 3))
        framed(formula, name, name, [Line2D([], [], label="$G_y$")], 2, math=True)
        formula.savefig(file)
        assert formula.legends[0].get_texts()[0].get_parse_math()


def test_a_long_title_is_no_wider_than_its_figure() -> None:
    figure = Figure(figsize=(3.3, 3), layout="constrained")
    framed(figure, "cifar10-jpeg: PGD-10, untargeted, ε = 8/255, and the worst case", "a note", [], 2)
    FigureCanvasAgg(figure).draw()
    title = next(text for text in figure.findobj(Text) if str(text.get_text()).startswith("cifar10"))
    box = title.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_no_line_of_a_title_ends_between_a_name_and_its_value() -> None:
    assert filled("mixer_mixup, PGD-10, untargeted, ε = 2/255", 34) == "mixer_mixup, PGD-10, untargeted,\nε = 2/255"
    assert filled("a note of one line, N = 5", 40) == "a note of one line, N = 5"
