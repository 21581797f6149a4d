"""The Parquet files of a store, column by column: each column's name, type and meaning stand in one line here.

The pyarrow schemas are made from these lines, and so are the tables in docs/results.md, which a test compares.
"""

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mi_ray.store.files import DamagedFileError

Array = npt.NDArray[Any]
Kind = Literal["adversarial", "outputs", "records"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Column(NamedTuple):
    """A column of a Parquet file. meaning: one sentence for whoever reads the file. later: whether files of earlier
    versions lack it, which are read as if it were there and empty."""

    name: str
    type: pa.DataType
    meaning: str
    later: bool = False


Columns = tuple[Column, ...]

TEXT, BOOL, INT, LONG = pa.string(), pa.bool_(), pa.int32(), pa.int64()
FLOAT, DOUBLE, FLOATS = pa.float32(), pa.float64(), pa.list_(pa.float32())

# What is the same in all rows of one cell; the first columns of `records`, `cells.parquet` and the index.
IDENTITY_COLUMNS: Columns = (
    Column("cell", TEXT, "The cell's content key, a hash of all that decides its rows."),
    Column("dataset", TEXT, "The name of the dataset whose test split is classified."),
    Column("classifier", TEXT, "The name that the sweep gives to the classifier F."),
    Column("classifier_key", TEXT, "The content key of F: the folder in `classifiers/` that holds its weights."),
    Column("attack", TEXT, "The attack's name; `none` for clean images and `worst_case` for the worst of all attacks."),
    Column("attack_params", TEXT, "The attack's parameters as JSON text, with the `images` that it begins with."),
    Column("goal", TEXT, "`untargeted` or `targeted`; `none` for clean images and `any` for a worst case."),
    Column(
        "norm",
        TEXT,
        "The norm that bounds the perturbation: `linf`, `l2`, `l1`, or `spatial` for a rotation and a shift; `linf` if clean.",
    ),
    Column(
        "epsilon",
        DOUBLE,
        "The radius of the ball around the clean image, in units of pixels in [0, 1]; in `spatial` the share of all "
        "rotations and shifts; 0 if clean.",
    ),
    Column(
        "knowledge",
        TEXT,
        "`oblivious` (the attack saw F alone), `adaptive` (it saw the defense) or `black_box` (it saw answers alone); `none` if "
        "clean.",
    ),
    Column("defense", TEXT, "The defense's name; `none` for F itself."),
    Column("defense_params", TEXT, "The defense's parameters as JSON text."),
    Column("executions", INT, "N of Alg. 1: how many executions a defended prediction averages."),
    Column("draws", INT, "How many independent defended predictions, of N executions each, were made of a point."),
)

ADVERSARIAL_COLUMNS: Columns = (
    Column("point", INT, "The index of the image in the test split."),
    Column("label", INT, "The true label."),
    Column("attack_label", INT, "The label that the attack left (untargeted) or sought (targeted)."),
    Column("restart", INT, "The number of the restart, from 0."),
    Column("steps", INT, "After how many steps (or queries, or tries) of the attack the image is as it is here."),
    Column(
        "image",
        FLOATS,
        "The adversarial image: channels, height, width; pixels in [0, 1], but for `averaged` without `clip`.",
    ),
    Column("linf", FLOAT, "The largest absolute change of a pixel against the clean image."),
    Column(
        "loss",
        FLOAT,
        "By which restarts of equal success are ranked: the cross-entropy of the attacked label (negated where it is sought), "
        "minus the distance where the nearest image is looked for, minus the gap in `evasion`; null where `success` is.",
    ),
    Column(
        "success",
        FLOAT,
        "The share of the attack's own draws in which it reached its goal, which chooses among restarts: on F itself told in "
        "fp32, behind a defense in the study's precision (but by `square` and `spatial`). Null for a single restart of `pgd`, "
        "`eot_pgd` or `momentum` on F itself, where nothing is chosen and `outputs` has F's answer.",
    ),
    Column("zero_gradients", INT, "At how many steps the whole gradient was zero; -1 for an attack that counts none."),
    Column(
        "shares",
        FLOATS,
        "In the norm `spatial` what makes the image of the clean one: its rotation anticlockwise in units of 30 degrees, then "
        "its shifts to the right and down in units of a tenth of the side; null in any other norm.",
        later=True,
    ),
)

OUTPUTS_COLUMNS: Columns = (
    Column("point", INT, "The index of the image in the test split."),
    Column("draw", INT, "The number of the draw, from 0; F itself has one."),
    Column("executions", INT, "N: how many executions are averaged."),
    Column(
        "probabilities",
        FLOATS,
        "The mean softmax output of the first N executions of this draw, a number a class; of `vote` the share of votes.",
    ),
)

RECORDS_COLUMNS: Columns = (
    *IDENTITY_COLUMNS,
    Column(
        "correct_draws",
        INT,
        "In how many of the draws the predicted label was the true one; of an attacked point, where a defense may abstain, in "
        "how many it answers rightly or not at all and answers the clean point rightly.",
    ),
    Column("point", INT, "The index of the image in the test split; (`cell`, `point`) is unique."),
    Column("selection", BOOL, "Whether the point only serves to choose settings, so that no reported number uses it."),
    Column("label", INT, "The true label."),
    Column(
        "attack_label", INT, "The label that the attack left (untargeted) or sought (targeted); the true one if clean."
    ),
    Column("predicted_undefended", INT, "The label that F itself predicts on the same image."),
    Column("predicted", INT, "The label that the defense predicts in draw 0; -1 where it abstains."),
    Column("confidence_undefended", FLOAT, "The highest probability that F itself gives on the same image."),
    Column("confidence", FLOAT, "The highest probability that the defense gives in draw 0."),
    Column(
        "score",
        FLOAT,
        "The drop F_ŷ(x) - D_ŷ(x) of the probability of F's own label ŷ under the defense's final answer D in draw 0; the "
        "higher, the more adversarial. Of `reject` and `mi_combined` it is not their detector's: it is 0 where they accept.",
    ),
    Column(
        "probabilities",
        FLOATS,
        "The defense's answer in draw 0, a number a class: the mean softmax, of `vote` the share of votes, of `reject` F(x) or "
        "equal numbers, of `mi_combined` F(x) or the mean of MI-OL.",
    ),
    Column("linf", FLOAT, "The largest absolute change of a pixel against the clean image; 0 if clean."),
    Column("seed", LONG, "The sweep's seed."),
    Column("device", TEXT, "The kind of device that computed the outputs."),
    Column("precision", TEXT, "The arithmetic of the defense's executions: `fp32` or `bf16`."),
)

CELLS_COLUMNS: Columns = (
    *IDENTITY_COLUMNS,
    Column("state", TEXT, "`done`, `failed` (the work that it needs failed) or `missing` (the work was not done)."),
    Column("cause", TEXT, "Why the cell is not done; null where it is."),
    Column("points", INT, "How many points are reported: those that do not only serve to choose settings."),
    Column(
        "accuracy",
        DOUBLE,
        "The share of right predictions over the reported points and their draws; of a defense that may withhold its answer the "
        "share that stands (see `coverage`).",
    ),
    Column("accuracy_low", DOUBLE, "The lower end of the accuracy's 95 % interval."),
    Column("accuracy_high", DOUBLE, "The upper end of the accuracy's 95 % interval."),
    Column(
        "interval",
        TEXT,
        "How the interval was computed: `wilson` where each point is right in all of its draws or in none (its nearer end exact "
        "where fewer than five are right or wrong), else "
        "`wilson_effective`, with the number of points at which a share varies as much as the survival does over points (near "
        "0 and 1 at most as many as there are) and Student's quantile in place of the normal one.",
    ),
    Column(
        "survival",
        pa.list_(pa.float64()),
        "For k = 1, 2, … attempts: the share of points that are right in all of k draws chosen at random; of a worst case k = 1 "
        "alone.",
    ),
    Column(
        "coverage",
        DOUBLE,
        "The share of points that are answered in draw 0; null for a defense that answers always.",
        later=True,
    ),
    Column(
        "accuracy_answered",
        DOUBLE,
        "The share of right answers among the points that are answered; null where `coverage` is.",
        True,
    ),
    Column(
        "auc",
        DOUBLE,
        "How well `score` tells this attacked cell from its clean counterpart; null where clean, and without a defense. Of a "
        "worst case it is that of the images that do most harm to the accuracy, and not the lowest that an attack on the "
        "detector leaves.",
    ),
    Column(
        "detection_gap",
        DOUBLE,
        "The mean of `score` on the attacked points minus that on the same points clean (DG, Eq. 14 and 16); null where "
        "`auc` is.",
        later=True,
    ),
    Column(
        "detection_gap_low", DOUBLE, "The lower end of the gap's 95 % t-interval over points; null for one point.", True
    ),
    Column(
        "detection_gap_high",
        DOUBLE,
        "The upper end of the gap's 95 % t-interval over points; null for one point.",
        True,
    ),
    Column(
        "tpr_at_5_fpr",
        DOUBLE,
        "The share of this attacked cell's points whose `score` is above a threshold that at most 5 % of its clean "
        "counterpart's points exceed; null where `auc` is.",
        later=True,
    ),
    Column("checks", TEXT, "The checks as JSON text: name -> `state`, `why` and the numbers that it rests on."),
    Column("verdict", TEXT, "What the checks say together: `passed`, `failed` or `not run` (docs/checks.md)."),
    Column("clean_accuracy", DOUBLE, "The accuracy of the same setting on clean images."),
    Column("selection_points", INT, "How many points only serve to choose settings."),
    Column("selection_accuracy", DOUBLE, "The accuracy on the selection points; null without any."),
    Column(
        "selected",
        BOOL,
        "Whether no other setting of the same classifier, attack and threat model is at least as accurate on both clean and "
        "attacked images and better on one of them, judged on the selection points where there are some; false where clean.",
    ),
    Column("forward_passes", LONG, "Forward passes of the stored work that the cell stands on, which cells share."),
    Column("backward_passes", LONG, "Backward passes of the same work."),
    Column("seconds", DOUBLE, "Seconds that the same work took."),
    Column(
        "variants",
        pa.list_(pa.string()),
        "The variants of the study (sets of options) that ask for the cell; an empty text is the study itself.",
    ),
    Column(
        "work",
        TEXT,
        "The results that the cell is derived from, as JSON text: keys in `adversarial/` and `outputs/`, the "
        "`counterparts` where the study has them, with the whole perturbation those `transferred` (Eq. 13), and the "
        "`members` of a worst case.",
    ),
)

# What is the same in all rows of one certificate.
CERTIFICATE_COLUMNS: Columns = (
    Column("certificate", TEXT, "The certificate's content key, a hash of all that decides its rows."),
    Column("dataset", TEXT, "The name of the dataset whose test split is classified."),
    Column("classifier", TEXT, "The name that the sweep gives to the classifier F."),
    Column("classifier_key", TEXT, "The content key of F: the folder in `classifiers/` that holds its weights."),
    Column("sigma", DOUBLE, "The standard deviation of the noise under which F votes, in units of pixels in [0, 1]."),
    Column("n0", INT, "How many votes choose a point's class."),
    Column("n", INT, "How many other votes bound the probability of that class."),
    Column("alpha", DOUBLE, "The chance at most that the certificate of a point is wrong."),
)

CERTIFICATES_COLUMNS: Columns = (
    *CERTIFICATE_COLUMNS,
    Column("point", INT, "The index of the image in the test split; (`certificate`, `point`) is unique."),
    Column("selection", BOOL, "Whether the point only serves to choose settings, so that no reported number uses it."),
    Column("label", INT, "The true label."),
    Column("candidate", INT, "The class that most of the n0 votes name."),
    Column("votes", INT, "How many of the n votes name the candidate."),
    Column(
        "probability", DOUBLE, "The lower bound of the candidate's probability (Clopper and Pearson, at level alpha)."
    ),
    Column(
        "predicted",
        INT,
        "The certified class: the candidate where the bound is above 1/2; else -1, since the smoothed classifier abstains.",
    ),
    Column(
        "radius",
        DOUBLE,
        "No perturbation of an L2 norm below it, in units of pixels in [0, 1], changes the certified class; 0 where there is "
        "none.",
    ),
    Column("seed", LONG, "The sweep's seed."),
    Column("device", TEXT, "The kind of device that computed the votes."),
    Column("precision", TEXT, "The arithmetic of the votes: `fp32` or `bf16`."),
)

CERTIFIED_COLUMNS: Columns = (
    *CERTIFICATE_COLUMNS,
    Column("state", TEXT, "`done`, `failed` (the work that it needs failed) or `missing` (the work was not done)."),
    Column("cause", TEXT, "Why the certificate is not done; null where it is."),
    Column("radius", DOUBLE, "An L2 radius, in units of pixels in [0, 1]."),
    Column("points", INT, "How many points are reported: those that do not only serve to choose settings."),
    Column("accuracy", DOUBLE, "Certified accuracy: the share of points that are right with at least this radius."),
    Column("accuracy_low", DOUBLE, "The lower end of the accuracy's 95 % interval over points (Wilson)."),
    Column("accuracy_high", DOUBLE, "The upper end of the accuracy's 95 % interval over points."),
    Column("coverage", DOUBLE, "The share of points on which the smoothed classifier does not abstain."),
    Column(
        "accuracy_answered",
        DOUBLE,
        "The share of right answers among the points that are answered; null where none are.",
    ),
    Column("average_radius", DOUBLE, "The mean radius over points, 0 for a point that is not right or not certified."),
    Column("forward_passes", LONG, "Forward passes of the stored votes that the certificate stands on."),
    Column("seconds", DOUBLE, "Seconds that these passes took."),
    Column("work", TEXT, "The votes that the certificate is derived from, as JSON text: keys in `outputs/`."),
)

EXAMPLES_COLUMNS: Columns = (
    Column("point", INT, "The index of the image in the test split."),
    Column("label", INT, "The true label."),
    Column("image", FLOATS, "The clean image: channels, height, width; pixels in [0, 1]."),
)

TRAINING_COLUMNS: Columns = (
    Column("epoch", INT, "The number of the epoch, from 0."),
    Column("lr", DOUBLE, "The learning rate of the epoch."),
    Column("loss", DOUBLE, "The mean loss over the epoch's batches."),
    Column(
        "train_accuracy",
        DOUBLE,
        "Clean accuracy on 1,000 images of the train split in evaluation mode, the first or, where "
        "these leave out a class, evenly spread ones.",
    ),
    Column(
        "test_accuracy",
        DOUBLE,
        "Clean accuracy on 1,000 images of the test split in evaluation mode, the first or, where "
        "these leave out a class, evenly spread ones.",
    ),
    Column("images", LONG, "How many training images the epoch passed."),
    Column("seconds", DOUBLE, "Seconds that the epoch took."),
)

INDEX_COLUMNS: Columns = (
    *IDENTITY_COLUMNS,
    Column("start", INT, "The first position in the study's list of points that the rows are of."),
    Column("stop", INT, "The position after the last one."),
    Column("facts", TEXT, "What the cell's blocks said of themselves, as JSON text: the weights that the rows are of."),
    Column("part", TEXT, "The name of the part, a file in `records/compacted/`, that holds the rows."),
    Column("group", INT, "The number of the row group in that part."),
    Column("first", INT, "The position of the first of the rows in that row group."),
    Column("rows", INT, "How many rows the cell has there."),
)


KEYS_COLUMNS: Columns = (
    Column(
        "key",
        TEXT,
        "A content key that the study refers to: a folder in `classifiers/`, `adversarial/` or `outputs/`, or a certificate's.",
    ),
    Column("kind", TEXT, "What the key is of: `train`, `own`, `attack`, `undefended`, `outputs` or `certificate`."),
    Column("facts", TEXT, "Everything that decides the result, as JSON text; the key is a hash of it and of the kind."),
)


def _schema(columns: Columns) -> pa.Schema:
    return pa.schema([(column.name, column.type) for column in columns])


IDENTITY = [column.name for column in IDENTITY_COLUMNS]
ADVERSARIAL = _schema(ADVERSARIAL_COLUMNS)
OUTPUTS = _schema(OUTPUTS_COLUMNS)
RECORDS = _schema(RECORDS_COLUMNS)
CELLS = _schema(CELLS_COLUMNS)
CERTIFICATES = _schema(CERTIFICATES_COLUMNS)
CERTIFIED = _schema(CERTIFIED_COLUMNS)
EXAMPLES = _schema(EXAMPLES_COLUMNS)
TRAINING = _schema(TRAINING_COLUMNS)
INDEX = _schema(INDEX_COLUMNS)
KEYS = _schema(KEYS_COLUMNS)

LATER = {
    schema: frozenset(column.name for column in columns if column.later)
    for schema, columns in ((CELLS, CELLS_COLUMNS), (ADVERSARIAL, ADVERSARIAL_COLUMNS))
}

SCHEMAS: dict[Kind, pa.Schema] = {"adversarial": ADVERSARIAL, "outputs": OUTPUTS, "records": RECORDS}


def with_later(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table of an earlier version with the columns that came later, which are empty; any other table as it is."""
    later = LATER.get(schema, frozenset[str]())
    absent = [field for field in schema if field.name in later and field.name not in table.schema.names]
    for field in absent:
        table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names) if absent and set(table.schema.names) == set(schema.names) else table


def markdown(columns: Columns) -> str:
    """The table of these columns as docs/results.md holds it."""
    rows = [f"| `{column.name}` | {column.type} | {column.meaning} |" for column in columns]
    return "\n".join(["| column | type | meaning |", "| --- | --- | --- |", *rows])


def images_column(images: Array) -> pa.Array:
    """Arrays [rows, …] as a column with a list of float32 numbers a row."""
    flat = np.ascontiguousarray(images, np.float32).reshape(-1)
    size = int(np.prod(images.shape[1:]))
    offsets = pa.array(np.arange(len(images) + 1, dtype=np.int32) * size)
    return pa.ListArray.from_arrays(offsets, pa.array(flat))


def list_column(column: pa.ChunkedArray, width: int) -> Array:
    """A column of lists of numbers as a float32 array [rows, width].

    Raises DamagedFileError when not every list has that length.
    """
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if len(flat) != len(column) * width:
        raise DamagedFileError(f"every list must have {width} numbers; got {len(flat)} in {len(column)} rows")
    return np.asarray(flat, np.float32).reshape(len(column), width)
