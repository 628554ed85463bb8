"""`cublaslt.linear`: cuBLASLt's matrix products with bias, activation, residual and E4M3 scales in their epilogues.

cuBLASLt thinks in columns: it is asked for Dᵀ [N, M] = epilogue(W · xᵀ), where a row-major [N, K] weight is a
transposed operand, x needs no transposition, and the bias goes down a column. Algorithms come from the library's
heuristic; the opaque 64 bytes of each are its tactic, valid for the version that made them.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvmath.bindings import cublasLt as lt
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.linear_operands import Epilogue, Operands, rows_of
from vitesse.backends.torch_cuda.steps import E4M3
from vitesse.errors import BackendError

# cudaDataType_t and cublasComputeType_t.
TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14, E4M3: 28}
COMPUTE_32F = 68
TRANSPOSED = 1

EPILOGUES = {
    ("", False): lt.Epilogue.DEFAULT,
    ("", True): lt.Epilogue.BIAS,
    ("relu", False): lt.Epilogue.RELU,
    ("relu", True): lt.Epilogue.RELU_BIAS,
    ("gelu", False): lt.Epilogue.GELU,
    ("gelu", True): lt.Epilogue.GELU_BIAS,
}
WORKSPACE_BYTES = 32 * 1024 * 1024
# What the heuristic takes for granted of every address.
ALIGNMENT = 256
# An address for the heuristic, which reads nothing there, but may not take a missing one.
PLACEHOLDER = 1 << 20
ASKED = 32
MOST = 16
MOST_SLOW_SUMS = 4
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Problem:
    """A product as cuBLASLt is asked for it.

    Args:
        operand, out, added: element types of x and weight, of D, and of C and the bias.
        scaled: "" | "tensor" (one scale) | "columns" (one for each column of the output; x's rows get ones).
        residual: C is added before the activation.
    """

    m: int
    n: int
    k: int
    operand: torch.dtype
    out: torch.dtype
    added: torch.dtype
    activation: str
    biased: bool
    residual: bool
    scaled: str
    quantised: bool

    @classmethod
    def of(cls, node: Operands, epilogue: Epilogue) -> Problem:
        """Read it from a node that `KERNEL.refuses` has let pass its first half."""
        quantising = epilogue.out_scale > 0
        # D in E4M3 goes with C and bias in 16 bits, D in float32 of E4M3 operands with a bfloat16 bias.
        residual_type = torch.float16 if node.residual is None else node.residual.dtype
        added = residual_type if quantising else epilogue.dtype
        scaled = "" if node.scale is None else "tensor" if node.scale.numel() == 1 else "columns"
        return cls(
            m=node.m,
            n=node.n,
            k=node.k,
            operand=node.x.dtype,
            out=epilogue.dtype,
            added=added,
            activation="gelu" if epilogue.activation == "gelu_tanh" else epilogue.activation,
            biased=node.bias is not None,
            residual=node.residual is not None,
            scaled=scaled,
            quantised=quantising,
        )

    @property
    def bias_type(self) -> torch.dtype:
        """Type of the bias: D's, but bfloat16 beside float32 sums of E4M3."""
        return torch.bfloat16 if self.operand == E4M3 and self.added == torch.float32 else self.added

    @property
    def pointers(self) -> list[str]:
        """The attributes of cublasLtMatmulDescAttributes_t that point at vectors or numbers of this product."""
        there = {
            "BIAS_POINTER": self.biased,
            "A_SCALE_POINTER": bool(self.scaled),
            "B_SCALE_POINTER": self.scaled == "columns",
            "D_SCALE_POINTER": self.quantised,
        }
        return [name for name, needed in there.items() if needed]


class CublasLtLinear:
    """cuBLASLt for the step `Linear`."""

    name = "cublaslt.linear"
    step = "Linear"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Return "" or why not: an epilogue that cuBLASLt does not have, a type, a shape without an algorithm."""
        node, epilogue = Operands.of(tensors), Epilogue.of(attributes)
        reason = _operands_refused(node, epilogue, device) or _epilogue_refused(node, epilogue)
        if reason:
            return reason
        problem = Problem.of(node, epilogue)
        try:
            found = algorithms(problem, fast_sum=True, asked=1)
            return "" if found else f"cuBLASLt {version()} has no algorithm for {problem}"
        except RuntimeError as error:
            # What nvmath raises where the library or the driver is not found.
            return f"cuBLASLt does not load: {error}"

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return the heuristic's algorithms, its favourite first; for E4M3 also a few that sum in float32 all along."""
        problem = Problem.of(Operands.of(tensors), Epilogue.of(attributes))
        found = [self._tactic(one, True) for one in algorithms(problem, fast_sum=True, asked=ASKED)]
        if problem.operand != E4M3:
            return found[:MOST]
        slow = [self._tactic(one, False) for one in algorithms(problem, fast_sum=False, asked=MOST_SLOW_SUMS)]
        return [*found[: MOST - MOST_SLOW_SUMS], *slow]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Build the descriptors and return the call.

        Raises:
            BackendError: the tactic's algorithm was made by another version of cuBLASLt.
        """
        config = tactic.config
        if config["version"] != version():
            raise BackendError(
                f"a cuBLASLt algorithm of version {config['version']}, this is {version()}",
                expected="the version that chose it: its 64 bytes mean nothing to another",
                fix="build the engine again on this machine: vitesse build",
            )
        node, epilogue = Operands.of(tensors), Epilogue.of(attributes)
        return _Prepared(node, epilogue, config).run

    def _tactic(self, algorithm: tuple[str, int], fast_sum: bool) -> Tactic:
        text, workspace = algorithm
        config = {"algorithm": text, "workspace_bytes": workspace, "version": version(), "fast_sum": fast_sum}
        return Tactic(self.name, config)


KERNEL = CublasLtLinear()


def version() -> int:
    """Return cuBLASLt's version as the library writes it: 130200 for 13.2.0."""
    return int(lt.get_version())


def algorithms(problem: Problem, *, fast_sum: bool, asked: int) -> list[tuple[str, int]]:
    """Return the heuristic's algorithms for a problem, its favourite first: (64 bytes in hex, workspace in bytes)."""
    described = Descriptors(problem, fast_sum)
    preference = lt.matmul_preference_create()
    results = np.zeros(asked, lt.matmul_heuristic_result_dtype)
    count = np.zeros(1, np.int32)
    try:
        _set(
            lt.matmul_preference_set_attribute, preference, "MAX_WORKSPACE_BYTES", WORKSPACE_BYTES, np.uint64
        )
        layouts = (described.weight, described.x, described.added, described.out)
        found = (preference, asked, results.ctypes.data, count.ctypes.data)
        lt.matmul_algo_get_heuristic(handle(), described.product, *layouts, *found)
    except lt.cuBLASLtError:
        # CUBLAS_STATUS_NOT_SUPPORTED and INVALID_VALUE are how the library says that it has none.
        return []
    finally:
        lt.matmul_preference_destroy(preference)
    made = [one for one in results[: int(count[0])] if one["state"] == 0]
    return [(one["algo"].tobytes().hex(), int(one["workspace_size"])) for one in made]


class Descriptors:
    """cuBLASLt's descriptions of a product and its four matrices; freed with the object.

    Args:
        problem: what to describe.
        fast_sum: E4M3 products are summed in the tensor core's shorter accumulator.
    """

    def __init__(self, problem: Problem, fast_sum: bool) -> None:
        operand, out, added = (TYPES[one] for one in (problem.operand, problem.out, problem.added))
        self.product = lt.matmul_desc_create(COMPUTE_32F, TYPES[torch.float32])
        self.weight = lt.matrix_layout_create(operand, problem.k, problem.n, problem.k)
        self.x = lt.matrix_layout_create(operand, problem.k, problem.m, problem.k)
        self.added = lt.matrix_layout_create(added, problem.n, problem.m, problem.n)
        self.out = lt.matrix_layout_create(out, problem.n, problem.m, problem.n)
        layouts = (self.weight, self.x, self.added, self.out)
        # At the end of the process the driver may be gone before them.
        weakref.finalize(self, _free, self.product, layouts).atexit = False
        self.set("TRANSA", TRANSPOSED)
        self.set("EPILOGUE", EPILOGUES[problem.activation, problem.biased])
        if problem.biased:
            self.set("BIAS_DATA_TYPE", TYPES[problem.bias_type])
        if problem.operand == E4M3:
            self.set("FAST_ACCUM", int(fast_sum), np.int8)
        if problem.scaled == "columns":
            self.set("A_SCALE_MODE", lt.MatmulMatrixScale.OUTER_VEC_32F)
            self.set("B_SCALE_MODE", lt.MatmulMatrixScale.OUTER_VEC_32F)
        for attribute in problem.pointers:
            self.set(attribute, PLACEHOLDER, np.uint64)

    def set(self, attribute: str, value: int, kind: Any = np.int32) -> None:
        """Set an attribute of the product, by its name in cublasLtMatmulDescAttributes_t."""
        _set(lt.matmul_desc_set_attribute, self.product, attribute, value, kind)

    def point(self, attribute: str, tensor: Tensor) -> None:
        """Let an attribute of the product point at a tensor, which must live as long."""
        self.set(attribute, tensor.data_ptr(), np.uint64)


class _Prepared:
    """A product with its constants on the device; `run` launches it."""

    def __init__(self, node: Operands, epilogue: Epilogue, config: Any) -> None:
        problem = Problem.of(node, epilogue)
        self._n, self._out = problem.n, problem.out
        self._described = Descriptors(problem, bool(config["fast_sum"]))
        self._weight = node.weight.t().contiguous()
        self._algorithm = np.frombuffer(bytes.fromhex(config["algorithm"]), np.uint8).copy()
        self._workspace_bytes = int(config["workspace_bytes"])
        self._alpha, self._beta = np.ones(1, np.float32), np.full(1, float(problem.residual), np.float32)
        # The descriptors keep addresses only.
        self._kept: list[Tensor] = []
        device = self._weight.device
        if node.bias is not None:
            self._point("BIAS_POINTER", node.bias.to(problem.bias_type))
        if node.scale is not None:
            self._point("A_SCALE_POINTER", node.scale.float())
        if problem.scaled == "columns":
            self._point("B_SCALE_POINTER", torch.ones(problem.m, device=device))
        if problem.quantised:
            self._point("D_SCALE_POINTER", torch.full((1,), 1.0 / epilogue.out_scale, device=device))

    def run(self, x: Tensor, *others: Tensor | None) -> tuple[Tensor]:
        """Compute the node on torch's current stream. Its workspace is its own, so that streams may overlap."""
        rows = _aligned(x)
        out = torch.empty((*x.shape[:-1], self._n), dtype=self._out, device=x.device)
        workspace = torch.empty(max(self._workspace_bytes, 1), dtype=torch.uint8, device=x.device)
        residual = rows_of(others[3] if len(others) > 3 else None, self._n)
        added = self._unread(out) if residual is None else _aligned(residual)
        it = self._described
        lt.matmul(
            handle(),
            it.product,
            self._alpha.ctypes.data,
            self._weight.data_ptr(),
            it.weight,
            rows.data_ptr(),
            it.x,
            self._beta.ctypes.data,
            added.data_ptr(),
            it.added,
            out.data_ptr(),
            it.out,
            self._algorithm.ctypes.data,
            workspace.data_ptr(),
            self._workspace_bytes,
            torch.cuda.current_stream(x.device).cuda_stream,
        )
        return (out,)

    def _unread(self, out: Tensor) -> Tensor:
        """What stands for C, which is not read where beta is 0: D, unless it is too short, for C has 16 bits."""
        return out if self._out.itemsize > 1 else torch.empty_like(out, dtype=torch.float16)

    def _point(self, attribute: str, tensor: Tensor) -> None:
        kept = _aligned(tensor)
        self._kept.append(kept)
        self._described.point(attribute, kept)


def handle() -> int:
    """Return the current device's handle; it may be used on any stream and from any thread."""
    return _handle(torch.cuda.current_device())


@functools.cache
def _handle(device: int) -> int:
    """A handle belongs to the device that is current when it is made; the number tells them apart."""
    return int(lt.create())


def _operands_refused(node: Operands, epilogue: Epilogue, device: DeviceFacts) -> str:
    kind = node.x.dtype
    if kind not in (E4M3, *HALVES) or node.weight.dtype != kind:
        return f"takes two of float16, bfloat16 or float8_e4m3fn, not {kind} and {node.weight.dtype}"
    if kind == E4M3 and device.capability < (8, 9):
        return f"E4M3 needs compute capability 8.9, this is {device.capability}"
    if kind != E4M3 and node.scale is not None:
        return "a scale goes with E4M3 operands only"
    if kind != E4M3 and epilogue.dtype not in (kind, torch.float32):
        return f"no {epilogue.dtype} output of {kind} operands"
    multiple = 16 // kind.itemsize
    if node.k % multiple or node.n % multiple:
        return f"takes K and N in multiples of {multiple}, not {node.k} and {node.n}"
    return ""


def _epilogue_refused(node: Operands, epilogue: Epilogue) -> str:
    """Say what the library's epilogue lacks.

    Its GELU is the tanh form, up to 4.7e-4 from the exact one. On standard normal inputs that is 2.0e-4 of the
    result's norm: about what rounding to float16 costs, so that exact GELU is refused there, and a hundredth of what
    rounding to E4M3 costs, where it is admitted.
    """
    if epilogue.activation not in ("", "relu", "gelu", "gelu_tanh"):
        return f"no {epilogue.activation} in the epilogue"
    if epilogue.activation == "gelu" and epilogue.dtype != E4M3:
        return "its GELU is the tanh form, and exact GELU was asked for"
    residual = node.residual
    if residual is None:
        return ""
    if epilogue.activation and not epilogue.residual_first:
        return "the residual comes after the activation, and C before it"
    if residual.numel() != node.m * node.n:
        return "the batch shares the residual, and C has all rows"
    expected = HALVES if epilogue.out_scale > 0 else (epilogue.dtype,)
    if residual.dtype not in expected:
        return f"the residual is {residual.dtype}, and C is {' or '.join(str(one) for one in expected)}"
    return ""


def _set(setter: Any, what: int, attribute: str, value: int, kind: Any) -> None:
    """Set an attribute of a description or a preference."""
    names = lt.MatmulDescAttribute if setter is lt.matmul_desc_set_attribute else lt.MatmulPreferenceAttribute
    buffer = np.array([value], kind)
    setter(what, names[attribute], buffer.ctypes.data, buffer.nbytes)


def _free(product: int, layouts: tuple[int, ...]) -> None:
    lt.matmul_desc_destroy(product)
    for layout in layouts:
        lt.matrix_layout_destroy(layout)


def _aligned(tensor: Tensor) -> Tensor:
    """Return it contiguous, and copied where its address is not what the heuristic took for granted."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()
