"""The rows of a comparison's table, for the terminal and the report alike."""

from typing import Any

from paragone.compare.statistics import Spread, spread

COLUMNS = (
    ("model", "Model and precision"),
    ("decode", "Decode tok/s"),
    ("bandwidth", "GB/s read"),
    ("prefill", "Prefill tok/s"),
    ("ttft", "First token s"),
    ("start", "Start s"),
    ("memory", "Peak MB"),
    ("weights", "Weights MB"),
    ("quality", "Bits/byte"),
    ("kl", "KL to best"),
    ("agreement", "Same top-1"),
)
EXPLANATIONS = {
    "decode": "tokens a second for one sequence, after the prompt",
    "bandwidth": "bytes of weights read a second when decoding, in billions",
    "prefill": "prompt tokens a second",
    "ttft": "seconds to the first token of a prompt of the length under settings",
    "start": "seconds from starting the process to the first token of a short prompt",
    "memory": "the most memory that the process had resident",
    "weights": "weights in memory; embeddings stay in the file",
    "quality": "bits per byte of the texts; less is better, and it compares between tokenizers",
    "kl": "mean KL divergence in nats from the same model's highest precision here",
    "agreement": "how often its most likely token is that of the highest precision",
}


def rows_of(result: dict[str, Any]) -> list[dict[str, str]]:
    """One row of texts a candidate; measured columns are medians with their half-range."""
    return [_row(c) for c in result["candidates"]]


def _row(candidate: dict[str, Any]) -> dict[str, str]:
    if candidate["error"]:
        return {"model": candidate["label"], "error": candidate["error"]}
    samples, facts, quality = candidate["samples"], candidate["facts"], candidate["quality"]
    decode = spread(samples["decode_tokens_per_s"])
    row = {
        "model": candidate["label"],
        "decode": _show(decode),
        "bandwidth": f"{decode.median * facts['decode_bytes'] / 1e9:.1f}",
        "prefill": _show(spread(samples["prefill_tokens_per_s"])),
        "ttft": f"{spread(samples['ttft_s']).median:.2f}",
        "start": f"{spread(samples['start_s']).median:.1f}",
        "memory": f"{spread(samples['peak_memory_bytes']).median / 1e6:.0f}",
        "weights": f"{facts['weight_bytes'] / 1e6:.0f}",
    }
    if quality:
        row["quality"] = f"{quality['bits_per_byte']:.3f}"
        if "kl_mean" in quality:
            row["kl"] = f"{quality['kl_mean']:.4f}"
            row["agreement"] = f"{quality['top1_agreement']:.0%}"
        else:
            row["kl"] = row["agreement"] = "(itself)"
    return row


def _show(value: Spread) -> str:
    digits = 0 if value.median >= 20 else 1
    return f"{value.median:.{digits}f} ±{value.half_width:.0%}"


def known_of(candidate: dict[str, Any]) -> dict[str, str]:
    """What was known before anything ran, in words."""
    known = candidate["known"]
    if not known:
        return {}
    licence = known.get("licence")
    commercial = {"yes": "yes", "conditions": "with conditions", "no": "no"}
    return {
        "Parameters": f"{known['parameters'] / 1e6:.0f} million",
        "Kind": known.get("kind") or "not in the catalogue",
        "Context": f"{known['context']:,} tokens",
        "Languages": ", ".join(known["languages"]) or "not in the catalogue",
        "On disk": f"{known['disk_bytes'] / 1e6:.0f} MB, mostly {known['stored_as']}",
        "Licence": licence["name"] if licence else "not in the catalogue: read the model's own card",
        "Commercial use": commercial[licence["commercial"]] if licence else "unknown",
        "The licence asks": "; ".join(licence["asks"]) if licence else "unknown",
        "Licence text": licence["url"] if licence else "",
    }
