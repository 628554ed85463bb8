from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitesse.data.results import Classification, Detections
from vitesse.errors import StorageError, UsageError
from vitesse.predict import save_picture, show

FOUND = Detections(
    np.array([[1, 2, 30, 40], [5, 6, 7, 8]], np.float32),
    np.array([0.9, 0.3], np.float32),
    np.array([0, 1]),
    ("cat", "dog"),
)


def test_detections_below_the_threshold_are_not_shown() -> None:
    text = show(FOUND, Path("a.jpg"), threshold=0.5, as_json=False)
    assert text.splitlines() == ["a.jpg", "  0.900  cat                   1.0     2.0    30.0    40.0"]
    assert "nothing scores 0.95 or more" in show(FOUND, Path("a.jpg"), threshold=0.95, as_json=False)


def test_json_is_one_object_a_line() -> None:
    text = show(FOUND, Path("a.jpg"), threshold=0.1, as_json=True)
    assert text == (
        '{"image": "a.jpg", "results": [{"label": "cat", "score": 0.9, "box_xyxy": [1.0, 2.0, 30.0, 40.0]}, '
        '{"label": "dog", "score": 0.3, "box_xyxy": [5.0, 6.0, 7.0, 8.0]}]}'
    )


def test_a_classification_shows_its_first_five() -> None:
    result = Classification(np.arange(7), np.linspace(0.7, 0.1, 7).astype(np.float32), tuple("abcdefg"))
    lines = show(result, Path("a.jpg"), threshold=0.5, as_json=False).splitlines()
    assert len(lines) == 6
    assert lines[1] == "  0.700  a"


def test_an_unknown_picture_format_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4))
    with pytest.raises(UsageError, match=r"suffix of .*boxes\.xyz"):
        save_picture(picture, tmp_path / "boxes.xyz")
    with pytest.raises(StorageError, match=r"cannot write .*absent"):
        save_picture(picture, tmp_path / "absent" / "boxes.png")
    save_picture(picture, tmp_path / "boxes.jpg")
    with Image.open(tmp_path / "boxes.jpg") as written:
        assert written.format == "JPEG"
