"""How tables are written: numbers as text, and frames of text as Markdown and LaTeX."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Reading frames imports it; a plan need not.
    import pandas as pd


MISSING = "–"
TAG, ENTITY = re.compile(r"<(?=[A-Za-z/!?])"), re.compile(r"&(?=#?\w+;)")  # what Markdown would take for HTML
# What LaTeX would take for a command, and signs that its fonts lack.
IN_LATEX = str.maketrans(
    {
        **{sign: rf"\{sign}" for sign in "%_&#${}"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "ε": r"$\epsilon$",
        "✓": r"\checkmark",
        "✗": r"$\times$",
        "≤": r"$\le$",
        "–": "--",
        "†": r"$^\dagger$",
    }
)


def percent(value: float, low: float, high: float) -> str:
    """An accuracy in [0, 1] as tables write it: per cent, its interval in brackets; a dash where there is none."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]" if value == value else MISSING


def points(value: float, low: float, high: float) -> str:
    """A difference of accuracies, in points, with its sign; its interval in brackets."""
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def markdown(text: "pd.DataFrame", note: str) -> str:
    """A pipe table with a note below it. What would be a tag or an entity of HTML in a name stays the name's letters."""
    lines = [list(text.columns), ["---"] * len(text.columns), *text.itertuples(index=False)]
    rows = ["| " + " | ".join(_in_markdown(value) for value in line) + " |" for line in lines]
    return "\n".join(rows) + f"\n\n{note}\n"


def _in_markdown(value: str) -> str:
    return TAG.sub("&lt;", ENTITY.sub("&amp;", value)).replace("|", r"\|")


def latex(text: "pd.DataFrame", note: str) -> str:
    """A booktabs table, with the note as a comment above it; \\checkmark is of amssymb."""
    head = " & ".join(map(_escape, text.columns)) + r" \\"
    body = [" & ".join(map(_escape, row)) + r" \\" for row in text.itertuples(index=False)]
    columns = "lll" + "r" * (len(text.columns) - 3)
    start = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([f"% {note}", *start, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escape(value: str) -> str:
    return value.translate(IN_LATEX)
