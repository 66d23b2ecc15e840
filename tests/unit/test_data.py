"""The data sets: what they hold, that batches are what torchvision would make, and errors that say what to do."""

import gzip
import hashlib
import os
import pickle
import socket
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from actsearch.data import Augment, ImageData, build, names, stratified  # first: it makes torchvision importable
from actsearch.data.augment import crop
from actsearch.data.batch import Batch, collate
from actsearch.data.download import download_into
from actsearch.data.idx import read_idx
from actsearch.data.placement import PlaceData, find_place
from actsearch.data.trivial import draw_trivial, trivial_augment
from actsearch.errors import DataError, SettingsError, UnknownNameError

import pytorch_lightning as pl  # isort: skip
from torchvision import datasets  # isort: skip
from torchvision.transforms import v2  # isort: skip

SHARED = Path(os.environ.get("ACTSEARCH_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)  # and not connect: loader workers talk over local sockets


def shared(relative: str) -> Path:
    if not (SHARED / relative).exists():
        pytest.skip(f"no {relative} in ../shared/data or ACTSEARCH_DATA")
    return SHARED


def one_line(error) -> bool:
    return "\n" not in str(error.value) and 0 < len(str(error.value)) < 600


# --- digits, the default -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return ImageData()


def test_digits_need_no_download_and_know_their_shape(digits, tmp_path):
    assert (digits.num_classes, digits.in_channels, digits.image_size) == (10, 1, 8)
    assert len(digits.train_set) + len(digits.test_set) == 1797
    images, labels = next(iter(digits.train_dataloader()))
    assert images.shape == (64, 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_digits_are_scaled_to_mean_zero_and_deviation_one(digits):
    images = torch.stack([x for x, _ in digits.train_set.__getitems__(range(len(digits.train_set)))])
    assert abs(images.mean()) < 1e-5
    assert abs(images.std() - 1) < 1e-3


def test_the_division_of_digits_is_stratified_disjoint_and_the_same_for_every_seed(digits):
    whole = np.bincount(np.concatenate([digits.train_targets, digits.test_set.targets]))
    assert np.abs(np.bincount(digits.train_targets) - 0.8 * whole).max() <= 1
    train, test = ({tuple(x.flatten().tolist()) for x in part.images} for part in (digits.train_set, digits.test_set))
    assert not train & test
    other = ImageData(seed=7)
    assert torch.equal(other.test_set.images, digits.test_set.images)
    assert not torch.equal(ImageData(split_seed=7).test_set.labels, digits.test_set.labels)


def test_there_is_no_validation_loader(digits):
    from pytorch_lightning.utilities.model_helpers import is_overridden

    assert not is_overridden("val_dataloader", digits)


def test_the_data_module_can_be_sent_to_another_process(digits):
    copy = pickle.loads(pickle.dumps(digits))
    assert torch.equal(copy.train_set.images, digits.train_set.images)


# --- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_seed_fixes_order_and_augmentation(workers):
    data = ImageData(augment=True, limit_train=200, num_workers=workers)

    def epoch(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([x for x, _ in data.train_dataloader()])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))


def test_a_subset_with_the_default_collate_gives_the_same_batches_as_item_by_item():
    data = ImageData(limit_train=100)
    indices = [5, 3, 99, 3]
    images, labels = next(iter(DataLoader(Subset(data.eval_train_set, indices), batch_size=4)))
    for image, label, i in zip(images, labels, indices, strict=True):
        assert torch.equal(image, data.eval_train_set[i][0])
        assert label == data.eval_train_set[i][1] == data.train_targets[i]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_the_modules_loader_has_the_bits_of_the_default_collation(workers):
    data = ImageData(augment=True, limit_train=200, num_workers=workers)
    own = data.train_dataloader()
    plain = DataLoader(data.train_set, batch_size=64, shuffle=True, num_workers=workers)

    def epoch(loader: DataLoader) -> list:
        torch.manual_seed(1)
        return list(loader)

    for ours, theirs in zip(epoch(own), epoch(plain), strict=True):
        assert type(ours) is type(theirs) is list
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
            assert (a.dtype, a.is_contiguous()) == (b.dtype, b.is_contiguous())


def test_the_modules_loader_does_not_take_a_batch_apart(digits, monkeypatch):
    def refuse(self):
        raise AssertionError("the batch was taken apart")

    monkeypatch.setattr(Batch, "_examples", property(refuse))
    next(iter(digits.train_dataloader()))
    next(iter(digits.loader(Subset(digits.train_set, range(100)), shuffle=True)))
    with pytest.raises(AssertionError, match="taken apart"):
        next(iter(DataLoader(digits.train_set, batch_size=4)))


def test_a_batch_is_a_sequence_of_examples_and_is_sent_as_a_list(digits):
    batch = digits.test_set.__getitems__([3, 1, -1])
    assert len(batch) == 3
    assert [label for _, label in batch] == [int(digits.test_set.labels[k]) for k in (3, 1, -1)]
    assert type(batch[0][1]) is int
    assert torch.equal(batch[2][0], digits.test_set[len(digits.test_set) - 1][0])
    copy = pickle.loads(pickle.dumps(batch))
    assert type(copy) is list
    assert torch.equal(copy[1][0], batch[1][0])


def test_examples_are_drawn_once_however_often_they_are_looked_at():
    batch = ImageData(augment=True, limit_train=50).train_set.__getitems__(range(50))
    stacked = batch.stacked()[0]
    torch.manual_seed(9)
    assert torch.equal(torch.stack([image for image, _ in batch]), stacked)


def test_a_set_ends_where_its_images_end(digits):
    assert len(list(digits.test_set)) == len(digits.test_set)
    with pytest.raises(IndexError):
        digits.test_set[len(digits.test_set)]


def test_a_users_own_collation_finds_examples(digits):
    loader = DataLoader(digits.train_set, batch_size=4, collate_fn=lambda examples: [y for _, y in examples])
    assert next(iter(loader)) == digits.train_targets[:4].tolist()


def test_a_collation_of_anything_else_is_torchs():
    assert torch.equal(collate([torch.zeros(2), torch.ones(2)]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))


def test_eval_train_set_is_the_training_set_without_augmentation():
    data = ImageData(augment=True, limit_train=50)
    assert torch.equal(data.eval_train_set.labels, data.train_set.labels)
    assert torch.equal(data.eval_train_set[7][0], data.eval_train_set[7][0])
    plain, augmented = (next(iter(data.loader(s, shuffle=False)))[0] for s in (data.eval_train_set, data.train_set))
    assert not torch.equal(plain, augmented)
    assert ImageData(augment=False, limit_train=50).train_set.augment is None


def test_a_test_loader_keeps_the_order(digits):
    labels = torch.cat([y for _, y in digits.test_dataloader()])
    assert np.array_equal(labels.numpy(), digits.test_set.targets)


# --- where images are kept ---------------------------------------------------------------------------------------

META = torch.device("meta")  # stands for an accelerator: what arrives there came by itself, and nothing was read back


def test_what_is_kept_on_a_device_arrives_there_from_the_modules_loaders_alone():
    data = ImageData(augment=True, limit_train=100)
    data.train_set.keep_on(META, others=[data.eval_train_set])
    assert data.train_set.device == data.eval_train_set.device == META
    for part in (data.train_set, data.eval_train_set, Subset(data.eval_train_set, range(70))):
        images, labels = next(iter(data.loader(part, shuffle=True)))
        assert (images.device, images.shape, images.dtype) == (META, (64, 1, 8, 8), torch.float32)
        assert (labels.device, labels.shape, labels.dtype) == (META, (64,), torch.int64)
    for loader in (DataLoader(data.train_set, batch_size=4), DataLoader(data.train_set, batch_size=4, num_workers=1)):
        assert next(iter(loader))[0].device.type == "cpu"
    assert data.train_set[0][0].device.type == data.test_set.device.type == "cpu"
    assert pickle.loads(pickle.dumps(data)).train_set.device.type == "cpu"  # another process has another device
    data.train_set.keep_on(torch.device("cpu"), others=[data.eval_train_set])
    assert next(iter(data.train_dataloader()))[0].device.type == "cpu"


def test_workers_take_nothing_from_a_device():
    data = ImageData(limit_train=100, num_workers=1)
    data.train_set.keep_on(META)
    assert next(iter(data.train_dataloader()))[0].device.type == "cpu"


def test_a_module_keeps_all_its_parts_at_the_place_that_was_found(monkeypatch):
    asked = []
    monkeypatch.setattr("actsearch.data.module.find_place", lambda *args: asked.append(args) or META)
    data = ImageData(limit_train=100, limit_test=50)
    gpu = torch.device("cuda", 1)
    data.place(gpu)
    assert asked == [("auto", gpu, 150 * 64)]  # bytes
    assert {part.device for part in (data.train_set, data.eval_train_set, data.test_set)} == {META}
    assert data.train_set._kept is data.eval_train_set._kept  # one copy
    data.place(META)  # lies there already
    assert len(asked) == 1
    workers = ImageData(limit_train=100, num_workers=1)
    workers.place(gpu)
    assert workers.train_set.device.type == "cpu"


def test_auto_is_the_device_that_trains_if_a_quarter_of_its_free_memory_is_enough(monkeypatch):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 9000))
    assert find_place("auto", gpu, 1000) == gpu
    assert find_place("auto", gpu, 1001) == cpu
    assert find_place("auto", cpu, 1) == find_place("auto", torch.device("mps"), 1) == cpu
    assert find_place("cpu", gpu, 1) == cpu


def test_a_device_that_is_asked_for_is_taken_or_refused(monkeypatch):
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_place("cuda", second, 1) == second
    assert find_place("cuda", torch.device("cpu"), 1) == first
    assert find_place("cuda:1", first, 1) == second
    with pytest.raises(SettingsError, match="there are 2 CUDA devices; use auto") as error:
        find_place("cuda:2", first, 1)
    assert one_line(error)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="device of data is cuda, and there are 0"):
        find_place("cuda", torch.device("cpu"), 1)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "", "mps", "meta"])
def test_a_device_that_makes_no_sense_is_refused(device):
    with pytest.raises(SettingsError, match="must be auto, cpu, cuda or"):
        ImageData(device=device)


def test_images_on_a_device_and_workers_exclude_one_another():
    with pytest.raises(SettingsError, match="set num_workers to 0"):
        ImageData(device="cuda", num_workers=2)
    assert ImageData(device="cpu", num_workers=2).device == "cpu"


def test_text_has_no_device():
    with pytest.raises(SettingsError, match="device is for images"):
        build("python_reference", device="cpu")


class Plain(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_module_is_told_the_device_by_the_trainer_that_it_is_given_to_and_by_the_callback(monkeypatch):
    told = []
    monkeypatch.setattr(ImageData, "place", lambda self, device: told.append((self, device.type)))
    data = ImageData(limit_train=70)
    options = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    data.setup()
    assert told == []
    pl.Trainer(**options, **quiet).fit(Plain(), datamodule=data)
    assert told == [(data, "cpu")]
    other = ImageData(limit_train=70)
    trainer = pl.Trainer(**options, **quiet, callbacks=[PlaceData(other)])
    trainer.fit(Plain(), train_dataloaders=other.train_dataloader())
    assert told[1:] == [(other, "cpu")]
    trainer = pl.Trainer(**options, **quiet, callbacks=[PlaceData(None)])
    trainer.fit(Plain(), train_dataloaders=other.train_dataloader())
    assert len(told) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_images_on_a_gpu_make_the_batches_of_host_memory():
    host, gpu = (ImageData(augment=True, device=device) for device in ("cpu", "cuda"))
    for data in (host, gpu):
        data.place(torch.device("cuda", 0))
    assert gpu.train_set.device.type == "cuda"

    def epoch(data: ImageData) -> list:
        torch.manual_seed(1)
        return list(data.train_dataloader())

    for theirs, ours in zip(epoch(host), epoch(gpu), strict=True):
        assert theirs[0].is_pinned()
        for a, b in zip(theirs, ours, strict=True):
            assert b.is_cuda
            assert torch.equal(a, b.cpu())


# --- augmentation against torchvision ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9)])
def test_each_crop_is_the_one_that_torchvision_cuts_at_the_same_offset(dtype, height, width):
    images = torch.randint(0, 256, (25, 3, height, width)).to(dtype)
    offsets = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    ours = crop(images, offsets, padding=2)
    for image, (top, left), our in zip(images, offsets.tolist(), ours, strict=True):
        theirs = v2.functional.crop(v2.functional.pad(image, [2]), top, left, height, width)
        assert torch.equal(our, theirs)
    flips = torch.arange(25) % 3 == 0
    mirrored = crop(images, offsets, 2, flips)
    assert torch.equal(mirrored, torch.where(flips[:, None, None, None], v2.functional.horizontal_flip(ours), ours))
    assert torch.equal(crop(images, None, 0, ~flips & flips), images)


def test_the_generator_is_read_in_the_order_of_the_transforms():
    """Two seeds that every earlier result rests on: offsets of all images first, then who is mirrored."""
    images = torch.randint(0, 256, (30, 3, 8, 8)).byte()
    torch.manual_seed(4)
    ours = Augment(padding=2, flip=True)(images)
    torch.manual_seed(4)
    offsets, flips = torch.randint(0, 5, (30, 2)), torch.rand(30) < 0.5
    for image, (top, left), flip, our in zip(images, offsets.tolist(), flips.tolist(), ours, strict=True):
        cut = v2.functional.crop(v2.functional.pad(image, [2]), top, left, 8, 8)
        assert torch.equal(our, v2.functional.horizontal_flip(cut) if flip else cut)


def test_batched_augmentation_has_exactly_the_outcomes_of_torchvision_equally_often():
    """18 outcomes (9 crops, mirrored or not) of one image, each within five deviations of its expected count."""
    torch.manual_seed(0)
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 3, 3)
    n = 9000
    ours = Augment(padding=1, flip=True)(image.expand(n, 1, 3, 3))
    outcomes, counts = torch.unique(ours.flatten(1), dim=0, return_counts=True)
    transform = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(3, padding=1)])
    theirs = torch.unique(torch.stack([transform(image).flatten() for _ in range(500)]), dim=0)
    assert torch.equal(outcomes, theirs)
    expected = n / 18
    assert (counts - expected).abs().max() < 5 * expected**0.5


def bytes_of(shape: tuple[int, ...], tmp_path: Path, dtype: type = np.uint8) -> ImageData:
    x = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    return ImageData("npz", root=save(tmp_path, x=x, y=np.arange(shape[0]) % 2), augment="trivial")


@pytest.mark.parametrize("shape", [(40, 1, 8, 8), (40, 3, 9, 8)])
def test_trivial_augment_comes_first(shape, tmp_path):
    data = bytes_of(shape, tmp_path)
    assert data.train_set.augment == Augment(padding=min(shape[2:]) // 8, trivial=True)
    assert data.eval_train_set.augment is None
    images = data.train_set.images
    torch.manual_seed(5)
    ours = data.train_set.augment(images)
    torch.manual_seed(5)
    changed = trivial_augment(images, draw_trivial(len(images)))
    offsets = torch.randint(0, 3, (len(images), 2))
    assert torch.equal(ours, crop(changed, offsets, 1))
    assert ours.dtype == torch.uint8


def test_trivial_augment_draws_from_torch_alone(tmp_path):
    import random

    augment, images = Augment(padding=1, flip=True, trivial=True), torch.randint(0, 256, (60, 3, 8, 8)).byte()

    def outcome(seed: int) -> torch.Tensor:
        torch.manual_seed(1)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        return augment(images)

    assert torch.equal(outcome(1), outcome(2))
    assert not torch.equal(augment(images), augment(images))


def test_trivial_augment_keeps_what_is_standard_for_the_set():
    data = ImageData("cifar10_jpeg", root=shared("vision/cifar10/cifar10_jpeg.npz"), limit_train=20, augment="trivial")
    assert data.train_set.augment == Augment(padding=4, flip=True, trivial=True)
    assert data.train_set[0][0].shape == (3, 32, 32)


def test_standard_is_a_name_for_true_and_others_are_refused(tmp_path):
    standard, true = (ImageData(augment=a, limit_train=50).train_set.augment for a in ("standard", True))
    assert standard == true == Augment(padding=1)
    with pytest.raises(SettingsError, match="did you mean 'trivial'"):
        ImageData(augment="trivail")
    with pytest.raises(SettingsError, match="'trivial' needs images of bytes"):
        bytes_of((40, 1, 8, 8), tmp_path, np.float32).setup()
    with pytest.raises(SettingsError, match=r"'trivial' needs .* with 4"):
        bytes_of((40, 4, 8, 8), tmp_path).setup()
    with pytest.raises(SettingsError, match="feature vectors"):
        bytes_of((40, 8), tmp_path).setup()


# --- subsets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 10, 137, 599, 600])
def test_a_stratified_choice_keeps_shares_and_is_nested(count):
    labels = np.random.default_rng(0).choice(4, size=600, p=[0.6, 0.25, 0.1, 0.05])
    chosen = stratified(labels, count, seed=3)
    assert len(set(chosen)) == count
    shares = np.bincount(labels) * count / len(labels)
    assert np.abs(np.bincount(labels[chosen], minlength=4) - shares).max() <= 2
    assert set(chosen) <= set(stratified(labels, min(count + 50, 600), seed=3))


def test_limits_choose_by_seed():
    a, b, c = (ImageData(limit_train=100, limit_test=50, seed=s) for s in (0, 0, 1))
    assert (len(a.train_set), len(a.test_set)) == (100, 50)
    assert torch.equal(a.train_set.images, b.train_set.images)
    assert not torch.equal(a.train_set.images, c.train_set.images)


@pytest.mark.parametrize("limit", [0, -3, 10_000])
def test_a_limit_that_cannot_be_met_is_an_error(limit):
    with pytest.raises(SettingsError, match=r"limit_train must be from 1 to the 1438"):
        ImageData(limit_train=limit).setup()


# --- names and options -------------------------------------------------------------------------------------------


def test_unknown_names_and_options_say_what_is_known():
    with pytest.raises(UnknownNameError, match="cifar10"):
        ImageData("cifar11")
    with pytest.raises(SettingsError, match="did you mean 'image_size'"):
        ImageData("folder", imagesize=3)
    with pytest.raises(SettingsError, match="options: none"):
        ImageData("mnist", image_size=3)
    with pytest.raises(SettingsError, match="batch_size"):
        ImageData(batch_size=0)


@pytest.mark.parametrize("name", sorted(set(names("images")) - {"digits"}))
def test_a_set_that_is_neither_there_nor_to_be_downloaded_is_named_in_one_line(name, tmp_path):
    root = tmp_path / "data"
    with pytest.raises(DataError, match=str(root)) as error:
        ImageData(name, root=root).setup()
    assert one_line(error)
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]


def test_the_default_root_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ACTSEARCH_DATA", str(tmp_path))
    assert ImageData().root == tmp_path
    monkeypatch.delenv("ACTSEARCH_DATA")
    assert ImageData().root == Path.home() / ".cache" / "actsearch" / "data"


# --- downloads ---------------------------------------------------------------------------------------------------


def test_a_download_that_breaks_off_leaves_nothing(tmp_path):
    def fetch(folder: Path) -> None:
        (folder / "half").write_bytes(b"half of it")
        raise ConnectionResetError("reset\nby peer")

    with pytest.raises(DataError, match=r"Thing: no .*half.*reset by peer.*http://there") as error:
        download_into(tmp_path / "new", fetch, "Thing", tmp_path / "new" / "half", "http://there")
    assert one_line(error)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_download_moves_whole_files_beside_what_is_there(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old").write_text("old")

    def fetch(folder: Path) -> None:
        (folder / "set").mkdir()
        (folder / "set" / "new").write_text("new")

    download_into(tmp_path, fetch, "Thing", tmp_path / "set" / "new", "http://there")
    assert sorted(f.name for f in tmp_path.rglob("*") if f.is_file()) == ["new", "old"]
    assert [f.name for f in tmp_path.iterdir()] == ["set"]


# --- the real files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_the_mnist_family_is_read_where_it_lies(name, folder):
    data = ImageData(name, root=shared(f"vision/{folder}/raw"))
    assert (len(data.train_set), len(data.test_set), data.image_size, data.in_channels) == (60_000, 10_000, 28, 1)
    images = torch.stack([x for x, _ in data.train_set.__getitems__(range(0, 60_000, 20))])
    assert abs(images.mean()) < 0.03  # the published mean and deviation are those of the whole training set
    assert abs(images.std() - 1) < 0.03


def test_semeion_is_read_by_torchvision():
    data = ImageData("semeion", root=shared("vision/semeion.data"))
    assert (len(data.train_set) + len(data.test_set), data.image_size) == (1593, 16)
    assert data.title == "Semeion"


def test_cifar10_as_jpeg_decodes_only_what_is_asked_for_and_does_not_call_itself_cifar10():
    data = ImageData("cifar10_jpeg", root=shared("vision/cifar10/cifar10_jpeg.npz"), limit_train=300, limit_test=20)
    assert data.title == "CIFAR-10 (JPEG)"
    assert np.bincount(data.train_targets).tolist() == [30] * 10
    assert data.train_set.augment == Augment(padding=4, flip=True)
    images, _ = next(iter(data.loader(data.eval_train_set, shuffle=False)))
    assert images.shape == (64, 3, 32, 32)
    assert abs(images.mean()) < 0.3
    lossless = SHARED / "vision" / "cifar10" / "cifar10_batch_0.png"
    if lossless.is_file():  # the first image of the training set, against its lossless original
        chosen = stratified(np.load(SHARED / "vision/cifar10/cifar10_jpeg.npz")["train_label"].astype(int), 300, 0)
        i = next(k for k, index in enumerate(chosen) if index < 1000)
        original = np.asarray(Image.open(lossless)).reshape(1000, 32, 32, 3)[chosen[i]].transpose(2, 0, 1)
        assert np.abs(data.train_set.images[i].numpy().astype(int) - original).mean() < 12


# --- small files of the same formats -----------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_packed_or_not(packed, tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / ("a.gz" if packed else "a")
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    assert np.array_equal(read_idx(path), array)


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(idx(np.zeros((2, 3))))[:-9],
        b"not gzip",
        gzip.compress(b""),
        gzip.compress(b"\0\0\x08\x02\0\0"),
        gzip.compress(idx(np.zeros((2, 3)))[:-1]),
        gzip.compress(b"\0\0\x0d" + idx(np.zeros((2, 3)))[3:]),
        gzip.compress(idx(np.zeros((2, 3))) + b"\0"),
    ],
    ids=["cut off", "not gzip", "empty", "half a header", "too short", "not bytes", "too long"],
)
def test_a_damaged_idx_file_is_named(content, tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"images\.gz") as error:
        read_idx(path)
    assert one_line(error)


def test_kmnist_is_downloaded_whole_and_then_read_where_it_lies(tmp_path, monkeypatch):
    arrays = [np.arange(n * 784).reshape(n, 28, 28) % 251 for n in (3, 2)]
    contents = [idx(arrays[0]), idx(np.arange(3)), idx(arrays[1]), idx(np.arange(2))]
    downloads = []

    def download(self):
        downloads.append(self.raw_folder)
        Path(self.raw_folder).mkdir(parents=True)
        for (name, _), content in zip(self.resources, contents, strict=True):
            (Path(self.raw_folder) / name).write_bytes(gzip.compress(content))
            (Path(self.raw_folder) / name).with_suffix("").write_bytes(content)

    monkeypatch.setattr(datasets.KMNIST, "download", download)
    for _ in range(2):
        data = ImageData("kmnist", root=tmp_path)
        assert np.array_equal(data.train_set.images[:, 0].numpy(), arrays[0])
        assert data.test_set.targets.tolist() == [0, 1]
    assert len(downloads) == 1
    assert [f.name for f in tmp_path.iterdir()] == ["KMNIST"]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_a_cifar10_archive_that_lies_in_the_root_is_unpacked_without_network(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, 12)
    batch = {
        name: pickle.dumps(
            {"data": pixels[2 * i : 2 * i + 2].reshape(2, -1), "labels": labels[2 * i : 2 * i + 2].tolist()}
        )
        for i, name in enumerate(
            ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
        )
    }
    meta = pickle.dumps({"label_names": list("abcdefghij")})
    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in [*batch.items(), ("batches.meta", meta)]:
        (folder / name).write_bytes(content)
    root = tmp_path / "root"
    root.mkdir()
    archive = root / datasets.CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    sums = [[name, md5(content)] for name, content in batch.items()]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5(meta)})
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive.read_bytes()))

    data = ImageData("cifar10", root=root)
    assert np.array_equal(data.train_set.images.numpy(), pixels[:10])
    assert np.array_equal(data.test_set.images.numpy(), pixels[10:])
    assert np.array_equal(data.train_targets, labels[:10])
    assert archive.is_file()
    assert not archive.is_symlink()
    assert sorted(f.name for f in root.iterdir()) == ["cifar-10-batches-py", archive.name]


def test_svhn_comes_channels_first_with_zero_for_the_digit_zero(tmp_path, monkeypatch):
    from scipy.io import savemat

    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    parts = {}
    for part in ("train", "test"):
        file = tmp_path / f"{part}_32x32.mat"
        savemat(file, {"X": pixels.transpose(2, 3, 1, 0), "y": np.array([[10], [1], [2], [3], [9]], dtype=np.uint8)})
        parts[part] = ["http://there", file.name, md5(file.read_bytes())]
    monkeypatch.setattr(datasets.SVHN, "split_list", parts)
    data = ImageData("svhn", root=tmp_path)
    assert np.array_equal(data.train_set.images.numpy(), pixels)
    assert data.train_targets.tolist() == [0, 1, 2, 3, 9]
    assert data.train_set.augment == Augment(padding=4, flip=False)


# --- a user's own data -------------------------------------------------------------------------------------------


def save(tmp_path: Path, **arrays) -> Path:
    np.savez(tmp_path / "own.npz", **arrays)
    return tmp_path / "own.npz"


Y = np.arange(20) % 2


@pytest.mark.parametrize(
    ("shape", "channels", "size"),
    [
        ((20, 8, 8), 1, 8),
        ((20, 3, 8, 9), 3, (8, 9)),
        ((20, 8, 8, 3), 3, 8),
        ((20, 1, 8, 8), 1, 8),
        ((20, 7), 7, 1),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.int64, np.bool_])
def test_own_arrays_in_every_layout(shape, channels, size, dtype, tmp_path):
    x = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    data = ImageData("npz", root=save(tmp_path, x_train=x, y_train=Y, x_test=x[:4], y_test=Y[:4]))
    assert (data.num_classes, data.in_channels, data.image_size) == (2, channels, size)
    batch, labels = next(iter(data.test_dataloader()))
    assert batch.shape[:2] == (4, channels)
    assert batch.dtype == torch.float32
    assert labels.tolist() == Y[:4].tolist()
    if x.ndim == 4 and shape[1] == 8:
        ours = data.test_set.images.numpy().transpose(0, 2, 3, 1)
        assert np.array_equal(ours, x[:4])


def test_own_arrays_without_a_test_part_are_divided(tmp_path):
    data = ImageData("npz", root=save(tmp_path, x=np.zeros((20, 3)), y=Y[:, None]))
    assert (len(data.train_set), len(data.test_set)) == (16, 4)
    assert torch.isfinite(data.train_set[0][0]).all()  # constant features do not divide by zero
    with pytest.raises(SettingsError, match="feature vectors"):
        ImageData("npz", root=data.root, augment=True).setup()


X = np.zeros((20, 8, 8))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"a": X}, "it holds a"),
        ({}, "it holds nothing"),
        ({"x": X, "y": Y + 1}, "labels must be 0"),
        ({"x": X, "y": Y * 2}, "labels must be 0"),
        ({"x": X, "y": Y * 0}, "labels must be 0"),
        ({"x": X, "y": Y + 0.5}, "one integer"),
        ({"x": X, "y": np.eye(2)[Y]}, "one integer"),
        ({"x": X, "y": Y.astype(str)}, "one integer"),
        ({"x": X, "y": Y[:3]}, "as long as"),
        ({"x": X[:0], "y": Y[:0]}, "not empty"),
        ({"x": X * np.nan, "y": Y}, "finite"),
        ({"x": X.astype(str), "y": Y}, "real numbers"),
        ({"x": X[:, :3, :3, None].repeat(3, 3), "y": Y}, "NCHW or NHWC"),
        ({"x": X[..., None].repeat(5, 3), "y": Y}, "must be"),
        ({"x": X[:, 0, 0], "y": Y}, "must be"),
        ({"x": np.zeros((20, 0)), "y": Y}, "must be"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :4], "y_test": Y}, "agree in shape"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1}, "test part only"),
        ({"x": np.array([{}] * 20), "y": Y}, "plain arrays"),
    ],
)
def test_odd_arrays_are_refused_with_the_reason(arrays, says, tmp_path):
    with pytest.raises(DataError, match=says) as error:
        ImageData("npz", root=save(tmp_path, **arrays)).setup()
    assert one_line(error)
    assert "own.npz" in str(error.value)


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "own.npz").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"cannot read .*own\.npz"):
        ImageData("npz", root=tmp_path / "own.npz").setup()


def write_images(root: Path, classes=("cat", "dog"), parts=("train", "test")) -> None:
    for part in parts:
        for shade, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB" if i else "L", (20 + i, 30), color=(shade * 200,) * 3 if i else shade * 200).save(
                    root / part / name / f"{i}.png"
                )


def test_a_folder_of_images_is_resized_and_labelled_by_its_folders(tmp_path):
    write_images(tmp_path)
    data = ImageData("folder", root=tmp_path, image_size=16)
    assert (data.num_classes, data.in_channels, data.image_size) == (2, 3, 16)
    assert data.train_targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_set.images[:, 0, 8, 8].tolist() == [0, 0, 0, 200, 200, 200]
    assert data.train_set.augment == Augment(padding=2, flip=True)


def test_odd_image_folders_are_refused_with_the_reason(tmp_path):
    write_images(tmp_path, parts=["train"])
    with pytest.raises(DataError, match="test/<class>"):
        ImageData("folder", root=tmp_path).setup()
    write_images(tmp_path, classes=("cat", "cow"), parts=["test"])
    with pytest.raises(DataError, match="cow, dog"):
        ImageData("folder", root=tmp_path).setup()
    (tmp_path / "test" / "cow").rename(tmp_path / "test" / "dog")
    (tmp_path / "test" / "dog" / "2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2\.png cannot be read"):
        ImageData("folder", root=tmp_path).setup()
