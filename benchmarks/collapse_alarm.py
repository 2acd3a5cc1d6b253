"""Does the collapse alarm fire when a DETR's queries become one, and only then?

Ten healthy trainings, of several detectors and seeds, and DETRs trained at rates that collapse them, all at toy scale
on the generated scenes. Each run's measures at every validation are printed, with the alarms that they raised.

    python benchmarks/collapse_alarm.py [OUTPUT]

About ten minutes on one core.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from detrove.data.scenes import make_scenes
from detrove.training import train

PICTURES = {"train": 64, "val": 16}
SIZE, EPOCHS = 96, 24
SETTINGS = {
    "model.backbone": "test_resnet",
    "model.dim": 64,
    "model.num_heads": 4,
    "model.feedforward_dim": 128,
    "model.num_decoder_layers": 2,
    "model.num_queries": 20,
    "crop": 0.0,
    "warmup": 0,
    "trunk_warmup": 0.0,
    "workers": 0,
    "preflight": False,
}
MEASURES = ("box_spread", "class_spread", "box_spread_between", "class_spread_between", "found")


@dataclass(frozen=True)
class Arm:
    """A training: a detector, its rate, its seed, and whether its queries are expected to become one."""

    model: str
    rate: float
    seed: int
    collapses: bool = False

    @property
    def name(self) -> str:
        """As it is told."""
        return f"{self.model} at {self.rate:g}, seed {self.seed}"


HEALTHY = [
    *(Arm("detr-nano", 1e-3, seed) for seed in range(3)),
    Arm("detr-nano", 2e-4, 0),
    *(Arm(model, 1e-3, 0) for model in ("conditional-nano", "dab-nano", "deformable-nano", "dn-dab-nano", "dino-nano")),
    Arm("detrove-nano", 1e-3, 0),
]
COLLAPSED = [Arm("detr-nano", rate, seed, True) for rate in (3e-2, 1e-1) for seed in range(2)]


def run_arm(arm: Arm, scenes: Path, output: Path) -> list[dict]:
    """Train it; the lines of its metrics.jsonl."""
    rates = {"learning_rate": arm.rate, "backbone_learning_rate": arm.rate, "clip_norm": 1e6 if arm.collapses else 0.1}
    settings = SETTINGS | rates | ({} if arm.model == "detrove-nano" else {"model.num_encoder_layers": 1})
    folder = output / arm.name.replace(" ", "-").replace(",", "")
    train(
        scenes,
        model=arm.model,
        output=folder,
        epochs=EPOCHS,
        size=SIZE,
        batch_size=8,
        backbone_weights=None,
        seed=arm.seed,
        settings=settings,
        progress=False,
    )
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tell(arm: Arm, lines: list[dict]) -> None:
    """A row for every few validations, and what alarmed."""
    print(f"\n{arm.name}: {'to collapse' if arm.collapses else 'healthy'}")
    print(f"{'epoch':>6}{'loss':>9}{'AP50':>7}" + "".join(f"{name:>22}" for name in MEASURES))
    for line in lines[:: max(1, EPOCHS // 6)] + lines[-1:]:
        values = "".join(f"{line['watch'][name]:>22}" for name in MEASURES)
        print(f"{line['epoch']:>6}{line['loss']:>9.3f}{line['ap50']:>7.3f}{values}")
    for line in lines:
        if "alarm" in line["watch"]:
            print(f"  epoch {line['epoch']}: {line['watch']['alarm']}", flush=True)


def main(output: Path) -> int:
    """All arms; the number of those that did not go as expected."""
    scenes = output / "scenes"
    make_scenes(scenes, sizes=PICTURES)
    wrong = 0
    for arm in (*COLLAPSED, *HEALTHY):
        lines = run_arm(arm, scenes, output)
        tell(arm, lines)
        wrong += any("alarm" in line["watch"] for line in lines) != arm.collapses
    print(f"\n{wrong} of {len(HEALTHY) + len(COLLAPSED)} trainings did not go as expected")
    return wrong


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(main(Path(folder)))
