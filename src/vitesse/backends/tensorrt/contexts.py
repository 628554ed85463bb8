"""The execution contexts of one session: each set to a profile and to shapes, all working in one scratch block.

A captured CUDA graph belongs to the context it was captured from, in the state it had then: setting other shapes on
that context makes the graph undefined. So every shape that is captured has a context of its own, the least recently
used is given up beyond a limit, and calls that are not captured share one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING

from vitesse.backends.closing import Closing
from vitesse.backends.cuda.memory import Block, Pool
from vitesse.backends.cuda.stream import Stream
from vitesse.backends.tensorrt.options import Profile, Shape
from vitesse.backends.tensorrt.profiles import profile_for
from vitesse.backends.tensorrt.runtime_settings import RuntimeSettings
from vitesse.backends.tensorrt.tensors import output_shapes
from vitesse.errors import BackendError

if TYPE_CHECKING:
    import tensorrt

Shapes = tuple[tuple[str, Shape], ...]

# Contexts with shapes of their own that a session keeps, and CUDA graphs; each context holds some state on the device
# beside the scratch block.
KEPT = 8


class ProfileHeld(BackendError):
    """Another context holds the optimisation profile; versions before 10 lend it to one at a time."""


class Ready:
    """A context that is set to shapes. `key` names this context in this state; it never comes again for another.

    `alone` says that its shapes never change, so that a captured CUDA graph stays valid.
    """

    def __init__(self, context: tensorrt.IExecutionContext, number: int, *, alone: bool) -> None:
        self._context = context
        self.alone = alone
        self._number = number
        self._bound: dict[str, int] = {}
        self.shapes: Shapes = ()
        self.outputs: Mapping[str, Shape] = {}

    @property
    def key(self) -> tuple[int, Shapes]:
        """What decides the work of this context beside the addresses."""
        return self._number, self.shapes

    def set(self, shapes: Shapes, profile: int, stream: Stream) -> None:
        """Choose the profile, set the input shapes, and learn the output shapes.

        Raises:
            ProfileHeld: another context has the profile.
            BackendError: a shape is refused, or outputs depend on values.
        """
        self.shapes = ()  # until all is set; an error on the way must not leave an old claim
        if self._context.active_optimization_profile != profile:
            if not self._context.set_optimization_profile_async(profile, stream.handle):
                raise ProfileHeld(
                    f"TensorRT refuses profile {profile + 1} of the engine",
                    expected="a profile that no other context holds",
                    cause="this version lets one context at a time use a profile",
                    fix="build the engine with a profile per stream, or use one stream",
                )
            stream.synchronize()
        for name, shape in shapes:
            if not self._context.set_input_shape(name, shape):
                raise BackendError(
                    f"TensorRT refuses the shape {shape} for {name!r}",
                    expected=f"a shape of profile {profile + 1}",
                )
        self.outputs = output_shapes(self._context)
        self.shapes = shapes

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Say where the tensors lie; what is unchanged is not said again.

        Raises:
            BackendError: an address is refused.
        """
        for name, address in addresses.items():
            if self._bound.get(name) == address:
                continue
            if not self._context.set_tensor_address(name, address):
                raise BackendError(f"TensorRT refuses the address {address:#x} for {name!r}")
            self._bound[name] = address

    def capturable(self, stream: Stream) -> bool:
        """Whether the library lets this context be captured, as far as it can be asked."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return True if asked is None else bool(asked(stream.handle))

    def enqueue(self, stream: Stream) -> None:
        """Enqueue one run.

        Raises:
            BackendError: the library refuses; its log says why.
        """
        if not self._context.execute_async_v3(stream.handle):
            raise BackendError("TensorRT refuses to run the engine", cause="see its log, in the message")


class Contexts(Closing):
    """The contexts of one session. One thread at a time.

    Args:
        settings: makes contexts.
        profiles: those of the engine, in its order; empty where every shape is fixed.
        stream: where profiles are switched; what was enqueued is waited for before a context is given up.
        device: lends the scratch block.
    """

    def __init__(
        self, settings: RuntimeSettings, profiles: tuple[Profile, ...], stream: Stream, device: Pool
    ) -> None:
        self._settings, self._profiles = settings, profiles
        self._stream, self._pool = stream, device
        self._numbers = count()
        self._own: OrderedDict[Shapes, Ready] = OrderedDict()
        self._shared: Ready | None = None
        size = settings.scratch_bytes()
        self._scratch: Block | None = device.take(size, owner="scratch memory") if size else None
        self._one_a_profile = False

    def own(self, shapes: Shapes) -> Ready:
        """Return the context that only ever has these shapes; the shared one where a profile has no second context."""
        if self._one_a_profile:
            return self.shared(shapes)
        ready = self._own.get(shapes)
        if ready is not None:
            self._own.move_to_end(shapes)
            return ready
        if len(self._own) >= KEPT:
            self._stream.synchronize()
            self._own.popitem(last=False)
        ready = self._make(alone=True)
        try:
            ready.set(shapes, profile_for(dict(shapes), self._profiles), self._stream)
        except ProfileHeld:
            # Contexts of its own may hold the profiles; from here on the shared one goes through all of them.
            self._one_a_profile = True
            self._stream.synchronize()
            self._own.clear()
            return self.shared(shapes)
        self._own[shapes] = ready
        return ready

    def shared(self, shapes: Shapes) -> Ready:
        """Return the context that is set anew whenever the shapes change."""
        if self._shared is None:
            self._shared = self._make(alone=False)
        if self._shared.shapes != shapes:
            # Its settings are read while a run is enqueued, and the run before may still use its memory.
            self._stream.synchronize()
            self._shared.set(shapes, profile_for(dict(shapes), self._profiles), self._stream)
        return self._shared

    def close(self) -> None:
        """Give up the contexts, then the block they worked in."""
        self._own.clear()
        self._shared = None
        if self._scratch is not None:
            scratch, self._scratch = self._scratch, None
            self._pool.give(scratch)

    def _make(self, *, alone: bool) -> Ready:
        # Any call of the driver makes its GPU the current one of this thread, which is where TensorRT makes a context.
        self._stream.synchronize()
        context = self._settings.create()
        if self._scratch is not None:
            self._settings.lend(context, self._scratch.address, self._scratch.size)
        return Ready(context, next(self._numbers), alone=alone)
