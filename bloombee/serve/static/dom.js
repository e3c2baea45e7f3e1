// Elements, and figures as people read them. Text goes in as text nodes alone: nothing that anybody says becomes markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An HTML element. All properties are attributes. */
export function element(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** An SVG element. */
export function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Say it, unless it is said already: what does not change must not be read aloud again. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Give `node` the children, unless they say what its own do. */
export function fill(node, children) {
  const wanted = element("div", {}, ...children);
  if (node.innerHTML !== wanted.innerHTML) node.replaceChildren(...wanted.childNodes);
}

/** Whether things should move. */
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
export const moves = () => !calm.matches;

// -- figures ---------------------------------------------------------------------------------------

/** With three digits, and no more zeros than it has. */
export function digits(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 100) return Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");
  return value.toLocaleString("en", { maximumFractionDigits: size >= 10 ? 1 : size >= 1 ? 2 : 3 });
}

const STEPS = [
  [1e12, "TB"],
  [1e9, "GB"],
  [1e6, "MB"],
  [1e3, "kB"],
];

export function bytes(value) {
  for (const [step, unit] of STEPS) {
    if (value >= step) return `${digits(value / step)}\u00a0${unit}`;
  }
  return `${Math.round(value)}\u00a0B`;
}

export function seconds(value) {
  if (value < 1e-3) return `${digits(value * 1e6)}\u00a0µs`;
  if (value < 1) return `${digits(value * 1e3)}\u00a0ms`;
  if (value < 120) return `${digits(value)}\u00a0s`;
  const minutes = Math.floor(value / 60);
  return minutes < 120 ? `${minutes}\u00a0min` : `${Math.floor(minutes / 60)}\u00a0h\u00a0${minutes % 60}\u00a0min`;
}

export const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
export const count = (number, what) => `${number.toLocaleString("en").replaceAll(",", "\u202f")} ${what}${number === 1 ? "" : "s"}`;
export const layers = ([first, beyond]) => (beyond - first === 1 ? `layer ${first}` : `layers ${first}\u2013${beyond - 1}`);
