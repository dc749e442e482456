"""The dashboard asks for what the server counts."""

import json
import re
from pathlib import Path

from paragone.cli.main import run
from paragone.serve.messages import State
from paragone.serve.metrics import Metrics, RequestTimes
from tests.serve.streams import streams_held


def test_every_name_on_the_dashboard_is_counted():
    metrics = Metrics()
    metrics.step("m", State(1, 2, 3, 4, 0, 1, 1, 1, 0.1, 5))
    times = RequestTimes(metrics, "m", 0.0)
    times.tokens(0, 1)
    times.tokens(0, 1)
    times.done(3, 2, ["stop"])
    metrics.http.labels("/", "200").inc()
    text = metrics.text().decode()
    counted = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
    dashboard = json.loads((Path(__file__).parents[2] / "deploy" / "grafana.json").read_text())
    asked = {
        name for panel in dashboard["panels"] for target in panel["targets"]
        for name in re.findall(r"(?:vllm:|paragone_)\w+", target["expr"])
    }  # fmt: skip
    assert len(asked) > 10
    assert asked <= counted, asked - counted


def test_a_model_that_is_loaded_again_counts_from_the_beginning():
    metrics = Metrics()
    metrics.step("m", State(0, 0, 0, 4, 2, 50, 20, 1, 0.1, 5))
    metrics.forget("m")
    metrics.step("m", State(0, 0, 0, 4, 0, 10, 5, 1, 0.1, 5))
    text = metrics.text().decode()
    assert 'vllm:prefix_cache_queries_total{model_name="m"} 60.0' in text
    assert 'vllm:num_preemptions_total{model_name="m"} 2.0' in text
    metrics.down()
    assert metrics.states == {}


def test_a_look_at_a_server(server, capsys):
    """`paragone top`, while answers come, more of them than could have come before it looks, and afterwards."""
    with streams_held(server, 4, n=16, tokens=1000) as (threads, _):
        pass
    assert run(["top", "--url", server.url, "--once", "--every", "0.1"]) == 0
    for thread in threads:
        thread.join()
    shown = capsys.readouterr().out
    assert "engine up" in shown
    row = next(line.split() for line in shown.splitlines() if line.startswith("tiny"))
    assert row[1] == "64"  # run
    assert float(row[3].replace(",", "")) > 0  # tokens a second
    assert "not loaded" in shown or "other" in shown
    server.idle()
    assert run(["top", "--url", "http://127.0.0.1:9", "--once"]) == 69
    assert "http://127.0.0.1:9" in capsys.readouterr().err
