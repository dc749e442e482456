"""`paragone serve`: the OpenAI API for many users."""

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paragone import limits
from paragone.cli.shared import batch_options, engine_config, note_kernels
from paragone.errors import BadConfiguration

if TYPE_CHECKING:
    from paragone.serve.process import ForkServer


@click.command("serve")
@click.argument("models", nargs=-1, metavar="[[NAME=]MODEL[:PRECISION]]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one."
)
@click.option(
    "--keys", is_flag=True, help="Ask for an API key (`paragone keys`); needed beyond this machine."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate file (PEM), with --tls-key.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its private key (PEM).")
@click.option("--tls-self-signed", is_flag=True, help="TLS with a certificate made here, for trials.")
@click.option("--cors-origin", multiple=True, help="Web origin whose pages may ask; may be given often.")
@click.option(
    "--load-all",
    is_flag=True,
    help="Load every model at the start; default: the first, others when asked for.",
)
@click.option(
    "--memory-mb", type=click.IntRange(1), help="For all models together; the least used one makes room."
)
@click.option("--max-model-len", type=click.IntRange(8), help="Shorter contexts than the models' own.")
@click.option(
    "--max-queue",
    type=click.IntRange(0, 65536),
    default=limits.QUEUE,
    show_default=True,
    help="Requests that wait beside them.",
)
@batch_options
@click.option("--keep-packed", is_flag=True, help="Keep packed weights on disk for the next start.")
@click.option(
    "--request-timeout",
    type=click.FloatRange(0.1),
    default=limits.REQUEST_SECONDS,
    show_default=True,
    help="Seconds until an answer is broken off.",
)
@click.option(
    "--step-timeout",
    type=click.FloatRange(1.0),
    default=limits.STEP_SECONDS,
    show_default=True,
    help="Seconds of silence until the engine's process is killed.",
)
@click.option(
    "--drain",
    type=click.FloatRange(0.0),
    default=limits.DRAIN_SECONDS,
    show_default=True,
    help="Seconds for running answers when stopped.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option("--print-limits", is_flag=True, help="Print every limit and end.")
def command(models: tuple[str, ...], **options: Any) -> int:
    """Serves MODELs to any client of OpenAI's API, and a page to talk to them at the same address.

    Without a MODEL every downloaded one is served. Only these can be asked for: no request names a path.
    Without --keys only this machine can ask.
    """  # fmt: skip
    if options["print_limits"]:
        from paragone.serve.config import print_limits

        click.echo(print_limits())
        return 0
    from paragone.serve.process import ForkServer

    forks = ForkServer()
    try:
        return _serve(models, options, forks)
    finally:
        forks.kill()


def _server() -> Any:
    """The module; raises BadConfiguration where what it needs is not installed."""
    try:
        return importlib.import_module("paragone.serve.server")
    except ModuleNotFoundError as err:
        raise BadConfiguration(f"{err.name} is not installed: pip install 'paragone[serve]'") from None


def _serve(models: tuple[str, ...], options: dict[str, Any], forks: "ForkServer") -> int:
    """Serves until it is told to stop; the exit code."""
    from paragone.serve.config import ServeConfig, served_models

    server = _server()
    certificate, key = _certificate(options)
    found = [_find(text) for text in models] or _all_here()
    config = ServeConfig(
        host=options["host"],
        port=options["port"],
        keys=options["keys"],
        certificate=certificate,
        certificate_key=key,
        cors=options["cors_origin"],
        queue=options["max_queue"],
        request_seconds=options["request_timeout"],
        drain_seconds=options["drain"],
        step_seconds=options["step_timeout"],
        max_model_len=options["max_model_len"],
        memory_bytes=None if options["memory_mb"] is None else options["memory_mb"] * 10**6,
        keep_packed=options["keep_packed"],
        load_all=options["load_all"],
        log_format=options["log_format"],
        log_level=options["log_level"],
    )
    note_kernels()
    engine = asdict(engine_config(options))
    return int(server.Service(config, served_models(found), engine, forks).run())


def _find(text: str) -> Any:
    """(name given, model on disk, precision) of NAME=MODEL:PRECISION."""
    from paragone.cli.shared import fetch_model
    from paragone.model.precision import split_precision

    given, has_name, rest = text.partition("=")
    source, precision = split_precision(rest if has_name else text)
    return (given if has_name else None), fetch_model(source), precision


def _all_here() -> list[Any]:
    from paragone.checkpoint.store import stored_models
    from paragone.engine.resolve import locate
    from paragone.errors import NotFound

    found = [(None, locate(model.name), None) for model in stored_models()]
    if not found:
        raise NotFound(
            "there is no model here yet: `paragone serve smollm2-135m-instruct` fetches a small one"
        )
    return found


def _certificate(options: dict[str, Any]) -> tuple[Path | None, Path | None]:
    from paragone.cli.shared import error_console
    from paragone.errors import UsageError
    from paragone.serve.tls import check_files, self_signed

    certificate, key = options["tls_cert"], options["tls_key"]
    if (certificate is None) != (key is None):
        raise UsageError("--tls-cert and --tls-key belong together")
    if options["tls_self_signed"]:
        if certificate is not None:
            raise UsageError("give --tls-self-signed or files, not both")
        certificate, key, fingerprint = self_signed()
        error_console().print(f"self-signed certificate {certificate}\nSHA-256 {fingerprint}", soft_wrap=True)
    if certificate is not None:
        check_files(certificate, key)
    return certificate, key
