"""Clients that know nothing of Paragone, unchanged, against its server: the openai packages of Python and
npm, LangChain, `llm`, `vllm bench serve`, guidellm, and lm-eval over both of its API models.

    python -m benchmarks.clients [--write] [NAME...]

Each has an environment of its own under Paragone's folder. Prints what they printed at their end, with
--write into docs/clients.md; exits with 1 where one failed.
"""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from benchmarks.foundation import exported
from benchmarks.peers import interpreter
from benchmarks.serve import started
from paragone import paths

PACKAGES = {
    "openai": ("openai==3.57.0",),
    "langchain": ("langchain-openai",),
    "llm": ("llm",),
    "guidellm": ("torch==2.13.0", "guidellm"),
    "lm-eval": ("torch==2.13.0", "lm-eval[api]", "transformers==5.23.0"),
}
QUESTIONS = [
    ("The capital of France is", ["Paris", "London", "Rome", "Madrid"], 0),
    ("Two plus two is", ["five", "four", "ten", "one"], 1),
    ("The colour of fresh grass is", ["red", "blue", "green", "white"], 2),
    ("Water freezes to", ["sand", "steam", "wood", "ice"], 3),
    ("The sun rises in the", ["east", "west", "north", "south"], 0),
    ("A week has seven", ["hours", "days", "months", "years"], 1),
    ("The opposite of hot is", ["warm", "dry", "cold", "late"], 2),
    ("Bees make", ["milk", "bread", "cheese", "honey"], 3),
]
OPENAI = """
import openai
client = openai.OpenAI(base_url="{url}", api_key="none")
messages = [{{"role": "user", "content": "The capital of France?"}}]
asked = dict(model="smollm2", messages=messages, max_tokens=20, temperature=0)
whole = client.chat.completions.create(**asked).choices[0].message.content
chunks = client.chat.completions.create(**asked, stream=True)
parts = "".join(c.choices[0].delta.content or "" for c in chunks)
assert whole == parts, (whole, parts)
print("openai", openai.__version__, repr(whole))
"""
LANGCHAIN = """
from langchain_openai import ChatOpenAI
model = ChatOpenAI(base_url="{url}", api_key="none", model="smollm2", temperature=0, max_tokens=20)
print(repr(model.invoke("The capital of France?").content))
print(repr("".join(chunk.content for chunk in model.stream("The capital of France?"))))
"""
NODE = """
import OpenAI from "openai";
const client = new OpenAI({{ baseURL: "{url}", apiKey: "none" }});
const messages = [{{ role: "user", content: "The capital of France?" }}];
const asked = {{ model: "smollm2", messages, max_tokens: 20, temperature: 0 }};
const whole = (await client.chat.completions.create(asked)).choices[0].message.content;
let parts = "";
const stream = await client.chat.completions.create({{ ...asked, stream: true }});
for await (const chunk of stream) parts += chunk.choices[0]?.delta?.content ?? "";
if (whole !== parts) throw new Error(`${{whole}} is not ${{parts}}`);
console.log("npm openai", JSON.stringify(whole));
"""
CHOICE_TASK = """
task: paragone_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
TEXT_TASK = """
task: paragone_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Complete with one word: {{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def home() -> Path:
    folder = paths.home() / "clients"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def python_of(name: str) -> Path:
    """The client's own Python; its environment is made if it is not there."""
    folder = home() / name
    if not (folder / "complete").exists():
        print(f"setting up {name} under {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *PACKAGES[name]]
        subprocess.run(pip, check=True)
        (folder / "complete").touch()
    return folder / "bin" / "python"


def printed(command: list[str], *, lines: int = 12, cwd: Path | None = None, **environment: str) -> str:
    """The end of what a command printed; raises where it failed."""
    variables = os.environ | {"HF_HUB_OFFLINE": "1"} | environment
    found = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables, check=False)
    if found.returncode:
        raise RuntimeError((found.stdout + found.stderr)[-3000:])
    return "\n".join(found.stdout.strip().splitlines()[-lines:])


def of_python(url: str) -> str:
    return printed([str(python_of("openai")), "-c", OPENAI.format(url=f"{url}/v1")])


def of_langchain(url: str) -> str:
    return printed([str(python_of("langchain")), "-c", LANGCHAIN.format(url=f"{url}/v1")])


def of_llm(url: str) -> str:
    python, folder = python_of("llm"), home() / "llm-user"
    folder.mkdir(exist_ok=True)
    entry = f"- model_id: smollm2\n  model_name: smollm2\n  api_base: {url}/v1\n"
    (folder / "extra-openai-models.yaml").write_text(entry)
    command = [
        str(python.with_name("llm")),
        "-m",
        "smollm2",
        "-o",
        "temperature",
        "0",
        "-o",
        "max_tokens",
        "20",
    ]
    return printed([*command, "The capital of France?"], LLM_USER_PATH=str(folder), OPENAI_API_KEY="none")


def of_npm(url: str) -> str:
    folder = home() / "npm"
    folder.mkdir(exist_ok=True)
    if not (folder / "node_modules" / "openai").exists():
        subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", "openai"], cwd=folder, check=True
        )
    (folder / "ask.mjs").write_text(NODE.format(url=f"{url}/v1"))
    return printed(["node", "ask.mjs"], cwd=folder)


def of_vllm_bench(url: str) -> str:
    vllm = str(interpreter("vllm").with_name("vllm"))
    out = []
    for backend, endpoint in (("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")):
        command = [
            *(vllm, "bench", "serve", "--backend", backend, "--endpoint", endpoint, "--base-url", url),
            *("--model", "smollm2", "--tokenizer", str(exported()), "--dataset-name", "random"),
            *("--random-input-len", "64", "--random-output-len", "32", "--num-prompts", "64"),
            *("--ignore-eos", "--disable-tqdm"),
        ]
        out.append(printed(command, lines=24))
    return "\n".join(out)


def of_guidellm(url: str) -> str:
    program = str(python_of("guidellm").with_name("guidellm"))
    command = [
        *(program, "run", "--backend", f"kind=openai_http,target={url},model=smollm2"),
        *(
            "--tokenizer",
            f"kind=huggingface_auto,model={exported()}",
            "--profile",
            "kind=concurrent,streams=8",
        ),
        *("--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=32"),
        *("--constraint", "kind=max_duration,seconds=10", "--disable-progress"),
    ]
    return printed(command, lines=40, cwd=home())


def of_lm_eval(url: str) -> str:
    program, folder = str(python_of("lm-eval").with_name("lm_eval")), home() / "lm-eval-tasks"
    folder.mkdir(exist_ok=True)
    data = folder / "questions.jsonl"
    rows = [{"question": q, "choices": choices, "answer": answer} for q, choices, answer in QUESTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "choice.yaml").write_text(CHOICE_TASK.format(data=data))
    (folder / "text.yaml").write_text(TEXT_TASK.format(data=data))
    common = f"model=smollm2,num_concurrent=4,max_retries=1,tokenizer={exported()}"
    out = []
    for model, path, task, more in (
        ("local-completions", "completions", "paragone_choice", []),
        ("local-chat-completions", "chat/completions", "paragone_text", ["--apply_chat_template"]),
    ):
        arguments = f"{common},base_url={url}/v1/{path}"
        command = [
            *(program, "--model", model, "--model_args", arguments, "--tasks", task),
            *("--include_path", str(folder), *more),
        ]
        out.append(printed(command, lines=6, OPENAI_API_KEY="none", HF_DATASETS_CACHE=str(folder / "cache")))
    return "\n".join(out)


CLIENTS: dict[str, Callable[[str], str]] = {
    "openai (Python)": of_python,
    "openai (npm)": of_npm,
    "LangChain": of_langchain,
    "llm": of_llm,
    "vllm bench serve": of_vllm_bench,
    "guidellm": of_guidellm,
    "lm-eval": of_lm_eval,
}


PAGE = Path(__file__).parent.parent / "docs" / "clients.md"


def write(outputs: dict[str, str], port: int) -> None:
    """The page of what they printed, without this machine's folders and ports."""
    known = {str(paths.home()): "...", f":{port}": ":8000", str(Path.home()): "~"}
    sections = []
    for name, text in outputs.items():
        shown = text.strip()
        for ours, theirs in known.items():
            shown = shown.replace(ours, theirs)
        sections.append(f"## {name}\n\n```\n{shown}\n```\n")
    head = (
        "What they print against `paragone serve` with SmolLM2-135M; `make clients`. It shows that they\n"
        "work; how fast the server is stands in [performance.md](performance.md)."
    )
    PAGE.write_text("\n".join(["# Clients as they are", "", head, "", *sections]))


def main(names: list[str]) -> int:
    failed, outputs = 0, {}
    writes, names = "--write" in names, [name for name in names if name != "--write"]
    # In the usual mode a prompt found in the cache may differ in its last bits from one that is computed.
    with started("Paragone", "--deterministic") as (_, port):
        for name, ask in CLIENTS.items():
            if names and name not in names:
                continue
            print(f"== {name}", flush=True)
            try:
                outputs[name] = ask(f"http://127.0.0.1:{port}")
                print(outputs[name], flush=True)
            except (RuntimeError, subprocess.CalledProcessError) as err:
                failed += 1
                print(f"FAILED: {err}", flush=True)
    if writes and not names:  # the page has all of them
        write(outputs, port)
    print(json.dumps({"clients": len(names) or len(CLIENTS), "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
