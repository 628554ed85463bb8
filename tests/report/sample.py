"""A ledger as a detector's run leaves it, with every kind of verdict and figures that are missing for a reason."""

import io

from PIL import Image, ImageDraw

from vitesse.ledger import Accuracy, ArtifactRef, Latency, Ledger, Parity, Row, Verdict
from vitesse.report.extras import ModuleBar, OperatorBar, Picture, ReportExtras

ENVIRONMENT = {
    "date": "2026-03-01T10:00:00+00:00",
    "cpu": {
        "model": "Intel(R) Xeon(R) Platinum 8481C @ 2.70GHz",
        "flags": ["avx2", "avx512_vnni", "amx_int8"],
        "cores": 4,
        "usable_cores": 2,
        "virtual": True,
        "governor": None,
    },
    "memory_mb": 15600,
    "os": "Linux 6.1",
    "python": "3.11.2",
    "packages": {"vitesse": "0.1.0", "onnx": "1.23.2", "onnxruntime": "1.31.1", "openvino": "2026.4.1"},
    "variables": {},
}


def _artifact(
    stage: str, megabytes: float, suffix: str = ".onnx", backend: str = "onnxruntime"
) -> ArtifactRef:
    digest = (stage.encode().hex() * 16)[:64]
    path = f"artifacts/{stage.replace(':', '-')}-{digest[:12]}{suffix}"
    return ArtifactRef(path, digest, int(megabytes * 1e6), backend)


def _ap(value: float, drop: float | None, ap50: float) -> Accuracy:
    return Accuracy("coco_ap", value, drop, 300, {"AP50": ap50, "AP75": ap50 - 0.045})


def _ms(p50: float) -> Latency:
    return Latency(p50, p50 * 1.06, p50 * 1.31, p50 * 1.02, 412)


SOURCE = Row(
    "source",
    Verdict.PASS,
    "the original, as given",
    artifact=_artifact("source", 44.21),
    accuracy=_ap(0.8259, None, 0.9612),
    parity=Parity(0.0, 1.0),
    latency_ms=_ms(18.91),
    throughput_per_s=61.4,
    memory_mb=312.4,
    gain=1.0,
    gain_spread=(0.99, 1.01),
    load_ms=214.0,
    cold_start_ms=1180.0,
)
CLEAN = Row(
    "clean",
    Verdict.PASS,
    "same outputs, 3 % fewer nodes",
    changes={"constants folded": 41, "dead nodes": 12, "shape chains": 7, "cast pairs": 0},
    artifact=_artifact("clean", 44.18),
    accuracy=_ap(0.8259, 0.0, 0.9612),
    parity=Parity(2.4e-6, 1.0),
    latency_ms=_ms(18.77),
    throughput_per_s=61.9,
    memory_mb=311.0,
    gain=1.01,
    gain_spread=(1.0, 1.02),
    load_ms=201.0,
    cold_start_ms=1120.0,
)
FUSE = Row(
    "fuse",
    Verdict.PASS,
    "1.14× as fast with the same AP",
    changes={"LayerNormalization": 18, "Attention": 9, "Gelu": 6, "BatchNorm into Conv": 4, "tanh Gelu": 0},
    artifact=_artifact("fuse", 43.9),
    accuracy=_ap(0.8260, -0.01, 0.9613),
    parity=Parity(3.1e-5, 0.999999, worst_output="boxes"),
    latency_ms=_ms(16.60),
    throughput_per_s=70.2,
    memory_mb=305.7,
    gain=1.14,
    gain_spread=(1.12, 1.16),
    load_ms=166.0,
    cold_start_ms=980.0,
)
BUILD = Row(
    "build:onnxruntime",
    Verdict.PASS,
    "1.27× as fast with the same AP",
    changes={"MultiHeadAttention": 9, "SkipLayerNormalization": 12, "FastGelu": 0},
    artifact=_artifact("build:onnxruntime", 43.9),
    accuracy=_ap(0.8259, 0.0, 0.9612),
    parity=Parity(4.0e-5, 0.999999, worst_output="boxes"),
    latency_ms=_ms(14.88),
    throughput_per_s=78.0,
    memory_mb=301.1,
    gain=1.27,
    gain_spread=(1.25, 1.30),
    load_ms=120.0,
    cold_start_ms=840.0,
)
INT8 = Row(
    "int8",
    Verdict.REJECTED,
    "loses 11.62 points of AP, 0.50 are allowed; the decoder's attention does not survive 8 bits",
    changes={"MatMul": 48, "Conv": 21},
    artifact=_artifact("int8", 12.31),
    accuracy=_ap(0.7097, 11.62, 0.8804),
    parity=Parity(0.87, 0.931204, 4.1, "logits", "/decoder/layers.0/cross_attn/MatMul_output_0"),
    latency_ms=_ms(10.72),
    throughput_per_s=112.5,
    memory_mb=196.0,
    gain=1.76,
    gain_spread=(1.71, 1.80),
    load_ms=98.0,
    cold_start_ms=610.0,
)
INT8_BACKBONE = Row(
    "int8-backbone",
    Verdict.PASS,
    "1.62× as fast, loses 0.18 of 0.50 points of AP",
    changes={"MatMul": 24, "Conv": 21},
    artifact=_artifact("int8-backbone", 19.05),
    accuracy=_ap(0.8241, 0.18, 0.9598),
    parity=Parity(0.041, 0.998113, 0.09, "boxes"),
    latency_ms=_ms(11.67),
    throughput_per_s=101.3,
    memory_mb=214.8,
    gain=1.62,
    gain_spread=(1.58, 1.66),
    load_ms=104.0,
    cold_start_ms=655.0,
    notes=("calibrated on 200 images that are not in the validation set",),
)
OPENVINO = Row(
    "build:openvino",
    Verdict.REJECTED,
    "13 % slower than int8-backbone on ONNX Runtime",
    artifact=_artifact("build:openvino", 19.4, ".xml", "openvino"),
    accuracy=_ap(0.8240, 0.19, 0.9597),
    parity=Parity(0.043, 0.998020, 0.1, "boxes"),
    latency_ms=_ms(13.19),
    throughput_per_s=96.0,
    memory_mb=288.2,
    gain=1.43,
    gain_spread=(1.38, 1.47),
    load_ms=690.0,
    cold_start_ms=1730.0,
)
_NO_DEVICE = "needs an NVIDIA GPU; none is visible here"
UNKNOWN = Row(
    "build:tensorrt",
    Verdict.UNKNOWN,
    "could not be checked: no NVIDIA GPU here",
    unmeasured={
        "artifact": _NO_DEVICE,
        "accuracy": _NO_DEVICE,
        "parity": _NO_DEVICE,
        "latency_ms": _NO_DEVICE,
        "throughput_per_s": _NO_DEVICE,
        "memory_mb": _NO_DEVICE,
        "gain": _NO_DEVICE,
    },
)
_BROKEN = "not measured on a model that is wrong"
FAIL = Row(
    "fp16",
    Verdict.FAIL,
    "output 'logits' is NaN on 300 of 300 images",
    changes={"float16 initialisers": 131},
    artifact=_artifact("fp16", 22.1),
    accuracy=Accuracy("coco_ap", 0.0, 82.59, 300),
    unmeasured={
        "parity": "NaN has no distance",
        "latency_ms": _BROKEN,
        "throughput_per_s": _BROKEN,
        "memory_mb": _BROKEN,
        "gain": _BROKEN,
    },
)


def sample_ledger(source: str = "models/detr_fashion.onnx") -> Ledger:
    """Return a finished run that chose INT8 in the backbone only."""
    return Ledger(
        source=source,
        target="cpu",
        rows=(SOURCE, CLEAN, FUSE, BUILD, INT8, INT8_BACKBONE, OPENVINO, UNKNOWN, FAIL),
        chosen=5,
        environment=ENVIRONMENT,
        command="vitesse optimize models/detr_fashion.onnx --data data/detr_fashion --target cpu "
        "--latency-budget 16ms --out run",
        max_drop=0.5,
        latency_budget={"budget_ms": 16.0, "p50_ms": 11.69, "met": True, "reason": ""},
        final={
            "gain": 1.62,
            "gain_spread": [1.59, 1.65],
            "baseline_p50_ms": 18.93,
            "chosen_p50_ms": 11.69,
        },
    )


def scene(boxes: tuple[tuple[int, int, int, int], ...], size: tuple[int, int] = (480, 360)) -> bytes:
    """Return a PNG with boxes drawn on a gradient."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    pen = ImageDraw.Draw(image)
    for left, top, right, bottom in boxes:
        pen.rectangle((left, top, right, bottom), outline=(255, 120, 40), width=3)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def sample_extras() -> ReportExtras:
    """Return two pictures and a profile of twenty operators, of which two are new after fusing."""
    shared = tuple(OperatorBar(f"Op{index:02d}", 0.2 - index * 0.01, 0.1) for index in range(12))
    return ReportExtras(
        pictures=(
            Picture(
                "val/000012.png",
                scene(((40, 40, 160, 200), (220, 120, 400, 330))),
                scene(((41, 40, 161, 201), (219, 120, 401, 329))),
                "2 of 2 boxes agree (IoU ≥ 0.5, same class)",
            ),
            Picture("val/000047.png", scene(((90, 60, 300, 280),)), scene(((92, 60, 298, 281),)), ""),
        ),
        operators=(
            OperatorBar("MatMul", 8.62, 4.41),
            OperatorBar("Conv", 5.17, 2.38),
            OperatorBar("Softmax", 1.24, 0.0),
            OperatorBar("Erf", 0.88, 0.0),
            OperatorBar("Add", 0.81, 0.22),
            OperatorBar("MultiHeadAttention", 0.0, 2.05),
            OperatorBar("QuantizeLinear", 0.0, 0.61),
            *shared,
        ),
        modules=(
            ModuleBar("read the image", 1.81, 1.80),
            ModuleBar("prepare the tensor", 0.62, 0.61),
            ModuleBar("backbone", 6.12, 3.02),
            ModuleBar("input projection", 0.08, 0.07),
            ModuleBar("encoder", 3.93, 2.20),
            ModuleBar("decoder", 7.55, 5.23),
            ModuleBar("heads", 0.06, 0.05),
            ModuleBar("outside operators", 3.20, 1.94),
            ModuleBar("read the outputs", 0.63, 0.0),
        ),
        modules_note="From image file to result, mean of 16 images with the runtime's profiler on.",
        operators_note="ONNX Runtime's profiler, mean of 50 runs; profiling itself slows the runs a little.",
        method="412 samples in 40 rounds.",
        not_measured=(("energy", "this machine has no power counter"),),
    )
