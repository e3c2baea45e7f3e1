// The ring as a picture: the head and the stages in the order in which activations go, and the links between them.

import { bytes, digits, layers, moves, percent, seconds, shape } from "./dom.js";
import { busySeconds, bytesOver, tokens } from "./rates.js";

const MOST_LABELLED = 7;
const NARROW_PX = 520;
const WORDS_PX = 62;

export class Ring {
  #place;
  #drawn = "";
  #status = null;
  #rates = null;

  constructor(place) {
    this.#place = place;
    new ResizeObserver(() => this.#redraw()).observe(place);
  }

  show(status, rates) {
    [this.#status, this.#rates] = [status, rates];
    this.#redraw();
  }

  #redraw() {
    if (!this.#status || !this.#place.clientWidth) return;
    const ring = new Layout(this.#status, this.#place.clientWidth);
    if (ring.signature !== this.#drawn) {
      this.#drawn = ring.signature;
      this.#place.replaceChildren(skeleton(ring));
    }
    const picture = this.#place.firstChild;
    for (const node of ring.nodes) showNode(picture.querySelector(`[data-node="${node.id}"]`), node, this.#status, this.#rates);
    for (const link of ring.links) showLink(picture, link, this.#rates, ring);
    const speed = this.#rates.of(tokens);
    text(picture.querySelector("[data-speed]"), speed === null ? "\u2013" : digits(speed));
    picture.setAttribute("aria-label", summary(this.#status));
  }
}

/** Where everything is, in pixels. */
class Layout {
  constructor(status, width) {
    const stages = status.workers.filter((worker) => worker.stage !== null).sort((a, b) => a.stage - b.stage);
    this.narrow = width < NARROW_PX;
    this.radius = this.narrow ? 27 : 36;
    this.width = width;
    this.height = this.narrow ? Math.max(360, width) : Math.min(470, Math.max(400, 0.6 * width));
    const [side, above, below] = this.narrow ? [44, 36, 84] : [158, 46, 92];
    this.center = { x: width / 2, y: (this.height + above - below) / 2 };
    this.rx = width / 2 - side;
    this.ry = (this.height - above - below) / 2;
    const all = [{ id: 0, name: "head", stage: null }, ...stages];
    this.nodes = all.map((worker, index) => ({ ...worker, ...this.at((2 * Math.PI * index) / all.length - Math.PI / 2) }));
    this.links = status.links.map((link) => this.#linkOf(link)).filter(Boolean);
    this.labelled = all.length <= MOST_LABELLED;
    this.signature = JSON.stringify([
      width,
      this.nodes.map((node) => [node.id, node.name, node.layers]),
      this.links.map((link) => [link.source_id, link.target_id]),
    ]);
  }

  at(angle, factor = 1) {
    const { x, y } = this.center;
    return { angle, x: x + factor * this.rx * Math.cos(angle), y: y + factor * this.ry * Math.sin(angle) };
  }

  #linkOf(link) {
    const source = this.nodes.find((node) => node.id === link.source_id);
    const target = this.nodes.find((node) => node.id === link.target_id);
    if (!source || !target || source === target) return null;
    let span = target.angle - source.angle;
    if (span <= 0) span += 2 * Math.PI;
    const begin = this.#beside(source, 1, 6);
    const end = this.#beside({ ...target, angle: source.angle + span }, -1, 11);
    return { ...link, path: this.#arc(begin, end), label: this.at(source.angle + span / 2, this.narrow ? 0.55 : 0.7) };
  }

  /** The angle at which the ellipse leaves a node, and its words where they stand below it. */
  #beside(node, direction, least) {
    const meetsWords = this.narrow && node.stage !== null && this.at(node.angle + 0.1 * direction).y > node.y;
    const gap = meetsWords ? WORDS_PX : least;
    let angle = node.angle;
    for (let step = 0; step < 400; step += 1) {
      const { x, y } = this.at(angle);
      if (Math.hypot(x - node.x, y - node.y) > this.radius + gap) break;
      angle += 0.01 * direction;
    }
    return angle;
  }

  #arc(begin, end) {
    const [from, to] = [this.at(begin), this.at(end)];
    const large = end - begin > Math.PI ? 1 : 0;
    return `M${from.x} ${from.y}A${this.rx} ${this.ry} 0 ${large} 1 ${to.x} ${to.y}`;
  }
}

// -- drawing ---------------------------------------------------------------------------------------

function skeleton(ring) {
  const { width, height } = ring;
  const picture = shape("svg", { role: "img", width, height, viewBox: `0 0 ${width} ${height}` });
  picture.append(
    shape(
      "defs",
      {},
      shape("clipPath", { id: "comb" }, shape("path", { d: hexagon(ring.radius) })),
      shape("marker", { id: "tip", viewBox: "0 0 8 8", refX: 4, refY: 4, markerWidth: 5, markerHeight: 5, orient: "auto" },
        shape("path", { d: "M0 0 8 4 0 8z", class: "tip" })),
    ),
    ...ring.links.map((link) => drawnLink(link)),
    ...ring.nodes.map((node) => drawnNode(node, ring)),
    ...ring.links.map((link) => label(link, ring)),
    shape(
      "g",
      { transform: `translate(${ring.center.x} ${ring.center.y})`, class: "middle" },
      shape("text", { "data-speed": true, class: "speed" }),
      shape("text", { y: 22, class: "unit" }, "tokens/s"),
    ),
  );
  return picture;
}

const keyOf = (link) => `${link.source_id}-${link.target_id}`;

function drawnLink(link) {
  return shape(
    "g",
    { class: "link", "data-link": keyOf(link) },
    shape("path", { d: link.path, class: "wire", "marker-end": "url(#tip)" }),
    shape("path", { d: link.path, class: "flow" }),
    shape("title"),
  );
}

function label(link, ring) {
  const lines = ring.narrow ? 3 : 2;
  const rows = Array.from({ length: lines }, (_, row) =>
    shape("tspan", { x: link.label.x, y: link.label.y + 15 * (row - (lines - 1) / 2) + 4 }),
  );
  return shape("text", { class: "label", "data-label": keyOf(link), visibility: ring.labelled ? "visible" : "hidden" }, ...rows);
}

function hexagon(radius) {
  const corners = [0, 1, 2, 3, 4, 5].map((corner) => {
    const angle = (Math.PI / 3) * corner - Math.PI / 2;
    return `${(radius * Math.cos(angle)).toFixed(2)} ${(radius * Math.sin(angle)).toFixed(2)}`;
  });
  return `M${corners.join("L")}z`;
}

function drawnNode(node, ring) {
  const { radius } = ring;
  const group = shape("g", { class: node.stage === null ? "node head" : "node", "data-node": node.id });
  group.setAttribute("transform", `translate(${node.x} ${node.y})`);
  group.append(
    shape("title"),
    shape("path", { d: hexagon(radius), class: "cell" }),
    shape("g", { "clip-path": "url(#comb)" },
      shape("rect", { x: -radius, y: -radius, width: 2 * radius, height: 2 * radius, class: "honey" })),
    shape("path", { d: hexagon(radius), class: "rim" }),
    shape("text", { y: 6, class: "number" }, node.stage === null ? "head" : String(node.stage)),
  );
  if (node.stage !== null) {
    const { x, y, side } = placeOfWords(node, ring);
    group.append(
      shape("text", { x, y, class: `name ${side}` }, shortened(node.name, ring.narrow ? 12 : 18)),
      shape("text", { x, y: y + 16, class: `about ${side}` }, layers(node.layers)),
      shape("text", { x, y: y + 32, class: `about ${side}`, "data-use": true }),
    );
  }
  return group;
}

/** Outside the ring, where there is room beside it; else below. */
function placeOfWords(node, { narrow, radius }) {
  const aside = Math.cos(node.angle);
  if (narrow || Math.abs(aside) < 0.5) return { x: 0, y: radius + 17, side: "" };
  return { x: Math.sign(aside) * (radius + 12), y: -12, side: aside > 0 ? "right" : "left" };
}

const shortened = (name, most) => (name.length > most ? `${name.slice(0, most - 1)}\u2026` : name);

// -- figures ---------------------------------------------------------------------------------------

function showNode(group, node, status, rates) {
  const worker = status.workers.find((one) => one.id === node.id);
  if (!worker) return;
  const busy = rates.of(busySeconds(worker.id));
  const state = worker.state === "serving" ? "" : worker.state;
  group.dataset.state = worker.state;
  const honey = group.querySelector(".honey");
  honey.style.transform = `translateY(${100 * (1 - Math.min(1, busy ?? 0))}%)`;
  text(group.querySelector("[data-use]"), state || (busy === null ? bytes(worker.used_bytes) : `${percent(Math.min(1, busy))} busy`));
  text(group.querySelector("title"), `${worker.name}: ${layers(worker.layers)}, ${worker.state}, ${bytes(worker.used_bytes)} of ${bytes(worker.memory_bytes)}`);
}

function showLink(picture, link, rates, ring) {
  const now = rates.of(bytesOver(link)) ?? 0;
  const trip = link.rtt_s === null ? null : seconds(link.rtt_s);
  const wide = link.bandwidth_bytes_per_s === null ? null : `${bytes(link.bandwidth_bytes_per_s)}/s`;
  const goes = `${bytes(now)}/s now`;
  const known = [trip, wide].filter(Boolean);
  const lines = ring.narrow ? [...known, goes] : [known.join(" \u00b7 "), goes].filter(Boolean);
  const rows = picture.querySelector(`[data-label="${keyOf(link)}"]`).children;
  for (const [row, place] of [...rows].entries()) text(place, lines[row] ?? "");
  const group = picture.querySelector(`[data-link="${keyOf(link)}"]`);
  text(group.querySelector("title"), `${link.source} to ${link.target}: ${[...known, goes].join(", ")}`);
  const flow = group.querySelector(".flow");
  flow.classList.toggle("moving", now > 0 && moves());
}

function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

function summary(status) {
  const stages = status.workers.filter((worker) => worker.stage !== null);
  if (!stages.length) return "No stage runs yet.";
  const said = stages.map((worker) => `stage ${worker.stage}, ${worker.name}, ${layers(worker.layers)}, ${worker.state}`);
  return `The ring: head; ${said.join("; ")}. Its figures are in the tables of workers and links.`;
}
