"""How much longer does a detector take than its own convolutions and matrix products alone?

Every convolution and matrix product of one forward pass of the plain model is recorded with its tensors, those within
torch's fused attention as its two products; then they are computed one after another as plain torch calls, in the
memory format in which they came, in turn with the torch engine. Prints the engine's time over theirs (median and
quartiles), 800×1066, batch 1, float32.

    python benchmarks/inference_against_own_matmuls.py detr-r50 --pairs 15 --threads 2
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from inference_against_hugging_face import our_model, time_pairs
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from detrove.inference.engines.torch import TorchEngine
from detrove.structures import ImageBatch

aten = torch.ops.aten
PRODUCTS = {aten.convolution.default, aten.addmm.default, aten.mm.default, aten.bmm.default, aten.linear.default}


class _Products(TorchDispatchMode):
    """Writes down every convolution and product as a call without arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in PRODUCTS:
            self.calls.append(lambda: func(*args, **kwargs))
        elif func.name() == "mkldnn::_linear_pointwise":
            x, weight, bias = args[:3]
            self.calls.append(lambda: F.linear(x, weight, bias))
        elif "scaled_dot_product" in func.name():
            query, key, value = args[:3]
            scores = torch.empty(*query.shape[:3], key.shape[2])
            self.calls += [lambda: query @ key.transpose(-2, -1), lambda: scores @ value]
        return func(*args, **kwargs)


@torch.no_grad()  # in inference mode torch shows `conv2d` and `matmul` whole, under other names
def products_of(model: nn.Module, images: ImageBatch) -> list[Callable[[], Tensor]]:
    """The convolutions and products of one forward pass."""
    with _Products() as products:
        model(images)
    return products.calls


@torch.no_grad()
def compare(name: str, pairs: int) -> None:
    """Time one detector against its products."""
    model = our_model(name)
    images = ImageBatch.from_images([torch.randn(3, 800, 1066, generator=torch.Generator().manual_seed(1))])
    calls, engine = products_of(model, images), TorchEngine(model)

    def alone() -> None:
        for call in calls:
            call()

    whole, products = time_pairs(lambda: engine(images), alone, pairs)
    low, middle, high = statistics.quantiles([w / p for w, p in zip(whole, products, strict=True)], n=4)
    print(
        f"{name}: whole {statistics.median(whole):.3f} s, its {len(calls)} convolutions and products alone "
        f"{statistics.median(products):.3f} s, ratio {middle:.2f} (quartiles {low:.2f} to {high:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["detr-r50"])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.models:
        compare(name, options.pairs)


if __name__ == "__main__":
    main()
