"""Ask a running `vitesse serve` what is in some pictures; standard library only.

    python examples/clients/detect.py photo.jpg [more.jpg …] [--url http://localhost:8000] [--key KEY]

The server's model decides: boxes from a detector, classes from a classifier.
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
from pathlib import Path
from urllib.parse import urlsplit


def ask(connection: http.client.HTTPConnection, route: str, picture: bytes, key: str) -> dict[str, object]:
    """Send one picture; waits and tries again while the server's queue is full."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for _ in range(5):
        connection.request("POST", route, picture, headers)
        answer = connection.getresponse()
        body = json.loads(answer.read())
        if answer.status != 503:
            break
        time.sleep(float(answer.headers.get("Retry-After", 1)))
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {body['error']}")
    found: dict[str, object] = body
    return found


def route_of(connection: http.client.HTTPConnection) -> str:
    """Return the address for pictures that this server has."""
    connection.request("GET", "/openapi.json")
    paths = json.loads(connection.getresponse().read())["paths"]
    return "/v1/detect" if "/v1/detect" in paths else "/v1/classify"


def main() -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--key", default="")
    options = parser.parse_args()
    connection = http.client.HTTPConnection(urlsplit(options.url).netloc, timeout=60)
    route = route_of(connection)
    for path in options.pictures:
        answer = ask(connection, route, path.read_bytes(), options.key)
        print(f"{path}  ({answer['served_by']}, {answer['timings_ms']})")
        for row in answer.get("detections") or answer.get("classes") or []:  # type: ignore[attr-defined]
            box = "  ".join(f"{side:7.1f}" for side in row.get("box_xyxy", []))
            print(f"  {row['score']:.3f}  {row['label']:<16}{box}")


if __name__ == "__main__":
    main()
