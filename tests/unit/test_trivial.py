"""TrivialAugmentWide in whole batches: torchvision's bits for every operation and magnitude, and its distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from torch import Tensor

from actsearch.data import Augment  # first: it makes torchvision importable
from actsearch.data.trivial import BINS, OPERATIONS, TrivialDraws, draw_trivial, magnitudes, trivial_augment

from torchvision.transforms import v2  # isort: skip

REFERENCE = v2.TrivialAugmentWide()
ROWS = 2 * BINS
# 11 · 1.198 − 11 · 0.198 in float32 is below 11 only if it is rounded once; on other CPUs blends are one level off.
MAGNITUDE = magnitudes("Contrast")[6]
FUSED = bool((torch.full((16,), 11.0).mul(1 + MAGNITUDE).add_(torch.full((16,), 11.0), alpha=-MAGNITUDE) < 11).all())
needs_fused = pytest.mark.skipif(not FUSED, reason="this CPU does not fuse multiply-adds")


def theirs(image: Tensor, operation: str, magnitude: float) -> Tensor:
    """What torchvision's transform does with what it has drawn."""
    apply = REFERENCE._apply_image_or_video_transform
    return apply(image, operation, magnitude, interpolation=REFERENCE.interpolation, fill=REFERENCE._fill)


def every_row(operation: str) -> TrivialDraws:
    rows = torch.arange(ROWS)
    return TrivialDraws(torch.full((ROWS,), OPERATIONS.index(operation)), rows % BINS, rows >= BINS)


def test_operations_magnitudes_and_signs_are_those_of_torchvision() -> None:
    space = REFERENCE._AUGMENTATION_SPACE
    assert tuple(space) == OPERATIONS
    for operation, (bins, signed) in space.items():
        values = bins(REFERENCE.num_magnitude_bins, 32, 32)
        expected = [0.0] * BINS if values is None else [float(v) for v in values]
        assert magnitudes(operation) == expected + [-v if signed else v for v in expected]


# Sides that vectors of 8 or 16 floats do not divide, sides that differ, and too small a one to be sharpened.
@needs_fused
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 9, 8), (1, 9, 11), (3, 2, 5)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_magnitude_of_every_operation_gives_the_bits_of_torchvision(
    operation: str, shape: tuple[int, int, int]
) -> None:
    images = torch.randint(0, 256, (4, *shape), generator=torch.Generator().manual_seed(0)).byte()
    images[1] = images[1] // 64 * 50  # few levels
    images[2] = images[2, :, :1, :1]  # one colour
    images[3] = images[3, :1]  # no colour: blending a grey with itself must not round it down
    for image in images:
        ours = trivial_augment(image.expand(ROWS, *shape), every_row(operation))
        assert ours.dtype == torch.uint8
        for our, magnitude in zip(ours, magnitudes(operation), strict=True):
            assert torch.equal(our, theirs(image, operation, magnitude)), (operation, magnitude)


@needs_fused
def test_a_grey_image_of_one_level_keeps_one_level() -> None:
    """torch rounds some of the last pixels twice where 8 does not divide their number, and gives such images two."""
    image = torch.full((1, 7, 13), 11, dtype=torch.uint8)
    ours = trivial_augment(image.expand(ROWS, 1, 7, 13), every_row("Contrast"))
    first = [int(theirs(image, "Contrast", magnitude)[0, 0, 0]) for magnitude in magnitudes("Contrast")]
    assert torch.equal(ours, torch.tensor(first).byte().view(-1, 1, 1, 1).expand(ours.shape))


@needs_fused
def test_each_image_of_a_batch_is_changed_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    images, draws = torch.randint(0, 256, (200, 3, 12, 12)).byte(), draw_trivial(200)
    assert len(draws.operation.unique()) == len(OPERATIONS)
    ours = trivial_augment(images, draws)
    for i, (operation, bin_, negative) in enumerate(
        zip(draws.operation.tolist(), draws.bin.tolist(), draws.negative.tolist(), strict=True)
    ):
        name = OPERATIONS[operation]
        assert torch.equal(ours[i], theirs(images[i], name, magnitudes(name)[bin_ + BINS * negative])), name


class Recorder(v2.TrivialAugmentWide):
    """torchvision's transform, which only tells what it has drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[str, float]] = []

    def _apply_image_or_video_transform(self, image: Any, transform_id: str, magnitude: float, **_: Any) -> Any:
        self.drawn.append((transform_id, magnitude))
        return image


def test_draws_are_distributed_as_torchvisions() -> None:
    """Two samples and fixed seeds: a chi-square test of operations, and of signed magnitudes for each operation."""
    n = 20_000
    torch.manual_seed(1)
    recorder, image = Recorder(), torch.zeros(1, 1, 1, dtype=torch.uint8)
    for _ in range(n):
        recorder(image)
    draws = draw_trivial(n)
    rows = (draws.bin + BINS * draws.negative).tolist()
    ours = [(OPERATIONS[k], magnitudes(OPERATIONS[k])[r]) for k, r in zip(draws.operation.tolist(), rows, strict=True)]

    def p_value(of: list[list[Any]]) -> float:
        values = sorted(set(of[0]) | set(of[1]))
        return float(chi2_contingency([[sample.count(v) for v in values] for sample in of]).pvalue)

    samples = [recorder.drawn, ours]
    assert p_value([[name for name, _ in sample] for sample in samples]) > 1e-3
    for operation in OPERATIONS:
        of = [[magnitude for name, magnitude in sample if name == operation] for sample in samples]
        if len(set(of[0])) > 1:
            assert set(of[0]) == set(of[1])
            assert p_value(of) > 1e-3, operation
        else:
            assert set(of[0]) == set(of[1]) == {0.0}


def test_operation_bin_and_sign_are_independent_and_uniform() -> None:
    torch.manual_seed(2)
    draws = draw_trivial(200_000)
    joint = (draws.operation * BINS + draws.bin) * 2 + draws.negative
    counts = torch.bincount(joint, minlength=len(OPERATIONS) * BINS * 2)
    assert len(counts) == len(OPERATIONS) * BINS * 2
    assert chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_is_read_back_from_the_device_of_the_images(channels: int) -> None:
    augment = Augment(padding=4, flip=True, trivial=True)
    images = torch.empty(300, channels, 32, 32, dtype=torch.uint8, device="meta")  # holds nothing that could be read
    draws = augment.draw(300)
    assert draws.trivial is not None
    assert len(draws.trivial.operation.unique()) == len(OPERATIONS)
    assert augment.apply(images, draws).shape == images.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 33, 31)])
def test_a_gpu_gives_the_bits_of_the_cpu(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(3)
    augment = Augment(padding=4, flip=True, trivial=True)
    images, draws = torch.randint(0, 256, (4000, *shape)).byte(), augment.draw(4000)
    assert torch.equal(augment.apply(images.cuda(), draws).cpu(), augment.apply(images, draws))
