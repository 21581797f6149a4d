"""The study of real CIFAR-10: what is published of it, and the document that shows it.

python -m benchmarks.cifar10 publish STORE   copies the excerpt of a store's finished studies into docs/cifar10, beside the
                                               studies that this store does not have, and draws
python -m benchmarks.cifar10 draw            draws tables, figures and docs/cifar10.md again from the excerpt alone
python -m benchmarks.cifar10 verify DATA     computes cells drawn at random again (--number, --seed), and compares every point
"""

import argparse
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from mi_ray.figures import claims, panels
from mi_ray.figures.draw import draw as draw_figures
from mi_ray.figures.reading import records_of
from mi_ray.figures.tables import markdown, percent
from mi_ray.figures.verdict_marks import mark
from mi_ray.run import run_sweeps
from mi_ray.store.blocks import Store
from mi_ray.store.excerpt import Compared, excerpt
from mi_ray.store.manifest import read_manifest
from mi_ray.store.read import cells_table, read_cells, write_cells
from mi_ray.sweep_files import read_document
from mi_ray.zoo import zoo_card, zoo_names, zoo_weights

DOCS = Path(__file__).parent.parent / "docs"
PUBLISHED = DOCS / "cifar10"
SWEEPS = Path(__file__).parent.parent / "sweeps/cifar10"
CLAIMS = SWEEPS / "claims.yaml"
AGREEMENT = Path(__file__).parent / "agreement.csv"
DETECTION = {"cifar10_fig3a", "cifar10_fig3a_evasion"}
OUTPUTS = {"cifar10_fig2"}
JOINED = "joined.csv"  # of what cells a study had other rows than another one, from another kind of processor
FEW = 200  # images: of fewer, a clean accuracy says little
UNREAD = ("fig*", "epsilon_curve", "paired_tests", "presets_table")  # CSV of what a figure or a .md beside it shows
PICTURES = {"fig5"}  # drawn of the images themselves, which no excerpt has

INTRODUCTION = """# Mixup inference on real CIFAR-10

Does mixup inference (Pang, Xu and Zhu, ICLR 2020) work? What the paper says, and what follows from it, is held here against
real images, by the studies in [`sweeps/cifar10`](../sweeps/cifar10), and decided by a program. This document is written by
[`benchmarks/cifar10.py`](../benchmarks/cifar10.py) from the rows in [`docs/cifar10`](cifar10); no number in it was typed.

**Words.** A defense changes an image at random before the network F sees it, and averages F's answers: mixup inference
mixes it with images of other classes (MI-OL) or with images of the class that F predicts (MI-PL); MI-Combined answers as
MI-OL does where MI-PL lowers the probability of that class by much, and as F itself does elsewhere. `mixup` is F trained on
mixed images, `interpolated_at` F trained on mixed adversarial images (interpolated adversarial training). An *oblivious*
attack sees F alone, an *adaptive* one attacks through the defense; EOT-PGD is PGD on the mean of many of its draws, the
*cascade* several such attacks, one after another (a *quick* and a *longer* one). PGD-10 8/255 is PGD of 10 steps, by at most
8/255 a pixel. The *worst case* is the worst of all of a study's attacks on each image. λ is the share of the image in a mixture,
N how many answers are averaged. Xie et al. (2018) and Guo et al. (2018) crop and pad or resize at random,
ERM and AT are F trained plainly and adversarially. A point is one per cent of accuracy, AUC the chance that a detector scores
an attacked image above a clean one.

[In one minute](#in-one-minute) · [networks](#the-networks) · [claims](#the-claims) · [literature](#what-others-measured) ·
[other code](#agreement-with-other-code) · {contents}

## In one minute

{short}

{counts}

{glance}
The most important claims:

{first}
{counted}
*Undecided* includes intervals without 0 in them that do not survive the correction: all verdicts are corrected together for
their number. [claims.csv](cifar10/claims.csv) has every number, test and chance.

**What limits it.** One small residual network (0.3 M parameters) in place of the paper's, trained for a few minutes each;
50 to 5,000 images, so that intervals are of several points; and a copy of CIFAR-10 whose images were compressed as JPEG,
about 8/255 (RMSE) away from the original ones. Training and test images are of the same copy. Whatever is undecided here
may be decided by more images: the same sweeps go on from what is stored. {single_draws}
{levels}
{reduced}
{processors}The published scores of Fig. 3(a) and mean outputs of
Fig. 2 are in steps of 1/2,048.
"""
CLAIMED = """## The claims

`honest` leaves the true label under attack and draws the sample pool from the training split; `as_published` follows the
released code ([methods](methods.md)). The attack is oblivious unless it is the worst case, or named averaged (the paper's
own adaptive attack, as its code has it: it leaves the label that is
predicted for each copy, and does not clip its image) or EOT-PGD.
Claims of this study (said by: here) were in part written after first results were known, most of them to ask more of the method
than the paper does. Those on mixup at 2/255 ask less of it: they are at a quarter of the paper's radius, since at 8/255 next to
nothing is left. Some say what speaks against the method, so that one which holds need not speak for it.
*Where each may give up as much clean accuracy*, both may give up what MI-OL does in the paper's Table 2, which neither has to:
the clean accuracy that each has kept stands behind the number, and at a smaller limit other settings are compared.
Detection is decided on all images, as the paper's Fig. 3(a) has it; where an attack does not fool F there is nothing to detect,
so that claims of this study ask the same of the images of Eq. 2 alone, right when clean and wrong when attacked. A λ that the
selection points choose is chosen by all of them.
"""
LITERATURE = (
    "With the defense less without it (or less the other defense), in per cent. Other networks and another copy of the data: "
    "what can be compared is the direction, which is open where our interval has 0 in it."
)
AGREED = (
    "Accuracy in %, each side with its own random start (and draws), on the same points; behind MI-OL with N = 10, scored by "
    "draws that neither side has seen. They agree where the 95 % interval of the difference has 0 in it. Behind a "
    "random defense adv-lib and pyautoattack return an image that one draw got wrong, which other draws may get right. Written "
    "by `python -m benchmarks.agreement`."
)
SECTIONS = {
    "cifar10_frontier": (
        "Fig. 3(b): the chosen settings, under PGD and in the worst case",
        "Of each defense the setting that fig3b's selection points choose at the ε of its panel, on images of another seed (a "
        "few are among those points): oblivious PGD-10, the cascade at quick effort on F and through the defense, and the worst "
        "of all three by point. Hollow markers are under PGD-10, filled ones in the worst case.",
        ("fig3b.png", "frontier_table.md", "paired_tests.md"),
    ),
    "cifar10_fig3b": (
        "Fig. 3(b): every setting, under PGD",
        "Every setting of every defense, oblivious PGD-10; rings are settings that no other beats on the selection points.",
        ("fig3b.png", "frontier_statistics.md"),
    ),
    "cifar10_table2": (
        "Table 2: the paper's own settings",
        "Our value with its interval, and the paper's beside it where it has one. The settings are those of the paper's Table 4, "
        "made for a larger network: here they cost more or less clean accuracy than there.",
        ("table2.md", "paired_tests.md"),
    ),
    "cifar10_fresh_table2": (
        "On 5,000 images drawn anew, under PGD",
        "On the network of interpolated AT the 1,000 images of Table 2 and of Fig. 3(b) left most comparisons undecided. Here "
        "are 5,000 images of another seed, with the paper's settings and, on that network, those that Fig. 3(b)'s selection "
        "points choose for at most 5.5 points of clean accuracy. About one in seven is among the images of both or the selection "
        "points; without them every verdict is the same.",
        ("table2.md", "paired_tests.md"),
    ),
    "cifar10_mi_ol_worst": (
        "MI-OL under the longer cascade",
        "MI-OL at the paper's settings and nothing, each under the cascade at standard effort, on more images than Table 2's "
        "other settings have.",
        ("table2.md", "paired_tests.md"),
    ),
    "cifar10_others_worst": (
        "The other defenses under the longer cascade",
        "Rotation, Xie et al. and Guo et al. at the paper's settings for interpolated AT, each under the cascade at standard "
        "effort through itself, on the images of the section before; and MI-OL on mixup at 8/255. There EOT-PGD-50 is the "
        "stronger attack where both were made (Table 2's settings, below), so that what is said here of mixup at 8/255 is too "
        "high.",
        ("table2.md", "paired_tests.md"),
    ),
    "cifar10_others_worst_mixup": (
        "The other defenses on mixup under the longer cascade",
        "Rotation, Xie et al. and Guo et al. at the paper's settings for mixup, at 2/255, on the images of both sections before.",
        ("table2.md", "paired_tests.md"),
    ),
    "cifar10_combined_worst": (
        "MI-Combined and Gaussian noise on mixup under the longer cascade",
        "The paper's strongest defense on mixup and its weakest, at the paper's settings, at 2/255, on the same images.",
        ("table2.md", "paired_tests.md"),
    ),
    "cifar10_remaining_worst": (
        "MI-Combined on interpolated AT, and MI-OL without mixup, under the longer cascade",
        "What is left of the paper's settings, on the same images: MI-Combined (with the setting that the paper has for mixup) "
        "and Gaussian noise on interpolated AT, and MI-OL on AT and, at 2/255, on ERM.",
        ("table2.md", "paired_tests.md"),
    ),
    "cifar10_fresh_worst": (
        "MI-OL and rotation on images drawn anew",
        "On the images of the sections before, MI-OL's lead over rotation stayed undecided on both networks. This is the same "
        "comparison on images of another seed, of which a few are among those.",
        ("table2.md", "paired_tests.md"),
    ),
    "cifar10_table2_worst": (
        "Table 2's settings under the cascade",
        "The paper's own settings, the cascade at standard effort through each defense. MI-Combined before interpolated AT has "
        "those of mixup, since the paper has none. Without a defense the networks meet PGD alone here; `undefended_worst` has "
        "them under the cascade on the same images, and the claims hold the defenses against that.",
        ("table2.md", "paired_tests.md"),
    ),
    "cifar10_undefended_worst": (
        "No defense under the cascade",
        "What the defenses of the section before are held against: the networks alone, under the cascade at standard effort, on "
        "the same images.",
        ("table2.md",),
    ),
    "cifar10_adaptive": (
        "The worst case: an adaptive attack through the defense",
        "EOT-PGD-20 and oblivious PGD-10, and the worse of both by point. Mixup at ε = 2/255, since it keeps nothing at 8/255, "
        "and interpolated AT at 8/255. The undefended network meets PGD-10 alone. These attacks pass their checks, and "
        "the longer cascade leaves less all the same: checks tell broken attacks from sound ones, not which is the strongest.",
        ("frontier_table.md", "paired_tests.md"),
    ),
    "cifar10_presets": (
        "What the released code's choices are worth",
        "All choices together, then each alone, against `honest`, on the same points.",
        ("presets.png", "presets_table.md"),
    ),
    "cifar10_fig2": (
        "Fig. 2: what mixup inference does to predictions",
        "Against λ; dashed is what ideal linearity asks for (Eq. 12 and 15), every second row tells Eq. 13's mechanisms apart. "
        "The lower half is of the images of Eq. 2 alone, right when clean and wrong when attacked.",
        ("fig2.png",),
    ),
    "cifar10_fig3a": (
        "Fig. 3(a): detection",
        "The score is by how much mixup inference lowers the predicted label's probability.",
        ("fig3a.png",),
    ),
    "cifar10_fig3a_evasion": (
        "Fig. 3(a) against an attack on the detector",
        "`evasion` fools F and lowers the detector's score at once.",
        ("fig3a.png",),
    ),
    "cifar10_fig4": (
        "Fig. 4: adaptive attacks against their samples",
        "What the paper's adaptive attack (`averaged`) and EOT-PGD leave of MI-OL with 10 and 50 steps, against the samples that "
        "each step averages over; the lines beside them are the oblivious attacks. Mixup at ε = 2/255, interpolated AT at 8/255.",
        ("fig4.png",),
    ),
    "cifar10_epsilon_curve": (
        "Accuracy against ε",
        "Oblivious PGD-50 and the cascade at quick effort through each defense, at the settings of the paper's Table 4. In the "
        "worst case MI-OL adds accuracy on mixup from 1/255 to 4/255, beyond which nothing is left with it or without; on "
        "interpolated AT it costs accuracy at 1/255 and 2/255, and adds it from 8/255 on. No defense has met PGD-50 alone, which "
        "favours it.",
        ("epsilon_curve.png",),
    ),
    "cifar10_seeds": ("Other seeds", "The same objectives, trained from other seeds.", ("frontier_table.md",)),
    "cifar10_fig5": (
        "Fig. 5: images side by side",
        "An image, its attacked copy, and what F and each defense answer to both. Drawn where the images are.",
        ("fig5.png",),
    ),
}


class Gain(NamedTuple):
    """A row of what MI-OL adds: its words, and which claims it is of.

    claim: as a pattern, whose group is the other defense. attack: with a place for the radius. first: on README's first
    screen, too.
    """

    words: str
    claim: str
    attack: str
    first: bool = False


README = DOCS.parent / "README.md"
MARK = "<!-- first verdicts of docs/cifar10.md -->\n"
LONG = "under the longer cascade"
SETTINGS = f"{LONG} at the paper's settings"
LONGER = f"MI-OL still helps {SETTINGS}"
NOTHING = f"MI-OL leaves at most 5 points more than no defense {SETTINGS}"
ANEW = "on images drawn anew "
RAISES = "MI-OL raises accuracy over the undefended network"
AHEAD = f"{ANEW}MI-OL leaves more than rotation {SETTINGS}"
COMBINED = f"MI-Combined leaves more than MI-OL {SETTINGS}"
CODE = "the released code's choices inflate the measured accuracy (MI-OL)"
BESIDES = (  # what README says beside MI-OL's gains: words of the claim, classifier, attack, variant
    (COMBINED, "mixup", "worst case 2/255", "honest"),
    (
        "MI-Combined still helps interpolated AT under the longer cascade at the setting that the paper has for mixup",
        "interpolated_at",
        "worst case 8/255",
        "honest",
    ),
    (CODE, "interpolated_at", "PGD-10 8/255", "honest"),
)
FIRST = (  # the claims that the document begins with
    (f"{ANEW}{RAISES}", "interpolated_at", "PGD-10 8/255", "honest"),
    (RAISES, "mixup", "PGD-10 8/255", "honest"),
    (
        f"{ANEW}MI-OL leaves more than Xie et al. where each may give up as much clean accuracy",
        "interpolated_at",
        "PGD-10 8/255",
        "honest",
    ),
    (LONGER, "interpolated_at", "worst case 8/255", "honest"),
    (AHEAD, "interpolated_at", "worst case 8/255", "honest"),
    ("MI-OL leaves more than rotation under the cascade", "interpolated_at", "worst case 8/255", "honest"),
    (NOTHING, "mixup", "worst case 8/255", "honest"),
    (LONGER, "mixup", "worst case 2/255", "honest"),
    (AHEAD, "mixup", "worst case 2/255", "honest"),
    *BESIDES,
)
COST = "MI-OL costs at most 10 points of clean accuracy at the paper's λ"
SHORT = (
    "**In short:** MI-OL costs clean accuracy. On a network trained by mixup it adds accuracy under attack at 2/255, also where "
    "attacks go through it, and more than most other random defenses at the paper's settings; but under PGD-10, where each may "
    "give up only 3 points of clean accuracy, Gaussian noise is the only one of four that it is shown to be ahead of. At 8/255 "
    "next to nothing of that network's accuracy is left with MI-OL or without. On a network trained by interpolated AT it adds "
    "accuracy at 8/255, also where attacks go through it, but is not shown to add more than random crops (Xie et al.), and at "
    "2/255 it takes accuracy away. MI-Combined, where attacks go through it, leaves less than MI-OL on mixup, and less than the "
    "undefended network on interpolated AT."
)
NARROW = "MI-OL leaves more than {} where each may give up 3 points of clean accuracy"
RESTS = {  # the claims that SHORT rests on, beside COST, with the verdict that it reports
    FIRST[0]: "holds",
    (RAISES, "mixup", "PGD-10 2/255", "honest"): "holds",
    (RAISES, "interpolated_at", "PGD-10 2/255", "honest"): "does not hold",
    FIRST[2]: "does not hold",
    (LONGER, "interpolated_at", "worst case 8/255", "honest"): "holds",
    (LONGER, "mixup", "worst case 2/255", "honest"): "holds",
    (AHEAD, "mixup", "worst case 2/255", "honest"): "holds",
    (NOTHING, "mixup", "worst case 8/255", "honest"): "holds",
    (f"MI-OL leaves more than Xie et al. {SETTINGS}", "interpolated_at", "worst case 8/255", "honest"): "undecided",
    BESIDES[0]: "does not hold",
    BESIDES[1]: "does not hold",
    (NARROW.format("Gaussian noise"), "mixup", "PGD-10 2/255", "honest"): "holds",
    **{
        (NARROW.format(other), "mixup", "PGD-10 2/255", "honest"): "undecided"
        for other in ("rotation", "Xie et al.", "Guo et al.")
    },
}
GLANCE = (("interpolated_at", "8/255"), ("mixup", "8/255"), ("mixup", "2/255"))  # a column each
GAINS = (
    Gain(
        "to clean accuracy, at the paper's λ",
        COST,
        "clean",
        first=True,
    ),
    Gain(
        "under PGD-10, which does not know it",
        RAISES,
        "PGD-10 {}",
        first=True,
    ),
    Gain("under EOT-PGD-20 through it", "MI-OL still helps under EOT-PGD-20 and PGD-10", "worst case {}"),
    Gain("under the quick cascade through it, λ = 0.6", "MI-OL still helps under the cascade", "worst case {}"),
    Gain("under the longer cascade through it", LONGER, "worst case {}", first=True),
    Gain(
        "beyond the best other defense, under PGD-10, where each may give up as much clean accuracy",
        "MI-OL leaves more than (.*) where each may give up as much .*",
        "PGD-10 {}",
        first=True,
    ),
    Gain(
        "beyond the best other defense under the quick cascade, each as Fig. 3(b) chooses it",
        "MI-OL leaves more than (.*) under the cascade",
        "worst case {}",
    ),
    Gain(
        "beyond the best other defense under the longer cascade, each at the paper's settings",
        "MI-OL leaves more than (.*) under the longer cascade .*",
        "worst case {}",
        first=True,
    ),
)
AT_A_GLANCE = (
    "Points of accuracy with 95 % intervals, at the paper's settings (λ = 0.5 on mixup, 0.6 on interpolated_at) unless "
    "another is named. Rows of different studies are of different images, and do not compare with each other. The best other "
    "defense is picked on these very images, which favours it, and one that was tried again on more images stands with what "
    "these say; clean: how much more clean accuracy MI-OL keeps than it. "
    "Undecided: on which side of 0 it lies, after all are corrected."
)
BRIEF = (
    "Points of accuracy with 95 % intervals, on networks trained by interpolated adversarial training and by mixup, with the "
    "attack's ε. The cascade is a chain of adaptive attacks through the defense. The best other defense is picked on these very "
    "images, which favours it. Undecided: on which side of 0 it lies."
)
PASSED = mark({"verdict": "passed"})
COUNTED = {  # of one, and of several
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "undecided": ("is undecided", "are undecided"),
    "not measured": ("was not measured", "were not measured"),
}
SHOWN = {"table2.md", "frontier_table.md", "presets_table.md"}  # of the other tables the document has a link


def publish(store: Store) -> None:
    """Copy the excerpt of every finished study of a store, and keep of what was published before the other studies.

    What was published stays as it is until the new excerpt is whole. Where a cell of both has other rows, since they were
    computed on two kinds of processor, those that were published stay, but where the new ones have scores or more points.
    """
    from mi_ray.study.rows import mark_selected  # It imports torch, which drawing needs not.

    with tempfile.TemporaryDirectory(dir=PUBLISHED.parent) as folder:
        before, new = Store(PUBLISHED), Path(folder) / "new"
        studies = {study: source for study in SECTIONS if (source := _source(study, store, before))}
        first = dict(sorted(studies.items(), key=lambda item: item[1] is store))
        joined = excerpt(first, Store(new, create=True), detection=DETECTION, outputs=OUTPUTS, join=True)
        for study, source in studies.items():
            _without_places(new / f"studies/{study}/study.yaml")
            for name in PICTURES & set(_figures(study, new)):
                picture = f"studies/{study}/figures/{name}.png"
                Store(new).write_bytes(picture, source.read_bytes(picture))
        for study in {each.study: None for each in joined if each.different}:
            rows = cells_table(Store(new), study).to_pylist()
            mark_selected(rows)
            write_cells(Store(new), study, rows)
        told = [*joined, *(each for each in _joined() if studies.get(each.study) is before)]
        if told:
            pd.DataFrame(told).to_csv(new / JOINED, index=False)
        PUBLISHED.rename(Path(folder) / "before")
        new.rename(PUBLISHED)


def _joined() -> list[Compared]:
    """Of the published studies the cells that two stores had, and how their rows compared."""
    if not (PUBLISHED / JOINED).exists():
        return []
    return [Compared(*row) for row in pd.read_csv(PUBLISHED / JOINED).itertuples(index=False)]


def _source(study: str, *stores: Store) -> Store | None:
    """The first of these stores in which a study is finished."""
    for store in stores:
        if store.exists(f"studies/{study}/manifest.json") and read_manifest(store, study)["state"] == "complete":
            return store
    return None


def _without_places(file: Path) -> None:
    """Leave of the data's folder only its name: where it lies on a machine is nobody's business."""
    sweep = read_document(file)
    dataset: Any = sweep["dataset"]
    sweep["dataset"] = {name: {**values, "path": Path(values["path"]).name} for name, values in dataset.items()}
    for entry in sweep["classifiers"]:  # type: ignore[attr-defined]
        for name in entry.keys() - {"name", "zoo"} if entry.get("zoo") else ():
            del entry[name]
    file.write_text(yaml.safe_dump(sweep, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _figures(study: str, published: Path | None = None) -> list[str]:
    """The figures of a published study, by name. published: the folder, docs/cifar10 where it is left out."""
    file = (published or PUBLISHED) / f"studies/{study}/study.yaml"
    return [str(name) for name in read_document(file)["figures"]]  # type: ignore[attr-defined]


def draw() -> None:
    """Draw every figure of the published studies, decide the claims, and write the document."""
    store = Store(PUBLISHED)
    studies = store.folders("studies")
    with ProcessPoolExecutor(os.cpu_count()) as pool:  # Matplotlib draws in one thread.
        decided = pool.submit(_decided)  # It takes longer than any figure and needs none of them.
        for study, failures in zip(studies, pool.map(_draw_study, studies), strict=True):
            if failures:
                raise SystemExit(f"{study}: {failures}")
    # What nobody reads here takes much room: a figure's numbers are in the rows, from which `analysis/` makes them again.
    for name in UNREAD:
        for path in PUBLISHED.rglob(f"figures/{name}.csv"):
            path.unlink()
    table = decided.result()
    (PUBLISHED / "claims.csv").write_text(table.to_csv(index=False), encoding="utf-8")
    (DOCS / "cifar10.md").write_text(document(store, table), encoding="utf-8")
    cells = read_cells(store)
    for name in zoo_names():
        card = {**zoo_card(name), "measured": measured(cells, name)}
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in card.items())
        zoo_weights(name).with_suffix(".json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8"), table), encoding="utf-8")


def _decided() -> pd.DataFrame:
    """The table of claims of what is published."""
    return claims.facts(Store(PUBLISHED), claims.read_claims(CLAIMS))


def _draw_study(study: str) -> Mapping[str, str]:
    """Draw a published study's figures; returns what failed."""
    panels.FORMATS[:] = ["png"]  # What is published has no others.
    drawn = draw_figures(Store(PUBLISHED), study, [name for name in _figures(study) if name not in PICTURES])
    for path in (PUBLISHED / "studies" / study).rglob("*.png"):
        with Image.open(path) as picture:  # A palette of 256 colours takes a third of the room.
            if picture.mode != "P":  # One that was not drawn now has its palette already.
                picture.convert("RGB").quantize(256).save(path)
    return drawn.failures


def document(store: Store, decided: pd.DataFrame) -> str:
    """The text of docs/cifar10.md, from the excerpt and from the table of claims."""
    cells = read_cells(store)
    parts = [
        INTRODUCTION.format(
            short=short(decided),
            glance=glance(decided),
            first=first(decided, FIRST),
            counts=counts(decided),
            counted=counted(decided),
            single_draws=single_draws(cells),
            levels=levels(cells),
            reduced=reduced(store),
            contents=" · ".join(f"[{title}](#{_anchor(title)})" for title, _, _ in _shown(store).values()),
            processors=processors(_joined()),
        ),
        networks(store),
        CLAIMED,
        claims.document(decided),
        "## What others measured\n",
        markdown(claims.literature(CLAIMS, decided), LITERATURE),
        *([agreement(pd.read_csv(AGREEMENT))] if AGREEMENT.exists() else []),
    ]
    for study, (title, said, files) in _shown(store).items():
        folder = f"cifar10/studies/{study}/figures"
        parts += [f"## {title}\n", *([said + "\n"] if said else [])]
        for name in files:
            whole = PUBLISHED / f"studies/{study}/figures/{name}"
            if name.endswith(".png"):
                parts.append(f"![{title}]({folder}/{name})\n")
            elif whole.exists() and name in SHOWN:
                parts.append(whole.read_text(encoding="utf-8"))
            elif whole.exists():
                parts.append(f"Also: [{name}]({folder}/{name})\n")
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _shown(store: Store) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """What `SECTIONS` says of the studies that are published, in its order."""
    there = store.folders("studies")
    return {study: section for study, section in SECTIONS.items() if study in there}


def _anchor(title: str) -> str:
    """The anchor that a heading gets where Markdown is shown: small letters, digits and hyphens."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def reduced(store: Store) -> str:
    """Which studies are published on fewer images than their sweeps name, or with fewer checks, since these take hours."""
    told = []
    for study in _shown(store):
        name = study.removeprefix("cifar10_")
        done: Any = yaml.safe_load(store.read_bytes(f"studies/{study}/study.yaml"))
        asked: Any = read_document(SWEEPS / f"{name}.yaml")
        fewer = []
        if done["points"]["count"] < asked["points"]["count"]:
            fewer.append(f"{done['points']['count']:,} of {asked['points']['count']:,} images")
        level = asked["checks"]["level"] if isinstance(asked["checks"], Mapping) else asked["checks"]
        if done["checks"]["level"] != level:
            fewer.append("with the checks alone that cost no passes")
        if fewer:
            told.append(f"`{name}` {' and '.join(fewer)}")
    return f"Of what the sweep files name, less is published: {', '.join(told)}." if told else ""


def agreement(table: pd.DataFrame) -> str:
    """What other libraries' attacks, and Alg. 1 written again, leave beside what ours leave. table: agreement.csv."""
    text = pd.DataFrame(
        {
            "Classifier": table["classifier"],
            "ε": [f"{255 * epsilon:.0f}/255" if epsilon else "–" for epsilon in table["epsilon"]],
            "Defense": table["defense"],
            "What": table["what"],
            "By": table["library"],
            "Theirs": [f"{100 * value:.1f}" for value in table["theirs"]],
            "Ours": [f"{100 * value:.1f}" for value in table["ours"]],
            "Difference": [
                f"{100 * row.difference:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
                for _, row in table.iterrows()
            ],
            "Points": [f"{points}" for points in table["points"]],
            "Agree": ["yes" if agree else "**no**" for agree in table["agree"]],
        }
    )
    return "## Agreement with other code\n\n" + markdown(text, AGREED)


def measured(cells: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """What the published rows say of a network without a defense: accuracy with its interval, of each attack and radius once.

    cells: of all studies. Of an attack that several studies made it is that of the study with the most reported points.
    """
    cells = cells.sort_values("points", ascending=False, kind="stable")
    own = cells[(cells["classifier"] == name) & (cells["defense"] == "none") & (cells["state"] == "done")]
    own = own[np.array(["" in variants for variants in own["variants"]], bool)]
    own = own.drop_duplicates(["attack", "attack_params", "goal", "epsilon"])
    kept = (
        "study",
        "attack",
        "attack_params",
        "goal",
        "epsilon",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "points",
        "verdict",
    )
    rows = own.sort_values(["attack", "epsilon", "goal", "attack_params"])[list(kept)].to_dict("records")
    return [
        {str(key): round(value, 6) if isinstance(value, float) else value for key, value in row.items()} for row in rows
    ]


def short(decided: pd.DataFrame) -> str:
    """What the verdicts come to, in a few sentences that a person wrote. decided: the table of claims.

    Raises ValueError where a claim that they rest on has another verdict than they report, or is not in the table: then they
    are to be written anew.
    """
    keys = decided[["claim", "classifier", "attack", "variant"]].itertuples(index=False, name=None)
    verdicts = dict(zip(keys, decided["verdict"], strict=True))
    found = {key: verdicts.get(key, "is not in the table") for key in RESTS}
    others = [f"{key[0]} ({key[1]}, {key[2]}) {found[key]}" for key, verdict in RESTS.items() if found[key] != verdict]
    honest = decided[decided["variant"] == "honest"]
    cost = honest[_sentences(honest) == COST]
    others += [f"{COST} ({row.classifier}) is at most {row.high:+.3f}" for row in cost.itertuples() if not row.high < 0]
    others += [
        f"{COST} ({name}) is not in the table" for name in sorted({"mixup", "interpolated_at"} - {*cost["classifier"]})
    ]
    crops = _sentences(honest).str.startswith("MI-OL leaves more than Xie et al.")
    ahead = honest[crops & (honest["classifier"] == "interpolated_at") & (honest["verdict"] == "holds")]
    others += [f"{name} (interpolated_at) holds" for name in ahead["claim"]]
    some = honest["claim"].map(re.compile(f"MI-OL leaves more than .* {SETTINGS}").fullmatch).notna()
    most = honest[some & (honest["classifier"] == "mixup") & (honest["attack"] == "worst case 2/255")]["verdict"]
    if not 2 * (most == "holds").sum() > len(most):
        others.append(f"of {len(most)} others on mixup MI-OL leaves more than {(most == 'holds').sum()}")
    if others:
        raise ValueError(f"the sentences that come first rest on other verdicts: {'; '.join(others)}")
    return SHORT


def counts(decided: pd.DataFrame) -> str:
    """How many claims have which verdict, in one sentence; nothing without any. decided: the table of claims."""
    told = []
    for by, words in (("paper", "claims of the paper"), ("here", "further ones")):
        some = decided.loc[decided["said_by"] == by, "verdict"].value_counts()
        each = [f"{some[name]} {forms[int(some[name] > 1)]}" for name, forms in COUNTED.items() if name in some]
        told += [f"{some.sum()} {words} {', '.join(each)}"] if each else []
    return f"Of {'; of '.join(told)}." if told else ""


def counted(decided: pd.DataFrame) -> str:
    """How many claims have which verdict, and of those that hold how many say little, and for what reason, as Markdown."""
    rows = []
    for by, words in (
        ("paper", "of the paper"),
        ("here", "further, about other radii, bounds and attacks, for the method and against it"),
    ):
        some = decided[decided["said_by"] == by]
        number, hold = some["verdict"].value_counts(), some[some["verdict"] == "holds"]
        refused = hold["checks"].str.contains(claims.FAILED)
        unchecked = (hold["checks"] != "") & ~refused & ~hold["checks"].str.contains(PASSED)
        little = (hold["floor"].astype(bool).sum(), refused.sum(), unchecked.sum())
        first, *others = (number.get(name, 0) for name in COUNTED)
        again = some["claim"].str.startswith(ANEW).sum()
        rows.append([words, *(str(each) for each in (len(some), again, first, *little, *others))])
    head = (
        *(
            "Claims",
            "All",
            f"of these: others again, {ANEW.strip()}",
            "Hold",
            f"of these: all accuracies below {100 * claims.FLOOR:.0f} %",
        ),
        *("on an attack that our checks found broken", "on attacks whose checks were not run or cannot tell"),
        *("Do not hold", "Undecided", "Not measured"),
    )
    return markdown(pd.DataFrame(rows, columns=head), f"{_by_sentence(decided)} {_against_others(decided)}".strip())


def first(decided: pd.DataFrame, keys: Sequence[tuple[str, str, str, str]]) -> str:
    """The verdicts of these claims, a line each. decided: the table of claims."""
    named, lines = decided.set_index(["claim", "classifier", "attack", "variant"]), []
    for key in keys:
        row = named.loc[key]
        told = "nothing" if math.isnan(row["value"]) else f"{claims.in_points(row)} on {row['points']:.0f} images"
        seen = "oblivious " if key[2].startswith("PGD") else ""
        lines.append(f"- {key[0]} ({key[1]}, {seen}{key[2]}): {claims.told(row)}, {told}\n")
    return "".join(lines)


def glance(decided: pd.DataFrame, gains: Sequence[Gain] = GAINS, *, brief: bool = False) -> str:
    """What MI-OL adds on two networks, a row of the table for each attack, as Markdown.

    decided: the table of claims. brief: without settings and images, which the document has.
    """
    honest, rows = decided[decided["variant"] == "honest"], []
    honest = honest.assign(claim=_sentences(honest)).dropna(subset=["value"])
    # What was tried again on images drawn anew is told of whichever images were more.
    by_images = honest.sort_values("points", kind="stable")
    honest = by_images.drop_duplicates(["claim", "classifier", "attack"], keep="last")
    for gain in gains:
        matched = honest["claim"].map(re.compile(gain.claim).fullmatch)
        told = [gain.words]
        for name, radius in GLANCE:
            some = honest[
                matched.notna() & (honest["classifier"] == name) & (honest["attack"] == gain.attack.format(radius))
            ]
            some = some.sort_values("value")  # Of several other defenses the strongest.
            told.append("–" if some.empty else _gain(some.iloc[0], matched[some.index[0]], brief))
        rows.append(told)
    table = pd.DataFrame(rows, columns=["MI-OL adds", *(f"{name}, {radius}" for name, radius in GLANCE)])
    return markdown(table, BRIEF if brief else AT_A_GLANCE)


def _gain(row: "pd.Series[Any]", matched: "re.Match[str]", brief: bool) -> str:
    """A claim's number in points, the other defense that it names, and a word where its side of 0 is undecided."""
    undecided = row["verdict"] == "undecided" and row["by"] == 0
    number = f"{100 * row['value']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    clean = [] if math.isnan(row["clean_left"]) else [f"clean {100 * (row['clean_left'] - row['clean_right']):+.1f}"]
    own = [f"MI-OL at {row['setting_left']}"] if isinstance(row["setting_left"], str) and row["setting_left"] else []
    details = [] if brief else [*own, *clean, f"{row['points']:,.0f} images"]
    floor = [f"both under {100 * claims.FLOOR:.0f} %"] if row["floor"] else []
    said = [number, *matched.groups(), *details, *floor, *(["undecided"] if undecided else [])]
    return ", ".join(said)


def single_draws(cells: pd.DataFrame) -> str:
    """How much too low the worst cases of studies with one draw may be: they lie so far below the strongest single attack."""
    behind = cells[
        (cells["state"] == "done") & (cells["draws"] == 1) & ~cells[["defense", "attack"]].eq("none").any(axis=1)
    ]
    place = ["study", "classifier_key", "defense", "defense_params", "executions", "norm", "epsilon", "variants"]
    behind = behind.assign(variants=["|".join(each) for each in behind["variants"]]).set_index(place)
    worst = behind["attack"] == "worst_case"
    lowest = behind[~worst].groupby(level=place)["accuracy"].min()
    below = 100 * (lowest - behind.loc[worst, "accuracy"]).dropna()
    names = ", ".join(f"`{name.removeprefix('cifar10_')}`" for name in sorted(below.index.unique("study")))
    if below.empty:
        return ""
    return (
        f"In {names} each cell has one draw, which reports the worst case that it has chosen: behind a random defense that is "
        f"too low, at most by what it lies below the strongest single attack ({below.mean():.1f} points on average, "
        f"{below.max():.1f} where it is most)."
    )


def levels(cells: pd.DataFrame) -> str:
    """How far apart the studies' own images lie: the lowest and highest clean accuracy of one network without a defense.

    Of the studies that have untargeted PGD-10 on it, which is told beside; nothing where no network has two of them.
    """
    honest = np.array(["" in variants for variants in cells["variants"]], bool)
    bare = cells[honest & (cells["state"] == "done") & (cells["defense"] == "none")]
    steps = np.array([json.loads(text).get("steps") == 10 for text in bare["attack_params"]], bool)
    ten = bare[steps & (bare["attack"] == "pgd") & (bare["goal"] == "untargeted")].sort_values("epsilon")
    strongest = {(row["study"], row["classifier"]): row for _, row in ten.iterrows()}
    clean = bare[(bare["attack"] == "none") & (bare["points"] >= FEW)].sort_values(["accuracy", "study"])
    attacked_too = [each in strongest for each in zip(clean["study"], clean["classifier"], strict=True)]
    clean = clean[np.array(attacked_too, bool)]
    sides = clean.groupby("classifier").agg(["first", "last"])
    sides = sides[sides["study", "first"] != sides["study", "last"]]
    if sides.empty:
        return ""
    widest = (sides["accuracy", "last"] - sides["accuracy", "first"]).idxmax()
    told = []
    for side in ("first", "last"):
        study = sides.loc[widest, ("study", side)]
        attacked = strongest[study, widest]
        told.append(
            f"{100 * sides.loc[widest, ('accuracy', side)]:.1f} % on the {sides.loc[widest, ('points', side)]} images of "
            f"`{study.removeprefix('cifar10_')}` ({100 * attacked['accuracy']:.1f} % under PGD-10 at "
            f"{255 * attacked['epsilon']:.0f}/255)"
        )
    return (
        "Studies of another seed or size draw other images, so that only numbers of one study compare with each other: clean and "
        f"undefended, `{widest}` is right for {' and '.join(told)}."
    )


def processors(joined: Sequence[Compared]) -> str:
    """How many rows differ where two studies share a cell and were computed on two kinds of processor; nothing without any."""
    if not joined:
        return ""
    names = ", ".join(f"`{name.removeprefix('cifar10_')}`" for name in dict.fromkeys(each.study for each in joined))
    # A cell of several studies stands in each of them, and is one cell all the same.
    found = pd.DataFrame(joined).groupby("cell")[["points", "different"]].max()
    points, different, most = found["points"].sum(), found["different"].sum(), found["different"].max()
    return (
        "These studies were computed at different times on two kinds of processor with native bf16, which most manifests do not "
        f"record. {len(found)} cells of {names} were computed twice or more: {different:,} of {points:,} rows differ, in "
        f"{(found['different'] > 0).sum()} cells, at most {most} images of one; published is one of them, in all studies that "
        "have the cell.\n"
    )


def _against_others(decided: pd.DataFrame) -> str:
    """How many other defenses MI-OL is shown to beat where attacks go through each, which is what the gain is worth.

    Nothing where no claim asks it.
    """
    told = []
    for before, after in (("", "under the cascade"), ("", f"{LONG} .*"), (ANEW, f"{LONG} .*")):
        pattern = re.compile(f"{before}MI-OL leaves more than .* {after}")
        some = decided[decided["claim"].map(pattern.fullmatch).notna()]
        counts = [
            f"{(verdicts == 'holds').sum()} of {len(verdicts)} others on {name} ({attack.split()[-1]})"
            for (name, attack), verdicts in some.groupby(["classifier", "attack"])["verdict"]
        ]
        told.append(" and ".join(counts))
    quick, longer, anew = told
    again = f" ({ANEW}{anew})" if anew else ""
    said = [f"{quick} under the quick cascade"] if quick else []
    said += [f"{longer} {LONG}{again}"] if longer else []
    return f"Where attacks go through each defense, MI-OL is shown to beat {', and '.join(said)}." if said else ""


def _sentences(decided: pd.DataFrame) -> "pd.Series[str]":
    """What each claim says, whichever images it was tried on."""
    return decided["claim"].str.removeprefix(ANEW)


def _by_sentence(decided: pd.DataFrame) -> str:
    """Of how many of the paper's sentences every claim holds, and of how many one does not, at whatever radius.

    Of the former also how many were tried once, and of how many the same fails where the longer cascade goes through each
    defense, which is a sentence of its own.
    """
    sentences = _sentences(decided)
    verdicts = decided[sentences.isin(sentences[decided["said_by"] == "paper"])].groupby(sentences)["verdict"]
    whole = {str(name): len(each) for name, each in verdicts if (each == "holds").all()}
    refuted = sum(bool((each == "does not hold").any()) for _, each in verdicts)
    failed = set(sentences[decided["verdict"] == "does not hold"])
    longer = sum(name.replace("at the paper's", f"{LONG} at the paper's") in failed for name in whole)
    through = f", and {longer} fail where the longer cascade goes through each defense" if longer else ""
    if not len(verdicts):
        return ""
    return (
        f"{len(whole)} of the paper's {len(verdicts)} sentences hold wherever they were tried under the attack that they are "
        f"about, at other radii too (of these {sum(tries == 1 for tries in whole.values())} were tried once{through}); {refuted} "
        f"of the {len(verdicts)} fail somewhere."
    )


def readme(text: str, decided: pd.DataFrame) -> str:
    """README with the first verdicts between its two marks. decided: the table of claims."""
    before, _, after = text.split(MARK)
    table = glance(decided, [gain for gain in GAINS if gain.first], brief=True)
    verdicts = f"{short(decided)}\n\n{table}\n{counts(decided)} Besides:\n\n{first(decided, BESIDES)}"
    return MARK.join([before, verdicts, after])


def networks(store: Store) -> str:
    """The classifiers with how they were trained, and what the published rows say of them without a defense."""
    head = ("zoo", "objective", "epochs", "batch", "learning rate", "seed", "clean", "PGD-10 8/255")
    cells = read_cells(store)
    bare = cells[(cells["defense"] == "none") & (cells["state"] == "done")]
    bare = bare.assign(first=bare["study"] == "cifar10_table2").sort_values(["points", "first"], kind="stable")
    pgd = np.array([json.loads(text).get("steps") == 10 for text in bare["attack_params"]]) & (bare["attack"] == "pgd")
    pgd &= (bare["goal"] == "untargeted") & np.isclose(bare["epsilon"], 8 / 255)
    honest = np.array(["" in variants for variants in bare["variants"]], bool)
    rows = []
    for name in zoo_names():
        training = zoo_card(name)["training"]
        objective = ", ".join(" ".join([key, *_told(value)]) for key, value in training["objective"].items())
        facts = (training[key] for key in ("epochs", "batch_size", "lr", "seed"))
        of_name = bare["classifier"] == name
        told = [_last(bare[of_name & honest & which]) for which in (bare["attack"] == "none", pgd)]
        rows.append([f"`{name}`", objective, *map(str, facts), *told])
    said = (
        "Trained without a defense, each on one NVIDIA H200; the learning rate falls twice tenfold. Accuracy in % with its 95 % "
        "interval, in brackets the images. Each network's card in [`mi_ray/zoo`](../mi_ray/zoo) has its whole training."
    )
    return (
        '## The networks\n\n`classifiers: [{name: mixup, zoo: mixup}]` in a sweep, or `mi_ray.load_classifier("zoo:mixup")`.\n\n'
        + markdown(pd.DataFrame(rows, columns=head), said)
    )


def _told(values: Mapping[str, float]) -> list[str]:
    """The parameters of an objective in a few words, lengths in grey levels, such as 8/255."""
    lengths = ("epsilon", "step_size")
    return [f"{key}={255 * value:.3g}/255" if key in lengths else f"{key}={value:g}" for key, value in values.items()]


def _last(rows: pd.DataFrame) -> str:
    """The accuracy of the last of these cells with its interval and number of images; a dash without any."""
    if rows.empty:
        return "–"
    row = rows.iloc[-1]
    return f"{percent(row['accuracy'], row['accuracy_low'], row['accuracy_high'])} ({row['points']:,.0f})"


SAME = (
    "classifier",
    "attack",
    "attack_params",
    "goal",
    "epsilon",
    "knowledge",
    "defense",
    "defense_params",
    "executions",
)


def verify(data: str, number: int, seed: int, points: int) -> bool:
    """Compute cells of the published studies again, from the weights and the images, and compare them point by point.

    data: the folder with CIFAR-10 as the studies had it. number: of cells, drawn by the seed. points: the first of a study,
    so many of which are computed. Returns whether all are equal; on another kind of processor a few points may differ.
    """
    store, drawn = Store(PUBLISHED), np.random.default_rng(seed)
    cells = read_cells(store)
    plain = np.array([list(variants) == [""] for variants in cells["variants"]])
    own = cells[(cells["state"] == "done") & ~cells["attack"].isin(["worst_case", "cascade"]) & plain]
    chosen = own.iloc[drawn.choice(len(own), min(number, len(own)), replace=False)]
    with tempfile.TemporaryDirectory() as folder:
        sweeps = [_alone(cell, f"verify_{i}", data, points) for i, (_, cell) in enumerate(chosen.iterrows())]
        run_sweeps(sweeps, folder)
        rows = [_compared(store, cell, folder, f"verify_{i}") for i, (_, cell) in enumerate(chosen.iterrows())]
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    print(f"{int(table['equal'].sum())} of {len(table)} cells are equal at every point")
    return bool(table["equal"].all())


def _alone(cell: "pd.Series[Any]", name: str, data: str, points: int) -> dict[str, Any]:
    """The sweep that computes one published cell again, with as few others as there can be."""
    sweep: dict[str, Any] = dict(read_document(PUBLISHED / f"studies/{cell['study']}/study.yaml"))
    sweep |= {
        "name": name,
        "dataset": {"parquet": {"path": data}},
        "checks": "cheap",
        "figures": ["frontier_table"],
        "variants": {},
    }
    sweep["points"] = {"count": points, "selection": 0}
    sweep["classifiers"] = [entry for entry in sweep["classifiers"] if entry["name"] == cell["classifier"]]
    values = {name: value for name, value in json.loads(cell["defense_params"]).items() if value is not None}
    sweep["defenses"] = ["none", *([] if cell["defense"] == "none" else [{cell["defense"]: values}])]
    # An entry may say `adaptive`, for the attack that the options choose; a clean cell needs any attack.
    names = {cell["attack"], *(["adaptive"] if cell["knowledge"] == "adaptive" else [])}
    clean = cell["attack"] == "none"
    entry = next(entry for entry in sweep["attacks"] if clean or (names & entry.keys() and _is_of(entry, cell)))
    sweep["attacks"] = [{**entry, "classifiers": None, "defenses": None}]
    return sweep


def _is_of(entry: dict[str, Any], cell: "pd.Series[Any]") -> bool:
    return (
        any(abs(float(epsilon) - cell["epsilon"]) < 1e-9 for epsilon in entry["epsilon"])
        and cell["goal"] in entry["goal"]
        and cell["knowledge"] == entry.get("knowledge", "oblivious")
        and cell["norm"] == entry.get("norm", "linf")
    )


def _without_images(attack_params: str) -> str:
    """Parameters as cells had them that were published before they named the images that an attack begins with."""
    return json.dumps(
        {name: value for name, value in json.loads(attack_params).items() if name != "images"}, sort_keys=True
    )


def _compared(store: Store, cell: "pd.Series[Any]", folder: str, name: str) -> dict[str, Any]:
    told = {key: cell[key] for key in ("study", "classifier", "attack", "defense", "defense_params")}
    again = read_cells(folder, name)
    alike = again.assign(attack_params=again["attack_params"].map(_without_images))
    sought = {**cell[list(SAME)], "attack_params": _without_images(cell["attack_params"])}
    found = again[(alike[list(SAME)].astype(str) == pd.Series(sought).astype(str)).all(axis=1)]
    if len(found) != 1:
        return {**told, "points": 0, "different": math.nan, "equal": False}
    old = records_of(store, cell["cell"]).set_index("point")["correct_draws"]
    new = records_of(Store(folder), found["cell"].iloc[0]).set_index("point")["correct_draws"]
    different = int((old.reindex(new.index) != new).sum())
    return {**told, "points": len(new), "different": different, "equal": different == 0}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("publish", "draw", "verify"))
    parser.add_argument("place", nargs="?", help="the store to publish from, or the folder with the data")
    parser.add_argument("--number", type=int, default=20, help="cells that are computed again")
    parser.add_argument("--seed", type=int, default=0, help="what draws them")
    parser.add_argument("--points", type=int, default=50, help="points of each")
    given = parser.parse_args()
    if given.verb != "draw" and given.place is None:
        parser.error(f"{given.verb} needs {'the store' if given.verb == 'publish' else 'the folder with the data'}")
    if given.verb == "verify":
        raise SystemExit(not verify(given.place, given.number, given.seed, given.points))
    if given.verb == "publish":
        publish(Store(given.place))
    draw()
