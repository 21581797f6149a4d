"""Every column has one definition, with its meaning, and the documentation holds the same text."""

from pathlib import Path

import pyarrow as pa
import pytest

from mi_ray.store import schemas
from mi_ray.store.schemas import IDENTITY_COLUMNS, Columns, markdown

RESULTS = (Path(__file__).parent.parent.parent / "docs/results.md").read_text(encoding="utf-8")
N = len(IDENTITY_COLUMNS)  # These columns have a table of their own.
SECTIONS: dict[str, Columns] = {
    "Identity of a cell": IDENTITY_COLUMNS,
    "`records`": schemas.RECORDS_COLUMNS[N:],
    "`cells.parquet`": schemas.CELLS_COLUMNS[N:],
    "`adversarial`": schemas.ADVERSARIAL_COLUMNS,
    "`outputs`": schemas.OUTPUTS_COLUMNS,
    "Identity of a certificate": schemas.CERTIFICATE_COLUMNS,
    "`certificates.parquet`": schemas.CERTIFICATES_COLUMNS[len(schemas.CERTIFICATE_COLUMNS) :],
    "`certified.parquet`": schemas.CERTIFIED_COLUMNS[len(schemas.CERTIFICATE_COLUMNS) :],
    "`examples.parquet`": schemas.EXAMPLES_COLUMNS,
    "`keys.parquet`": schemas.KEYS_COLUMNS,
    "`training.parquet`": schemas.TRAINING_COLUMNS,
    "`compacted/index.parquet`": schemas.INDEX_COLUMNS[N:],
}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_documentation_holds_the_columns_of(section: str) -> None:
    (text,) = [part for part in RESULTS.split("\n### ") if part.startswith(f"{section}\n")]
    assert markdown(SECTIONS[section]) in text


def test_every_schema_is_made_from_columns_and_holds_names_and_types_alone() -> None:
    made = {name for name, value in vars(schemas).items() if isinstance(value, pa.Schema)}
    assert {f"{name}_COLUMNS" for name in made} | {"IDENTITY_COLUMNS", "CERTIFICATE_COLUMNS"} == {
        name for name in vars(schemas) if name.endswith("_COLUMNS")
    }
    for name in made:
        schema: pa.Schema = getattr(schemas, name)
        columns: Columns = getattr(schemas, f"{name}_COLUMNS")
        assert [(field.name, field.type) for field in schema] == [(column.name, column.type) for column in columns]
        assert schema.metadata is None
        assert all(field.metadata is None for field in schema)


def test_every_meaning_is_a_sentence() -> None:
    for column in (column for columns in SECTIONS.values() for column in columns):
        assert column.meaning.endswith("."), column
        assert column.meaning.lstrip("`")[0].isalpha(), column
        assert "|" not in column.meaning, column
