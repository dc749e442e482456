"""`paragone chat`: a conversation in the terminal."""

import contextlib
import math
import sys
from typing import Any

import click

from paragone.cli.shared import engine_options, model_options, sampling_options

HELP = """\
/help               this list
/system TEXT        set the system message and begin anew
/set NAME VALUE     change a setting (temperature, top_p, max_tokens, seed ...)
/settings           show the settings
/undo               take back the last question and its answer
/clear              begin anew
/save FILE          write the conversation as JSON
/quit               leave (so does Ctrl-D)
End a line with \\ to go on in the next one, or write \"\"\" to begin and end a text of several lines.
Ctrl-C stops an answer, not the chat."""


@click.command("chat")
@click.argument("model")
@model_options
@sampling_options(max_tokens=1024)
@engine_options
@click.option("--system", help="The system message.")
@click.option(
    "--format",
    "prompt_format",
    metavar="NAME",
    help="How the conversation is written, instead of by the model's own chat template: vicuna, llama-2 ... "
    "(docs/families.md lists all).",
)
@click.option("--show-prompt", is_flag=True, help="Before each answer, print exactly what the model sees.")
def command(model: str, **options: Any) -> None:
    """Talks to MODEL by its chat template or a format you name. /help inside shows what else there is."""
    from paragone.cli.shared import load_with_engine, sampling_params
    from paragone.errors import BadConfiguration, MalformedData
    from paragone.text.chat import RENDERER

    params = sampling_params(options)
    RENDERER.start()  # its start-up hides behind the loading
    loaded = load_with_engine(model, options, options["prompt_format"])
    if loaded.tokenizer.chat_template is None:
        raise BadConfiguration(
            f"{loaded.name} has no chat template: it is a base model that continues text. "
            f"Use `paragone generate {model}`, an instruction-tuned model, or --format with a prompt format."
        )
    chat = Chat(loaded, params, options.get("system"), show_prompt=options["show_prompt"])
    chat.loop()
    if chat.failed and not chat.terminal:
        raise SystemExit(MalformedData.exit_code)  # a script must be able to see that an answer is missing


class Chat:
    """The conversation's state and its commands."""

    def __init__(self, model: Any, params: Any, system: str | None, *, show_prompt: bool = False) -> None:
        self.model, self.params, self.show_prompt = model, params, show_prompt
        self.messages: list[Any] = []
        self.failed = False
        self.terminal = sys.stdin.isatty()
        self.set_system(system)

    def loop(self) -> None:
        """Reads and answers until the input ends."""
        if self.terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 -- gives input() its history and editing
            click.echo(f"{self.model.name} {self.model.precision}. /help for commands.", err=True)
        while True:
            try:
                text = self.read()
            except EOFError:
                if self.terminal:
                    click.echo()
                return
            except KeyboardInterrupt:
                click.echo(" (Ctrl-D or /quit leaves)", err=True)
                continue
            if text.startswith("/") and "\n" not in text:
                if not self.obey(text):
                    return
            elif text.strip():
                self.answer(text)

    def read(self) -> str:
        """One message: a line, lines joined by a final backslash, or a text in triple quotes."""
        line = input("> " if self.terminal else "")
        if line.strip() == '"""':
            lines = []
            while (line := input("… " if self.terminal else "")).strip() != '"""':
                lines.append(line)
            return "\n".join(lines)
        while line.endswith("\\"):
            line = line[:-1] + "\n" + input("… " if self.terminal else "")
        return line

    def answer(self, text: str) -> None:
        """Streams the answer to a message. What does not fit or fails is said, and the chat goes on."""
        from paragone.errors import ParagoneError

        self.messages.append({"role": "user", "content": text})
        try:
            if self.show_prompt:
                self._show_prompt()
            run = self.model.start_chat(self.messages, self.params)
            self._stream(run)
            run.check()
        except (ParagoneError, KeyboardInterrupt) as err:
            self.messages.pop()
            click.echo(f"error: {err}" if isinstance(err, ParagoneError) else "(stopped)", err=True)
            self.failed = isinstance(err, ParagoneError)
            return
        if not run.completions or not run.completions[0].token_ids:
            # Stopped before the first token: as if it had not been asked.
            self.messages.pop()
            click.echo("(stopped)", err=True)
            return
        completion = run.completions[0]
        self.messages.append({"role": "assistant", "content": completion.text})
        if self.terminal:
            speed = completion.decode_tokens_per_s
            rate = f", {speed:.1f} tokens/s" if not math.isnan(speed) else ""
            note = {"length": ", cut off by max_tokens or the context", "cancelled": ", stopped"}
            why = note.get(completion.finish_reason, "")
            tokens = len(completion.token_ids)
            click.secho(
                f"[{tokens} tokens{rate}, first after {completion.ttft_s:.2f} s{why}]", dim=True, err=True
            )

    def _show_prompt(self) -> None:
        """The tokens of the conversation as they go in: each one's text as a literal, and its number."""
        from paragone.text.chat import encode_chat

        tokenizer = self.model.tokenizer
        ids = encode_chat(tokenizer, self.messages)
        pieces = (f"{tokenizer.token_bytes(i).decode('utf-8', 'replace')!r} {i}" for i in ids)
        click.secho(f"{len(ids)} tokens: " + " | ".join(pieces), dim=True, err=True)

    @staticmethod
    def _stream(run: Any) -> None:
        chunks = iter(run)
        while True:
            try:
                chunk = next(chunks, None)
                if chunk is None:
                    break
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
            except KeyboardInterrupt:
                break
        click.echo()

    def set_system(self, text: str | None) -> None:
        """Begins anew, with a system message if there is one."""
        self.messages = [{"role": "system", "content": text}] if text else []

    def obey(self, line: str) -> bool:
        """Runs a slash command; False means leave."""
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if name in ("quit", "exit", "bye"):
            return False
        if name == "help":
            click.echo(HELP)
        elif name == "clear":
            self.set_system(next((m["content"] for m in self.messages if m["role"] == "system"), None))
        elif name == "system":
            self.set_system(rest)
        elif name == "undo":
            while self.messages and self.messages[-1]["role"] != "system":
                if self.messages.pop()["role"] == "user":
                    break
        elif name == "settings":
            click.echo("\n".join(f"{k} = {v}" for k, v in self.params.__dict__.items()))
        elif name == "set":
            self._set(rest)
        elif name == "save":
            self._save(rest)
        else:
            click.echo(f"error: no command /{name}; /help lists them", err=True)
        return True

    def _set(self, rest: str) -> None:
        import json
        from dataclasses import replace

        from paragone.errors import ParagoneError

        name, _, value = rest.partition(" ")
        if name in ("n", "prompt_logprobs"):
            click.echo(f"error: a chat has no use for {name}", err=True)
            return
        if name not in self.params.__dataclass_fields__:
            click.echo(f"error: no setting {name!r}; /settings lists them", err=True)
            return
        try:
            self.params = replace(self.params, **{name: json.loads(value)})
        except (ParagoneError, ValueError) as err:
            click.echo(f"error: {err}", err=True)

    def _save(self, rest: str) -> None:
        import json
        from pathlib import Path

        from paragone.compare.report import write_text
        from paragone.errors import ParagoneError

        try:
            write_text(Path(rest or "chat.json"), json.dumps(self.messages, indent=1, ensure_ascii=False))
        except ParagoneError as err:
            click.echo(f"error: {err}", err=True)
