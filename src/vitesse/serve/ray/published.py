"""What a replica counts, told to Ray's metrics: each node's exporter then has the series of all its replicas.

A scrape of `/metrics` through the proxy sees one replica, a different one each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families
from ray.util.metrics import Gauge

REPLICA = "replica_id"


class Publisher:
    """Copies every series as it stands, with the replica's name as a label; Ray puts `ray_` before the names.

    All of them become gauges, because Ray's counters cannot be set; `rate` and `histogram_quantile` read them as
    they do counters and histograms.

    Args:
        exposition: returns the series in Prometheus's text format.
        replica: the label's value.
    """

    def __init__(self, exposition: Callable[[], bytes], replica: str) -> None:
        self._exposition, self._replica = exposition, replica
        self._gauges: dict[tuple[str, tuple[str, ...]], Gauge] = {}

    def publish(self) -> None:
        """Copy them once."""
        for family in text_string_to_metric_families(self._exposition().decode()):
            for sample in family.samples:
                if sample.name.endswith("_created") or not math.isfinite(sample.value):
                    continue
                keys = (*sample.labels, REPLICA)
                gauge = self._gauges.get((sample.name, keys))
                if gauge is None:
                    gauge = Gauge(sample.name, family.documentation, keys)
                    self._gauges[sample.name, keys] = gauge
                gauge.set(float(sample.value), {**sample.labels, REPLICA: self._replica})
