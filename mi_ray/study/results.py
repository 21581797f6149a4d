"""What is stored of a study: which ranges are missing, adversarial images, outputs, and the answers that they join to.

`Results` reads blocks and holds them against the study's points and weights. It computes nothing; `workbench` does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mi_ray.attacks.balls import BALLS, distance
from mi_ray.attacks.base import best_restart
from mi_ray.classifiers import Classifier, CompileMode, Precision, classifier_from_bytes, prepared, weights_digest
from mi_ray.data import to_unit
from mi_ray.defenses import DEFENSES
from mi_ray.networks import OwnNetwork
from mi_ray.parameters import Method
from mi_ray.plan.work import Inputs, OutputWork, Read, Work
from mi_ray.sample_pool import SamplePool
from mi_ray.store.blocks import COST, Block, Store, missing_ranges
from mi_ray.store.files import DamagedFileError
from mi_ray.store.keys import Values
from mi_ray.store.locks import lock_key
from mi_ray.store.schemas import Array, Kind, list_column

KEPT = 2**30  # Bytes of adversarial images that a process keeps, or one block of them.
Item = tuple[Work, int, int]  # A block: what it is of, and its range [start, stop) of the study's points.
Part = TypeVar("Part")


@dataclass(frozen=True, eq=False)
class PoolData:
    """A sample pool as arrays, so that processes share one copy. images: uint8 [M, H, W, 3]. labels: [M]."""

    images: Array
    labels: Array
    source: Literal["train", "test"]
    augmented: bool
    foreign: bool = False

    def pool(self, classes: int, device: torch.device) -> SamplePool:
        """The pool on a device."""
        made = SamplePool(
            self.images,
            self.labels,
            self.source,
            classes=classes,
            allow_test=self.source == "test",
            augmented=self.augmented,
            foreign=self.foreign,
        )
        return made.to(device)


@dataclass(frozen=True, eq=False)
class StudyData:
    """The arrays and settings that decide every block of a study. Every worker is sent it once.

    store: the store's address. images: uint8 [P, H, W, 3] of the stored points, in the study's order. labels: their true
    labels. points: their indices in the test split. pools: digest -> sample pool. classifiers: key -> (description,
    safetensors). batch: points that are computed together. precision: of each classifier's gradients and executions.
    folded: the precisions in which a person's own classifier is computed in its fast form. device: cpu or cuda. compile: the
    mode of torch.compile, if the networks are compiled by it. graphs: keys of the classifiers that have compiled graphs.
    networks: the weights of a person's own networks within defenses, as safetensors.
    """

    store: str
    images: Array
    labels: Array
    points: Sequence[int]
    classes: int
    pools: Mapping[str, PoolData]
    classifiers: Mapping[str, tuple[Values, bytes]]
    seed: int
    batch: int
    precision: Mapping[str, Precision]
    folded: Mapping[str, Sequence[str]]
    device: str
    compile: CompileMode | None = None
    graphs: frozenset[str] = frozenset()
    networks: Mapping[OwnNetwork, bytes] = field(default_factory=dict)

    def prepared(
        self, key: str, device: torch.device, precision: Precision, compile_mode: CompileMode | None = None
    ) -> Classifier:
        """The classifier of a key for evaluation, in the form that the study's keys name."""
        plain = classifier_from_bytes(*self.classifiers[key])
        return prepared(plain, device, precision, compile_mode, precision in self.folded[key])


class Results:
    """The stored blocks of one study, read and held against its points and the weights of its classifiers."""

    def __init__(self, data: StudyData) -> None:
        self.data = data
        self.store = Store(data.store)
        self._digests: dict[str, str] = {}
        self._outputs = lru_cache(maxsize=256)(self._output_block)
        # Blocks of large images are few in memory: of 200 images of 224 x 224 pixels 8 take a GiB.
        block = 200 * 4 * int(np.prod(data.images.shape[1:]))
        self._best = lru_cache(maxsize=max(1, min(64, KEPT // block)))(self._best_restarts)

    def weights(self, classifier: str) -> str:
        """SHA-256 of the weights of the classifier of that key: every block names the weights that it is of.

        Raises DamagedFileError for a classifier that is not there, since it has failed or is still to be trained.
        """
        if classifier not in self.data.classifiers:
            raise DamagedFileError(f"classifiers/{classifier} must be there; it is not")
        if classifier not in self._digests:
            self._digests[classifier] = weights_digest(self.data.classifiers[classifier][1])
        return self._digests[classifier]

    def missing(self, work: Work, size: int, limit: int | None = None) -> list[Item]:
        """What is not stored of a piece of work, in blocks of whole batches of about `size` points.

        limit: how many of the study's points are wanted, a whole number of batches; all when left out.

        A block that is damaged, of other weights, or held whole by others is removed. A block that lacks some of what is
        asked for is computed again over its own range with both what it has and what is asked, so that no study loses
        what it has stored; where it reaches beyond the points that are wanted, it is cut there first.
        """
        limit = len(self.data.points) if limit is None else limit
        stored = self._stored(work)
        whole: list[tuple[int, int]] = []
        again: list[Item] = []
        for block, facts in stored.items():
            stop = block.stop
            if block.start < limit and not holds(facts, work.covers()):
                if stop > limit:
                    self._cut(work, block, limit)
                    stop = limit
                again.append((work.widened(facts), block.start, stop))
            whole.append((block.start, stop))
        size = max(1, size // self.data.batch) * self.data.batch
        gaps = missing_ranges(whole, (0, limit), size)
        return [*again, *((work, start, stop) for start, stop in gaps)]

    def _stored(self, work: Work) -> dict[Block, dict[str, Any]]:
        """The stored blocks of the study's points with what they say of themselves, after a look at what is of no use.

        That is a block which is damaged, of other weights, or whose rows others hold too. Nothing else is removed, since
        another study may stand on it.
        """
        found = self._sound(work)
        if None not in found.values() and not _overlapping(list(found)):
            return {block: facts for block, facts in found.items() if facts is not None}
        with lock_key(self.store, work.key):
            found = self._sound(work)
            sound = {block: facts for block, facts in found.items() if facts is not None}
            for block in sorted(_overlapping(list(sound)), key=lambda block: block.start - block.stop):
                asked = {name: sound[block][name] for name in work.covers()}
                others = [(b.start, b.stop) for b, facts in sound.items() if b != block and holds(facts, asked)]
                if not missing_ranges(others, (block.start, block.stop), block.stop):
                    del sound[block]
            for block in found.keys() - sound.keys():
                self.store.remove(block.path)
        return sound

    def _sound(self, work: Work) -> dict[Block, dict[str, Any] | None]:
        """Each stored block of the study's points with what it says of itself; None when it is damaged or of other weights.

        Blocks that begin later are of another study's points, which this one cannot compute.
        """
        blocks = [b for b in self.store.blocks(work.kind, work.key) if b.start < len(self.data.points)]
        return {block: self._facts(work, block) for block in blocks}

    def _facts(self, work: Work, block: Block) -> dict[str, Any] | None:
        try:
            _, facts = self.store.read_block(work.kind, work.key, block)
        except DamagedFileError:
            return None
        return facts if facts.get("weights") == self.weights(work.classifier) else None

    def of_range(self, work: Work, start: int, stop: int) -> dict[str, Any] | None:
        """What a sound block of this very range says of itself; None where there is none."""
        block = self.block_of(work, start, stop)
        return None if block is None else self._facts(work, block)

    def block_of(self, work: Work, start: int, stop: int) -> Block | None:
        """The stored block of this very range, sound or not."""
        blocks = self.store.blocks(work.kind, work.key)
        return next((block for block in blocks if (block.start, block.stop) == (start, stop)), None)

    def _cut(self, work: Work, block: Block, at: int) -> None:
        """Store a block's rows as two blocks, before and from position `at` of the study's points on.

        Not where another study has stored a block of either range, or has removed this one: what lacks is then computed
        beside it.
        """
        with lock_key(self.store, work.key):
            others = {(other.start, other.stop) for other in self.store.blocks(work.kind, work.key)}
            if others & {(block.start, at), (at, block.stop)}:
                return
            try:
                table, facts = self.store.read_block(work.kind, work.key, block)
            except DamagedFileError:
                return
            first = pc.is_in(table["point"], pa.array(self.data.points[block.start : at], pa.int32()))
            for part, start, stop in ((first, block.start, at), (pc.invert(first), at, block.stop)):
                share = (stop - start) / (block.stop - block.start)
                cost = {name: type(facts[name])(facts[name] * share) for name in COST}
                self.store.write_block(work.kind, work.key, start, stop, table.filter(part), {**facts, **cost})
            self.store.remove(block.path)

    def adversarial(self, inputs: Inputs, start: int, stop: int) -> tuple[Array, Array, Array]:
        """(images float32 [P, C, H, W], attacked labels [P], max |delta| [P]) of a range of points.

        Each point is as the restart left it that succeeds most often. Raises DamagedFileError when some are missing.
        """
        attack = inputs.attack
        assert attack is not None
        parts = self._read(
            "adversarial",
            attack.key,
            {"stops": [inputs.stop]},
            (start, stop),
            lambda block, part: [
                column[part] for column in self._best(attack.key, attack.classifier, inputs.stop, block)
            ],
        )
        images, labels, linf = (np.concatenate(column) for column in zip(*parts, strict=True))
        if inputs.within is not None:
            clean, far = to_unit(self.data.images[start:stop]).numpy(), self._farther(inputs, images, start, stop)
            images, linf = np.where(far[:, None, None, None], clean, images), np.where(far, np.float32(0), linf)
        return images, labels, linf

    def _farther(self, inputs: Inputs, images: Array, start: int, stop: int) -> Array:
        """[P] Which images of a range of points lie beyond the radius at which an attack is read."""
        assert inputs.within is not None
        moved = torch.from_numpy(images) - to_unit(self.data.images[start:stop])
        farther: Array = (BALLS[inputs.threat.norm].distance(moved) > inputs.within + inputs.threat.tolerance).numpy()
        return farther

    def distances(self, inputs: Inputs, count: int) -> Array:
        """How far an attack moved each of the first points, in the norm of its threat model, [count].

        In the norm "spatial" each stored image is held against what its stored transformation makes of the clean one now, and
        the farthest of a point's restarts counts. Raises DamagedFileError when some are missing.
        """
        assert inputs.attack is not None
        norm = inputs.attack.threat.norm
        if norm == "spatial":
            return self._transformed(inputs, count)
        images, _, linf = self.adversarial(inputs, 0, count)
        return linf if norm == "linf" else distance(norm, self._clean(count), torch.from_numpy(images)).numpy()

    def _clean(self, count: int) -> Tensor:
        """float32 [count, C, H, W]: the first of the study's points as they are."""
        return to_unit(self.data.images[:count])

    def _transformed(self, inputs: Inputs, count: int) -> Array:
        """`distances` in the norm "spatial"."""
        clean, found = self._clean(count), []
        for ours, kept in self._at_stop(inputs, count):
            x = clean[ours]
            images, shares = (
                torch.tensor(list_column(kept[name], width).reshape(-1, len(x), width))
                for name, width in (("image", x[0].numel()), ("shares", 3))
            )
            found.append(distance("spatial", x, images.unflatten(2, x.shape[1:]), shares).amax(0).numpy())
        return np.concatenate(found)

    def pixel_range(self, inputs: Inputs) -> tuple[float, float]:
        """(lowest pixel, highest pixel) of what an attack made of the study's points."""
        low, high = 0.0, 1.0
        for _, kept in self._at_stop(inputs, len(self.data.points)):
            pixels = pc.min_max(kept["image"].combine_chunks().flatten()).as_py()
            low, high = min(low, pixels["min"]), max(high, pixels["max"])
        return low, high

    def gradients(self, inputs: Inputs, count: int) -> tuple[Array, Array]:
        """(gradients that were zero in every pixel, gradients taken) at each of the first points, [count] over all restarts.

        No gradient is taken by an attack that follows none.
        """
        zero, taken = np.zeros((2, count), np.int64)
        for ours, kept in self._at_stop(inputs, count):
            counts = kept["zero_gradients"].to_numpy().reshape(-1, ours.stop - ours.start)
            zero[ours], taken[ours] = counts.clip(0).sum(0), (counts >= 0).sum(0) * inputs.stop
        return zero, taken

    def success(self, inputs: Inputs, count: int) -> Array:
        """[restarts, count]: in what share of the attack's own draws each restart reached its goal; NaN where it did not ask.

        Raises DamagedFileError when some are missing.
        """
        parts = self._at_stop(inputs, count)
        shares = [kept["success"].to_numpy().reshape(-1, ours.stop - ours.start) for ours, kept in parts]
        return np.concatenate(shares, axis=1)

    def _at_stop(self, inputs: Inputs, count: int) -> list[tuple[slice, pa.Table]]:
        """(range, rows at a stop) of the first of the study's points, as they are stored.

        Raises DamagedFileError when some are missing.
        """
        assert inputs.attack is not None
        key = inputs.attack.key

        def rows(block: Block, part: slice) -> tuple[slice, pa.Table]:
            """The rows at the stop of a part of a block, with its place among the study's points."""
            table, _ = self.store.read_block("adversarial", key, block)
            kept = table.filter(pc.equal(table["steps"], inputs.stop))
            positions = np.arange(len(kept)) % (block.stop - block.start)  # The points of a restart follow one another.
            ours = (positions >= part.start) & (positions < part.stop)
            return slice(block.start + part.start, block.start + part.stop), kept.filter(pa.array(ours))

        return self._read("adversarial", key, {"stops": [inputs.stop]}, (0, count), rows)

    def probabilities(self, work: OutputWork, start: int, stop: int) -> Array:
        """float32 [draws, N, stop - start, classes]: stored outputs of a range, for each N of the work in its order.

        Raises DamagedFileError when some are missing.
        """
        if work.joined:
            near, clean = (self.probabilities(each, start, stop) for each in work.joined)
            images, _, _ = self.adversarial(replace(work.inputs, within=None), start, stop)
            far = self._farther(work.inputs, images, start, stop)
            return np.where(far[:, None], clean[: len(near)], near)
        parts = self._read(
            "outputs",
            work.key,
            work.covers(),
            (start, stop),
            lambda block, part: self._outputs(work.key, work.classifier, work.executions, work.draws, block)[
                :, :, part
            ],
        )
        return np.concatenate(parts, axis=2)

    def answers(
        self,
        defense: Method,
        undefended: OutputWork,
        components: Sequence[tuple[OutputWork, int]],
        start: int,
        stop: int,
    ) -> tuple[Tensor, Tensor]:
        """(F's own probabilities [P, L], the defense's [draws, P, L]) on a range of points, joined from stored outputs.

        undefended: F's own outputs on these inputs. components: the outputs of each component of the defense on them, in
        its order, with the N that they are read at. Raises DamagedFileError when some are missing.
        """
        own = torch.from_numpy(self.probabilities(undefended, start, stop)[0, 0])
        averages = self._averages(components, start, stop)
        draws = len(averages[0]) if averages else 1
        return own, DEFENSES.make(*defense).join(own.expand(draws, -1, -1), averages)

    def _averages(self, components: Sequence[tuple[OutputWork, int]], start: int, stop: int) -> list[Tensor]:
        """What each component averages over its N, [draws, P, L], on a range of points."""
        every = ((self.probabilities(work, start, stop), work.executions.index(n)) for work, n in components)
        return [torch.from_numpy(stored[:, at]) for stored, at in every]

    def stands(
        self, defense: Method, read: Read, start: int, stop: int, clean: Read | None = None
    ) -> tuple[Array, Array]:
        """(whether each draw stands, whether it abstains), bool [draws, P], on a range of points.

        read, clean: what the answers are read from, on the images in question and, where these are attacked, on the clean
        ones. A clean point stands where it is answered rightly. An attacked one of a defense that may give no answer stands
        where it stands when clean and is answered rightly or not at all (Tramèr, 2022): the adversary wins by a wrong
        answer alone, and a defense wins nothing by refusing what nobody has changed.
        """
        own, answered = self.answers(defense, *read, start, stop)
        right = answered.argmax(-1).numpy() == np.asarray(self.data.labels[start:stop])
        made = DEFENSES.make(*defense)
        if not made.abstains:
            return right, np.zeros_like(right)
        averages = self._averages(read[1], start, stop)
        abstained = made.abstained(own.expand(len(right), -1, -1), averages).numpy()
        if clean is None:
            return right & ~abstained, abstained
        return (right | abstained) & self.stands(defense, clean, start, stop)[0], abstained

    def _read(
        self, kind: Kind, key: str, asked: Values, wanted: tuple[int, int], read: Callable[[Block, slice], Part]
    ) -> list[Part]:
        """What `read` makes of each stored part of a range; again where another study changes its blocks meanwhile.

        asked: what a block must hold of a point, as `Work.covers` says it. Raises DamagedFileError when some are missing.
        """
        while True:
            blocks = self.store.blocks(kind, key)
            try:
                parts = list(self._parts(blocks, asked, *wanted))
                _covered(kind, key, wanted, sum(part.stop - part.start for _, part in parts))
                return [read(block, part) for block, part in parts]
            except DamagedFileError:
                if self.store.blocks(kind, key) == blocks:
                    raise

    def _parts(self, blocks: Sequence[Block], asked: Values, start: int, stop: int) -> Iterator[tuple[Block, slice]]:
        """Each of these blocks that holds points of a range, with those of its points that no block before it holds.

        Where blocks overlap, as those of two studies that ran at once may, those count that hold what is asked for: a row
        is the same in all of them.
        """
        touching = [block for block in blocks if block.start < stop and start < block.stop]
        beside = _overlapping(touching)
        for block in touching:
            if min(stop, block.stop) > start and (block not in beside or holds(self.store.block_facts(block), asked)):
                begin, end = max(start, block.start), min(stop, block.stop)
                yield block, slice(begin - block.start, end - block.start)
                start = end

    def _own(self, kind: Kind, key: str, classifier: str, block: Block) -> tuple[pa.Table, dict[str, Any]]:
        """A stored block; raises DamagedFileError when it is of other weights (of a run that nothing could lock out)."""
        table, facts = self.store.read_block(kind, key, block)
        if facts.get("weights") != self.weights(classifier):
            raise DamagedFileError(f"{block.path} must be of the weights {self.weights(classifier)}; it is of others")
        return table, facts

    def _best_restarts(self, key: str, classifier: str, stop: int, block: Block) -> tuple[Array, Array, Array]:
        """(images, attacked labels, max |delta|) of a stored block at a stop, of each point its best restart."""
        table, _ = self._own("adversarial", key, classifier, block)
        height, width, channels = self.data.images.shape[1:]
        kept = table.filter(pc.equal(table["steps"], stop))
        count = block.stop - block.start
        if len(kept) == 0 or len(kept) % count:
            raise DamagedFileError(f"{block.path} must hold every point at stop {stop}; it has {len(kept)} rows of it")
        images = list_column(kept["image"], channels * height * width).reshape(-1, count, channels, height, width)
        labels, linf, losses, successes = (
            kept[name].to_numpy().reshape(-1, count) for name in ("attack_label", "linf", "loss", "success")
        )
        chosen = best_restart(successes, losses), np.arange(count)
        return images[chosen], labels[chosen], linf[chosen]

    def _output_block(self, key: str, classifier: str, executions: tuple[int, ...], draws: int, block: Block) -> Array:
        """[draws, N, points, classes] of a stored block, in the order of `executions`."""
        table, facts = self._own("outputs", key, classifier, block)
        stored = facts["executions"]
        if not set(executions) <= set(stored) or draws > len(facts["draws"]):
            raise DamagedFileError(
                f"{block.path} must hold {draws} draws of {list(executions)} executions; it has {len(facts['draws'])} of "
                f"{stored}"
            )
        shape = (len(facts["draws"]), len(stored), block.stop - block.start, self.data.classes)
        found = list_column(table["probabilities"], self.data.classes).reshape(shape)
        return found[:draws, [stored.index(n) for n in executions]]


def holds(facts: Values, asked: Values) -> bool:
    """Whether a stored block, by what it says of itself, holds everything that is asked for of a point."""
    return all(set(values) <= set(facts[name]) for name, values in asked.items())


def _overlapping(blocks: Sequence[Block]) -> set[Block]:
    """Those of these blocks, which are in order, that share points with another."""
    shared: set[Block] = set()
    farthest = None
    for block in blocks:
        if farthest is not None and block.start < farthest.stop:
            shared |= {farthest, block}
        farthest = block if farthest is None or block.stop > farthest.stop else farthest
    return shared


def _covered(kind: Kind, key: str, wanted: tuple[int, int], have: int) -> None:
    """Raise DamagedFileError unless as many points were found as the range has."""
    start, stop = wanted
    if have != stop - start:
        raise DamagedFileError(f"{kind}/{key} must cover points {start} to {stop}; it has {have}")
