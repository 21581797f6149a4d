"""Training with Ray Train: data-parallel, with a checkpoint after each epoch.

An interrupted training resumes from its last checkpoint and ends with the same weights.
"""

import json
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mi_ray.classifiers import Classifier, build_classifier, weights_bytes, weights_digest
from mi_ray.cluster.retries import fault_of
from mi_ray.data import Dataset, batches, flip_and_crop
from mi_ray.device import exact_arithmetic, keep_memory, on_device
from mi_ray.objectives import OBJECTIVES, Objective
from mi_ray.own_code import OwnModules, places_told
from mi_ray.parameters import Method
from mi_ray.store.blocks import Store
from mi_ray.store.files import Files
from mi_ray.store.schemas import TRAINING

MEASURED = 1000  # Images of each split on which an epoch's accuracy is measured.
LOOKED_AT = 10  # Steps between two looks at whether the loss is still finite; a look waits for the device.
CHECKPOINT = "checkpoint.safetensors"  # The state after the last epoch, in the folder of the training's key.
RUN = "-run"  # How the name of the folder ends, beside that one, which Ray Train itself writes.
PEERS = ("closed by peer", "reset by peer", "NCCL", "Gloo")  # What the workers that are left say of one that died.


class DivergedError(ValueError):
    """The loss or the weights are no longer finite; raised by all workers at the same step."""


class TrainingValues(TypedDict):
    """The settings of a training, as `config.Training` has them, with the epochs of `lr_drops` written out."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    lr_drops: Sequence[int]
    warmup: int
    flip: bool
    crop_padding: int
    precision: str
    channels_last: bool


class TrainingConfig(TypedDict):
    """What every worker of a training is handed.

    key: of the classifier. data: uint8 images [N, H, W, C] and labels, of the test split the `measured` ones.
    progress: the `ProgressActor`. cpus, gpus: of a worker. scratch: where checkpoints are kept. store:
    where the classifier goes, with what `about` says of it.
    """

    key: str
    description: Mapping[str, object]
    objective: Method
    seed: int
    training: TrainingValues
    data: ray.ObjectRef
    progress: ActorHandle
    own: OwnModules
    cpus: float
    gpus: float
    scratch: str
    store: str
    about: Mapping[str, object]


def finished(store: Store, key: str) -> bool:
    """Whether a classifier is in the store as a whole: three sound files, and weights of the digest that one names."""
    folder = f"classifiers/{key}"
    if not store.exists(f"{folder}/classifier.json"):
        return False
    try:
        written = store.read_json(f"{folder}/classifier.json")
        store.read_table(f"{folder}/training.parquet", TRAINING)
        return bool(weights_digest(store.read_bytes(f"{folder}/model.safetensors")) == written["weights_sha256"])
    except (ValueError, FileNotFoundError, KeyError, TypeError):
        return False


def write_classifier(
    store: Store,
    key: str,
    classifier: Classifier,
    about: Mapping[str, object],
    rows: Sequence[Mapping[str, object]],
) -> None:
    """Put a classifier into the store; the description comes last, so that it is there only when all is."""
    content, folder = weights_bytes(classifier), f"classifiers/{key}"
    store.write_table(f"{folder}/training.parquet", pa.Table.from_pylist([dict(row) for row in rows], schema=TRAINING))
    store.write_bytes(f"{folder}/model.safetensors", content)
    store.write_json(
        f"{folder}/classifier.json",
        {"description": classifier.description, "weights_sha256": weights_digest(content), **about},
    )


def measured(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which images of a split an epoch's accuracy is measured on.

    They are the first ones, or, where these leave out a class, ones that are spread evenly: in a folder of pictures all of one
    class stand together.
    """
    first = np.arange(min(MEASURED, len(labels)))
    if len(np.unique(labels[first])) == len(np.unique(labels)):
        return first
    return np.linspace(0, len(labels) - 1, MEASURED).astype(np.int64)


def handed(dataset: Dataset) -> dict[str, npt.NDArray[Any]]:
    """What workers are handed of a dataset, see `TrainingConfig.data`: whole the train split, of the other what is measured."""
    tested = measured(dataset.test_labels)
    return {
        "train_images": np.asarray(dataset.train_images),
        "train_labels": dataset.train_labels,
        "test_images": dataset.test_images[tested],
        "test_labels": dataset.test_labels[tested],
    }


def augmented(images: Tensor, training: TrainingValues, rng: np.random.Generator) -> Tensor:
    """A batch of uint8 images [B, C, H, W] with the training's flip and crop, as float32 in [0, 1]."""
    if training["flip"] or training["crop_padding"]:
        u = on_device(rng.random((len(images), 3), dtype=np.float32), images.device)
        images = flip_and_crop(images, u, training["crop_padding"], training["flip"])
    return images.float().div(255)


def learning_rate(training: TrainingValues, epoch: int) -> float:
    """The learning rate of a 0-based epoch: a linear warm-up, if there is one, then a tenth at each of `lr_drops`."""
    if epoch < training["warmup"]:
        return float(training["lr"] * (epoch + 1) / (training["warmup"] + 1))
    return float(training["lr"] * 0.1 ** sum(epoch >= drop for drop in training["lr_drops"]))


class _Run:
    """One worker's state of one training: model, optimizer, epoch and rows. It is saved and restored without pickles."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config, self.training = config, config["training"]
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        # A training that asks for no GPU gets none, also where its node has some.
        self.device = ray.train.torch.get_device() if config["gpus"] else torch.device("cpu")
        torch.manual_seed(config["seed"])
        self.plain = build_classifier(config["description"]).to(self.device)
        if self.training["channels_last"]:
            self.plain.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.plain.parameters(),
            lr=self.training["lr"],
            momentum=self.training["momentum"],
            weight_decay=self.training["weight_decay"],
        )
        self.epoch, self.rows, self._shown = 0, list[dict[str, Any]](), time.monotonic()
        self.scratch, self.path = Files(config["scratch"]), f"{config['key']}/{CHECKPOINT}"
        if self.scratch.exists(self.path):
            self.restore()
        self.model: nn.Module = self.plain
        if self.world > 1:
            self.refuse_other_epochs()
            # Two forwards before one backward (AT) must not find the buffers changed: they are averaged once an epoch.
            self.model = ray.train.torch.prepare_model(
                self.plain, move_to_device=self.device, parallel_strategy_kwargs={"broadcast_buffers": False}
            )

    def save(self) -> None:
        """Keep the state in one file, which is there as a whole or not at all, so that a kill damages nothing."""
        state = {f"model.{name}": value.contiguous() for name, value in self.plain.state_dict().items()}
        for name, parameter in self.plain.named_parameters():
            # SGD without momentum has none, and neither has a parameter without a gradient, as one that is frozen.
            momentum = self.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                state[f"momentum.{name}"] = momentum.contiguous()
        state |= {f"random.{kind}": value for kind, value in self.random_states().items()}
        progress = json.dumps({"epoch": self.epoch, "rows": self.rows}).encode()
        state["progress"] = torch.frombuffer(bytearray(progress), dtype=torch.uint8)
        self.scratch.write_bytes(self.path, save(state))

    def random_states(self) -> dict[str, Tensor]:
        """The states of torch's own generators, of which a network's dropout draws: alike on all workers, which draw alike."""
        states = {"cpu": torch.get_rng_state()}
        return states | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})

    def restore(self) -> None:
        """Take up the state of the checkpoint. One that is damaged, or of something else, is none: the training begins anew."""
        try:
            state = self.scratch.read_parsed(self.path, load, (SafetensorError,))
            progress = json.loads(state["progress"].numpy().tobytes())
            epoch, rows = int(progress["epoch"]), list(progress["rows"])
            names = [name for name, _ in self.plain.named_parameters()]
            momentum = {name: state[f"momentum.{name}"] for name in names if f"momentum.{name}" in state}
            weights = {name: state[f"model.{name}"] for name in self.plain.state_dict()}
            # None is there where it was written before they were kept, or on another kind of device; a torch of another version
            # may have states of another size, which it refuses.
            drawn_by = {kind: (own, state.get(f"random.{kind}")) for kind, own in self.random_states().items()}
            generators = {
                kind: kept for kind, (own, kept) in drawn_by.items() if kept is not None and kept.shape == own.shape
            }
        except (SafetensorError, KeyError, TypeError, ValueError):
            return
        mine = self.plain.state_dict()
        if any(value.shape != mine[name].shape for name, value in (*weights.items(), *momentum.items())):
            return
        self.plain.load_state_dict(weights)
        parameters = dict(self.plain.named_parameters())
        for name, value in momentum.items():
            self.optimizer.state[parameters[name]]["momentum_buffer"] = value.to(self.device)
        for kind, drawn in generators.items():
            torch.set_rng_state(drawn) if kind == "cpu" else torch.cuda.set_rng_state(drawn, self.device)
        self.epoch, self.rows = epoch, rows

    def refuse_other_epochs(self) -> None:
        """Raise OSError, on all workers, where not all of them found the same checkpoint: a storage may answer each otherwise."""
        ends = torch.tensor([self.epoch, -self.epoch], device=self.device)
        torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
        if ends[0] != -ends[1]:
            raise OSError(f"all workers of a training must find the same checkpoint in {self.scratch.uri}/{self.path}")

    def average_buffers(self) -> None:
        """Give all workers the mean of their batch statistics, so that each holds the same classifier.

        The mean of three numbers that are alike may be another one by rounding, so that the normalisation, which no checkpoint
        holds, is left as it is.
        """
        if self.world > 1:
            kept = self.plain.state_dict().keys()
            for name, buffer in self.plain.named_buffers():
                if name in kept and buffer.is_floating_point():
                    torch.distributed.all_reduce(buffer)
                    buffer.div_(self.world)

    def refuse_divergence(self, losses: Sequence[Tensor], step: int, *, last: bool) -> None:
        """Raise DivergedError, on all workers or on none, when a loss (at an epoch's last step, a weight) is not finite."""
        # Weights are looked at after the last step, so that no checkpoint holds what that step has broken.
        seen = [*losses, *(self.plain.parameters() if last else ())]
        count = torch.stack([~value.isfinite().all() for value in seen]).any().float()
        if self.world > 1:  # A worker that stops alone would leave the others waiting for it.
            torch.distributed.all_reduce(count)
        if count > 0:
            kept = f"the checkpoint after epoch {self.epoch} is kept" if self.epoch else "no epoch was finished"
            raise DivergedError(
                f"the training loss must be finite; in epoch {self.epoch + 1} of {self.training['epochs']}, by step "
                f"{step + 1}, it is not: lower training.lr ({self.training['lr']:g}), or use precision fp32; {kept}"
            )

    def backward(
        self, objective: Objective, images: Tensor, labels: Tensor, step: int, chosen: npt.NDArray[np.int64]
    ) -> Tensor:
        """Bring every weight its gradient of a step, whose images are the chosen ones; returns the loss."""
        rng = np.random.default_rng([self.config["seed"], self.epoch, step, self.rank])
        index = on_device(chosen, images.device)
        x = augmented(images[index], self.training, rng)
        cast: Any = nullcontext()
        if self.training["precision"] == "bf16":
            cast = torch.autocast(self.device.type, torch.bfloat16)
        with cast:
            loss = objective.loss(self.model, self.plain, x, labels[index], rng)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    def take_up_order(self, images: Tensor, labels: Tensor) -> None:
        """Have a training that goes on add up the workers' gradients in the order of one that was not interrupted.

        After the first backward pass torch arranges all gradients anew, and where one lies decides in which order those of three
        workers and more are added, and so its last bit. So there is one pass here of which nothing else stays.
        """
        if self.epoch == 0 or self.world <= 2:  # Two numbers have one sum.
            return
        before = [buffer.clone() for buffer in self.plain.buffers()]
        self.model.train()
        size = self.training["batch_size"]
        step, chosen = next(batches(self.config["seed"], self.epoch, len(images), size, self.rank, self.world))
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            self.backward(OBJECTIVES.make(*self.config["objective"]), images, labels, step, chosen)
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, value in zip(self.plain.buffers(), before, strict=True):
            buffer.copy_(value)

    def train_epoch(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """Go through the data once; returns the epoch's row without its accuracies. Raises DivergedError."""
        config, began, losses = self.config, time.perf_counter(), []
        objective = OBJECTIVES.make(*config["objective"])
        rate = learning_rate(self.training, self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        total, size = len(images), self.training["batch_size"]
        for step, chosen in batches(config["seed"], self.epoch, total, size, self.rank, self.world):
            losses.append(self.backward(objective, images, labels, step, chosen))
            self.optimizer.step()
            if (step + 1) % LOOKED_AT == 0 or step + 1 == total // size:
                self.refuse_divergence(losses[-LOOKED_AT:], step, last=step + 1 == total // size)
            self.show(step + 1, total // size)
        mean = torch.stack(losses).float().mean()
        if self.world > 1:
            torch.distributed.all_reduce(mean)
            mean.div_(self.world)
        self.average_buffers()
        self.plain.passes.take()  # Nobody reads the counts of a training, and they are kept until they are taken.
        seconds = time.perf_counter() - began
        return {
            "epoch": self.epoch,
            "lr": rate,
            "loss": float(mean),
            "images": len(losses) * size,
            "seconds": seconds,
        }

    def show(self, step: int, steps: int) -> None:
        """Tell the driver how far this training is, about once a second."""
        if self.rank == 0 and (time.monotonic() - self._shown > 1 or step == steps):
            self._shown = time.monotonic()
            done = (self.epoch * steps + step) * self.training["batch_size"]
            self.config["progress"].report.remote(self.config["key"], done)

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Clean accuracy on the `measured` images of a split, in eval mode."""
        self.plain.eval()
        places, right = torch.from_numpy(measured(labels.cpu().numpy())).to(images.device), 0
        with torch.no_grad():
            for some in places.split(250):
                right += int((self.plain(images[some].float().div(255)).argmax(1) == labels[some]).sum())
        return right / len(places)


def _resident(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], device: torch.device
) -> tuple[Tensor, Tensor]:
    """A split on the device as uint8 [N, C, H, W] and int64 [N]."""
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous()
    return pixels.to(device), torch.from_numpy(np.array(labels)).to(device)


@places_told
def train_loop(config: TrainingConfig) -> None:
    """What each training worker runs: the epochs that are left, then, on the first worker, the write to the store."""
    config["own"].load()
    keep_memory()
    torch.set_num_threads(max(1, int(config["cpus"])))  # A process that has computed blocks was set to one thread.
    data = ray.get(config["data"])
    run = _Run(config)
    exact_arithmetic(run.device)
    train = _resident(data["train_images"], data["train_labels"], run.device)
    test = _resident(data["test_images"], data["test_labels"], run.device)
    if run.epoch < run.training["epochs"]:
        run.take_up_order(*train)
    while run.epoch < run.training["epochs"]:
        try:
            row = run.train_epoch(*train)
        except DivergedError as error:
            # No second try ends otherwise, and an error would be tried again: the training ends, and says why.
            if run.rank == 0:
                ray.get(config["progress"].stopped.remote(config["key"], str(error)))
            return
        if run.rank == 0:
            row |= {"train_accuracy": run.accuracy(*train), "test_accuracy": run.accuracy(*test)}
        run.epoch += 1
        run.rows.append(row)
        if run.rank == 0:
            config["progress"].tell.remote("epoch", {"key": config["key"], **row, "epoch": run.epoch})
            run.save()
        ray.train.report({"epoch": run.epoch, "loss": row["loss"]})  # All workers wait for one another here.
    store = Store(config["store"])
    # Where a storage cannot lock, another run may have trained the same: its weights are what blocks may be of by now.
    if run.rank == 0 and not finished(store, config["key"]):
        write_classifier(store, config["key"], run.plain.cpu(), config["about"], run.rows)


def cause_of_failure(error: Exception) -> Exception:
    """What ended a training: the workers' own error, or that one of them was lost."""
    # Some releases of Ray Train wrap what a worker's own code raised, as what its health check met always is.
    failures = [
        getattr(failure, "_base_exc", None) or getattr(failure, "health_check_failure", None) or failure
        for failure in getattr(error, "worker_failures", {}).values()
    ]
    if any(fault_of(failure) == "out of memory" for failure in failures):
        return ray.exceptions.OutOfMemoryError("a training worker ran out of memory")
    own = [failure for failure in failures if not type(failure).__module__.startswith("ray.")]
    if own and len(own) == len(failures) and not any(text in str(own[0]) for text in PEERS):
        return own[0]
    return ray.exceptions.WorkerCrashedError() if failures else error


def fit(config: TrainingConfig, workers: int) -> None:
    """Run one TorchTrainer to its end. A single worker is this very process, which spares the start of five others.

    Raises DivergedError for a training that diverged, and what ended it for one that failed otherwise.
    """
    if workers == 1:
        # Ray Train calls a training within its own process, which has the resources of the task, one of no workers.
        scaling = ray.train.ScalingConfig(num_workers=0)
    else:
        gpus = config["gpus"]
        resources = {"CPU": config["cpus"], **({"GPU": gpus} if gpus else {})}
        scaling = ray.train.ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=resources)
    trainer = ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config=config,
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=config["key"] + RUN,
            storage_path=config["scratch"],
            failure_config=ray.train.FailureConfig(max_failures=3),
        ),
    )
    interrupted = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        cause = cause_of_failure(error)
        if cause is error:
            raise
        raise cause from None
    finally:
        # That of Ray Train holds its controller, an actor of some hundred megabytes which lives as long as somebody holds it.
        signal.signal(signal.SIGINT, interrupted)
    why = ray.get(config["progress"].why.remote(config["key"]))
    if why is not None:
        raise DivergedError(why)


ANY_PROCESS = ray.remote(max_retries=0)(fit)
OWN_PROCESS = ray.remote(max_retries=0, max_calls=1)(fit)


def fit_task(name: str, workers: int, cpus: float, gpus: float) -> Any:
    """`fit` as a task with what it is to have: all of a single worker, and nothing where workers are processes of their own.

    A process keeps the GPU that it has used first. So on GPUs a training gets one that has used none, which Ray only gives
    to an environment of its own. One on CPUs goes on with blocks: it has imported torch.
    """
    have = {"num_cpus": cpus, "num_gpus": gpus} if workers == 1 else {"num_cpus": 0}
    if not gpus:
        return ANY_PROCESS.options(name=name, **have)
    fresh = {"env_vars": {"MI_RAY_TRAINS": "1"}} if workers == 1 else {}
    return OWN_PROCESS.options(name=name, runtime_env=fresh, **have)
