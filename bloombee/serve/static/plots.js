// Figures as they move: the last two minutes, a point a status.

import { element, moves, say, shape } from "./dom.js";

const SPAN_S = 120;
const HEIGHT = 92;
const [TOP, BOTTOM] = [8, 2];

export class Plot {
  #points = [];
  #place;
  #svg = shape("svg", { role: "img", height: HEIGHT, class: "graph" });
  #value = element("strong", { class: "value" });
  #most = element("span", { class: "most" });
  #shown;

  /** `shown(value)`: as people read it. `none`: what is said while there is nothing to say. */
  constructor(place, title, shown, none) {
    this.#place = place;
    this.#shown = (value) => (value === null ? none : shown(value));
    this.title = title;
    const head = element("div", { class: "plot-head" }, element("h2", {}, title), this.#value);
    place.append(head, element("div", { class: "graph-place" }, this.#svg, this.#most));
    new ResizeObserver(() => this.#draw(0)).observe(place);
  }

  /** The next point; null: there was nothing to measure. `held`: what the figure says then. */
  add(at, value, held = value) {
    const last = this.#points.at(-1);
    if (last && at <= last.at) this.#points = last.at - at > 1 ? [] : this.#points.slice(0, -1);
    this.#points.push({ at, value });
    while (this.#points.length && this.#points[0].at < at - SPAN_S - 2) this.#points.shift();
    say(this.#value, this.#shown(held));
    this.#draw(last ? at - last.at : 0);
  }

  #draw(step) {
    const width = this.#svg.parentNode.clientWidth;
    const now = this.#points.at(-1)?.at;
    if (!width || now === undefined) return;
    const known = this.#points.filter((point) => point.value !== null);
    const most = Math.max(...known.map((point) => point.value), 1e-9);
    const x = (at) => width * (1 - (now - at) / SPAN_S);
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / (1.05 * most));
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.#svg.setAttribute("width", width);
    const lines = known.length ? [...curves(this.#points, x, y)] : [];
    const moving = shape("g", {}, ...lines);
    const ground = [0, 1].map((part) => {
      const level = part ? TOP : HEIGHT - BOTTOM;
      return shape("line", { x1: 0, x2: width, y1: level, y2: level, class: "grid" });
    });
    this.#svg.replaceChildren(...ground, moving);
    say(this.#most, known.length ? this.#shown(most) : "");
    const latest = known.at(-1);
    this.#svg.setAttribute("aria-label", latest ? `${this.title}: ${this.#shown(latest.value)} last, ${this.#shown(most)} at most` : `${this.title}: nothing yet`);
    if (step > 0 && step < 3 && moves()) {
      const shift = (width * step) / SPAN_S;
      moving.animate([{ transform: `translateX(${shift}px)` }, { transform: "none" }], { duration: 1000 * step });
    }
  }
}

/** A line and what is below it for each run of points without a gap; a dot for one that is alone. */
function* curves(points, x, y) {
  for (const run of runs(points)) {
    const line = run.map((point) => `${x(point.at).toFixed(1)} ${y(point.value).toFixed(1)}`).join("L");
    if (run.length === 1) {
      yield shape("circle", { cx: x(run[0].at), cy: y(run[0].value), r: 2.5, class: "dot" });
      continue;
    }
    yield shape("path", { d: `M${x(run[0].at)} ${HEIGHT - BOTTOM}L${line}L${x(run.at(-1).at)} ${HEIGHT - BOTTOM}z`, class: "area" });
    yield shape("path", { d: `M${line}`, class: "line" });
  }
}

function runs(points) {
  const found = [[]];
  for (const point of points) {
    if (point.value === null) found.push([]);
    else found.at(-1).push(point);
  }
  return found.filter((run) => run.length);
}
