"""Fixed views: augmentations that come back, under names that say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_nuscenes_dataset import Draw, made_up

from mmdet3d.datasets import CBGSDataset, FrameDataset
from mmdet3d.datasets.transforms.images import GridMask
from mmdet3d.datasets.transforms.paste import ObjectPaste, ObjectSource
from mmdet3d.structures import Batch

FRAMES = [["car"], ["bus"], ["car", "bus"], []]
PASTE = ObjectSource("db.pkl", {"car": 2})


def augmented(root: Path, **arguments: object) -> FrameDataset:
    return made_up(FRAMES, root, Draw(), **arguments)


def drawn(dataset: FrameDataset | CBGSDataset, epoch: int) -> list[tuple]:
    dataset.set_epoch(epoch)
    return [(sample.token, sample.meta["draw"]) for sample in dataset]


def names(dataset: FrameDataset | CBGSDataset, epoch: int = 0) -> list[str | None]:
    dataset.set_epoch(epoch)
    return [sample.view for sample in dataset]


def test_views_come_back_whatever_the_seed(tmp_path: Path) -> None:
    one, other = (augmented(tmp_path, views=2, seed=seed) for seed in (0, 7))
    shown = [drawn(one, epoch) for epoch in range(4)]
    assert shown[:2] == shown[2:] and shown[0] != shown[1]
    assert shown == [drawn(other, epoch) for epoch in range(4)]
    assert one.views == 2


def test_without_views_samples_are_as_they_were(tmp_path: Path) -> None:
    dataset = augmented(tmp_path, seed=3)
    dataset.set_epoch(5)
    stream = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((3, 5, 1))))
    assert dataset[1].meta["draw"] == stream.randint(1 << 30)
    assert names(dataset) == [None] * 4 and dataset.views is None


def test_the_name_is_of_the_sample_with_its_augmentation(tmp_path: Path) -> None:
    dataset = augmented(tmp_path, views=2)
    seen: dict[str, tuple] = {}
    for epoch in range(4):
        for name, content in zip(names(dataset, epoch), drawn(dataset, epoch), strict=True):
            assert seen.setdefault(name, content) == content
    # The frame without objects gives way to another one, whose own view it is not.
    assert len(seen) == 8 and len(set(seen.values())) == 8
    digests, rest = zip(*(name.split("/") for name in seen), strict=True)
    assert len(set(digests)) == 1 and sorted(rest)[:2] == ["t0.0.0", "t0.0.1"]
    batch = Batch.collate([dataset[0], dataset[1]])
    assert batch.views == names(dataset, 3)[:2] and batch.alone(1).views == batch.views[1:]


def test_samples_without_augmentation_are_named_by_their_frame(tmp_path: Path) -> None:
    plain = made_up(FRAMES, tmp_path)
    first, later = names(plain, 0), names(plain, 1)
    assert [name.split("/")[1] for name in first[:3]] == ["t0", "t1", "t2"] and first[:3] == later[:3]
    assert names(made_up(FRAMES, tmp_path, views=3))[:3] == first[:3]


def test_other_data_has_other_names(tmp_path: Path) -> None:
    def digest(*steps: object, **changes: object) -> str:
        return made_up(FRAMES, tmp_path, *steps, **changes)[0].view.split("/")[0]

    same = digest(content={"info_file": "a"})
    assert same == digest(content={"info_file": "a"}, seed=4)
    for other in (
        digest(content={"info_file": "b"}),
        digest({"type": "ObjectNameFilter", "classes": ["car", "bus"]}, content={"info_file": "a"}),
        digest(content={"info_file": "a"}, filter_empty_gt=False),
    ):
        assert other != same


def test_repeated_frames_have_views_of_their_own_that_seeds_share(tmp_path: Path) -> None:
    one, other = (CBGSDataset(augmented(tmp_path, views=1, seed=seed)) for seed in (0, 7))
    assert one.indices == other.indices and one.views == 1
    assert drawn(one, 0) == drawn(other, 3) and len(set(names(one))) == len(one)
    free = [CBGSDataset(augmented(tmp_path, seed=seed)) for seed in (0, 7)]
    assert drawn(free[0], 0) != drawn(free[1], 0)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (GridMask(fixed_prob=False), "views: 2 .* GridMask changes with the epoch; set fixed_prob: true, or views"),
        (ObjectPaste(PASTE, stop_epoch=15), r"ObjectPaste changes with the epoch; set stop_epoch: -1 \(never paste\)"),
    ],
)
def test_what_changes_with_the_epoch_is_refused(tmp_path: Path, transform, message: str) -> None:
    made_up(FRAMES, tmp_path, transform)
    with pytest.raises(ValueError, match=message):
        made_up(FRAMES, tmp_path, transform, views=2)


def test_what_does_not_change_with_the_epoch_is_taken(tmp_path: Path) -> None:
    made_up(FRAMES, tmp_path, GridMask(), GridMask(prob=0.0, fixed_prob=False), ObjectPaste(PASTE, -1), views=2)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_wrong_numbers_are_refused(tmp_path: Path, count: object) -> None:
    with pytest.raises(ValueError, match="views must be a positive number"):
        augmented(tmp_path, views=count)
