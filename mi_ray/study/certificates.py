"""What a study certifies, derived from stored votes: a row for each certificate and point, and certified accuracy by radius.

The votes are outputs of F under Gaussian noise like any others; nothing here takes a pass.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from mi_ray.plan.work import Certificate, OutputWork
from mi_ray.smoothing import certified_accuracy, certify, usual_radii
from mi_ray.statistics import coverage
from mi_ray.store.files import DamagedFileError
from mi_ray.store.keys import canonical
from mi_ray.store.schemas import CERTIFICATES, Array
from mi_ray.study.results import Results
from mi_ray.study.rows import cost_of

Causes = Callable[[Certificate], str | None]


def certified_rows(
    results: Results, certificates: tuple[Certificate, ...], points: tuple[int, int], causes: Causes
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """(rows of certificates.parquet, rows of certified.parquet) of what is stored.

    points: (selection points, all points). causes: why a certificate's votes are not there, where a run knows it.
    """
    tables, rows = [CERTIFICATES.empty_table()], []
    for certificate in certificates:
        try:
            table = certificate_table(results, certificate, *points)
            rows += _summary(results, certificate, table)
            tables.append(table)
        except DamagedFileError as error:
            cause = causes(certificate)
            state = {"state": "failed" if cause else "missing", "cause": cause or str(error)}
            rows.append({**certificate.identity, **state, "work": _work(certificate)})
    return pa.concat_tables(tables), rows


def certificate_table(results: Results, certificate: Certificate, selection: int, count: int) -> pa.Table:
    """A certificate's rows, one a point. Raises DamagedFileError when some of the votes are missing."""
    data, said = results.data, certificate.identity
    chooses, bounds = (_votes(results, work, count) for work in certificate.needs())
    found = certify(chooses, bounds, said["sigma"], said["alpha"])
    rows: Mapping[str, Any] = {
        **{name: np.repeat(value, count) for name, value in said.items()},
        "point": np.asarray(data.points[:count]),
        "selection": np.arange(count) < selection,
        "label": np.asarray(data.labels[:count]),
        **vars(found),
        "seed": np.repeat(data.seed, count),
        "device": np.repeat(data.device, count),
        "precision": np.repeat(data.precision[certificate.classifier], count),
    }
    columns = [pa.array(rows[name], CERTIFICATES.field(name).type) for name in CERTIFICATES.names]
    return pa.table(columns, schema=CERTIFICATES)


def _votes(results: Results, work: OutputWork, count: int) -> Array:
    """[points, classes]: how many of all executions vote for each class."""
    (n,) = work.executions
    shares = results.probabilities(work, 0, count)[0, 0].astype(np.float64)
    return np.rint(shares * n).astype(np.int64)


def _work(certificate: Certificate) -> str:
    return canonical({"outputs": [[work.key, work.executions[-1]] for work in certificate.needs()]})


def _summary(results: Results, certificate: Certificate, table: pa.Table) -> list[dict[str, Any]]:
    """A row for each radius, of the reported points."""
    said = certificate.identity
    own = table.to_pandas()
    own = own[~own["selection"]]
    right = (own["predicted"] == own["label"]).to_numpy()
    cost = cost_of(results, {("outputs", work.key) for work in certificate.needs()})
    shared = {
        **said,
        "state": "done",
        "points": len(own),
        **coverage(own["predicted"], own["label"]),
        "average_radius": float(np.where(right, own["radius"], 0.0).mean()),
        "forward_passes": cost["forward_passes"],
        "seconds": cost["seconds"],
        "work": _work(certificate),
    }
    radii = certificate.radii or usual_radii(said["sigma"], said["n"], said["alpha"])
    rows = []
    for radius in radii:
        found = certified_accuracy(right, own["radius"], radius)
        told = {"accuracy": found.value, "accuracy_low": found.low, "accuracy_high": found.high}
        rows.append({**shared, "radius": radius, **told})
    return rows
