// Streams of server-sent events by fetch, which can carry a key where an EventSource cannot.

import { byId, say } from "./dom.js";

const LONGEST_WAIT_MS = 10_000;

let key = null;
try {
  key = sessionStorage.getItem("bloombee-key");
} catch {
  // A browser that keeps nothing: the key lives as long as the page.
}

/** As fetch, with the key; where one is needed, or another, it is asked for first. */
export async function fetched(path, options = {}) {
  for (;;) {
    const headers = { ...options.headers, ...(key === null ? {} : { Authorization: `Bearer ${key}` }) };
    const answer = await fetch(path, { ...options, headers });
    if (answer.status !== 401) return answer;
    await askForKey(key === null ? "" : "That key is not known here.");
  }
}

let asking = null;

function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const field = byId("key");
    say(byId("key-wrong"), wrong);
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      key = field.value.trim();
      field.value = "";
      try {
        sessionStorage.setItem("bloombee-key", key);
      } catch {
        // As above.
      }
      dialog.close();
      asking = null;
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault(); // there is nothing to see without it
    dialog.showModal();
  });
  return asking;
}

/** The events of an answer's body, each {event, data}. */
export async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      yield* blocks.map(parsed);
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

function parsed(block) {
  const found = { event: "message", data: "" };
  for (const line of block.split("\n")) {
    const [, name, value] = /^([^:]*): ?(.*)$/.exec(line) ?? [null, "", ""];
    if (name === "event") found.event = value;
    if (name === "data") found.data += found.data ? `\n${value}` : value;
  }
  return found;
}

/** The swarm's own feed, for as long as the page lives: `heard[event](value)`, and `lost(status)`
 * whenever there is none, with the status of what the server answered instead, if it did. */
export async function follow(path, heard, lost) {
  for (let wait = 500; ; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
    let status = null;
    try {
      const answer = await fetched(path, { headers: { Accept: "text/event-stream" } });
      if (!answer.ok) status = answer.status;
      if (answer.ok) {
        for await (const { event, data } of eventsOf(answer)) {
          heard[event]?.(JSON.parse(data));
          wait = 500;
        }
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // of a connection that broke or was not to be had
    }
    lost(status);
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}
