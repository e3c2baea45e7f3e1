// The page: what the feed says goes to everything that shows it.

import { Chat } from "./chat.js";
import { byId, digits, say, seconds } from "./dom.js";
import { follow } from "./feed.js";
import { Log } from "./log.js";
import { Plot } from "./plots.js";
import { Rates, number, sum, tokens } from "./rates.js";
import { Ring } from "./ring.js";
import { showCounts, showLinks, showPlan, showRequests, showSpares, showWorkers } from "./tables.js";

const rates = new Rates();
const ring = new Ring(byId("ring"));
const log = new Log();
const chat = new Chat();
const speed = new Plot(byId("plot-speed"), "Tokens per second", digits, "\u2013");
const first = new Plot(byId("plot-first"), "Time to first token", seconds, "\u2013");
const between = new Plot(byId("plot-token"), "Time per token", seconds, "\u2013");
const latest = { first: null, between: null };

function showState(state, about) {
  const pill = byId("state");
  pill.dataset.state = state;
  say(pill, about);
}

function showStatus(status) {
  rates.add(status);
  say(byId("model"), status.model);
  document.title = `${status.model} \u2013 BloomBee`;
  const about = { waiting: `waiting for ${status.missing} more`, down: `down: ${status.reason}` };
  showState(status.state, about[status.state] ?? status.state);
  ring.show(status, rates);
  showSpares(status);
  showCounts(status);
  showPlan(status);
  showWorkers(status, rates);
  showLinks(status, rates);
  showRequests(status);
  const firstNow = rates.of(sum("first_token"), number("first_token"));
  const betweenNow = rates.of(sum("between_tokens"), number("between_tokens"));
  latest.first = firstNow ?? latest.first;
  latest.between = betweenNow ?? latest.between;
  speed.add(status.now_s, rates.of(tokens));
  first.add(status.now_s, firstNow, latest.first);
  between.add(status.now_s, betweenNow, latest.between);
}

const heard = {
  hello(told) {
    log.clear();
    chat.begin(told.chat);
  },
  status: showStatus,
  event: (event) => log.add(event),
};

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
const showTheme = () => byId("theme").setAttribute("aria-pressed", String(isDark()));

byId("theme").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("bloombee-theme", theme);
  } catch {
    // A browser that keeps nothing.
  }
  showTheme();
});
dark.addEventListener("change", showTheme);
showTheme();

follow("/events", heard, (status) => showState("away", status === 503 ? "starting" : "no connection"));
