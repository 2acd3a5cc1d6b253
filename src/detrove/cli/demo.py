"""`detrove demo`: the whole story on generated pictures, on a laptop's CPU, in minutes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from detrove.cli.eval import evaluate_weights
from detrove.cli.predict import predict, refuse_taken
from detrove.cli.progress import told

MODEL = "detrove-nano"
SIZE, BATCH_SIZE = 160, 8
SETTINGS = {
    "model.backbone": "mobilenetv4_conv_small",
    "model.num_queries": 60,
    "model.num_decoder_layers": 2,
    "learning_rate": 1e-3,
    "vertical_flip": 0.5,
    "crop": 0.0,
    "scale": [1.0, 1.0],
}
"""What suits small pictures of few objects, and a trunk that begins at random: a shallow one, many steps, no jitter."""
PICTURES_SHOWN = 12


def demo(*, output: Path | None = None, minutes: float = 6.0, seed: int = 0) -> None:
    """See it all on generated pictures, in seven minutes.

    Trains a detector, measures it on pictures that it never saw, and draws what it sees. Nothing is downloaded: the
    pictures are made, and the detector starts from random weights. Each step is one that you can take on your own
    pictures; its command is told.

    Parameters
    ----------
    output
        A new folder for everything. Default: runs/demo, numbered.
    minutes
        Training time.
    seed
        Another seed gives other random weights; the pictures stay the same.
    """
    if output is not None:
        refuse_taken(output)
    from detrove.data.scenes import SIZES, make_scenes
    from detrove.training import train
    from detrove.training.run_folder import free_folder

    output = free_folder(Path("runs"), "demo") if output is None else output
    scenes, run, measured, drawn = (output / name for name in ("scenes", "run", "evaluation", "predictions"))
    with told("making pictures", sum(SIZES.values())) as tell:
        make_scenes(scenes, progress=lambda done, _: tell(done))

    settings = " ".join(f"--set {key}={json.dumps(value)}" for key, value in SETTINGS.items())
    _step(
        f"train {scenes} --output {run} --minutes {minutes:g} --backbone-weights none --seed {seed} "
        f"--size {SIZE} --batch-size {BATCH_SIZE} {settings}"
    )
    train(
        scenes,
        model=MODEL,
        output=run,
        minutes=minutes,
        size=SIZE,
        batch_size=BATCH_SIZE,
        backbone_weights=None,
        seed=seed,
        settings=SETTINGS,
    )

    _step(f"eval {run} {scenes} --split test --output {measured}")
    evaluate_weights(run, scenes, split="test", output=measured)

    pictures = sorted((scenes / "test").iterdir())[:PICTURES_SHOWN]
    _step(f"predict {run} {scenes / 'test'} --output {drawn}")
    predict(run, [str(picture) for picture in pictures], output=drawn)

    print(_summary(run, measured, drawn))


def _step(command: str) -> None:
    print(f"\n$ detrove {command}", file=sys.stderr, flush=True)


def _summary(run: Path, measured: Path, drawn: Path) -> str:
    """What came out, where it is, and what to do next."""
    metrics = json.loads((measured / "metrics.json").read_text(encoding="utf-8"))
    return f"""
On pictures that it never saw: AP50 {metrics["ap50"]:.3f}, AP {metrics["ap"]:.3f}

  how good it is, and where it fails   {measured / "report.html"}
  how it learned                       {run / "report.html"}
  what it sees                         {drawn / "pictures"}
  the detector, in one file            {run / "best.safetensors"}

Next, your own pictures, labelled as COCO, VOC, YOLO or CSV:

  detrove train DATA --output runs/mine --minutes 10
  detrove predict runs/mine PHOTOS --output found"""
