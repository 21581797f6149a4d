"""Makes the page: one HTML file that holds its data, its style, its program and the library that draws its charts.

The charts are Vega-Lite's, which `vl-convert-python` brings as one script. The file asks for nothing: its own
Content-Security-Policy forbids every request, so that it reads the same from a disk, a store or a mail.
"""

import json
import logging
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mi_ray.figures.draw import Drawn
from mi_ray.page.answer import answers
from mi_ray.page.comparison import MOST, Side, comparisons
from mi_ray.page.counts import read_counts
from mi_ray.page.examples import example_facts, read_examples
from mi_ray.page.facts import certified_facts, load, study_facts, training_curves, variant_names
from mi_ray.store.blocks import Store
from mi_ray.store.manifest import report_path
from mi_ray.store.read import studies_of
from mi_ray.study.checks import WORDS

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
LIBRARY = "window.vegaEmbed = vegaEmbed;"  # what the script of the charts leaves for the page's own
ADDRESS = re.compile(r"https://[\w./-]+")  # of editors and schemas, which the library names and the page never asks for


def make(store: Store, study: str) -> list[str]:
    """Write the page of a study into its folder; returns the path within the store. Raises ValueError for an unknown study."""
    path = report_path(study)
    store.write_bytes(path, page(store, [study]).encode())
    return [path]


def write_pages(store: Store, studies: Sequence[str], to: str | None = None) -> Drawn:
    """What `mi-ray report` does; returns the places of what was written, and by study why its page failed.

    studies: one page shows all of them; without any, each study of the store gets its own, and one whose page fails takes
    none of the others with it. to: a file outside of the store. Raises ValueError for an unknown study, for one that is
    named twice, and where the store has no cells yet; and what the page of named studies raises.
    """
    if len({*studies}) != len(studies):
        raise ValueError(f"the studies of a report must be different ones; got {', '.join(studies)}")
    known = studies_of(store)
    each = [[*studies]] if studies else [[name] for name in known]
    if not each:
        raise ValueError(f"a report needs a study that has come as far as its cells; {store.uri} has none")
    if to is not None and len(each) > 1:
        raise ValueError(f"--to names one file, so --study must say what it shows; known: {', '.join(known)}")
    written: list[str] = []
    failures: dict[str, str] = {}
    for names in each:
        try:
            written += _write(store, names, to)
        except Exception as error:
            if studies:
                raise
            logger.debug("the page of %s", names[0], exc_info=True)
            failures[names[0]] = f"{type(error).__name__}: {error}"
    return Drawn(tuple(written), failures)


def _write(store: Store, names: Sequence[str], to: str | None) -> list[str]:
    """Write one page, and return its place. to: as for `write_pages`."""
    if to is None and len(names) == 1:
        return [f"{store.uri}/{path}" for path in make(store, names[0])]
    file = Path(to or f"report-{'-'.join(names)}.html")
    file.write_text(page(store, names), encoding="utf-8")
    return [str(file)]


def page(store: Store, studies: Sequence[str]) -> str:
    """The page of one study, or of several side by side, as HTML. Raises ValueError for an unknown study."""
    facts, sides = [], []
    for study in studies:
        told, side = _facts(store, study)
        facts.append(told)
        sides.append(side)
    pairs = comparisons(sides)
    data = {"store": store.uri, "studies": facts, "comparisons": pairs[:MOST], "pairs": len(pairs), "checks": WORDS}
    loader = FileSystemLoader(HERE, encoding="utf-8")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    parts = {name.replace(".", "_"): _text(name) for name in ("page.css", "charts.js", "page.js")}
    return environment.get_template("page.html").render(
        title=", ".join(studies), studies=facts, data=_embedded(data), library=library(), **parts
    )


def _facts(store: Store, study: str) -> tuple[dict[str, object], Side]:
    loaded, examples = load(store, study), read_examples(store, study)
    cells = loaded.cells
    counts = read_counts(store, study, cells["cell"].tolist(), examples.points)
    first = int((~counts.reported).sum())
    told = {
        **study_facts(loaded),
        **counts.facts(),
        "answers": answers(cells, counts, loaded.names, variant_names(cells)),
        "examples": example_facts(store, cells, counts, examples, first),
        "training": training_curves(store, cells),
        "certified": certified_facts(store, study),
    }
    return told, Side(loaded, counts)


def _embedded(data: object) -> str:
    """Data as JSON inside of a script element, which no text in it can end."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


@cache
def library() -> str:
    """The script that draws the charts, without the addresses that it would name."""
    import vl_convert

    script = vl_convert.javascript_bundle(LIBRARY, vl_version=vl_convert.get_vegalite_versions()[-1])
    return ADDRESS.sub("", script).replace("</script", "<\\/script")
