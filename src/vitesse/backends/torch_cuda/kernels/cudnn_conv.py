"""`cudnn.conv`: convolution, scale, bias, residual, activation and rounding as one plan of cuDNN's graph API.

It needs NVIDIA's package `nvidia-cudnn-frontend`, which is imported here and nowhere else. cuDNN names several engines
for a graph, each with settings ("knobs"); an engine's number and its knobs are a tactic, and make the same plan again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import cudnn
import torch
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.geometry import HALVES, Geometry, channels_last, epilogue_of
from vitesse.backends.torch_cuda.kernels.linear_operands import Epilogue
from vitesse.backends.torch_cuda.steps import E4M3
from vitesse.errors import BackendError

MOST_PLANS = 10
# Plans that need more are left out: the workspace lies in the memory of the CUDA graph.
MOST_WORKSPACE_BYTES = 256 * 2**20
# Channels of an E4M3 convolution, in and out, are a multiple of this.
E4M3_CHANNELS = 16
# Numbers from here on are of engines that the Python package compiles itself, with libraries that are not asked for.
# What the frontend calls a knob that it has no name for; a plan that is asked for without it takes the default.
UNNAMED = "NOT_SET"
FIRST_PYTHON_ENGINE = 10_000

TYPES = {
    torch.float16: cudnn.data_type.HALF,
    torch.bfloat16: cudnn.data_type.BFLOAT16,
    torch.float32: cudnn.data_type.FLOAT,
    E4M3: cudnn.data_type.FP8_E4M3,
}
# Activations by the names of the graph's methods.
METHODS = {
    "relu": "relu",
    "silu": "swish",
    "sigmoid": "sigmoid",
    "gelu": "gelu",
    "gelu_tanh": "gelu_approx_tanh",
}

_local = threading.local()


class CudnnConv:
    """Kernel `cudnn.conv`; see candidates.Kernel."""

    name = "cudnn.conv"
    step = "Conv"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Refuse float32, types that differ, and E4M3 where the GPU or the channels do not allow it."""
        x, weight = tensors[:2]
        if x is None or weight is None:
            return "the input or the weight is absent"
        if x.dtype not in (*HALVES, E4M3) or x.dtype != weight.dtype:
            return f"takes float16, bfloat16 and float8_e4m3fn of the weight's type, not {x.dtype} and {weight.dtype}"
        epilogue = epilogue_of(attributes)
        if E4M3 in (x.dtype, epilogue.dtype):
            found = Geometry.of(tensors, attributes)
            if device.capability < (9, 0):
                return f"convolves E4M3 from compute capability 9.0 on, this is {device.capability}"
            if found.channels % E4M3_CHANNELS or found.filters % E4M3_CHANNELS or found.group != 1:
                return f"convolves E4M3 by {E4M3_CHANNELS} channels in one group"
        return ""

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Ask cuDNN for its engines for this graph, best first; none where it has none for it."""
        graph = ConvGraph(tensors, attributes)
        return [Tactic(self.name, config) for config in graph.configs()[:MOST_PLANS]]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Build the plan of one engine and return the call that executes it."""
        _, weight, scale, bias, _ = [*tensors, None, None, None][:5]
        assert weight is not None  # refuses() has seen it
        found, epilogue = Geometry.of(tensors, attributes), epilogue_of(attributes)
        graph = ConvGraph(tensors, attributes)
        index, workspace_bytes = graph.build(tactic.config)
        constants = graph.constants(weight, scale, bias, epilogue)

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            x, _, _, _, residual = [*given, None, None, None][:5]
            assert x is not None
            out = found.output(epilogue.dtype, x.device)
            graph.execute(index, workspace_bytes, channels_last(x), residual, out, constants)
            return (out,)

        return run


class ConvGraph:
    """The step as a graph of cuDNN: its tensors by name, its engines, one of them built.

    Args:
        tensors, attributes: of the step; only shapes and types of the tensors are read.
    """

    def __init__(self, tensors: Tensors, attributes: Attributes) -> None:
        x, weight, scale, bias, residual = [*tensors, None, None, None][:5]
        assert x is not None and weight is not None
        self._found, epilogue = Geometry.of(tensors, attributes), epilogue_of(attributes)
        single = cudnn.data_type.FLOAT
        self._graph = cudnn.pygraph(
            io_data_type=TYPES[x.dtype],
            intermediate_data_type=single,
            compute_data_type=single,
            handle=_handle(),
        )
        self._tensors: dict[str, Any] = {}
        found = self._found
        filters = (1, found.filters, 1, 1)
        bias_type = _bias_type(weight)
        y = self._graph.conv_fprop(
            image=self._input("x", tuple(x.shape), x.dtype),
            weight=self._input("weight", tuple(weight.shape), weight.dtype),
            pre_padding=list(found.pads[:2]),
            post_padding=list(found.pads[2:]),
            stride=list(found.strides),
            dilation=list(found.dilations),
            compute_data_type=single,
        )
        if scale is not None:
            y = self._graph.mul(a=y, b=self._input("scale", filters, torch.float32))
        if bias is not None:
            y = self._graph.add(a=y, b=self._input("bias", filters, bias_type))
        if residual is None:
            y = self._activated(y, epilogue)
        else:
            z = self._input("residual", tuple(residual.shape), residual.dtype)
            if epilogue.residual_first:
                y = self._activated(self._graph.add(a=y, b=z), epilogue)
            else:
                y = self._graph.add(a=self._activated(y, epilogue), b=z)
        if epilogue.out_scale > 0:
            y = self._graph.mul(a=y, b=self._input("inverse", (1, 1, 1, 1), torch.float32))
        shape = (found.batch, found.filters, found.out_height, found.out_width)
        y.set_output(True).set_data_type(TYPES[epilogue.dtype])
        y.set_dim(list(shape)).set_stride(_strides(shape))
        self._tensors["out"] = y

    def configs(self) -> list[dict[str, Any]]:
        """Return the engines and knobs that cuDNN recommends, best first; [] where it has no engine for the graph."""
        try:
            self._graph.validate()
            self._graph.build_operation_graph()
            self._graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        except cudnn.cudnnGraphNotSupportedError:
            return []
        found = []
        for index in range(self._graph.get_execution_plan_count()):
            engine, knobs = self._graph.get_engine_and_knobs_at_index(index)
            if 0 <= engine < FIRST_PYTHON_ENGINE:
                named = {knob.name: int(knobs[knob]) for knob in knobs if knob.name != UNNAMED}
                found.append({"engine": int(engine), "knobs": named})
        return [config for index, config in enumerate(found) if config not in found[:index]]

    def build(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """Build the plan of one engine; return its place among the graph's plans, and its workspace in bytes.

        Raises:
            BackendError: this cuDNN does not have the engine, or it needs too much memory.
        """
        try:
            self._graph.validate()
            self._graph.build_operation_graph()
            knobs = {cudnn.knob_type.__members__[name]: value for name, value in config["knobs"].items()}
            self._graph.create_execution_plan(config["engine"], knobs)
            index = self._graph.get_execution_plan_count() - 1
            self._graph.build_plan_at_index(index)
            needed = int(self._graph.get_workspace_size_plan_at_index(index))
        except (cudnn.cudnnGraphNotSupportedError, RuntimeError, KeyError) as error:
            raise BackendError(
                f"cuDNN {cudnn.backend_version()} does not build engine {config['engine']}",
                cause=f"{type(error).__name__}: {error}",
                fix="build the artifact again with this cuDNN",
            ) from error
        if needed > MOST_WORKSPACE_BYTES:
            raise BackendError(
                f"engine {config['engine']} of cuDNN needs {needed} bytes of workspace",
                expected=f"at most {MOST_WORKSPACE_BYTES}",
            )
        return index, needed

    def constants(
        self, weight: Tensor, scale: Tensor | None, bias: Tensor | None, epilogue: Epilogue
    ) -> dict[str, Tensor]:
        """Lay out what does not change with the image, by the names of the graph's tensors."""
        filters = (1, self._found.filters, 1, 1)
        made = {"weight": channels_last(weight)}
        if scale is not None:
            made["scale"] = scale.float().expand(self._found.filters).reshape(filters).contiguous()
        if bias is not None:
            made["bias"] = bias.to(_bias_type(weight)).reshape(filters).contiguous()
        if epilogue.out_scale > 0:
            made["inverse"] = torch.full((1, 1, 1, 1), 1.0 / epilogue.out_scale, device=weight.device)
        return made

    def execute(
        self,
        index: int,
        workspace_bytes: int,
        x: Tensor,
        residual: Tensor | None,
        out: Tensor,
        constants: Mapping[str, Tensor],
    ) -> None:
        """Execute a built plan on torch's current stream."""
        named = {"x": x, "out": out, **constants}
        if residual is not None:
            named["residual"] = channels_last(residual)
        workspace = torch.empty(max(1, workspace_bytes), dtype=torch.uint8, device=x.device)
        handle = _handle()
        pack = {self._tensors[name]: tensor for name, tensor in named.items()}
        self._graph.execute_plan_at_index(pack, workspace, index, handle=handle)

    def _input(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Any:
        made = self._graph.tensor(name=name, dim=list(shape), stride=_strides(shape), data_type=TYPES[dtype])
        self._tensors[name] = made
        return made

    def _activated(self, y: Any, epilogue: Epilogue) -> Any:
        return getattr(self._graph, METHODS[epilogue.activation])(input=y) if epilogue.activation else y


def _bias_type(weight: Tensor) -> torch.dtype:
    """Return the type of the bias: the weight's, for which cuDNN has most engines; float32 beside E4M3."""
    return weight.dtype if weight.dtype in HALVES else torch.float32


def _strides(shape: Sequence[int]) -> list[int]:
    """Return the strides of [B, C, H, W] in channels_last; torch leaves those of axes of length 1 undefined."""
    _, channels, height, width = shape
    return [height * width * channels, 1, width * channels, channels]


def _handle() -> Any:
    """Return this thread's handle for the current device, on torch's current stream."""
    handles: dict[int, Any] = _local.__dict__.setdefault("handles", {})
    device = torch.cuda.current_device()
    if device not in handles:
        handles[device] = cudnn.create_handle()
    cudnn.set_stream(handle=handles[device], stream=torch.cuda.current_stream().cuda_stream)
    return handles[device]


KERNEL = CudnnConv()
