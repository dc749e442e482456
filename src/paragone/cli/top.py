"""`paragone top`: a server at work, in the terminal."""

import json
import time
import urllib.error
import urllib.request
from typing import Any

import click

RATE_ROWS = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"


@click.command("top")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Where the server is.")
@click.option("--key", envvar="PARAGONE_API_KEY", help="An API key; also $PARAGONE_API_KEY.")
@click.option(
    "--every", default=1.0, type=click.FloatRange(0.1), show_default=True, help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Look twice, print, and end.")
@click.option("--insecure", is_flag=True, help="Take any TLS certificate, such as a self-signed one.")
def command(url: str, key: str | None, every: float, once: bool, insecure: bool) -> None:
    """Shows a server's requests, tokens a second, latencies, blocks and memory until Ctrl-C."""
    from rich.live import Live

    from paragone.cli.shared import report_console

    look = _Looker(url.rstrip("/"), key, insecure)
    before = look()
    console = report_console()
    if once:
        time.sleep(every)
        console.print(_drawn(before, look(), every))
        return
    with Live(_drawn(before, before, every), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            now = look()
            live.update(_drawn(before, now, now["time"] - before["time"]), refresh=True)
            before = now


class _Looker:
    """Asks a server for its state."""

    def __init__(self, url: str, key: str | None, insecure: bool) -> None:
        import ssl

        from paragone.errors import UsageError

        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--url is {url!r}: it begins with http:// or https://")
        self._url, self._key = url, key
        self._context = ssl._create_unverified_context() if insecure else None  # noqa: S323 -- asked for

    def __call__(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._get("/machine"))
        return state | {"metrics": _parsed(self._get("/metrics").decode()), "time": time.monotonic()}

    def _get(self, path: str) -> bytes:
        from paragone.errors import Unavailable

        request = urllib.request.Request(self._url + path)  # noqa: S310 -- http and https only, see above
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        try:
            with urllib.request.urlopen(request, timeout=10, context=self._context) as answer:  # noqa: S310
                data: bytes = answer.read()
                return data
        except urllib.error.HTTPError as err:
            hint = ": give a key with --key" if err.code == 401 else ""
            raise Unavailable(f"{self._url}{path}: the server answered {err.code}{hint}") from None
        except (OSError, ValueError) as err:
            raise Unavailable(f"{self._url}: {getattr(err, 'reason', err)}") from None


def _parsed(text: str) -> dict[str, dict[str, float]]:
    """Prometheus' text: name to labels to value."""
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            base, _, labels = name.partition("{")
            found.setdefault(base, {})[labels.rstrip("}")] = float(value)
    return found


def _drawn(before: dict[str, Any], now: dict[str, Any], seconds: float) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    seconds = max(seconds, 1e-3)
    memory = now["memory_bytes"]
    head = Text.assemble(
        ("paragone top", "bold"),
        f"   engine {'up' if now['engine_up'] else 'down'}, {now['engine_restarts']} restarts"
        f"   requests {now['requests_inside']} of {now['requests_at_most']}"
        f"   memory {memory['engine'] / 1e6:,.0f} MB engine, {memory['http'] / 1e6:,.0f} MB HTTP, "
        f"{memory['available'] / 1e9:.1f} GB free"
        f"{'   draining' if now['draining'] else ''}",
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("Model")
    for title in ("running", "waiting", "tokens/s", "prompt/s", "first token ms", "between ms", "step ms"):
        table.add_column(title, justify="right")
    table.add_column("cache")
    for row in now["models"]:
        model = row["model"]
        if not row["loaded"]:
            table.add_row(Text(model, style="dim"), Text("not loaded", style="dim"))
            continue
        labels = f'model_name="{model}"'
        prompt, generated = ((_of(now, n, labels) - _of(before, n, labels)) / seconds for n in RATE_ROWS)
        between = _mean(before, now, "vllm:inter_token_latency_seconds", labels)
        share = row.get("blocks_used", 0) / max(row.get("blocks", 0), 1)
        table.add_row(
            model,
            f"{row.get('running', 0)}",
            f"{row.get('waiting', 0)}",
            f"{generated:,.0f}",
            f"{prompt:,.0f}",
            _ms(_mean(before, now, "vllm:time_to_first_token_seconds", labels)),
            _ms(between),
            f"{row.get('step_ms', 0):.1f}",
            f"{_bar(share)} {share:4.0%}",
        )
    return Group(head, Text(), table)


def _of(state: dict[str, Any], name: str, labels: str) -> float:
    return float(state["metrics"].get(name, {}).get(labels, 0.0))


def _mean(before: dict[str, Any], now: dict[str, Any], name: str, labels: str) -> float | None:
    """Of what was observed between two looks, in seconds."""
    count = _of(now, f"{name}_count", labels) - _of(before, f"{name}_count", labels)
    spent = _of(now, f"{name}_sum", labels) - _of(before, f"{name}_sum", labels)
    return spent / count if count > 0 else None


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:,.1f}"


def _bar(share: float, wide: int = 20) -> str:
    full = min(wide, round(wide * share))
    return "█" * full + "░" * (wide - full)
