"""What one process does for one arm: `python -m detrove.study.arm_process ARM.json`.

`trained` gets {"best", "memory", "memory_kind", "trunk_had_weights"}: the twelve COCO numbers of the weights that the
run kept, the most bytes that this process held while training, and of what, and whether the trunk began with weights.
`measured` gets {"latency", "latency_p95" (seconds a picture, one by one), "throughput" (pictures a second),
"parameters", "multiply_adds", "height", "width", "processor", "threads", "torch", "detrove"}.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

from detrove.errors import InputError
from detrove.study.arms import INTERRUPTED, ArmRecord, key_of

START = ".start.safetensors"


def main(arguments: list[str]) -> int:
    """Train and measure the arm of a file; the exit status is 0, 1 (our fault), 2 (the input's) or 130."""
    ended = end_with_parent()
    record = ArmRecord.read(Path(arguments[0])).write(error=None)
    try:
        if record.trained is None:
            trained = train_arm(record, progress="--progress" in arguments)
            if ended.is_set() or trained is None:
                return INTERRUPTED
            record = record.write(trained=trained)
        record.write(measured=measure_arm(record))
    except KeyboardInterrupt:
        return INTERRUPTED
    except InputError as error:
        record.write(error=str(error))
        return 2
    except Exception as error:
        record.write(error=f"{type(error).__name__}: {error}")
        raise
    return 0


def end_with_parent() -> threading.Event:
    """Interrupt this process once, as Ctrl-C does, when its input ends; the event says that it was."""
    ended = threading.Event()

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        ended.set()
        _thread.interrupt_main()

    threading.Thread(target=wait, daemon=True).start()
    return ended


def train_arm(record: ArmRecord, progress: bool = False) -> dict[str, Any] | None:
    """Train the arm, or go on with it, and tell what came of it; None where it was cut short."""
    from detrove.evaluation import METRIC_NAMES
    from detrove.inference.bench.machine import PeakMemory
    from detrove.training import train

    arm, conditions = record.arm, record.conditions
    before = steps_of(record)
    memory = PeakMemory(training_device())
    run = train(
        conditions.data,
        model=arm.model,
        output=record.run,
        epochs=conditions.epochs,
        minutes=conditions.minutes,
        size=conditions.size,
        batch_size=conditions.batch_size,
        weights=None if arm.queries_from is None else start_of(record),
        backbone_weights=conditions.backbone_weights,
        seed=arm.seed,
        resume=True,
        format=conditions.format,
        settings={"advise": False, **conditions.settings, **arm.settings},  # arms are compared under one condition
        progress=progress,
    )
    if run.metrics is None:
        return None
    held, kind = memory.read()
    if steps_of(record) == before:  # it was only validated: what that takes says nothing of training
        held, kind = None, "not measured: nothing was left to train when the run was continued"
    best = {name: run.metrics[name] for name in METRIC_NAMES}
    backbone: Any = run.detector.model.get_submodule("backbone")
    kind = kind.replace("predicting", "training")
    return {"best": best, "memory": held, "memory_kind": kind, "trunk_had_weights": backbone.frozen}


def steps_of(record: ArmRecord) -> int:
    """How many training steps its run has made."""
    history = record.history
    return history[-1]["step"] if history else 0


def training_device() -> Any:
    """The device that a training takes."""
    from accelerate import PartialState

    return PartialState().device


def measure_arm(record: ArmRecord) -> dict[str, Any]:
    """How fast the arm's detector answers the first validation picture, and what its queries do in all of them."""
    import torch

    from detrove.inference import load
    from detrove.inference.bench import measure, processor
    from detrove.study.queries import study_queries
    from detrove.training import TrainingConfig
    from detrove.training.held_out import open_splits
    from detrove.training.run_folder import RunFolder

    detector = load(record.run)
    device = training_device()
    if device.type == "cuda":
        detector.model.to(device)
    validation = open_splits(TrainingConfig.from_yaml(RunFolder(record.run).config))[1]
    study_queries(detector, validation).save(record.queries)
    found = measure(detector, validation.records[0].path, seconds=record.conditions.seconds)
    kept = ("latency", "latency_p95", "throughput", "parameters", "multiply_adds", "height", "width")
    return {
        **{name: getattr(found, name) for name in kept},
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "detrove": version("detrove"),
    }


def start_of(record: ArmRecord) -> Path:
    """The weights that an arm with another's queries begins with; they are made where they are not there yet.

    They are the beginning of that other arm, bit for bit, but for the queries, which are the ones that it ended with.
    """
    from accelerate.utils import set_seed

    from detrove import checkpoints
    from detrove.inference import Detector
    from detrove.inference.load import weights_file
    from detrove.study.queries import learned_queries
    from detrove.training import TrainingConfig
    from detrove.training.held_out import open_splits
    from detrove.training.run_folder import RunFolder
    from detrove.training.train import build_model

    path = record.path.with_suffix(START)
    if path.exists():
        return path
    assert record.arm.queries_from is not None
    donor = record.path.parent / key_of(record.arm.queries_from, record.arm.seed)
    config = TrainingConfig.from_yaml(RunFolder(donor).config)
    data = open_splits(config)[0]
    set_seed(config.seed)
    model = build_model(config, data)[0]
    held = checkpoints.read(weights_file(donor))
    backbone: Any = model.get_submodule("backbone")
    if backbone.frozen != held.config.get("backbone_frozen"):
        raise InputError(
            f"{donor}: its trunk {'had no weights' if backbone.frozen else 'had weights'} to start from, and now there "
            f"are {'some' if backbone.frozen else 'none'}: begin the comparison anew, or name a file with "
            "--backbone-weights"
        )
    tensors = held.tensors
    state = model.state_dict()
    for name in learned_queries(model):
        state[name].copy_(tensors[name])
    detector = Detector(model, config.preprocessing, data.label_map, name=config.model)
    return checkpoints.save(detector, path, training={"queries": f"as {record.arm.queries_from} has learned them"})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
