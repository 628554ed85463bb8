"""Epochs: every image once, in an order and with changes that seed and epoch alone decide."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("psutil", reason="needs psutil")

import torch

from training.data.training_folders import class_folders, classifier, coco, detector, picture
from vitesse.data.images import decode_image
from vitesse.data.preprocess import prepare
from vitesse.errors import DataError
from vitesse.spec import Resize
from vitesse.training.data import Augmentation, open_training

CPU = torch.device("cpu")
SCENES = [[(0, [4, 8, 12, 16])], [], [(1, [0, 0, 48, 32]), (0, [24, 16, 6, 4])], [(1, [10, 10, 10, 10])]] * 2


def same(one, other) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.images, b.images) for a, b in pairs)


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"size": (24, 64)},
        {"resize": Resize.LETTERBOX, "size": (40, 40)},
        {"resize": Resize.CROP, "size": (16, 16), "crop_ratio": 0.8},
        {"resize": Resize.LETTERBOX, "size": (20, 64), "color": "BGR", "layout": "NHWC"},
    ],
    ids=["as it is", "stretched", "letterbox", "crop", "letterbox BGR NHWC"],
)
def test_training_sees_what_validation_sees(tmp_path, rules):
    spec = detector(**rules)
    data = open_training(coco(tmp_path, SCENES), spec, augment=False)
    (batch,) = data.epoch(0, 8, CPU)
    order = np.random.default_rng((0, 0, 0)).permutation(8)
    for tensor, index in zip(batch.images, order, strict=True):
        wanted = prepare(decode_image(tmp_path / "train" / f"{index}.png"), spec)
        wanted = wanted.transpose(2, 0, 1) if spec.preprocessing.layout == "NHWC" else wanted
        # padding is a mean colour of 8 bits, all else is the same but for the order of roundings
        assert np.abs(tensor.numpy() - wanted).max() < 0.012
        assert np.median(np.abs(tensor.numpy() - wanted)) < 1e-5


def test_boxes_lie_where_the_resized_image_has_them(tmp_path):
    spec = detector(resize=Resize.LETTERBOX, size=(64, 48))  # 48×32 fills the upper half
    data = open_training(coco(tmp_path, SCENES[:4]), spec, augment=False)
    (batch,) = data.epoch(0, 4, CPU)
    found = {len(one.labels): one for one in batch.objects}
    assert sorted(len(one.labels) for one in batch.objects) == [0, 1, 1, 2]
    assert found[2].labels.tolist() == [1, 0]
    expected = [[0.5, 0.25, 1.0, 0.5], [27 / 48, 18 / 64, 6 / 48, 4 / 64]]
    assert found[2].boxes.tolist() == [pytest.approx(box) for box in expected]
    assert found[2].boxes.dtype == torch.float32
    assert found[2].labels.dtype == torch.int64


def test_an_epoch_takes_every_image_once_and_drops_a_short_last_batch(tmp_path):
    data = open_training(class_folders(tmp_path, 5), classifier(), augment=False)
    assert [len(batch) for batch in data.epoch(0, 4, CPU)] == [4, 4]
    assert [len(batch) for batch in data.epoch(0, 64, CPU)] == [10]
    seen = torch.cat([batch.images for batch in data.epoch(3, 5, CPU)])
    assert len(seen.flatten(1).unique(dim=0)) == 10


def test_seed_and_epoch_decide_order_and_changes(tmp_path):
    class_folders(tmp_path, 8)
    data = open_training(tmp_path, classifier(), seed=5)
    first = list(data.epoch(1, 4, CPU))
    assert same(first, open_training(tmp_path, classifier(), seed=5).epoch(1, 4, CPU))
    assert not same(first, data.epoch(2, 4, CPU))
    assert not same(first, open_training(tmp_path, classifier(), seed=6).epoch(1, 4, CPU))


def test_without_augmentation_the_same_images_come_in_the_same_order_as_they_are(tmp_path):
    data = open_training(class_folders(tmp_path, 8), classifier())
    plain = data.without_augmentation()
    changed, kept = (list(source.epoch(0, 4, CPU)) for source in (data, plain))
    assert not same(changed, kept)
    assert [a.labels.tolist() for a in changed] == [b.labels.tolist() for b in kept]
    assert same(kept, open_training(tmp_path, classifier(), augment=False).epoch(0, 4, CPU))


def test_mirrored_scenes_bring_their_boxes_along(tmp_path):
    how = Augmentation(shift=0, zoom=1, brightness=0, contrast=0)
    data = open_training(coco(tmp_path, SCENES), detector(), augment=how)
    (kept,) = data.without_augmentation().epoch(0, 8, CPU)
    (batch,) = data.epoch(0, 8, CPU)
    mirrored = 0
    for index, (before, after) in enumerate(zip(kept.objects, batch.objects, strict=True)):
        flipped = torch.allclose(batch.images[index], kept.images[index].flip(-1), atol=1e-3)
        assert flipped or torch.allclose(batch.images[index], kept.images[index], atol=1e-3)
        centre = 1 - before.boxes[:, 0] if flipped else before.boxes[:, 0]
        torch.testing.assert_close(after.boxes[:, 0], centre)
        torch.testing.assert_close(after.boxes[:, 1:], before.boxes[:, 1:])
        mirrored += flipped
    assert 0 < mirrored < 8


def test_images_that_do_not_fit_into_memory_are_decoded_each_epoch_and_are_the_same(tmp_path):
    class_folders(tmp_path, 16)
    held = open_training(tmp_path, classifier())
    decoded = open_training(tmp_path, classifier(), memory_mb=0.001)
    assert held.notes == ()
    assert "the images fill 0 MB, more than the 0 MB set aside" in decoded.notes[0]
    assert same(held.epoch(0, 4, CPU), decoded.epoch(0, 4, CPU))
    assert same(held.epoch(1, 4, CPU), decoded.epoch(1, 4, CPU))


def test_an_epoch_that_is_left_early_leaves_no_thread_and_a_file_that_vanished_is_named(tmp_path):
    data = open_training(class_folders(tmp_path, 16), classifier(), memory_mb=0)
    epoch = data.epoch(0, 2, CPU)
    assert len(next(epoch)) == 2
    epoch.close()
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"no image at .*\.png"):
        list(data.epoch(0, 2, CPU))


def test_the_same_picture_is_changed_anew_in_every_batch_and_epoch(tmp_path):
    for index in range(4):
        picture(tmp_path / "cat" / f"{index}.png", 0, (16, 16))
    data = open_training(tmp_path, classifier())
    seen = [batch.images.flatten() for epoch in (0, 1) for batch in data.epoch(epoch, 1, CPU)]
    assert len(torch.stack(seen).unique(dim=0)) == 8
