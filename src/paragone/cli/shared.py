"""What several commands need: options, progress, loading with a bar."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from paragone.engine.config import EngineConfig
    from paragone.engine.model import Model
    from paragone.engine.params import SamplingParams
    from paragone.engine.resolve import Located

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def printable(text: str, keep: str = "") -> str:
    """A stranger's text without control characters, which could redraw a terminal."""
    return "".join(c if c.isprintable() or c in keep else f"\\x{ord(c):02x}" for c in text)


def error_console() -> Any:
    """A rich console on standard error: progress and notes, so that standard output stays clean."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


def report_console() -> Any:
    """A rich console on standard output, wide enough for a table where the output is no terminal."""
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1; a reader that has seen enough is no error

    return PipedConsole(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140)


@contextmanager
def download_progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar for `fetch`; it appears with the first byte."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=error_console(), transient=True, disable=not sys.stderr.isatty()) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int | None) -> None:
            phase = "unpacking" if what == "unpacking" else "downloading"
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done, total=total)

        yield show


def fetch_model(name: str) -> "Located":
    """A model on this machine, pulled with a progress bar if need be; a pull names the licence."""
    from paragone.engine.resolve import fetch, locate
    from paragone.errors import NotFound

    try:
        return locate(name)
    except NotFound:
        with download_progress() as progress:
            found = fetch(name, progress)
    licence = found.entry.licence if found.entry else None
    note = f" ({licence.title}: {licence.url})" if licence else ""
    error_console().print(f"pulled {found.name}{note}")
    return found


def note_kernels() -> None:
    """Says once where the compiled kernels are missing, and that this makes a difference."""
    import importlib.util

    if importlib.util.find_spec("paragone.kernels._native") is None:  # not imported: torch must be first
        error_console().print(
            "note: the compiled kernels are missing (no C++ compiler at installation?): PyTorch runs, slower",
            style="yellow", soft_wrap=True,
        )  # fmt: skip


def load(
    name: str,
    precision: str | None,
    device: str,
    threads: int | None,
    prompt_format: str | None = None,
    *,
    keep_packed: bool = False,
) -> "Model":
    """Loads a model with a progress bar."""
    from paragone.engine.load import load_model

    found = fetch_model(name)
    note_kernels()
    if threads:
        from paragone.ops.threads import set_threads

        set_threads(threads)
    if not sys.stderr.isatty():
        return load_model(
            found.path,
            found.name,
            precision,  # type: ignore[arg-type]
            device,
            prompt_format=prompt_format,
            keep_packed=keep_packed,
        )
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("loading {task.description}", markup=False), BarColumn())
    with Progress(*columns, console=error_console(), transient=True) as bar:
        task = bar.add_task(f"{found.name} {precision or ''}".rstrip())
        return load_model(
            found.path,
            found.name,
            precision,  # type: ignore[arg-type]
            device,
            lambda done, total: bar.update(task, completed=done, total=total),
            prompt_format,
            keep_packed=keep_packed,
        )


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--precision, --device, --threads, --keep-packed."""
    for option in (
        click.option(
            "--keep-packed",
            is_flag=True,
            help="Keep packed weights on disk too: the next start with this flag maps them.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(1, 1024),
            help="Processor threads; default: what is fastest here.",
        ),
        click.option("--device", default="cpu", show_default=True, help="A torch device."),
        click.option(
            "--precision",
            type=click.Choice(["fp32", "bf16", "int8", "int4"]),
            help="How the weights are kept; default: bf16, or the integers that a quantised file has (int8).",
        ),
    ):
        function = option(function)
    return function


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`batch_options` and --draft."""
    return batch_options(
        click.option(
            "--draft",
            metavar="MODEL[:PRECISION]",
            help="A smaller model of the same vocabulary that guesses ahead; the answer stays the same.",
        )(function)
    )


def batch_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """How the engine works: its memory, how much it does at once, guesses, the deterministic mode."""
    for option in (
        click.option(
            "--deterministic",
            is_flag=True,
            help="The same answer to the bit, whatever runs beside it; slower.",
        ),
        click.option(
            "--prompt-lookup", is_flag=True, help="Guess from what came before; faster where texts repeat."
        ),
        click.option(
            "--kv-cache-bits", type=click.Choice(["16", "8"]), default="16", help="8: half the memory."
        ),
        click.option(
            "--kv-cache-mb", type=click.IntRange(1), help="Memory for keys and values; default: as is fit."
        ),
        click.option(
            "--max-num-seqs", type=click.IntRange(1, 4096), default=64, help="Answers that run at once."
        ),
    ):
        function = option(function)
    return function


def load_with_engine(name: str, options: dict[str, Any], prompt_format: str | None = None) -> "Model":
    """Loads a model, and its draft model, from the flags of `model_options` and `engine_options`."""
    from paragone.model.precision import split_precision

    config = engine_config(options)
    of_all = options["device"], options["threads"]
    keep = options["keep_packed"]
    loaded = load(name, options["precision"], *of_all, prompt_format, keep_packed=keep)
    loaded.engine_config = config
    if options["draft"] is not None:
        draft, precision = split_precision(options["draft"])
        loaded.draft = load(draft, precision or options["precision"], *of_all, keep_packed=keep)
    return loaded


def engine_config(options: dict[str, Any]) -> "EngineConfig":
    """EngineConfig from the flags."""
    from paragone.engine.config import EngineConfig

    megabytes = options["kv_cache_mb"]
    return EngineConfig(
        max_num_seqs=options["max_num_seqs"],
        kv_cache_bytes=None if megabytes is None else megabytes * 10**6,
        kv_cache_bits=int(options["kv_cache_bits"]),
        deterministic=options["deterministic"],
        prompt_lookup=options["prompt_lookup"],
    )


# Flag, field of SamplingParams, type, help. Defaults are the dataclass's own.
SAMPLING: tuple[tuple[str, str, Any, str], ...] = (
    ("--temperature", "temperature", float, "0, the default, always takes the most likely token."),
    ("--top-k", "top_k", int, "Choose among the k most likely; 0: among all."),
    ("--top-p", "top_p", float, "Choose among the most likely that together reach this probability."),
    ("--min-p", "min_p", float, "Leave out tokens below this share of the most likely one."),
    ("--repetition-penalty", "repetition_penalty", float, "Above 1 discourages what prompt or answer has."),
    ("--presence-penalty", "presence_penalty", float, "Subtracted once for tokens that the answer has."),
    (
        "--frequency-penalty",
        "frequency_penalty",
        float,
        "Subtracted for every time the answer has a token.",
    ),
    ("--seed", "seed", int, "Repeats a run's random choices."),
)


def sampling_options(max_tokens: int) -> Decorator:
    """The flags of SamplingParams."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.option("--stop", multiple=True, help="End before this text; may be given often.")(
            function
        )
        for flag, name, kind, text in reversed(SAMPLING):
            function = click.option(flag, name, type=kind, default=None, help=text)(function)
        return click.option(
            "--max-tokens", type=int, default=max_tokens, show_default=True, help="The longest answer."
        )(function)

    return add


def sampling_params(options: dict[str, Any]) -> "SamplingParams":
    """SamplingParams from the flags that were given; raises UsageError for values out of bounds."""
    from paragone.engine.params import SamplingParams
    from paragone.errors import UsageError

    names = {name for _, name, _, _ in SAMPLING} | {"max_tokens", "logprobs", "ignore_eos"}
    given = {k: v for k, v in options.items() if k in names and v is not None}
    if not given.get("temperature"):
        idle = [k for k in ("top_k", "top_p", "min_p", "seed") if k in given]
        if idle:
            flag = "--" + idle[0].replace("_", "-")
            raise UsageError(f"{flag} does nothing at temperature 0: give --temperature, e.g. 0.7")
    return SamplingParams(**given, stop=tuple(options.get("stop") or ()))
