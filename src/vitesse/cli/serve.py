"""`vitesse serve`: a finished run behind HTTP."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitesse.cli.values import bytes_of, number, whole, within
from vitesse.serve.limits import MIB, Limits

if TYPE_CHECKING:
    from vitesse.serve.auth import Access
    from vitesse.serve.variants import ServeOptions

LOCAL = "127.0.0.1"
KEYS, ADMIN_KEYS = "VITESSE_API_KEYS", "VITESSE_ADMIN_KEYS"
_SIZE, _COUNT = within(bytes_of, above=0), whole(1)
_SECONDS, _OR_NONE = number(above=0), number(least=0)
# Option → field of Limits, what is parsed, and what it bounds; the defaults are those of Limits.
_LIMITS: tuple[tuple[str, str, Any, str], ...] = (
    ("--body", "body_bytes", _SIZE, "size of a request's body, as 32MiB"),
    ("--inflated-bytes", "inflated_bytes", _SIZE, "size of a body after Content-Encoding"),
    ("--header", "header_bytes", _SIZE, "size of a request's header block"),
    ("--header-s", "header_s", _SECONDS, "seconds in which a header block must have come"),
    ("--body-s", "body_s", _SECONDS, "seconds in which a body must have come"),
    ("--keep-alive-s", "keep_alive_s", _SECONDS, "seconds after which an idle connection is closed"),
    ("--connections", "connections", _COUNT, "connections at once"),
    ("--image-pixels", "image_pixels", _COUNT, "width × height of an image"),
    ("--image-side", "image_side", _COUNT, "longer side of an image, pixels"),
    ("--image-side-least", "image_side_least", _COUNT, "shorter side of an image, at least"),
    ("--image-aspect", "image_aspect", number(least=1), "longer side over the shorter one"),
    ("--json-depth", "json_depth", _COUNT, "nesting of a JSON body"),
    ("--queue-s", "queue_s", _SECONDS, "seconds a request may wait for a worker"),
    ("--request-s", "request_s", _SECONDS, "seconds from a request's arrival to its answer"),
    ("--drain-s", "drain_s", _OR_NONE, "seconds from SIGTERM to closing the listener; not ready meanwhile"),
    ("--stop-s", "stop_s", _SECONDS, "seconds for accepted requests after that"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Serve the chosen artifact of a run; the original model stands by and takes over."
    parser.add_argument("folder", type=Path, help="a run folder")
    parser.add_argument(
        "--port", type=whole(0, 65535), default=8000, help="default: 8000; 0 takes a free one"
    )
    parser.add_argument(
        "--host", default=LOCAL, help=f"address to listen on (default: {LOCAL}, this machine only)"
    )
    parser.add_argument("--name", default="", help="the model's name in addresses (default: its file's)")
    parser.add_argument(
        "--workers", type=whole(1), metavar="N", help="sessions (default: cores, on a GPU as tuned)"
    )
    parser.add_argument("--batch", type=whole(1), metavar="N", help="most images that run together")
    parser.add_argument(
        "--wait-ms", type=number(least=0), metavar="MS", help="how long an image waits for company"
    )
    parser.add_argument(
        "--queue", type=whole(0), default=0, metavar="N", help="images that may wait (default: 8 × batch × N)"
    )
    parser.add_argument(
        "--hang-s",
        type=number(above=0),
        default=10.0,
        metavar="S",
        help="a run that takes longer is given up (default: 10)",
    )
    parser.add_argument(
        "--device", type=whole(0), default=0, metavar="N", help="number of the GPU (default: 0)"
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"keys of clients, one a line; or ${KEYS}"
    )
    parser.add_argument(
        "--admin-key-file",
        type=Path,
        metavar="FILE",
        help=f"keys that may promote and roll back; or ${ADMIN_KEYS}",
    )
    parser.add_argument(
        "--no-reference", action="store_true", help="do not load the original model: nothing stands by"
    )
    parser.add_argument(
        "--fast-decode",
        action="store_true",
        help="decode large JPEGs at a reduced scale: quicker, pixels differ slightly",
    )
    parser.add_argument("--allow-nonfinite", action="store_true", help="take NaN and infinity in tensors")
    scaled = parser.add_argument_group("several processes or machines")
    scaled.add_argument(
        "--ray",
        action="store_true",
        help="serve on Ray: on the cluster that $RAY_ADDRESS names or that runs here, else on one of its own",
    )
    scaled.add_argument(
        "--replicas", metavar="N", help="with --ray: 4, or 2-8 to scale with the load (default: 1)"
    )
    bounds = parser.add_argument_group("limits")
    defaults = Limits()
    for option, name, parse, what in _LIMITS:
        default = getattr(defaults, name)
        bounds.add_argument(
            option,
            dest=f"limit_{name}",
            type=parse,
            metavar="N",
            help=f"{what} (default: {_shown(default, parse)})",
        )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code: 0 after a shutdown that dropped nothing, 1 after a forced one."""
    from vitesse.errors import UsageError
    from vitesse.run import open_run
    from vitesse.serve import logs
    from vitesse.serve.served import open_served
    from vitesse.serve.server import listen, serve
    from vitesse.serve.variants import ServeOptions

    limits = limits_of(options)
    wanted = ServeOptions(
        workers=options.workers,
        batch=options.batch,
        wait_ms=options.wait_ms,
        capacity=options.queue,
        reference=not options.no_reference,
        name=options.name,
        device=options.device,
        hang_s=options.hang_s,
        fast_decode=options.fast_decode,
        allow_nonfinite=options.allow_nonfinite,
        limits=limits,
        access=_access(options),
    )
    if options.ray:
        return _on_ray(options, wanted)
    if options.replicas is not None:
        raise UsageError("--replicas counts processes on Ray", fix="add --ray, or use --workers")
    with listen(options.host, options.port) as taken:
        log = logs.configure()
        served = open_served(open_run(options.folder), wanted)
        host, port = taken.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("serving %s at %s", served.service.signature.name, address)
        print(f"{served.service.signature.name}: {address}/", flush=True)
        return serve(served, taken, limits)


def _shown(default: float, parse: Any) -> str:
    """A default as it could be typed: 32MiB, 50000000, 0.5."""
    if parse is _SIZE and default % MIB == 0:
        return f"{default // MIB}MiB"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _on_ray(options: argparse.Namespace, wanted: ServeOptions) -> int:
    from vitesse.serve import logs
    from vitesse.serve.ray.scale import Scale, parse_scale

    scale = Scale() if options.replicas is None else parse_scale(options.replicas)
    from vitesse.serve.ray.deploying import serve_on_ray

    logs.configure()
    return serve_on_ray(options.folder, wanted, scale, options.host, options.port)


def limits_of(options: argparse.Namespace) -> Limits:
    """Return the limits that the options say."""
    known = {one.name for one in fields(Limits)}
    assert {name for _, name, _, _ in _LIMITS} <= known
    given = {name: getattr(options, f"limit_{name}") for _, name, _, _ in _LIMITS}
    return Limits(**{name: value for name, value in given.items() if value is not None})


def _access(options: argparse.Namespace) -> Access:
    from vitesse.serve.auth import Access, keys_from_environment, keys_from_file

    def keys(path: Path | None, variable: str) -> Any:
        return keys_from_file(path) if path is not None else keys_from_environment(variable, os.environ)

    return Access(keys(options.api_key_file, KEYS), keys(options.admin_key_file, ADMIN_KEYS))
