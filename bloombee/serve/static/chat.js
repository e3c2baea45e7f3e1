// Asking the model, by the API that every program uses.

import { byId, count, digits, element, say, seconds } from "./dom.js";
import { eventsOf, fetched } from "./feed.js";

export class Chat {
  #talk = byId("talk");
  #prompt = byId("prompt");
  #model = null;
  #messages = [];
  #running = null;
  #mode = "text";

  constructor() {
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#ask();
      }
    });
    byId("stop").addEventListener("click", () => this.#running?.abort());
    byId("clear").addEventListener("click", () => this.#clear());
    for (const choice of document.getElementsByName("mode")) {
      choice.addEventListener("change", () => this.#turn(choice.value));
    }
  }

  /** `chat`: the model knows conversations. */
  begin(chat) {
    const modes = byId("modes");
    const first = modes.hidden && !this.#messages.length;
    modes.hidden = !chat;
    if (first || !chat) this.#turn(chat ? "chat" : "text");
  }

  #turn(mode) {
    this.#mode = mode;
    for (const choice of document.getElementsByName("mode")) choice.checked = choice.value === mode;
    this.#prompt.placeholder = mode === "chat" ? "Ask something" : "def add(a, b):";
    const hint = mode === "chat" ? "Enter sends, Shift+Enter begins another line." : "The model goes on from your text. Enter sends, Shift+Enter begins another line.";
    const place = byId("hint");
    if (place) say(place, hint);
  }

  #clear() {
    this.#running?.abort();
    this.#messages = [];
    this.#talk.replaceChildren(element("p", { class: "hint", id: "hint" }));
    this.#turn(this.#mode);
    this.#prompt.focus();
  }

  async #ask() {
    const prompt = this.#prompt.value;
    if (!prompt.trim() || this.#running) return;
    this.#prompt.value = "";
    byId("hint")?.remove();
    this.#talk.append(element("p", { class: "said mine" }, element("span", { class: "hidden" }, "You: "), prompt));
    const answer = new Answer(this.#talk);
    this.#running = new AbortController();
    this.#busy(true);
    try {
      await this.#stream(prompt, answer, this.#running.signal);
    } catch (error) {
      if (!this.#running.signal.aborted) answer.fail(error.message);
      else answer.end("stopped");
    } finally {
      this.#running = null;
      this.#busy(false);
    }
  }

  async #stream(prompt, answer, signal) {
    this.#model ??= (await told(await fetched("/v1/models", { signal }))).data[0].id;
    const isChat = this.#mode === "chat";
    const asked = isChat ? { messages: [...this.#messages, { role: "user", content: prompt }] } : { prompt };
    const body = JSON.stringify({
      model: this.#model,
      ...asked,
      max_tokens: byId("most").valueAsNumber || 256,
      temperature: byId("temperature").valueAsNumber || 0,
      stream: true,
      stream_options: { include_usage: true },
    });
    const path = isChat ? "/v1/chat/completions" : "/v1/completions";
    const response = await fetched(path, { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
    if (!response.ok) await told(response);
    for await (const { data } of eventsOf(response)) {
      if (data === "[DONE]") break;
      answer.take(JSON.parse(data));
    }
    answer.end();
    if (isChat) this.#messages.push({ role: "user", content: prompt }, { role: "assistant", content: answer.text });
  }

  #busy(is) {
    const [gone, there] = is ? ["send", "stop"] : ["stop", "send"];
    const held = document.activeElement === byId(gone);
    byId(gone).hidden = true;
    byId(there).hidden = false;
    if (held) (is ? byId(there) : this.#prompt).focus();
    this.#talk.setAttribute("aria-busy", String(is));
  }
}

/** The body; throws what the server says is wrong. */
async function told(response) {
  const body = await response.json().catch(() => ({}));
  if (!response.ok || body.error) throw new Error(body.error?.message ?? `the server answered ${response.status}`);
  return body;
}

/** One answer as it comes. */
class Answer {
  text = "";
  #talk;
  #began = performance.now();
  #first = null;
  #last = null;
  #tokens = 0;
  #usage = null;
  #body = element("span");
  #thought = null;
  #about = element("small");

  constructor(talk) {
    this.#talk = talk;
    talk.append(element("div", { class: "said theirs" }, element("span", { class: "hidden" }, "Model: "), this.#body, this.#about));
    talk.scrollTop = talk.scrollHeight;
  }

  take(chunk) {
    if (chunk.error) throw new Error(chunk.error.message);
    this.#usage = chunk.usage ?? this.#usage;
    const [choice] = chunk.choices;
    if (!choice) return;
    const text = choice.delta?.content ?? choice.text ?? "";
    const thought = choice.delta?.reasoning_content ?? choice.delta?.reasoning ?? "";
    if (!text && !thought) return;
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#tokens += 1;
    const follows = this.#talk.scrollHeight - this.#talk.scrollTop - this.#talk.clientHeight < 40;
    if (thought) this.#think(thought);
    this.#body.append(text);
    this.text += text;
    if (follows) this.#talk.scrollTop = this.#talk.scrollHeight;
  }

  #think(thought) {
    if (!this.#thought) {
      this.#thought = element("span");
      this.#body.before(element("details", { class: "thought" }, element("summary", {}, "Reasoning"), this.#thought));
    }
    this.#thought.append(thought);
  }

  end(how = "") {
    const tokens = this.#usage?.completion_tokens ?? this.#tokens;
    const parts = [count(tokens, "token")];
    if (this.#first !== null) parts.push(`the first after ${seconds((this.#first - this.#began) / 1000)}`);
    if (tokens > 1 && this.#last > this.#first) parts.push(`${digits(((tokens - 1) * 1000) / (this.#last - this.#first))} tokens/s`);
    if (how) parts.push(how);
    say(this.#about, parts.join(" \u00b7 "));
    this.#talk.scrollTop = this.#talk.scrollHeight;
  }

  fail(message) {
    this.#about.replaceWith(element("small", { class: "wrong", role: "alert" }, message));
    this.#talk.scrollTop = this.#talk.scrollHeight;
  }
}
