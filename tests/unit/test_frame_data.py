"""FrameData: the data module of force fields, its batches and what searches and trainers do with it."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from torch import nn
from torch.utils.data import Subset

from actsearch import data, models
from actsearch.data import FrameData
from actsearch.data.frames import FrameSet, frameset
from actsearch.errors import DataError, SettingsError, UnknownNameError
from actsearch.forcefield.frames import Frame, FrameBatch
from actsearch.search.batches import SeededBatches
from actsearch.search.loader import PairLoader, check_template
from actsearch.search.split import labels_of, split


def write_frames(path: Path, count: int, seed: int, energy_of: dict[str, float] | None = None) -> None:
    """Molecules OHH and clusters of four Cu in a small cell, in turn; energies are sums of -1 for H, -8 for O, -29."""
    rng = np.random.default_rng(seed)
    energies = energy_of or {"H": -1.0, "O": -8.0, "Cu": -29.0}
    text = ""
    for k in range(count):
        symbols = ["O", "H", "H"] if k % 2 == 0 else ["Cu"] * 4
        cell = "" if k % 2 == 0 else 'Lattice="3.6 0 0 0.3 3.6 0 0 0 3.6" pbc="T T T" '
        energy = sum(energies[s] for s in symbols)
        text += f"{len(symbols)}\n{cell}Properties=species:S:1:pos:R:3:forces:R:3 energy={energy}\n"
        for s in symbols:
            text += f"{s} " + " ".join(f"{x:.6f}" for x in rng.uniform(0, 3.6, 6)) + "\n"
    path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_frames(tmp_path / "train.xyz", 40, 0)
    write_frames(tmp_path / "test.xyz", 12, 1)
    return tmp_path


def build(root: Path, **options: Any) -> FrameData:
    module = data.build("xyz", root=str(root), **{"test": "test.xyz", "batch_size": 4, **options})
    assert isinstance(module, FrameData)
    return module


def same(a: FrameBatch, b: FrameBatch) -> bool:
    def equal(x: Any, y: Any) -> bool:
        return torch.equal(x.nan_to_num(-1e9), y.nan_to_num(-1e9)) if isinstance(x, torch.Tensor) else bool(x == y)

    return all(equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_facts_tell_elements_cutoff_references_and_a_sample(root: Path) -> None:
    module = build(root, cutoff=4.0)
    facts = module.facts
    assert facts["elements"] == (1, 8, 29)
    assert facts["cutoff"] == 4.0
    # Water does not tell O from H: -10 is shared 1 to 2 by the counts.
    assert facts["references"] == pytest.approx({1: -4, 8: -2, 29: -29})
    assert len(facts["sample"]) == 32
    assert facts["sample"].cutoff == 4.0
    assert module.kind == "force_field"
    assert (len(module.train_set), len(module.test_set)) == (40, 12)
    assert module.eval_train_set is module.train_set


def test_the_sample_spreads_over_the_training_frames(root: Path) -> None:
    module = build(root)
    sample = module.facts["sample"]
    ends = [torch.as_tensor(module.train_set.frames[k].positions, dtype=torch.float32) for k in (0, -1)]
    assert torch.equal(sample.positions[:3], ends[0])
    assert torch.equal(sample.positions[-4:], ends[1])
    assert len(build(root, limit_train=5).facts["sample"]) == 5


def test_references_may_be_those_of_isolated_atoms(root: Path) -> None:
    (root / "alone.xyz").write_text(
        "".join(f"1\nenergy={e}\n{s} 0 0 0\n" for s, e in [("H", -1), ("O", -8), ("Cu", -29)])
    )
    assert build(root, isolated="alone.xyz", references="isolated").references == {1: -1, 8: -8, 29: -29}
    with pytest.raises(DataError, match=r"isolated atoms of elements \[1, 8, 29\]: use references=least_squares"):
        _ = build(root, references="isolated").references
    with pytest.raises(SettingsError, match="did you mean 'isolated'"):
        build(root, references="isolatd")


def test_items_are_batches_of_one_frame_with_the_neighbours_that_ase_finds(root: Path) -> None:
    module = build(root, cutoff=4.5)
    for k in range(6):
        item, frame = module.train_set[k], module.train_set.frames[k]
        assert isinstance(item, FrameBatch)
        assert len(item) == 1
        atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
        expected = {(i, j, *s) for i, j, s in zip(*neighbor_list("ijS", atoms, 4.5), strict=True)}
        found = zip(item.centre.tolist(), item.neighbour.tolist(), item.shift.tolist(), strict=True)
        assert {(i, j, *s) for i, j, s in found} == expected
        assert len(item.centre) == len(expected)
        assert item.energy.dtype == torch.float64
        assert item.energy.item() == frame.energy
        assert torch.equal(item.forces, torch.as_tensor(frame.forces, dtype=torch.float32))
        assert item.stress.isnan().all()


def test_loaders_join_frames_of_different_sizes(root: Path) -> None:
    module = build(root)
    batches = list(module.test_dataloader())
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert batches[0].sizes.tolist() == [3, 4, 3, 4]
    assert batches[0].energy.tolist() == [-10, -116, -10, -116]
    assert (batches[0].frame[batches[0].centre] == batches[0].frame[batches[0].neighbour]).all()
    torch.manual_seed(0)
    energies = torch.cat([batch.energy for batch in module.train_dataloader()])
    assert sorted(energies.tolist()) == [-116] * 20 + [-10] * 20
    assert energies.tolist() != [-10, -116] * 20


def test_workers_give_the_same_batches(root: Path) -> None:
    here, there = build(root), build(root, num_workers=2)
    assert all(same(a, b) for a, b in zip(here.test_dataloader(), there.test_dataloader(), strict=True))


def test_neighbours_are_found_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def counted(frame: Frame, cutoff: float) -> FrameBatch:
        found.append(frame)
        return frameset_alone(frame, cutoff)

    frameset_alone = frameset.alone
    monkeypatch.setattr(frameset, "alone", counted)
    module = build(root)
    assert len(module.test_set) == 12
    assert not found
    for _ in range(3):
        list(module.test_dataloader())
    assert len(found) == 12
    torch.set_default_dtype(torch.float64)
    try:
        assert module.test_set[0].positions.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert module.test_set[0].positions.dtype == torch.float32


def test_a_set_can_be_pickled_and_goes_without_its_neighbours(root: Path) -> None:
    train = build(root).train_set
    before = len(pickle.dumps(train))
    item = train[3]
    assert len(pickle.dumps(train)) == before
    again = pickle.loads(pickle.dumps(train))
    assert isinstance(again, FrameSet)
    assert same(again[3], item)
    assert same(pickle.loads(pickle.dumps(item)), item)


def test_negative_places_and_places_beyond_the_end_are_those_of_a_list(root: Path) -> None:
    train = build(root).train_set
    assert train[-1] is train[39]
    with pytest.raises(IndexError):
        train[40]


def test_limits_keep_the_proportion_of_kinds_the_order_and_each_other(root: Path) -> None:
    def places(limit: int | None, seed: int = 0) -> list[int]:
        module = build(root, limit_train=limit, seed=seed)
        full = [frame.positions.tobytes() for frame in build(root).train_set.frames]
        return [full.index(frame.positions.tobytes()) for frame in module.train_set.frames]

    ten, twenty = places(10), places(20)
    assert ten == sorted(ten)
    assert sum(k % 2 for k in ten) == 5
    assert set(ten) < set(twenty)
    assert places(10) == ten != places(10, seed=1)
    assert len(build(root, limit_test=6).test_set) == 6
    for setting in "limit_train", "limit_test":
        for limit in 0, 1000:
            with pytest.raises(SettingsError, match=rf"{setting} must be from 1 to the"):
                _ = build(root, **{setting: limit}).train_set


def test_no_test_frame_is_in_training(root: Path) -> None:
    module = build(root, test=None, test_fraction=0.25)
    train = {frame.positions.tobytes() for frame in module.train_set.frames}
    assert (len(train), len(module.test_set)) == (30, 10)
    assert not train & {frame.positions.tobytes() for frame in module.test_set.frames}
    with pytest.raises(DataError, match="40 frames of the test part are in training too"):
        _ = build(root, test="train.xyz").train_set
    # Another seed chooses other subsets, never another division.
    other = build(root, test=None, test_fraction=0.25, seed=5)
    assert {frame.positions.tobytes() for frame in other.train_set.frames} == train


def test_elements_of_the_test_part_alone_are_refused(root: Path) -> None:
    (root / "train.xyz").write_text("2\nenergy=-2\nH 0 0 0\nH 0 0 0.7\n" * 3)
    with pytest.raises(DataError, match=r"elements \[8, 29\] occur in the test part only"):
        _ = build(root).train_set


def test_settings_that_cannot_be_are_refused(root: Path) -> None:
    with pytest.raises(SettingsError, match="a cutoff is a distance"):
        build(root, cutoff=0.0)
    with pytest.raises(SettingsError, match="batch_size"):
        build(root, batch_size=0)
    with pytest.raises(SettingsError, match="unknown option of data set rmd17 'molecul'; did you mean 'molecule'"):
        data.build("rmd17", molecul="ethanol")
    with pytest.raises(SettingsError, match="augment is for images; the data set water holds frames"):
        data.build("water", augment=True)
    with pytest.raises(SettingsError, match="cutoff is for frames; the data set digits holds images"):
        data.build("digits", cutoff=5.0)
    with pytest.raises(UnknownNameError, match="ethanol"):
        data.build("etanol")


def test_frames_have_names() -> None:
    assert data.names("frames") == ["ani1", "copper", "deepmd", "ethanol", "mlearn", "rmd17", "water", "xyz"]


@pytest.mark.parametrize(("name", "says"), [
    ("water", "data_0/type.raw .*deepmd-kit"), ("rmd17", "12672038"), ("mlearn", "mlearn"), ("ani1", "figshare"),
])  # fmt: skip
def test_missing_files_say_where_they_come_from(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        data.build(name, root=str(tmp_path)).prepare_data()
    assert "set root" in str(caught.value)
    assert "ACTSEARCH_DATA" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_module_imports_an_optional_package_of_force_fields_before_it_is_needed() -> None:
    optional = {"ase", "chgnet", "h5py", "tblite", "torchani", "vesin"}
    for path in Path(data.__file__).parents[1].rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not optional & {name.split(".")[0] for name in names}, path


def test_a_model_is_handed_the_facts_of_frames(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def potential(
        elements: tuple[int, ...], cutoff: float, references: dict[int, float], sample: FrameBatch, width: int = 3
    ) -> nn.Module:
        given.update(elements=elements, cutoff=cutoff, references=references, sample=sample, width=width)
        return nn.Identity()

    monkeypatch.setitem(models._BUILDERS, "some_potential", potential)
    module = build(root)
    models.build("some_potential", module.facts, width=7)
    assert given["elements"] == (1, 8, 29)
    assert given["sample"] is module.facts["sample"]
    assert given["width"] == 7
    with pytest.raises(SettingsError, match=r"some_potential needs frames \(elements, cutoff, references, sample\)"):
        models.build("some_potential", {"num_classes": 10})
    with pytest.raises(SettingsError, match="mlp needs images"):
        models.build("mlp", module.facts)


# --- searches and trainers ---------------------------------------------------------------------------------------


def test_a_search_splits_each_kind_of_frames_in_proportion(root: Path) -> None:
    train = build(root).train_set
    labels = labels_of(train)
    assert labels is not None
    assert labels.tolist() == [0, 1] * 20
    weights, arch = split(len(train), 0.25, 0, labels)
    assert [labels[arch].tolist().count(kind) for kind in (0, 1)] == [5, 5]
    assert sorted([*weights, *arch]) == list(range(40))


def test_a_search_draws_pairs_of_batches_of_frames(root: Path) -> None:
    module = build(root)
    template = module.train_dataloader()
    check_template(template)
    weights, arch = split(len(module.train_set), 0.25, 0, labels_of(module.train_set))
    loader = PairLoader(template, weights.tolist(), arch.tolist(), seed=0, epoch=lambda: 0)
    pairs = list(loader)
    assert len(pairs) == len(loader) == 8
    drawn = torch.cat([pair["weights"].positions for pair in pairs])
    own = torch.cat([module.train_set[int(k)].positions for k in weights])
    assert torch.equal(drawn.sort(dim=0).values, own.sort(dim=0).values)
    for pair, again in zip(pairs, loader, strict=True):
        assert all(len(pair[part]) <= 4 and same(pair[part], again[part]) for part in ("weights", "arch"))


def test_seeded_batches_depend_on_seed_and_epoch_alone(root: Path) -> None:
    loader = build(root).train_dataloader()
    first, again, other = (list(SeededBatches(loader, seed, lambda: 0)) for seed in (0, 0, 1))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a.energy, b.energy) for a, b in zip(first, other, strict=True))


def test_a_subset_can_be_loaded(root: Path) -> None:
    module = build(root)
    (batch,) = module.loader(Subset(module.eval_train_set, [1, 3]), shuffle=False)
    assert batch.sizes.tolist() == [4, 4]


class _Sum(pl.LightningModule):
    """Learns one energy an atom; notes where its batches are."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Parameter(torch.zeros(()))
        self.devices: set[torch.device] = set()

    def training_step(self, batch: FrameBatch, index: int) -> torch.Tensor:
        self.devices.add(batch.positions.device)
        return ((batch.energy - self.energy * batch.sizes) ** 2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def test_lightning_trains_on_frames_and_moves_them_to_its_device(root: Path) -> None:
    module, learner = build(root), _Sum()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(learner, datamodule=module)
    assert learner.energy.item() < -1
    assert learner.devices == {torch.device("cpu")}
    moved = learner.transfer_batch_to_device(module.train_set[0], torch.device("meta"), 0)
    assert isinstance(moved, FrameBatch)
    assert moved.positions.is_meta
    assert moved.cutoff == module.cutoff


def test_real_sets_are_found_in_the_folder_of_all_data(data_root: Path) -> None:
    if not (data_root / "forcefield").is_dir():
        pytest.skip("no force fields among the development data")
    for name, options, elements in [
        ("water", {}, (1, 8)),
        ("rmd17", {"molecule": "aspirin", "split": 2}, (1, 6, 8)),
        ("mlearn", {"element": "Mo"}, (42,)),
        ("ani1", {}, (1, 6, 7, 8)),
    ]:
        module = data.build(name, root=str(data_root), limit_train=40, limit_test=8, batch_size=4, **options)
        assert isinstance(module, FrameData)
        assert module.elements == elements
        totals = [sum(module.references[int(z)] for z in f.numbers) for f in module.train_set.frames]
        rest = np.array([f.energy for f in module.train_set.frames]) - totals
        per_atom = rest / [len(f.numbers) for f in module.train_set.frames]
        assert abs(per_atom.mean()) < 1
        assert np.abs(per_atom).max() < 2
        (batch, _) = module.test_dataloader()
        assert len(batch) == 4
        assert batch.vectors().norm(dim=1).max() < module.cutoff
        assert torch.isfinite(batch.forces).all()
