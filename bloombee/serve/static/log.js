// What happened in the swarm and what was decided, the latest first; what matters is also said aloud.

import { byId, element, say } from "./dom.js";

const MOST = 300;

const TITLES = {
  joined: (event) => `${event.name} joins`,
  measuring: (event) => `${event.name || "The swarm"} is measured`,
  measured: (event) => `${event.name || "The swarm"} is known`,
  planned: (event) => `Plan ${event.epoch} is made`,
  loaded: (event) => `${event.name} has loaded stage ${event.stage}`,
  wiring: (event) => `Plan ${event.epoch} is wired`,
  up: (event) => `Plan ${event.epoch} runs`,
  replanning: (event) => `Plan ${event.epoch} is made ready beside the one that runs`,
  replanned: (event) => (event.reason ? "The plan stays as it was" : `Plan ${event.epoch} has taken over`),
  lost: (event) => (event.stage === null ? `${event.name}, a spare, is lost` : `${event.name} is lost, and stage ${event.stage} with it`),
  left: (event) => `${event.name} has left`,
  restarted: (event) => `${event.name} is started again`,
  down: () => "Nothing runs any more",
  state: () => "State for a head after this one",
};
const ALOUD = new Set(["up", "replanning", "replanned", "lost", "down"]);
const DECISIONS = { plan: "Plan", replan: "Another plan", run: "Pace", codec: "Codec" };

export class Log {
  #place = byId("log");
  #news = byId("news");

  /** Begin anew: everything that is kept comes again. */
  clear() {
    this.#place.replaceChildren();
  }

  add(event) {
    const atTop = this.#place.scrollTop < 4;
    this.#place.prepend(entry(event));
    while (this.#place.children.length > MOST) this.#place.lastChild.remove();
    if (atTop) this.#place.scrollTop = 0;
    if (ALOUD.has(event.kind) && Date.now() - event.at_ms < 5000) say(this.#news, titleOf(event));
  }
}

const titleOf = (event) => (TITLES[event.kind] ?? (() => event.kind))(event);

function entry(event) {
  const at = new Date(event.at_ms);
  const time = element("time", { datetime: at.toISOString() }, at.toLocaleTimeString("en-GB"));
  if (event.kind !== "decided" || !event.decision) {
    return element("li", { "data-kind": event.kind }, time, element("p", {}, element("b", {}, titleOf(event)), event.reason ? `: ${event.reason}` : ""));
  }
  const { what, chosen, why, figures } = event.decision;
  const told = element("p", {}, element("b", {}, `${DECISIONS[what] ?? what}: ${chosen}`), why ? element("span", {}, why) : null);
  const body = element("div", {}, told, figures ? details(figures) : null);
  return element("li", { "data-kind": "decided" }, time, body);
}

function details(figures) {
  const shown = JSON.stringify(figures, (_, value) => (typeof value === "number" ? Number(value.toPrecision(4)) : value), 1);
  return element("details", {}, element("summary", {}, "Figures"), element("pre", {}, shown));
}
