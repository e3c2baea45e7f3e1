// Workers, links, requests and the plan: in words and numbers.

import { byId, bytes, count, digits, element, fill, layers, percent, say, seconds } from "./dom.js";
import { busySeconds, bytesOver } from "./rates.js";

const MOST_REQUESTS = 50;

/** Columns: [title, is a number, cell of a row]. */
function table(id, columns, rows, none) {
  const head = element("tr", {}, ...columns.map(([title, isNumber]) => element("th", { scope: "col", class: isNumber && "number" }, title)));
  const lines = rows.map((row) =>
    element(
      "tr",
      {},
      ...columns.map(([, isNumber, cell], index) =>
        element(index ? "td" : "th", { scope: index ? null : "row", class: isNumber && "number" }, cell(row)),
      ),
    ),
  );
  const empty = element("tr", {}, element("td", { colspan: columns.length, class: "none" }, none));
  fill(byId(id), [element("thead", {}, head), element("tbody", {}, ...(lines.length ? lines : [empty]))]);
}

const maybe = (value, shown) => (value === null || value === undefined ? "" : shown(value));

export function showWorkers(status, rates) {
  const busy = (worker) => rates.of(busySeconds(worker.id));
  const columns = [
    ["Worker", false, (worker) => worker.name],
    ["State", false, (worker) => element("span", { class: "tag", "data-state": worker.state }, worker.state)],
    ["Stage", true, (worker) => maybe(worker.stage, String)],
    ["Layers", false, (worker) => maybe(worker.layers, layers)],
    ["Memory", true, (worker) => `${worker.used_bytes ? `${bytes(worker.used_bytes)} of ` : ""}${bytes(worker.memory_bytes)}`],
    ["Busy", true, (worker) => maybe(busy(worker), (share) => percent(Math.min(1, share)))],
    ["A layer takes", true, (worker) => maybe(worker.layer_s, seconds)],
    ["KV pages free", true, (worker) => maybe(worker.figures, (figures) => `${digits(figures.pages_free)} of ${digits(figures.pages)}`)],
    ["", false, (worker) => worker.reason],
  ];
  table("workers", columns, status.workers, "No worker is in yet.");
}

export function showLinks(status, rates) {
  const columns = [
    ["From", false, (link) => link.source],
    ["To", false, (link) => link.target],
    ["Round trip", true, (link) => maybe(link.rtt_s, seconds)],
    ["Bandwidth", true, (link) => maybe(link.bandwidth_bytes_per_s, (rate) => `${bytes(rate)}/s`)],
    ["Now", true, (link) => maybe(rates.of(bytesOver(link)), (rate) => `${bytes(rate)}/s`)],
    ["In all", true, (link) => bytes(link.num_bytes)],
    ["Sent of raw", true, (link) => maybe(link.ratio, percent)],
    ["Codec", false, (link) => link.codec],
  ];
  table("links", columns, status.links, "No link is wired yet.");
}

export function showRequests(status) {
  const columns = [
    ["Request", false, (request) => String(request.id)],
    ["Client", false, (request) => request.client],
    ["Phase", false, (request) => element("span", { class: "tag", "data-state": request.phase }, request.phase)],
    ["Prompt", true, (request) => digits(request.prompt_tokens)],
    ["Tokens", true, (request) => `${digits(request.tokens)} of ${digits(request.max_new_tokens)}`],
    ["Tokens/s", true, (request) => maybe(request.tokens_per_s, digits)],
    ["Age", true, (request) => seconds(request.age_s)],
  ];
  const oldest = [...status.requests].sort((a, b) => b.age_s - a.age_s);
  table("requests", columns, oldest.slice(0, MOST_REQUESTS), "Nothing runs at the moment.");
}

export function showSpares(status) {
  const spares = status.workers.filter((worker) => worker.stage === null);
  const place = byId("spares");
  place.hidden = !spares.length;
  fill(
    place,
    spares.map((worker) =>
      element("li", {}, element("span", { class: "tag", "data-state": worker.state }, worker.state), ` ${worker.name}`, worker.reason ? `: ${worker.reason}` : ""),
    ),
  );
}

export function showCounts(status) {
  const phase = (name) => status.requests.filter((request) => request.phase === name).length;
  const waiting = phase("waiting");
  const parts = [`${status.requests.length - waiting} running`, `${waiting} waiting`];
  if (status.served) parts.push(count(status.served.tokens, "token"));
  if (status.recoveries) parts.push(status.recoveries === 1 ? "1 recovery" : `${status.recoveries} recoveries`);
  say(byId("counts"), parts.join(" \u00b7 "));
}

export function showPlan(status) {
  const { plan } = status;
  say(byId("plan-epoch"), plan ? `epoch ${plan.epoch}` : "");
  say(byId("plan-why"), plan ? why(plan) : "There is no plan yet.");
  const rows = plan ? [["Runs with", figures(plan.measured)], ["Scheduler", `with ${plan.scheduler}`]] : [];
  if (status.served?.drafted) rows.push(["Drafts", drafts(status.served)]);
  if (plan?.predicted) rows.splice(1, 0, ["Predicted", figures(plan.predicted)]);
  fill(byId("plan-figures"), rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

const drafts = ({ drafted, accepted }) => `${percent(accepted / drafted)} of ${count(drafted, "token")} were right`;

function why(plan) {
  if (plan.reason) return plan.reason;
  return plan.objective === null ? "Layers are cut as asked for." : `Planned for ${plan.objective}; a loss has changed it since.`;
}

function figures({ microbatches, sequences, tokens_per_s: speed }) {
  const how = `${count(microbatches, "microbatch").replace("microbatchs", "microbatches")} of ${count(sequences, "sequence")}`;
  return speed === null ? how : `${how}, ${digits(speed)} tokens/s`;
}
