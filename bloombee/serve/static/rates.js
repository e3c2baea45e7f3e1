// What counters say of late: differences of two statuses. Counters begin anew when something is loaded or wired anew.

const WINDOW_S = 3;

/** The last few statuses; `of(read)` is how fast a counter grew over them, null where that is not known. */
export class Rates {
  #seen = [];

  add(status) {
    const last = this.#seen.at(-1);
    if (last && (status.now_s < last.now_s || status.process !== last.process)) this.#seen = [];
    if (last?.now_s === status.now_s) this.#seen.pop();
    this.#seen.push(status);
    while (this.#seen.length > 2 && this.#seen[1].now_s <= status.now_s - WINDOW_S) this.#seen.shift();
  }

  /** Growth of read(status) per second; `per`: another counter instead of time. */
  of(read, per = (status) => status.now_s) {
    const first = this.#seen[0];
    const last = this.#seen.at(-1);
    if (!first || first === last) return null;
    const [before, now] = [read(first), read(last)];
    const step = per(last) - per(first);
    if (before === undefined || now === undefined || now < before || !(step > 0)) return null;
    return (now - before) / step;
  }
}

const workerOf = (status, id) => status.workers.find((worker) => worker.id === id);
const linkOf = (status, link) =>
  status.links.find((one) => one.source_id === link.source_id && one.target_id === link.target_id);

/** For Rates.of. */
export const busySeconds = (id) => (status) => {
  const figures = workerOf(status, id)?.figures;
  return figures ? figures.decode.busy_s + figures.prefill.busy_s : undefined;
};
export const bytesOver = (link) => (status) => linkOf(status, link)?.num_bytes;
export const tokens = (status) => status.served?.tokens;
export const number = (which) => (status) => status.served?.[which].counts.reduce((sum, one) => sum + one, 0);
export const sum = (which) => (status) => status.served?.[which].sum_s;
