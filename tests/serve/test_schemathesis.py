"""Requests made from the OpenAPI document, right and wrong ones, against a running server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")
pytest.importorskip("schemathesis", reason="needs schemathesis: pip install schemathesis")

from serve.serving import running, service_of

# That wrong requests are refused and right ones taken is judged by the catalogue: random bytes are no picture.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "unsupported_method"
)


def test_what_the_document_promises_is_what_the_server_answers(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    if not program.is_file():
        pytest.skip("the command schemathesis is not beside this Python")
    with service_of() as service, running(service) as live:
        document = live.ask("GET", "/openapi.json").json
        assert document["openapi"].startswith("3.1")
        kept = tmp_path / "openapi.json"
        kept.write_text(json.dumps(document))
        done = subprocess.run(
            [str(program), "run", str(kept), "--url", f"http://{live.url}", "--checks", CHECKS,
             "--max-examples", "6", "--phases", "examples,coverage,fuzzing", "--seed", "7", "--no-color",
             "--workers", "1", "--generation-database", "none"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert live.ask("GET", "/readyz").status == 200
