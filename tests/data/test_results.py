import sys

import numpy as np
import pytest

from vitesse.data.results import Classification, Detections
from vitesse.errors import MissingExtra

FOUND = Detections(
    np.array([[1, 2, 30, 40], [5, 6, 7, 8]], np.float32),
    np.array([0.9, 0.3], np.float32),
    np.array([4, 1]),
    ("coat", "shirt"),
)


def test_above_keeps_what_scores_enough_with_its_name() -> None:
    kept = FOUND.above(0.3)
    assert len(kept) == 2, "the threshold itself is enough"
    kept = FOUND.above(0.5)
    assert (kept.names, kept.labels.tolist(), kept.boxes_xyxy.tolist()) == (("coat",), [4], [[1, 2, 30, 40]])


def test_drawing_leaves_the_image_as_it_was_and_changes_the_copy() -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    drawn = np.asarray(FOUND.draw(image))
    assert (image == 128).all()
    assert (drawn != 128).any()
    caption = Classification(np.array([1]), np.array([0.8], np.float32), ("shirt",)).draw(image)
    assert (np.asarray(caption) != 128).any()


def test_without_supervision_the_pip_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vitesse\[supervision\]'"):
        FOUND.to_supervision()


def test_supervision_gets_boxes_scores_classes_and_names() -> None:
    pytest.importorskip("supervision", reason="needs supervision: pip install 'vitesse[supervision]'")
    given = FOUND.to_supervision()
    assert given.xyxy.tolist() == FOUND.boxes_xyxy.tolist()
    assert given.class_id.tolist() == [4, 1]
    assert given.confidence.tolist() == pytest.approx([0.9, 0.3])
    assert given["class_name"].tolist() == ["coat", "shirt"]
