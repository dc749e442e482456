"""The server against its own OpenAPI document: thousands of requests, right and wrong ones (row 8)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from paragone.serve.keys import KeyStore
from paragone.serve.openapi import document
from paragone.serve.routes import ROUTES
from tests.serve.harness import serving

EXAMPLES = 300  # for each operation


def test_whatever_it_is_sent(tiny_folder, tmp_path):
    """Never 5xx, never a body of another shape, never an answer to what the document forbids. That a body which
    the document allows is refused happens only for what no document can say (see schemathesis_checks.py)."""
    options = "--max-model-len", "64", "--kv-cache-mb", "64", "--request-timeout", "120", "--keys"
    key, _ = KeyStore(tmp_path / "keys.sqlite3").create("me")
    with serving(f"tiny={tiny_folder}:bf16", *options, model="tiny", home=tmp_path, key=key) as server:
        (tmp_path / "openapi.json").write_bytes(server.get("/openapi.json").data)
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run", str(tmp_path / "openapi.json"),
            "--url", server.url, "-H", f"Authorization: Bearer {key}",
            "--phases", "examples,coverage,fuzzing", "--mode", "all", "--max-examples", str(EXAMPLES),
            "--checks", "all", "--exclude-checks", "positive_data_acceptance,not_a_server_error", "--seed", "1", "--request-timeout", "130",
            "--generation-allow-x00", "true", "--suppress-health-check", "all", "--generation-database", "none",
            "--no-color", "--output-truncate", "true", "--workers", "1",
        ]  # fmt: skip
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.serve.schemathesis_checks"}
        run = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment
        )
        found = re.findall(r"- ST\d+.*?\n\n(.*?)\n\n", run.stdout, re.DOTALL)
        assert run.returncode == 0, (
            "\n".join(text[:400] for text in found)
            + run.stdout[-3000:]
            + str(server.events("engine_error") + server.events("internal"))
        )
        assert server.idle()["engine_restarts"] == 0
        assert server.complete().status == 200


def test_every_route_is_in_the_document():
    described = json.loads(document(("m",), keys=True))
    assert described["openapi"].startswith("3.1")
    for route in ROUTES:
        operation = described["paths"][route.path][route.method.lower()]
        assert "200" in operation["responses"]
        assert ("401" in operation["responses"]) != route.open
    sent = described["components"]["schemas"]["ChatRequest"]
    assert sent["additionalProperties"] is False
    assert sent["required"] == ["model", "messages"]
