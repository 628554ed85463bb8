"""One image that a client has sent: what the model is fed with for it, and what its answer says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vitesse.data.results import Classification, Detections, Result
from vitesse.serve import answers
from vitesse.serve.execution import Fed, Routed
from vitesse.serve.images import Extent, Picture, check_header, feeds_of, picture_of
from vitesse.serve.service import Service
from vitesse.serve.work import Arrays


class SentImage:
    """The bytes of an image on their way to an answer; pixels are kept no longer than they are needed.

    Args:
        body: the image file; let go of once it is decoded.
        options: `threshold` of a detector, `top` of a classifier.
        drawn: whether the answer is the picture with the result drawn on it.

    Raises:
        Refusal: as `images.check_header`, before anything waits for a thread or a worker.

    Attributes:
        decode_s: seconds from here to the feeds, waiting for a thread of the decoders included, or those that the
            worker took; 0 before.
        answered: what `answer` has returned; None before. answer_s: seconds that it took.
    """

    def __init__(self, service: Service, body: bytes, options: Mapping[str, Any], drawn: bool) -> None:
        check_header(body, service.limits)
        self._service, self._body, self._options, self._drawn = service, body, options, drawn
        self._began = service.clock()
        self._picture: Picture | None = None
        self._fed: Arrays = {}
        self._shown: Picture | Extent = Extent((0, 0), (0, 0))
        self.decode_s = self.answer_s = 0.0
        self.answered: tuple[bytes, str] | None = None

    def feeds(self) -> Fed:
        """Return what the live release is fed with, and others where they differ; on any thread.

        Where workers decode, nothing is decoded here: the feeds are empty, and each release's are made when asked for.

        Raises:
            Refusal: unless workers decode, as `images.picture_of` and `images.feeds_of`.
        """
        if self._service.decode_in_worker:
            return {}, self._made_by_worker
        self._decode(self._began)
        return self._fed, None if self._picture is None else self._feeds_of_release

    def _made_by_worker(self, release: str) -> Arrays:
        if not self._fed:
            self._decode(self._service.clock())
        return self._feeds_of_release(release)

    def _feeds_of_release(self, release: str) -> Arrays:
        spec = self._service.spec_of(release)
        if self._picture is None or spec.preprocessing == self._service.spec.preprocessing:
            return self._fed
        return feeds_of([self._picture.image], spec)

    def _decode(self, began: float) -> None:
        """Decode the body and make the live release's feeds of it, for all copies of the request."""
        service = self._service
        # What is drawn on must have the image's own size.
        reduced = service.spec if service.fast_decode and not self._drawn else None
        picture = picture_of(self._body, service.limits, reduced_for=reduced)
        self._fed = feeds_of([picture.image], service.spec)
        self._body = b""
        # 12 megapixels are 36 MB, for each request that waits: kept only where somebody needs them.
        self._shown = picture if self._drawn else picture.extent
        self._picture = None if service.fed_alike else picture
        self.decode_s = service.clock() - began

    def answer(self, routed: Routed) -> tuple[bytes, str]:
        """Return the body of the answer and its media type; on any thread."""
        began = self._service.clock()
        self.answered = self._answer(routed)
        self.answer_s = self._service.clock() - began
        return self.answered

    def _answer(self, routed: Routed) -> tuple[bytes, str]:
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
