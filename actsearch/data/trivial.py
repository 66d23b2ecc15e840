"""TrivialAugmentWide (Müller and Hutter 2021, arXiv:2103.10158) for whole batches, to the bits of torchvision's.

There are few operations and magnitudes, so most of the work is looking things up. Where each pixel comes from (shears,
shifts, rotations) and what each byte becomes (brightness, posterize, solarize) is asked of torchvision once, and kept
as tables: 1,240 bytes a pixel and 48 kB. Images of one operation are treated together; which they are is known on the
host, so nothing waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from actsearch.data.device import send

# In torchvision's order, which the draws are numbers of.
OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
BINS = 31
_SIGNED = frozenset(OPERATIONS[1:10])


@dataclass(frozen=True)
class TrivialDraws:
    """What was drawn for n images, each (n,): the number of the operation, the bin of its magnitude, and the sign.

    Operations without a magnitude do not heed the bin, those without a sign not the sign.
    """

    operation: Tensor
    bin: Tensor
    negative: Tensor


def draw_trivial(n: int) -> TrivialDraws:
    """Draws for n images from torch's global CPU generator, distributed as torchvision's."""
    return TrivialDraws(torch.randint(len(OPERATIONS), (n,)), torch.randint(BINS, (n,)), torch.rand(n) <= 0.5)


def magnitudes(operation: str) -> list[float]:
    """Of the 2 · BINS rows of an operation: those of the bins, then the same with a minus where it has a sign."""
    if operation.startswith("Translate"):
        bins = torch.linspace(0.0, 32.0, BINS)
    elif operation == "Rotate":
        bins = torch.linspace(0.0, 135.0, BINS)
    elif operation == "Posterize":
        bins = (8 - torch.arange(BINS) / ((BINS - 1) / 6)).round()
    elif operation == "Solarize":
        bins = torch.linspace(1.0, 0.0, BINS)
    elif operation in _SIGNED:
        bins = torch.linspace(0.0, 0.99, BINS)
    else:
        bins = torch.zeros(BINS)
    values = bins.tolist()
    return values + [-value if operation in _SIGNED else value for value in values]


def trivial_augment(images: Tensor, draws: TrivialDraws) -> Tensor:
    """Images (n, C, H, W) uint8 on any device, C = 1 or 3, each changed as `draws`, on the host, say.

    Equal to what torchvision's operations make of each image on a CPU that fuses multiply-adds (any with AVX2 or NEON),
    to the bit up to 65,793 pixels; above, the mean grey of Contrast may be rounded otherwise. Where 8 does not divide
    the number of pixels, torch rounds some of the last ones twice, and they may then be one level off in a blend.
    """
    group = _GROUP[draws.operation]
    order = torch.argsort(group, stable=True)
    rows = _FIRST_ROW[draws.operation] + draws.bin + BINS * draws.negative
    counts = torch.bincount(group, minlength=len(_KERNELS)).tolist()
    # One small tensor travels.
    order, back, rows = send(torch.stack([order, torch.argsort(order), rows[order]]), images.device)
    parts = zip(_KERNELS, images.index_select(0, order).split(counts), rows.split(counts), strict=True)
    done = [kernel(part, rows) if len(part) else part for kernel, part, rows in parts]
    return torch.cat(done).index_select(0, back)


# Each takes images (k, C, H, W) and their rows (k,) of the table that it reads.


def _keep(images: Tensor, rows: Tensor) -> Tensor:
    return images


def _move(images: Tensor, rows: Tensor) -> Tensor:
    channels, height, width = images.shape[1:]
    sources = _sources(height, width, images.device)[rows].long()
    with_black = F.pad(images.flatten(2), (1, 0))
    return with_black.gather(2, sources[:, None].expand(-1, channels, -1)).view_as(images)


def _map_bytes(images: Tensor, rows: Tensor) -> Tensor:
    return _look_up(images, _byte_maps(images.device)[rows])


def _color(images: Tensor, rows: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    return _blend(images, V.rgb_to_grayscale(images), rows)


def _contrast(images: Tensor, rows: Tensor) -> Tensor:
    grey = V.rgb_to_grayscale(images)
    # The sum is a whole number, and its quotient far from any tie: the mean is that of float32, rounded once.
    mean = (grey.sum((1, 2, 3)).double() / grey[0].numel()).float()
    levels = torch.arange(256, dtype=torch.uint8, device=images.device)
    return _look_up(images, _blend(levels, mean[:, None], rows))


def _sharpness(images: Tensor, rows: Tensor) -> Tensor:
    if min(images.shape[2:]) <= 2:
        return images
    # The mean of 3×3 pixels in which the middle counts five times, rounded; 13 is odd, so there are no ties.
    wide = images.float()
    across = wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]
    inner = wide[..., 1:-1, 1:-1]
    total = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :] + 4 * inner
    blurred = (total / 13).round()
    rest = _ratios(images.device)[1, rows].double().view(-1, 1, 1, 1)
    result = images.clone()
    result[..., 1:-1, 1:-1] = _to_bytes(inner + rest * (blurred - inner))
    return result


def _autocontrast(images: Tensor, rows: Tensor) -> Tensor:
    return V.autocontrast(images)


def _equalize(images: Tensor, rows: Tensor) -> Tensor:
    return V.equalize(images)


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Every byte of images (k, …) replaced by what stands at its place in tables (k, 256)."""
    return tables.gather(1, images.flatten(1).long()).view_as(images)


def _blend(images: Tensor, others: Tensor, rows: Tensor) -> Tensor:
    """ratio · images + (1 − ratio) · others, with the ratio of each row; images (k, …) or (256,), others like them."""
    shape = (-1,) + (1,) * (others.ndim - 1)
    ratio, rest = (values.view(shape) for values in _ratios(images.device)[:, rows])
    return _to_bytes((images * ratio).double() + rest.double() * others)


def _to_bytes(exact: Tensor) -> Tensor:
    """What float32 makes of a multiply-add that is rounded once, given its value in double, where it is exact."""
    return exact.float().clamp_(0, 255).to(torch.uint8)


_GEOMETRIC: dict[str, Callable[[Tensor, float], Tensor]] = {
    "ShearX": lambda image, m: _affine(image, shear=[math.degrees(math.atan(m)), 0.0], center=[0, 0]),
    "ShearY": lambda image, m: _affine(image, shear=[0.0, math.degrees(math.atan(m))], center=[0, 0]),
    "TranslateX": lambda image, m: _affine(image, translate=[int(m), 0]),
    "TranslateY": lambda image, m: _affine(image, translate=[0, int(m)]),
    "Rotate": V.rotate,
}
_BYTEWISE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Brightness": lambda image, m: V.adjust_brightness(image, 1.0 + m),
    "Posterize": lambda image, m: V.posterize(image, int(m)),
    "Solarize": lambda image, m: V.solarize(image, 255 * m),
}


def _affine(
    image: Tensor,
    translate: tuple[int, int] | list[int] = (0, 0),
    shear: tuple[float, float] | list[float] = (0.0, 0.0),
    center: list[float] | None = None,
) -> Tensor:
    return V.affine(image, angle=0.0, translate=list(translate), scale=1.0, shear=list(shear), center=center)


@lru_cache(maxsize=8)
def _sources(height: int, width: int, device: torch.device) -> Tensor:
    """Where the pixels of a moved image come from, (rows, H · W): 0 for black, else 1 + the position."""
    positions = torch.arange(1.0, height * width + 1).view(1, height, width)  # float32: exact up to 2²⁴
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in hundreds of small operations they would wait for one another
    try:
        moved = torch.stack([move(positions, m) for name, move in _GEOMETRIC.items() for m in magnitudes(name)])
        return moved.flatten(1).int().to(device)
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=8)
def _byte_maps(device: torch.device) -> Tensor:
    """What becomes of each byte, (rows, 256)."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    maps = [change(levels, m) for name, change in _BYTEWISE.items() for m in magnitudes(name)]
    return torch.stack(maps).flatten(1).to(device)


@lru_cache(maxsize=8)
def _ratios(device: torch.device) -> Tensor:
    """Of a blend (ratio, 1 − ratio), (2, rows), each rounded to float32 as torchvision does."""
    ratio = 1.0 + torch.tensor(magnitudes("Color"), dtype=torch.float64)
    return torch.stack([ratio, 1.0 - ratio]).float().to(device)


_KERNEL_OF = {
    "Identity": _keep,
    **dict.fromkeys(_GEOMETRIC, _move),
    **dict.fromkeys(_BYTEWISE, _map_bytes),
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}
_KERNELS = tuple(dict.fromkeys(_KERNEL_OF.values()))
_TABLE_ROWS = {name: 2 * BINS * k for table in (_GEOMETRIC, _BYTEWISE) for k, name in enumerate(table)}
# By number of an operation: its kernel, and its first row in the table that this reads.
_GROUP = torch.tensor([_KERNELS.index(_KERNEL_OF[name]) for name in OPERATIONS])
_FIRST_ROW = torch.tensor([_TABLE_ROWS.get(name, 0) for name in OPERATIONS])
