// The page of a Paragone server. It talks to the API of the address it came from, and to nothing else.
"use strict";

const $ = (id) => document.getElementById(id);
const SETTINGS = ["temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed"];
const REFRESH_MS = 1000;

// One conversation with one model.
class Pane {
  constructor(element) {
    this.element = element;
    this.select = element.querySelector(".model");
    this.log = element.querySelector(".log");
    this.speed = element.querySelector(".speed");
    this.again = element.querySelector(".regenerate");
    this.seen = element.querySelector(".prompt");
    this.turns = [];
    this.abort = null;
    this.again.addEventListener("click", () => this.regenerate());
    this.seen.addEventListener("click", () => showPrompt(this));
    this.select.addEventListener("change", () => this.update());
  }

  get shown() { return !this.element.hidden; }
  get busy() { return this.abort !== null; }

  messages() {
    const system = $("system").value.trim();
    const turns = this.turns.map(({ role, content }) => ({ role, content }));
    return system ? [{ role: "system", content: system }, ...turns] : turns;
  }

  add(role, text) {
    const turn = document.createElement("div");
    turn.className = `turn ${role}`;
    const who = document.createElement("span");
    who.className = "who";
    who.textContent = role === "assistant" ? this.select.value : role === "user" ? "You" : "Error";
    const body = document.createElement("span");
    body.className = "body";
    body.textContent = text;
    turn.append(who, body);
    this.log.append(turn);
    this.scroll();
    return turn;
  }

  scroll() { this.log.scrollTop = this.log.scrollHeight; }

  async ask(text) {
    this.turns.push({ role: "user", content: text, element: this.add("user", text) });
    await this.answer();
  }

  async regenerate() {
    const last = this.turns.at(-1);
    if (this.busy || !last) return;
    this.log.querySelectorAll(".turn.error").forEach((element) => element.remove());
    if (last.role === "assistant") this.turns.pop().element.remove();
    await this.answer();
  }

  async answer() {
    this.abort = new AbortController();
    update();
    const turn = this.add("assistant", "");
    turn.tabIndex = 0;
    turn.setAttribute("aria-label", `Answer of ${this.select.value}`);
    const body = turn.querySelector(".body");
    const answer = { role: "assistant", content: "", element: turn };
    this.turns.push(answer);
    let begin = 0, tokens = 0;
    const told = [];
    try {
      for await (const chunk of stream(this.request(), this.abort.signal)) {
        if (chunk.usage) tokens = chunk.usage.completion_tokens;
        for (const choice of chunk.choices) {
          begin ||= performance.now();
          const text = choice.delta.content || "";
          answer.content += text;
          told.push(...(choice.logprobs?.content || []));  // tokens of half a character have no text yet
          if (text) body.append(token(text, told.splice(0)));
        }
        const seconds = (performance.now() - begin) / 1000;
        if (tokens > 1 && seconds > 0) this.speed.textContent = `${tokens} tokens, ${((tokens - 1) / seconds).toFixed(1)} a second`;
        this.scroll();
      }
    } catch (error) {
      if (error.name !== "AbortError") this.add("error", error.message);
      if (!answer.content) { this.turns.pop(); turn.remove(); }
    }
    this.abort = null;
    update();
  }

  request() {
    const body = { model: this.select.value, messages: this.messages().filter((m) => m.content || m.role === "user"),
      stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
    for (const name of SETTINGS) if ($(name).value !== "") body[name] = Number($(name).value);
    if ($("stop_text").value) body.stop = [$("stop_text").value];
    if ($("probabilities").checked) Object.assign(body, { logprobs: true, top_logprobs: 5 });
    return body;
  }

  update() {
    this.again.disabled = this.busy || this.turns.length === 0;
    this.seen.disabled = !this.select.value;
  }

  clear() {
    this.turns = [];
    this.log.replaceChildren();
    this.speed.textContent = "";
  }
}

async function call(path, body, signal) {
  const options = body ? { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } } : {};
  const response = await fetch(path, { ...options, signal });
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new Error(told?.error?.message || `The server answered ${response.status}`);
  }
  return response;
}

// The objects of a stream of server-sent events.
async function* stream(body, signal) {
  const reader = (await call("/v1/chat/completions", body, signal)).body.getReader();
  const decoder = new TextDecoder();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += decoder.decode(value, { stream: true });
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      if (event === "data: [DONE]") return;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

// A piece of an answer, coloured by how likely it was; `entries` are its tokens' log-probabilities.
function token(text, entries) {
  if (!entries.length) return document.createTextNode(text);
  const element = document.createElement("span");
  const chance = Math.exp(Math.min(...entries.map((entry) => entry.logprob)));
  const kind = chance > 0.5 ? "likely" : chance > 0.2 ? "fair" : chance > 0.05 ? "unlikely" : "rare";
  element.className = `token ${kind}`;
  element.textContent = text;
  element.told = entries.map(described).join("\n\n");
  return element;
}

function described(entry) {
  const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1).padStart(5)}%`;
  const rows = entry.top_logprobs.map((top) => `${percent(top.logprob)} ${JSON.stringify(top.token)}`);
  return [`${percent(entry.logprob)} ${JSON.stringify(entry.token)} was taken`, ...rows].join("\n");
}

function showTip(element) {
  document.querySelectorAll(".token.chosen").forEach((other) => other.classList.remove("chosen"));
  $("tip").hidden = !element;
  if (!element) return;
  element.classList.add("chosen");
  $("tip").textContent = element.told;
  const at = element.getBoundingClientRect(), tip = $("tip").getBoundingClientRect();
  $("tip").style.left = `${Math.max(4, Math.min(at.left, innerWidth - tip.width - 4))}px`;
  $("tip").style.top = `${at.bottom + tip.height + 8 < innerHeight ? at.bottom + 4 : at.top - tip.height - 4}px`;
}

// The arrow keys go from token to token of the answer that has the focus.
function moveTip(event) {
  const turn = event.target.closest?.(".turn.assistant");
  if (event.key === "Escape") return showTip(null);
  if (!turn || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  const all = [...turn.querySelectorAll(".token")];
  const here = all.findIndex((element) => element.classList.contains("chosen"));
  const next = all[here < 0 ? 0 : here + (event.key === "ArrowRight" ? 1 : -1)];
  if (next) { showTip(next); next.scrollIntoView({ block: "nearest" }); }
  event.preventDefault();
}

async function showPrompt(pane) {
  const typed = $("ask").value.trim();
  const messages = pane.messages();
  if (messages.at(-1)?.role === "assistant") messages.pop();
  if (!messages.some((m) => m.role === "user")) messages.push({ role: "user", content: typed || "…" });
  try {
    const found = await (await call("/v1/chat/completions/render", { model: pane.select.value, messages })).json();
    $("seen-count").textContent = `${found.count} tokens`;
    $("seen-text").replaceChildren(...found.token_strs.map((text, at) => {
      const element = document.createElement("span");
      element.className = "seen-token";
      element.title = `token ${found.token_ids[at]}`;
      element.textContent = text;
      return element;
    }));
    $("seen").showModal();
  } catch (error) {
    pane.add("error", error.message);
  }
}

function update() {
  const busy = panes.some((pane) => pane.busy);
  $("send").disabled = busy;
  $("stop").disabled = !busy;
  panes.forEach((pane) => pane.update());
}

async function send(event) {
  event.preventDefault();
  const text = $("ask").value.trim();
  if (!text || panes.some((pane) => pane.busy)) return;
  $("ask").value = "";
  await Promise.all(panes.filter((pane) => pane.shown).map((pane) => pane.ask(text)));
  $("ask").focus();
}

function size(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`;
}

async function refresh() {
  try {
    const found = await (await call("/machine")).json();
    const sum = (key) => found.models.reduce((total, model) => total + (model[key] || 0), 0);
    const blocks = sum("blocks");
    const rows = {
      Engine: found.engine_up ? "up" : "being started",
      Running: sum("running"),
      Waiting: sum("waiting"),
      Cache: blocks ? `${Math.round(100 * sum("blocks_used") / blocks)}%` : "0%",
      Memory: size(found.memory_bytes.http + found.memory_bytes.engine),
      Free: size(found.memory_bytes.available),
      Loaded: found.models.filter((model) => model.loaded).map((model) => model.model).join(", ") || "none",
    };
    $("machine").replaceChildren(...Object.entries(rows).map(([name, value]) => {
      const row = document.createElement("div");
      const term = document.createElement("dt"), told = document.createElement("dd");
      term.textContent = name;
      told.textContent = value;
      row.append(term, told);
      return row;
    }));
  } catch (error) {
    $("machine").textContent = `No answer from the server: ${error.message}`;
  }
  setTimeout(refresh, document.hidden ? 10 * REFRESH_MS : REFRESH_MS);
}

async function start() {
  refresh();
  const models = (await (await call("/v1/models")).json()).data.map((model) => model.id);
  panes.forEach((pane, at) => {
    pane.select.replaceChildren(...models.map((id) => new Option(id, id)));
    pane.select.value = models[Math.min(at, models.length - 1)];
  });
  update();
}

// The second pane is made like the first, so that there is one of each thing to look after.
const twin = document.querySelector(".pane").cloneNode(true);
twin.hidden = true;
twin.setAttribute("aria-label", "Second model");
twin.querySelector(".log").setAttribute("aria-label", "Conversation with the second model");
$("panes").append(twin);

const panes = [...document.querySelectorAll(".pane")].map((element) => new Pane(element));
$("form").addEventListener("submit", send);
$("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) $("form").requestSubmit();
  if (event.key === "Enter" && !event.shiftKey) event.preventDefault();
});
$("stop").addEventListener("click", () => panes.forEach((pane) => pane.abort?.abort()));
$("clear").addEventListener("click", () => panes.forEach((pane) => { if (!pane.busy) pane.clear(); update(); }));
$("both").addEventListener("change", () => { panes[1].element.hidden = !$("both").checked; });
document.addEventListener("mouseover", (event) => showTip(event.target.closest?.(".token") || null));
document.addEventListener("keydown", moveTip);
start().catch((error) => panes[0].add("error", error.message));
