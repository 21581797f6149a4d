"""The answer of a study in three sentences, computed from its rows, for each variant of its options, classifier and attack.

What the classifier keeps by itself; what the best defense keeps, and whether that is more than chance; and whether the
number can be believed. The best is chosen on the selection points and reported on the others.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from mi_ray.choice import CLEAN_BUDGET, FRONTIER_KEYS, chosen_on, frontier, picked
from mi_ray.figures.names import Names, Row, epsilon_text, settings_apart
from mi_ray.figures.reading import may_stand_for_worst
from mi_ray.figures.tables import percent, points
from mi_ray.figures.verdict_marks import failed_checks
from mi_ray.page.counts import Counts
from mi_ray.page.facts import threat_of
from mi_ray.statistics import by_threat, of_variant, paired_test
from mi_ray.threat_model import WORST_CASE


def answers(
    cells: pd.DataFrame, counts: Counts, names: Names, variants: Sequence[str] = ("",)
) -> list[dict[str, object]]:
    """One entry for each variant of the study's options, classifier, attack and ε.

    It has `variant`, a position in `variants`, `classifier`, `threat` (the attack) and `epsilon` as text, `cell`, the position of
    the best setting's cell among all rows of `cells`, and the three `sentences`. cells: all rows of cells.parquet of a study.
    variants: the names of those that are answered, of which "" is the study itself.
    """
    called = dict(zip(cells["cell"], threat_of(cells, names), strict=True))
    places = dict(zip(cells["cell"], range(len(cells)), strict=True))
    return [
        {"variant": at, **entry, "cell": places[best["cell"]]}
        for at, variant in enumerate(variants)
        for entry, best in _of_one_variant(cells, variant, called, counts, names)
    ]


def _of_one_variant(
    cells: pd.DataFrame, variant: str, called: Mapping[str, str], counts: Counts, names: Names
) -> Iterator[tuple[dict[str, object], Row]]:
    """What is said of each classifier, attack and ε, and the best setting. called: cell -> its attack."""
    own = of_variant(cells, variant)
    if (own["state"] == "done").sum() == 0:
        return
    table = frontier(cells, variant)
    table = table.assign(told=settings_apart(table))
    for group in by_threat(table):
        first, best, bare = group.iloc[0], _best(group, table), _bare(group, table, own)
        told = [_alone(first, bare), _gain(bare, best, counts, names), _trust(best, called[best["cell"]])]
        where = {
            "classifier": first["classifier"],
            "threat": called[first["cell"]],
            "epsilon": epsilon_text(first["epsilon"], first["norm"]),
        }
        yield {**where, "sentences": told}, best


def _best(group: pd.DataFrame, table: pd.DataFrame) -> "pd.Series":
    """The setting with the highest adversarial accuracy on the points that choose, of each defense's own choice.

    Only settings that most attacks of the study were made on compete. table: the whole frontier.
    """
    attacks = table.groupby(FRONTIER_KEYS)["cell"].transform("size")
    of_defense = [table[name] for name in ("classifier_key", "defense")]
    whole = group.index.isin(table.index[attacks == attacks.groupby(of_defense).transform("max")])
    chosen = picked(group[whole] if whole.any() else group)
    defended = chosen[(chosen["defense"] != "none") & chosen["within_budget"]]
    competing = defended if len(defended) else chosen
    return competing.sort_values(["adversarial_to_choose", "clean_to_choose"], ascending=False).iloc[0]


def _bare(group: pd.DataFrame, table: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The undefended setting under the group's attack. table: the whole frontier. cells: those that it was made of.

    A classifier that is attacked in one way alone has no cell of the worst case: it is that attack's, but where another attack
    failed, of which it would be the worst case too.
    """
    own, first = group[group["defense"] == "none"].head(1), group.iloc[0]
    if len(own) or first["attack"] != WORST_CASE:
        return own
    ball = ["classifier", "norm", "epsilon"]
    alone = table[(table["defense"] == "none") & (table[ball] == first[ball]).all(axis=1)]
    alone = alone[may_stand_for_worst(alone, cells)]
    return alone if len(alone) == 1 else own


def _both(row: Row) -> tuple[str, str]:
    """Clean and adversarial accuracy of a setting as text."""
    clean, left = ([row[f"{side}{end}"] for end in ("", "_low", "_high")] for side in ("clean", "adversarial"))
    return percent(clean[0], clean[1], clean[2]), percent(left[0], left[1], left[2])


def _alone(first: Row, bare: pd.DataFrame) -> str:
    if bare.empty:
        return f"The study did not measure {first['classifier']} without a defense under this attack."
    clean, left = _both(bare.iloc[0])
    return (
        f"Without a defense, {first['classifier']} is right on {clean} % of {int(first['points'])} clean images and on "
        f"{left} % of the attacked ones."
    )


def _gain(bare: pd.DataFrame, best: Row, counts: Counts, names: Names) -> str:
    """What the best setting keeps, against no defense on the same points."""
    own = best["told"]
    if best["defense"] == "none":
        return "No defense was measured under this attack within the budget of clean accuracy."
    name = names.defense(best["defense"]) + (f" ({own})" if own else "")
    clean, left = _both(best)
    where = chosen_on(int(best["choosing_points"]))
    among = f"at most {100 * CLEAN_BUDGET:.0f} points of clean accuracy"
    of = (
        f"Of the settings that give up {among} the best"
        if best["within_budget"]
        else f"No setting gives up {among}; the best"
    )
    told = f"{of}, both judged on {where}, is {name}: it keeps {left} % under attack and {clean} % of clean images"
    if bare.empty:
        return f"{told}."
    rival = bare.iloc[0]
    pair = counts.paired(best["cell"], rival["cell"])
    if pair is None:
        return f"{told}."
    test = paired_test(*pair, int(best["draws"]), int(rival["draws"]))
    known = "more than chance" if test.p_value < 0.05 else "no more than chance allows"
    gain = points(test.difference, test.low, test.high)
    return f"{told}, {gain} points against no defense, which is {known} (paired, p = {test.p_value:.2g})."


def _trust(best: Row, threat: str) -> str:
    """Whether the number can be quoted, and what it does not say."""
    broken = failed_checks(best)
    if broken:
        said = f"The number is not to be quoted as it stands: the attack fails {', '.join(broken)}"
    elif best["verdict"] == "passed":
        said = "No check of the attack objects"
    else:
        said = _unjudged(best)
    if best["knowledge"] == "oblivious" and best["defense"] != "none":
        of = "all attacks in it" if best["attack"] == WORST_CASE else threat
        alone = f"{'but' if best['verdict'] == 'passed' else 'and'} {of} saw the classifier alone"
        return f"{said}; {alone}, so nothing here says what an adversary leaves who knows the defense."
    return f"{said}; it bounds what is left from above, for the attacks that were run."


def _unjudged(best: Row) -> str:
    """That no control has judged a number, and why none has: none has been run yet, or what is said of the reference."""
    text = best.get("checks")
    why = (json.loads(text) if isinstance(text, str) else {}).get("reference", {}).get("why", "")
    if not why or why == "not run yet":  # as cells say it that are written before their checks are run
        return "No control attack has judged this number yet"
    return f"No control attack judges this number ({why})"
