"""What a file is by what it begins with, so that one of another kind is named as what it is."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from vitesse.errors import ModelError

ZIP, PICKLE = "zip", "pickle"
# (kind, first bytes, what it is, what to do); no kind: nobody reads it.
_KINDS = (
    (
        "",
        b"version https://git-lfs",
        "a git-LFS pointer, not the file itself",
        "run `git lfs pull` where it came from",
    ),
    ("", b"<", "a web page, not the file itself", "download the file, not the page that shows it"),
    ("", b"{", "a JSON text", "give the file with the weights itself"),
    ("", b"\x89HDF", "an HDF5 file (Keras weights)", "export the model to ONNX first"),
    ("", b"\x1f\x8b", "a gzip archive", "unpack it first"),
    ("", b"\x93NUMPY", "one array (.npy)", "save all arrays with numpy.savez"),
    (
        ZIP,
        b"PK\x03\x04",
        "a zip archive: a PyTorch checkpoint or an .npz",
        "give it a name that ends in .pth or .npz",
    ),
    (PICKLE, b"\x80", "a Python pickle: a PyTorch checkpoint", "give it a name that ends in .pth"),
)


def refuse_other_files(path: Path, beginning: bytes, *, expected: str, takes: Collection[str] = ()) -> None:
    """Raise ModelError when a file is of a kind that its reader does not take.

    Args:
        beginning: its first bytes, 64 or so; white space in front is passed over.
        expected: what the reader wants, for the message.
        takes: of ZIP and PICKLE, those that the reader understands.
    """
    start = beginning.lstrip()
    for kind, mark, what, fix in _KINDS:
        if start.startswith(mark) and kind not in takes:
            raise ModelError(f"{path} is {what}", expected=expected, fix=fix)
