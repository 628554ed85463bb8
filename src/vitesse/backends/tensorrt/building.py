"""From an artifact to a plan: the graph is prepared, gets its profiles, and is built, twice where Attention fails."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from vitesse.artifact import Artifact, Store
from vitesse.backends.protocol import Built
from vitesse.backends.tensorrt.api import Api
from vitesse.backends.tensorrt.bucket_profiles import profiles_for
from vitesse.backends.tensorrt.builder import build_plan
from vitesse.backends.tensorrt.options import BuildOptions, BuiltPlan
from vitesse.backends.tensorrt.preparing import prepared
from vitesse.backends.tensorrt.profiles import default_profiles
from vitesse.errors import BackendError
from vitesse.progress import Progress
from vitesse.sources.onnx_file import load_onnx
from vitesse.sources.signature import graph_inputs

# What TensorRT says where it has no kernel for an Attention of this type, head width or number of heads. The same
# written out in products and a softmax it builds; which shapes have a kernel is in no list that could be relied on.
_NO_ATTENTION = "Attention operation was not supported by a dedicated kernel"


@dataclass(frozen=True)
class Finished:
    """A plan, the graph it was built from as a stage made it, and the options with their profiles."""

    graph: Built
    options: BuildOptions
    plan: BuiltPlan


def build_artifact(
    api: Api,
    artifact: Artifact,
    options: BuildOptions,
    *,
    store: Store,
    name: str,
    distrusts: Collection[str],
    batch: tuple[int, int, int],
    progress: Progress | None = None,
) -> Finished:
    """Prepare and build an ONNX artifact.

    Args:
        options: without profiles they are made from `batch` (min, opt, max), which alone may be free then, and from the
            spec's buckets, one each.
        store: for a graph that had to be rewritten.
        name, distrusts: of the backend.

    Raises:
        as `preparing.prepared`, `profiles.default_profiles` and `builder.build_plan`.
    """
    graph = prepared(artifact, store, name=name, distrusts=distrusts)
    try:
        return _built(api, graph, options, batch, progress)
    except BackendError as error:
        if _NO_ATTENTION not in str(error) or "lowered:attention" in graph.changes:
            raise
    graph = prepared(artifact, store, name=name, distrusts=distrusts, refuses=("attention",))
    return _built(api, graph, options, batch, progress)


def _built(
    api: Api, graph: Built, options: BuildOptions, batch: tuple[int, int, int], progress: Progress | None
) -> Finished:
    file, spec = graph.artifact.path, graph.artifact.spec
    if not options.profiles:
        inputs = graph_inputs(load_onnx(file))
        bucketed = bool(spec.preprocessing.buckets)
        profiles = profiles_for(spec, inputs, batch) if bucketed else default_profiles(inputs, batch)
        options = replace(options, profiles=profiles)
    return Finished(graph, options, build_plan(api, file, options, progress))
