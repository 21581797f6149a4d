"""TODO."""

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mi_ray.store.files import DamagedFileError

Array = npt.NDArray[Any]
Kind = Literal["adversarial", "outputs", "records"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_IDENTITY = [
    ("cell", pa.string()),
    ("dataset", pa.string()),
    ("classifier", pa.string()),
    ("classifier_key", pa.string()),
    ("attack", pa.string()),
    ("attack_params", pa.string()),
    ("goal", pa.string()),
    ("norm", pa.string()),
    ("epsilon", pa.float64()),
    ("knowledge", pa.string()),
    ("defense", pa.string()),
    ("defense_params", pa.string()),
    ("executions", pa.int32()),
    ("draws", pa.int32()),
]

IDENTITY = [name for name, _ in _IDENTITY]

ADVERSARIAL = pa.schema(
    [
        ("point", pa.int32()),
        ("label", pa.int32()),
        ("attack_label", pa.int32()),
        ("restart", pa.int32()),
        ("steps", pa.int32()),
        ("image", pa.list_(pa.float32())),
        ("linf", pa.float32()),
        ("loss", pa.float32()),
        ("success", pa.float32()),
        ("zero_gradients", pa.int32()),
    ]
)

OUTPUTS = pa.schema(
    [
        ("point", pa.int32()),
        ("draw", pa.int32()),
        ("executions", pa.int32()),
        ("probabilities", pa.list_(pa.float32())),
    ]
)

RECORDS = pa.schema(
    [
        *_IDENTITY,
        ("correct_draws", pa.int32()),
        ("point", pa.int32()),
        ("selection", pa.bool_()),
        ("label", pa.int32()),
        ("attack_label", pa.int32()),
        ("predicted_undefended", pa.int32()),
        ("predicted", pa.int32()),
        ("confidence_undefended", pa.float32()),
        ("confidence", pa.float32()),
        ("score", pa.float32()),
        ("probabilities", pa.list_(pa.float32())),
        ("linf", pa.float32()),
        ("seed", pa.int64()),
        ("device", pa.string()),
        ("precision", pa.string()),
    ]
)

CELLS = pa.schema(
    [
        *_IDENTITY,
        ("state", pa.string()),
        ("cause", pa.string()),
        ("points", pa.int32()),
        ("accuracy", pa.float64()),
        ("accuracy_low", pa.float64()),
        ("accuracy_high", pa.float64()),
        ("interval", pa.string()),
        ("survival", pa.list_(pa.float64())),
        ("auc", pa.float64()),
        ("checks", pa.string()),
        ("verdict", pa.string()),
        ("clean_accuracy", pa.float64()),
        ("selection_points", pa.int32()),
        ("selection_accuracy", pa.float64()),
        ("selected", pa.bool_()),
        ("forward_passes", pa.int64()),
        ("backward_passes", pa.int64()),
        ("seconds", pa.float64()),
        ("variants", pa.list_(pa.string())),
        ("work", pa.string()),
    ]
)

EXAMPLES = pa.schema([("point", pa.int32()), ("label", pa.int32()), ("image", pa.list_(pa.float32()))])

TRAINING = pa.schema(
    [
        ("epoch", pa.int32()),
        ("lr", pa.float64()),
        ("loss", pa.float64()),
        ("train_accuracy", pa.float64()),
        ("test_accuracy", pa.float64()),
        ("images", pa.int64()),
        ("seconds", pa.float64()),
    ]
)

# Where a compacted cell is: row group `group` of `part`, `rows` rows from `first` on.
INDEX = pa.schema(
    [
        *_IDENTITY,
        ("start", pa.int32()),
        ("stop", pa.int32()),
        ("facts", pa.string()),
        ("part", pa.string()),
        ("group", pa.int32()),
        ("first", pa.int32()),
        ("rows", pa.int32()),
    ]
)

SCHEMAS: dict[str, pa.Schema] = {"adversarial": ADVERSARIAL, "outputs": OUTPUTS, "records": RECORDS}


def images_column(images: Array) -> pa.Array:
    """[rows, …] as a column of float32 lists."""
    flat = np.ascontiguousarray(images, np.float32).reshape(-1)
    size = int(np.prod(images.shape[1:]))
    offsets = pa.array(np.arange(len(images) + 1, dtype=np.int32) * size)
    return pa.ListArray.from_arrays(offsets, pa.array(flat))


def list_column(column: pa.ChunkedArray, width: int) -> Array:
    """A list<float> column with rows of one length as a float32 array [rows, width]."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if len(flat) != len(column) * width:
        raise DamagedFileError(f"every list must have {width} numbers; got {len(flat)} in {len(column)} rows")
    return np.asarray(flat, np.float32).reshape(len(column), width)
