"""docs/families.md, made from the specs, the catalogue, the prompt formats and the tables of the tests."""

from tests.parity.test_gguf_models import ARCH, WRITABLE
from tests.tiny import CASES, spec_from

from paragone.catalog.catalog import CatalogModel, models
from paragone.engine.inspect import describe
from paragone.model.families import known_families
from paragone.text.chat import RENDERER
from paragone.text.formats import prompt_formats

INTRODUCTION = """# Families

Made from the code by `make docs`. A model runs if its files name one of the architectures below: a Vicuna, a
Zephyr or a SmolLM is a Llama or a Mistral. `paragone inspect MODEL` says all of this of one model.

- Parity: tiny random models equal the transformers class in float32 to 2e-5 of the logits' standard
  deviation (figures in [parity.md](parity.md)), whole, cached, in chunks, in blocks; in bfloat16 bit by bit,
  but for Falcon with ALiBi, whose reference rounds inside a fused operation.
- GGUF: the same model written as GGUF gives the logits of its folder.
- Real tokenizers: ids equal those of their makers' code for Llama 3 and 4, Mistral v1, v2, v3, v7 and Tekken,
  and Qwen; those of another library on the same vocabulary for Llama 2, Gemma 3 and SmolLM2.

Sizes are millions of parameters; `paragone pull` and the report of `paragone compare` say what a licence
asks.
"""
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3+3?"},
]


def _model_row(model: CatalogModel) -> str:
    size = f"{model.parameters / 1e6:,.0f}"
    licence = f"[{model.licence.title}]({model.licence.url})"
    cells = [
        model.title,
        f"`{model.name}`",
        size,
        f"{model.context:,}",
        licence,
        model.prompt_format or "none: base",
    ]
    return "| " + " | ".join(cells) + " |"


def families_page() -> str:
    """The whole page."""
    cases = {case.name: (case, spec_from(case.config(**case.options))) for case in CASES}
    writable = {case.name for case in WRITABLE}
    parts = [INTRODUCTION]
    for title, dialects in known_families().items():
        parts.append(f"## {title}\n")
        names = ", ".join(f"`{n}`" for n in dialects["hf"])
        gguf = ", ".join(f"`{n}`" for n in dialects["gguf"])
        via = {ARCH[n] for n in dialects["hf"] if n in ARCH} - set(dialects["gguf"])
        gguf = gguf or ", ".join(f"`{n}`" for n in sorted(via)) or "none"
        parts.append(f"In config.json: {names}. In GGUF: {gguf}.\n")
        parts.append("| tested as | architecture | parity | GGUF |\n|---|---|---|---|")
        for name, (case, spec) in cases.items():
            if case.config.model_type in dialects["hf"]:
                row = (name, describe(spec, sizes=False), "yes", "yes" if name in writable else "–")
                parts.append("| " + " | ".join(row) + " |")
        known = [m for m in models().values() if m.family in {*dialects["hf"], *dialects["gguf"]}]
        if known:
            parts.append("\n| model | name here | size | context | licence | prompt format |")
            parts.append("|---|---|---|---|---|---|")
            parts += [_model_row(model) for model in known]
        parts.append("")
    parts.append(_formats())
    return "\n".join(parts)


def _formats() -> str:
    """Every prompt format with a conversation written in it."""
    parts = [
        "## Prompt formats\n",
        "A model's own chat template goes before these. `paragone chat MODEL --format NAME` or",
        "`paragone.load(MODEL, prompt_format=NAME)` chooses one; `--show-prompt` prints what the model sees.",
        "`<s>` and `</s>` stand for the model's own tokens for begin and end, which go in as their ids.\n",
    ]
    for name, entry in prompt_formats().items():
        values = {"bos_token": "<s>", "eos_token": "</s>", "gap": "", "messages": CONVERSATION}
        template = entry.template.replace("strftime_now('%d %b %Y')", "'21 Nov 2026'")  # or it changes daily
        text = RENDERER.render(template, values | {"add_generation_prompt": True})
        stops = f" Also stops at {', '.join(f'`{stop!r}`' for stop in entry.stop)}." if entry.stop else ""
        about = f"{entry.title}. [Source]({entry.source.split(' ')[0]}).{stops}"
        parts.append(f"### {name}\n\n{about}\n\n```\n{text}\n```\n")
    return "\n".join(parts)
