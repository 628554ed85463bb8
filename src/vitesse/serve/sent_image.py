"""One image that a client has sent: what the model is fed with for it, and what its answer says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from vitesse.data.results import Classification, Detections, Result
from vitesse.serve import answers
from vitesse.serve.execution import Fed, Routed
from vitesse.serve.images import Extent, Picture, feeds_of, picture_of
from vitesse.serve.service import Service
from vitesse.serve.work import Arrays


class SentImage:
    """The bytes of an image on their way to an answer; pixels are kept no longer than they are needed.

    Args:
        body: the image file; let go of once it is decoded.
        options: `threshold` of a detector, `top` of a classifier.
        drawn: whether the answer is the picture with the result drawn on it.

    Attributes:
        decode_s: seconds from here to the feeds, waiting for a thread included; 0 before.
    """

    def __init__(self, service: Service, body: bytes, options: Mapping[str, Any], drawn: bool) -> None:
        self._service, self._body, self._options, self._drawn = service, body, options, drawn
        self._began = service.clock()
        self._shown: Picture | Extent = Extent((0, 0), (0, 0))
        self.decode_s = 0.0

    def feeds(self) -> Fed:
        """Decode it and return what the live release is fed with, and others where they differ; on any thread.

        Raises:
            Refusal: as `images.picture_of` and `images.feeds_of`.
        """
        service = self._service
        # What is drawn on must have the image's own size.
        reduced = service.spec if service.fast_decode and not self._drawn else None
        picture = picture_of(self._body, service.limits, reduced_for=reduced)
        self._body = b""
        fed = feeds_of([picture.pixels], service.spec)
        # 12 megapixels are 36 MB, for each request that waits.
        self._shown = picture if self._drawn else picture.extent
        alike = all(spec.preprocessing == service.spec.preprocessing for spec in service.specs.values())
        self.decode_s = service.clock() - self._began
        return fed, None if alike else partial(self._feeds_of_release, picture)

    def answer(self, routed: Routed) -> tuple[bytes, str]:
        """Return the body of the answer and its media type."""
        shown, executed = self._shown, routed.executed
        spec = self._service.spec_of(routed.served_by)
        result: Result = answers.results_of(executed.outputs, spec, [shown])[0]
        if isinstance(shown, Picture):
            threshold = self._options.get("threshold", 0.5)
            return answers.draw(shown.pixels, result, threshold=threshold), "image/png"
        timings = {"decode": self.decode_s, "queue": executed.queue_s, "infer": executed.infer_s}
        said: dict[str, Any] = {"served_by": routed.served_by, "timings": timings}
        if isinstance(result, Detections):
            document = answers.detection(result, shown.size, threshold=self._options["threshold"], **said)
        else:
            assert isinstance(result, Classification)
            document = answers.classification(result, self._options["top"], size=shown.size, **said)
        return json.dumps(document, separators=(",", ":"), allow_nan=False).encode(), "application/json"

    def _feeds_of_release(self, picture: Picture, release: str) -> Arrays:
        return feeds_of([picture.pixels], self._service.spec_of(release))
