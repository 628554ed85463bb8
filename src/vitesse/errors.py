"""The exception tree. Every message says what came, what was expected, the likely cause and the next step.

The exit code of the command line stands on the class: 1 not verified, 2 bad usage or bad input,
3 a missing extra or device.
"""

from __future__ import annotations


class VitesseError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: what came, with the offending value (a path, a name, a shape).
        expected: what would have been right.
        cause: the likely cause, when one is known.
        fix: the next step, best a command.
    """

    exit_code = 1

    def __init__(self, what: str, *, expected: str = "", cause: str = "", fix: str = "") -> None:
        self.what, self.expected, self.cause, self.fix = what, expected, cause, fix
        labelled = (("expected", expected), ("likely cause", cause), ("next step", fix))
        super().__init__("\n".join([what, *(f"  {label}: {text}" for label, text in labelled if text)]))


class UsageError(VitesseError):
    """An option or argument is wrong."""

    exit_code = 2


class OutOfRange(UsageError):
    """A value is outside of what an option can mean.

    Args:
        name: of the field or argument that it was given for. On the command line the option of that name is shown.
    """

    def __init__(self, name: str, value: object, *, expected: str) -> None:
        self.name, self.value = name, value
        super().__init__(f"{name} is {value}", expected=expected)


class ModelError(VitesseError):
    """The model file is missing, damaged, or not a graph Vitesse can take."""

    exit_code = 2


class SpecError(VitesseError):
    """How to feed the model or read its outputs is unknown or contradicts the graph."""

    exit_code = 2


class DataError(VitesseError):
    """The images or labels are missing, damaged, or do not fit the model."""

    exit_code = 2


class RunFolderError(VitesseError):
    """The run folder holds something else, another run, or a damaged ledger."""

    exit_code = 2


class MissingExtra(VitesseError):
    """An optional package or a device is not here; the message names the pip line."""

    exit_code = 3


def missing_extra(error: ImportError) -> MissingExtra:
    """Name the pip line for an optional package that could not be imported."""
    package = (error.name or "a package").partition(".")[0]
    extra = next((extra for extra, packages in _EXTRAS.items() if package in packages), None)
    return MissingExtra(
        f"{package} is not installed" if extra else f"{package} cannot be imported: {error}",
        expected=f"the extra {extra!r}" if extra else "",
        fix=f"pip install 'vitesse[{extra}]'" if extra else "",
    )


# Which extra brings which module; running an artifact needs none of them.
_EXTRAS = {
    "optimize": {"jinja2", "onnx_ir", "onnxscript", "psutil", "pycocotools", "rich", "sympy"},
    "openvino": {"openvino"},
    "gpu": {"cuda", "pynvml"},
    "torch": {"torch", "safetensors"},
    "torch-cuda": {"cudnn", "nvmath"},
    "compress": {"lightning_fabric", "scipy", "torch_pruning"},
    "ray": {"pyarrow", "ray"},
    "serve": {"httptools", "prometheus_client", "starlette", "uvicorn"},
    "huggingface": {"transformers"},
    "timm": {"timm", "torchvision"},
    "jax": {"flax", "jax", "jax2onnx"},
    "video": {"av"},
}


class StorageError(VitesseError):
    """Writing failed: disk full, read-only, or no permission."""


class BackendError(VitesseError):
    """A runtime refused, crashed on, or mis-ran a graph."""


class NotVerified(VitesseError):
    """A check failed or could not be made; unknown is never a pass."""
