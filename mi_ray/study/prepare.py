"""A study before any work: its data loaded, its names and values checked, a person's own code tried, and its plan."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from mi_ray.attacks import ATTACKS
from mi_ray.classifiers import (
    ARCHITECTURES,
    Classifier,
    Precision,
    weights_bytes,
    weights_digest,
    why_not_folded,
)
from mi_ray.config import AttackEntry, ClassifierEntry, Options, Sweep
from mi_ray.data import SOURCES, Dataset
from mi_ray.data.disk_images import chosen
from mi_ray.defenses import DEFENSES, Defense, RandomTransform
from mi_ray.defenses.base import CHUNK
from mi_ray.networks import OwnNetwork, left_unread, read_weights, state_bytes, unwrapped
from mi_ray.objectives import OBJECTIVES
from mi_ray.own_code import load_plugins
from mi_ray.parameters import Method
from mi_ray.plan.keyed import Facts, Registries
from mi_ray.plan.planner import Planner
from mi_ray.plan.work import AttackWork, ClassifierWork, Plan, united
from mi_ray.sample_pool import SamplePool, augmented_once, without
from mi_ray.store.keys import Values, canonical
from mi_ray.study.checks import RULES
from mi_ray.study.compiling import choose
from mi_ray.study.given import given_classifier, refuse_other
from mi_ray.study.results import PoolData, StudyData
from mi_ray.study.sources import hashes_of, sources_of
from mi_ray.study.trying import doubts, look_problems, try_attack, try_classifier, try_defense, try_objective

T = TypeVar("T")
CPU = torch.device("cpu")
REGISTRIES = Registries(DEFENSES, ATTACKS, OBJECTIVES, ARCHITECTURES, CHUNK, RULES)


@dataclass(frozen=True, eq=False)
class Study:
    """A sweep with everything loaded that decides its results.

    planner: of the study itself; variants: planners of all its sets of options by name, the study itself first, under
    "". pools: digest -> sample pool. unfolded: name of a person's own classifier -> why its network stays as it is.
    notes: what a person is told of their own classifiers. networks: the weights of a person's own networks within
    defenses, as safetensors.
    """

    sweep: Sweep
    dataset: Dataset
    planner: Planner
    variants: Mapping[str, Planner]
    pools: Mapping[str, PoolData]
    points: list[int]
    left_out_of_pool: int
    unfolded: Mapping[str, str]
    notes: tuple[str, ...] = ()
    networks: Mapping[OwnNetwork, bytes] = field(default_factory=dict)

    def plan(self) -> Plan:
        """The whole plan, of all variants; of a search the cells of `none` alone."""
        if self.sweep.search is not None:
            return self.planner.plan(self.planner.settings()[:1])
        return united({name: planner.plan(planner.settings()) for name, planner in self.variants.items()})

    def decided(self, precisions: Mapping[str, Precision]) -> "Study":
        """The same study once `precision: auto` has decided for these classifiers."""
        return self._knowing(lambda facts: replace(facts, decided=precisions))

    def _knowing(self, more: Callable[[Facts], Facts]) -> "Study":
        """The same study once more is known of what its keys depend on."""
        made = {
            name: Planner(self.sweep, REGISTRIES, more(planner.facts), planner.options)
            for name, planner in self.variants.items()
        }
        return replace(self, planner=made[""], variants=made)

    def with_graphs(self) -> "Study":
        """The same study once `compile: auto` has chosen, with a note that says what it chose and why."""
        if self.sweep.compile != "auto":
            return self
        found, notes = choose(self.planner, self.planner.planned_passes(self.plan()))
        return replace(self._knowing(lambda facts: replace(facts, graphs=found)), notes=(*self.notes, *notes))

    def kept_as_they_are(self) -> list[str]:
        """A line for each classifier of a person's own whose network does not get its fast form, with the reason."""
        return [f"{name}: its network stays as it is, not folded: {why}" for name, why in self.unfolded.items()]

    def data(self, store: str, classifiers: Mapping[str, tuple[Mapping[str, Any], bytes]]) -> StudyData:
        """What workers are handed."""
        return StudyData(
            store=store,
            images=chosen(self.dataset.test_images, self.points),
            labels=self.dataset.test_labels[self.points],
            points=self.points,
            classes=self.dataset.classes,
            pools=self.pools,
            classifiers=classifiers,
            seed=self.sweep.seed,
            batch=self.sweep.batch,
            precision={key: self.planner.works.precision_of(key) for key in classifiers},
            folded={key: self.planner.facts.folded.get(key, ()) for key in classifiers},
            device=self.planner.facts.device,
            compile=None if self.sweep.compile == "auto" else self.sweep.compile,
            graphs=self.planner.facts.graphs,
            networks=self.networks,
        )

    def pool_of(self, component: RandomTransform, device: torch.device = CPU) -> SamplePool:
        """The sample pool that a component draws from under the study's own options."""
        digest = self.planner.facts.pools[component.name]
        return self.pools[digest].pool(self.dataset.classes, device)


@dataclass(frozen=True, eq=False)
class Tried:
    """What came of trying a person's own classifier.

    unfolded: precision -> why the network stays as it is, None where it gets its fast form; empty for our own
    architectures, which always have that form. notes: what the person is told.
    """

    work: ClassifierWork
    unfolded: Mapping[Precision, str | None]
    notes: Sequence[str]


def _networks(settings: Iterable[Defense]) -> dict[OwnNetwork, bytes]:
    """The weights of each network of a person's own within these defenses, as safetensors."""
    parts = [part for setting in settings for part in setting.components()]
    every = [inner for part in parts for inner in (part, *part.within())]
    found = dict.fromkeys(network for part in every for network in part.networks())
    return {network: state_bytes(network.read()) for network in found}


@dataclass
class _Pools:
    """The sample pools of a sweep, each content made once, under its digest."""

    sweep: Sweep
    dataset: Dataset
    foreign: Dataset | None
    left_out: int = 0
    made: dict[str, PoolData] = field(default_factory=dict)
    _known: dict[str, str] = field(default_factory=dict)

    def of(self, options: Options) -> dict[str, str]:
        """Component -> digest of the pool that it draws from under these options, as `Facts.pools` has it."""
        uses = [name for name in DEFENSES if getattr(DEFENSES[name], "uses_pool", False)]
        whole = self._digest(options, None)
        limit = options.pool_limit_mi_pl
        alone = limit is not None and not options.pool_limit_in_mi_combined
        # A pool that nothing draws from may lack what it must have, such as an image of each class.
        drawn = {"mi_pl"} if alone else {"mi_pl", "mi_combined"}
        limited = limit is not None and any(f'"{name}"' in self._defenses() for name in drawn)
        found = {name: self._digest(options, limit) if name == "mi_pl" and limited else whole for name in uses}
        return {**found, "mi_combined/mi_pl": whole} if alone else found

    def _defenses(self) -> str:
        """All defenses of the sweep as one text, with those that are parts of others."""
        return canonical([entry.method for entry in self.sweep.defenses])

    def _digest(self, options: Options, limit: int | None) -> str:
        split, augmented = options.pool_split, options.pool_augmented
        frozen = augmented and options.pool_augmentation == "frozen"
        name = canonical([split, augmented, frozen, limit])
        if name not in self._known:
            images, labels = self._split(split)
            if limit is not None:
                some = np.random.default_rng(self.sweep.seed).permutation(len(labels))[:limit]
                images, labels = chosen(images, some), labels[some]
            data = PoolData(images, labels, split, augmented and not frozen, self.foreign is not None)
            pool = data.pool(self.dataset.classes, torch.device("cpu"))
            if split == "train":
                pool.refuse_evaluated(self.dataset.test_images)
            if frozen:
                data = replace(data, images=augmented_once(images, self.sweep.seed))
                pool = data.pool(self.dataset.classes, torch.device("cpu"))
            self._known[name] = pool.digest
            self.made[pool.digest] = data
        return self._known[name]

    def _split(self, split: Literal["train", "test"]) -> tuple[Any, Any]:
        source = self.dataset if self.foreign is None else self.foreign
        images, labels = getattr(source, f"{split}_images"), getattr(source, f"{split}_labels")
        if split == "train":
            total = len(labels)
            images, labels, self.left_out = without(images, labels, self.dataset.test_images)
            if len(labels) == 0:
                raise ValueError(
                    f"{source.name}: the train split must hold images that are no copies of test images, of which mixup "
                    f"inference draws; all {total} of it are"
                )
        # Another dataset's labels mean nothing here: x_s is drawn from all of it.
        return images, labels if self.foreign is None else np.zeros_like(labels)


def _loaded(named: Method) -> Dataset:
    """The dataset that a sweep names. Raises ValueError where it cannot be had."""
    try:
        return SOURCES.make(*named).load()
    except OSError as error:
        raise ValueError(f"dataset {named.name} must be readable: {error.strerror or error}") from error


def _foreign(sweep: Sweep, dataset: Dataset) -> Dataset | None:
    """The dataset that the sample pools are of, where it is another. Raises ValueError when its images do not fit."""
    if sweep.pool is None:
        return None
    found = _loaded(sweep.pool)
    sizes = [list(d.train_images.shape[1:]) for d in (found, dataset)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"pool: images must have the size of the dataset's, {sizes[1]}; {found.name} has {sizes[0]}")
    return found


def device_of(sweep: Sweep) -> str:
    """The kind of device that blocks run on: what the sweep says, else by whether its blocks ask for GPUs.

    The machine at hand is not looked at: it may be a cluster's head without a GPU. Raises ValueError when a sweep asks
    for a device that its blocks do not reserve.
    """
    reserved = "cuda" if sweep.resources.block.gpus > 0 else "cpu"
    if sweep.device == "cuda" and reserved == "cpu":
        raise ValueError("device: cuda needs resources.block.gpus above 0, so that Ray gives blocks a GPU; got 0")
    return reserved if sweep.device == "auto" else sweep.device


def _try_own(planner: Planner, dataset: Dataset, precision: Precision) -> Iterator[Tried]:
    """Run the classifiers that are not trained on a few images. Raises ValueError for one that cannot serve."""
    follows = any(ATTACKS[work.method].follows_gradients for work in _attacks(planner))
    for work in planner.classifiers:
        if work.objective is not None:
            continue
        entry, side = work.entry, planner.facts.side
        classifier = given_classifier(entry, planner.facts.classes, planner.sweep.seed, work.description)
        try_classifier(entry, classifier, dataset, precision, gradients=follows)
        refuse_other(entry, classifier, side)
        notes = [f"note: {entry.name}: {each}" for each in doubts(entry, classifier, dataset)]
        notes += [f"note: {entry.name}: {each}" for each in _of_weights(entry, classifier)]
        unfolded: dict[Precision, str | None] = {}
        if entry.architecture is None:  # Our own always have that form.
            exact = why_not_folded(classifier, side, "fp32")
            # Where the trace drops something, it does so in any precision.
            unfolded = {"fp32": exact, precision: exact or why_not_folded(classifier, side, precision)}
        yield Tried(work, unfolded, notes)


def _of_weights(entry: ClassifierEntry, classifier: Classifier) -> Iterator[str]:
    """How a file of weights was read, where it could have been meant otherwise, a sentence each."""
    if entry.weights is None:
        return
    prefix = unwrapped(read_weights(Path(entry.weights)), classifier.network.state_dict().keys())[1]
    if prefix:
        yield f"the names in {entry.weights} begin with {prefix!r}, which a wrapper put there; it is taken off"
    if others := left_unread(Path(entry.weights)):
        yield f"{entry.weights} holds {', '.join(others)} too; the weights under 'state_dict' are taken (save others alone)"


def _try_plugins(study: Study) -> None:
    """Run a person's own objectives, defenses and attacks on a few images. Raises ValueError for one that cannot serve."""
    dataset, planner = study.dataset, study.planner

    own = planner.facts.sources
    through = {work.defense.name for work in _attacks(planner) if work.defense is not None}
    settings = _ends((setting.name, setting) for setting in planner.settings())
    # Asking for a hash raises ValueError where no worker could import the defense.
    for name in {name: own[name] for name in own.keys() & settings.keys()}:
        for problem in look_problems(settings[name][0]):
            raise ValueError(f"defense {name}: {problem}")
        for setting in settings[name]:
            try_defense(setting, dataset, study.pool_of, gradients=name in through)
    trained = {work.objective.name: work for work in planner.classifiers if work.objective is not None}
    for name in trained.keys() & own.keys():
        work = trained[name]
        assert work.objective is not None
        try_objective(OBJECTIVES.make(*work.objective), work.description, dataset, work.entry.training.batch_size)
    attacks = _ends((work.method, work) for work in _attacks(planner) if work.method in own)
    for attack in itertools.chain.from_iterable(attacks.values()):
        made = ATTACKS.make(attack.method, attack.values)
        behind = None if attack.defense is None else DEFENSES.make(*attack.defense)
        try_attack(made, attack.threat, dataset, behind, study.pool_of)


def _ends(named: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """The first and the last of each name, which of a grid has the least and the greatest values; one where there is one."""
    found: dict[str, list[T]] = {}
    for name, each in named:
        found[name] = [*found.get(name, ())[:1], each]
    return found


def _attacks(planner: Planner) -> list[AttackWork]:
    """The attacks on each classifier alone, and through each setting of the grid."""
    behind = [planner.adaptive(work, each) for work in planner.classifiers for each in planner.settings()]
    return [*planner.attacks, *itertools.chain.from_iterable(behind)]


def _given(sweep: Sweep, classes: int) -> dict[str, tuple[Values, str]]:
    """Of each classifier that its source gives whole: its description, and the digest of its weights."""
    made = [(e.name, given_classifier(e, classes, sweep.seed)) for e in sweep.classifiers if e.given_whole]
    return {name: (found.description, weights_digest(weights_bytes(found))) for name, found in made}


def _refuse_impossible(variant: str, planner: Planner) -> None:
    """Raise ValueError, which names the variant, where a setting or an attack through one cannot be."""
    try:
        for work, setting in itertools.product(planner.classifiers, planner.settings()):
            planner.adaptive(work, setting)
    except ValueError as error:
        if not variant:
            raise
        raise ValueError(f"variants.{variant}: {error}") from error


def _idle(planner: Planner) -> list[str]:
    """What to tell of attacks that have nothing to go through, as one on mixtures without a defense that mixes.

    Raises ValueError where no attack of the study attacks anything.
    """
    idle = planner.idle()
    if not idle:
        return []
    defenses = ", ".join(dict.fromkeys(setting.name for setting in planner.settings()))
    rules = [
        f"{entry.method.name} with `knowledge: {entry.knowledge}` needs {_way(planner, entry)} to go through; "
        f"got `defenses: [{defenses}]`"
        for _, entry in idle
    ]
    if not _attacks(planner):
        raise ValueError(f"attacks must have something to attack: {rules[0]}")
    return [f"note: attacks[{place}] attacks nothing: {rule}" for (place, _), rule in zip(idle, rules, strict=True)]


def _refuse_unattacked(planner: Planner) -> None:
    """Raise ValueError where a search would be told of settings what no attack leaves of them: they would all look best."""
    for work, setting in planner.asked():
        if setting.components() and len(planner.inputs(work, setting)) == 1:
            raise ValueError(
                "search: every setting must be attacked, since what attacks leave is what is sought; nothing attacks "
                f"{setting.name} on {work.entry.name}"
            )


def _way(planner: Planner, entry: AttackEntry) -> str:
    """The kind of defense that an adaptive attack goes through."""
    where = "" if entry.classifiers is None else f" on {', '.join(entry.classifiers)}"
    if planner.method(entry).needs_pool:
        return f"a defense that mixes (such as mi_ol){where}"
    abstaining = any(defense.abstains for defense in planner.settings())
    return f"a defense that never abstains{where}" if abstaining else f"a defense{where}"


def prepare(sweep: Sweep) -> Study:
    """Load the data, check every name and value of the sweep, and plan. Raises ValueError before any work."""
    load_plugins(sweep.plugins)
    sources = sources_of(sweep)
    dataset = _loaded(sweep.dataset)
    pools = _Pools(sweep, dataset, _foreign(sweep, dataset))
    options = sweep.resolved_variants()
    height, width = dataset.test_images.shape[1:3]
    facts = Facts(
        dataset=dataset.name,
        digest=dataset.digest,
        classes=dataset.classes,
        side=(height, width),
        train_count=len(dataset.train_labels),
        test_count=len(dataset.test_labels),
        pools={},
        device=device_of(sweep),
        sources=sources,
        given=_given(sweep, dataset.classes),
    )
    unread = replace(facts, pools=defaultdict[str, str](str), networks=defaultdict[tuple[str, str | None], str](str))
    settings = Planner(sweep, REGISTRIES, unread, options[""]).settings()
    # A study that mixes nothing may be of a dataset with classes of which no image can be drawn. What a search proposes is open.
    mixes = sweep.search is not None or any(part.needs_pool() for each in settings for part in each.components())
    digests = {name: pools.of(chosen) if mixes else {} for name, chosen in options.items()}
    networks = _networks(settings)
    facts = replace(facts, networks=hashes_of(networks))
    first = Planner(sweep, REGISTRIES, replace(facts, pools=digests[""]), options[""])
    asked: Precision = "fp32" if sweep.precision == "fp32" else "bf16"
    tried = list(_try_own(first, dataset, asked))
    folded = {each.work.key: [n for n, why in each.unfolded.items() if why is None] for each in tried if each.unfolded}
    unfolded = {each.work.entry.name: why for each in tried if (why := each.unfolded.get(asked)) is not None}
    variants = {
        name: Planner(sweep, REGISTRIES, replace(facts, pools=digests[name], folded=folded), chosen)
        for name, chosen in options.items()
    }
    planner = variants[""]
    for name, each in variants.items():
        _refuse_impossible(name, each)
    idle = _idle(planner)
    if sweep.search is not None:
        _refuse_unattacked(planner)
    points = dataset.points(sweep.points_order(), sweep.seed)[: planner.stored_points]
    notes = (*(note for each in tried for note in each.notes), *idle)
    study = Study(sweep, dataset, planner, variants, pools.made, points, pools.left_out, unfolded, notes, networks)
    _try_plugins(study)
    return study.with_graphs()
