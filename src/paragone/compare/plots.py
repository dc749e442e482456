"""The plots of a report, as SVG text: quality against speed and memory, and the distributions."""

import io
from typing import Any

from paragone.compare.statistics import spread

COLOURS = ("#1b6ca8", "#c8553d", "#588157", "#8e6c8a", "#b08900", "#3d405b")
MARKERS = {"fp32": "D", "bf16": "o", "int8": "s", "int4": "^"}


def plots(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(title, caption, SVG) of every plot that the result has data for. Needs matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update(
        {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False,
         "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "svg.hashsalt": "paragone",
         "text.parse_math": False}
    )  # fmt: skip
    good = [c for c in result["candidates"] if not c["error"]]
    out = []
    if any(c["quality"] for c in good):
        out.append(
            (
                "Quality against speed and memory",
                "Down is better quality; right is faster, left is smaller. Bars are the range of the "
                "repetitions. A candidate with another one below it and to its better side is beaten by it.",
                _quality(good),
            )
        )
    out.append(
        (
            "Time between tokens",
            "Every decoded token of every repetition. A long upper tail is what a reader feels as stutter.",
            _latencies(good),
        )
    )
    if any(c["quality"].get("kl") for c in good):
        out.append(
            (
                "How far each precision strays",
                "Share of positions whose KL divergence from the model's highest precision is at most x. "
                "Further left is more faithful; the right end shows the rare positions that changed most.",
                _divergences(good),
            )
        )
    return out


def _colour(candidates: list[dict[str, Any]], candidate: dict[str, Any]) -> str:
    models = list(dict.fromkeys(c["model"] for c in candidates))
    return COLOURS[models.index(candidate["model"]) % len(COLOURS)]


def _quality(candidates: list[dict[str, Any]]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for c in candidates:
        if not c["quality"]:
            continue
        y, look = c["quality"]["bits_per_byte"], {"color": _colour(candidates, c), "markersize": 8}
        for axis, key, scale in ((left, "decode_tokens_per_s", 1), (right, "peak_memory_bytes", 1e-6)):
            value = spread([s * scale for s in c["samples"][key]])
            if key == "decode_tokens_per_s":  # text a second, so that tokenizers compare
                size = c["quality"]["bytes_per_token"]
                value = spread([s * size for s in c["samples"][key]])
            error = [[value.median - value.low], [value.high - value.median]]
            axis.errorbar(value.median, y, xerr=error, fmt=MARKERS[c["precision"]], capsize=3, **look)
            axis.annotate(
                c["precision"], (value.median, y), fontsize=8, xytext=(4, 5), textcoords="offset points"
            )
    for c in {c["model"]: c for c in candidates}.values():
        left.plot([], [], "o", color=_colour(candidates, c), label=c["model"])
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    left.set(xlabel="decoded text, bytes a second", ylabel="bits per byte (less is better)")
    right.set(xlabel="peak memory, MB")
    for axis in (left, right):
        axis.margins(x=0.15, y=0.18)
    return _svg(figure)


def _latencies(candidates: list[dict[str, Any]]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.9 + 0.55 * len(candidates)), layout="constrained")
    axis = figure.subplots()
    data = [[1e3 * t for run in c["samples"]["token_s"] for t in run] for c in candidates]
    positions = range(len(candidates), 0, -1)
    boxes = axis.boxplot(
        data, positions=positions, orientation="horizontal", widths=0.5, whis=(5, 95), showfliers=False,
        patch_artist=True, medianprops={"color": "black"},
    )  # fmt: skip
    for box, c in zip(boxes["boxes"], candidates, strict=True):
        box.set(facecolor=_colour(candidates, c), alpha=0.55)
    for values, position in zip(data, positions, strict=True):
        axis.plot(values, [position] * len(values), "|", color="black", alpha=0.25, markersize=5)
    axis.set_yticks(list(positions), [c["label"] for c in candidates])
    axis.set(xlabel="milliseconds between tokens (box: quartiles; whiskers: 5% to 95%)", xlim=(0, None))
    return _svg(figure)


def _divergences(candidates: list[dict[str, Any]]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axis = figure.subplots()
    styles = {"bf16": "-", "int8": "--", "int4": "-.", "fp32": ":"}
    for c in candidates:
        if values := sorted(max(v, 1e-7) for v in c["quality"].get("kl", [])):
            share = [(i + 1) / len(values) for i in range(len(values))]
            axis.step(values, share, where="post", label=c["label"], color=_colour(candidates, c),
                      linestyle=styles[c["precision"]])  # fmt: skip
    axis.set(xscale="log", xlabel="KL divergence, nats", ylabel="share of positions", ylim=(0, 1.02))
    # Plain numbers: names of models may hold a dollar sign, so no text is read as a formula.
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.legend(frameon=False, fontsize=9)
    return _svg(figure)


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]
