// What the server is doing now: /ready and /metrics, every two seconds while somebody can see it.

import { get, key } from "./client.js";
import { element, number, rate, share } from "./words.js";

const EVERY_MS = 2000;
const SAMPLES = 31; // a minute
const SERIES = /^(chancellor_\w+)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { n: "\n" };

/** From Prometheus' text to {name: {model: sum over all other labels}}. */
export function parsed(text) {
  const series = {};
  for (const line of text.split("\n")) {
    const [, name, labels, value] = SERIES.exec(line) ?? [];
    if (!name || !Number.isFinite(Number(value))) continue;
    let model = "";
    for (const [, label, quoted] of (labels ?? "").matchAll(LABEL)) {
      if (label === "model") model = quoted.replace(/\\(.)/g, (_, one) => ESCAPES[one] ?? one);
    }
    const models = (series[name] ??= Object.create(null));
    models[model] = (models[model] ?? 0) + Number(value);
  }
  return series;
}

const sum = (models) => Object.values(models).reduce((all, one) => all + one, 0);
const byId = (id) => document.getElementById(id);

export class Live {
  #states;
  #timer = 0;
  #busy = false;
  #refused = null;
  #before = null;
  #rates = [];
  #rows = new Map();

  /** @param states is called with the state of each model, by its name. */
  constructor(states) {
    this.#states = states;
    document.addEventListener("visibilitychange", () => this.look());
    this.look();
  }

  /** Look now, and from then on again and again. */
  async look() {
    clearTimeout(this.#timer);
    if (this.#busy || document.visibilityState !== "visible") return;
    this.#busy = true;
    const models = await this.#ready();
    await this.#metrics(models);
    this.#busy = false;
    this.#timer = setTimeout(() => this.look(), EVERY_MS);
  }

  async #ready() {
    let state = "unreachable";
    let models = {};
    try {
      const response = await get("ready", { signal: AbortSignal.timeout(5000), accepted: [503] });
      ({ status: state, models = {} } = await response.json());
      this.#states(Object.fromEntries(Object.entries(models).map(([name, one]) => [name, one.state])));
    } catch {
      // The word in the header says it.
    }
    const server = byId("server");
    if (server.dataset.state !== state) {
      server.dataset.state = state;
      server.textContent = state;
    }
    return models;
  }

  async #metrics(models) {
    if (this.#refused !== null && this.#refused === key.value) return; // asking again would only fill the server's log
    let series = null;
    try {
      const response = await get("metrics", { signal: AbortSignal.timeout(5000) });
      series = parsed(await response.text());
      this.#refused = null;
      byId("live-note").textContent = "";
    } catch (problem) {
      if (problem.status) this.#refused = key.value;
      byId("live-note").textContent = problem.status === 401 ? "The figures need the API key." : "There are no figures.";
    }
    this.#show(models, series);
  }

  /** Show what is known; the series are null where there are no figures. */
  #show(models, series) {
    const of = (name) => series?.[`chancellor_${name}`] ?? {};
    // The engine's own count grows with each token, the other one at the end of an answer.
    const tokens = { ...of("output_tokens_total"), ...of("engine_output_tokens_total") };
    const now = performance.now();
    const rates = series && this.#before ? speeds(this.#before, tokens, (now - this.#before.at) / 1000) : null;
    this.#before = series && { at: now, tokens };
    const running = of("engine_requests_running");
    const waiting = of("engine_requests_waiting");
    const total = rates ? sum(rates) : null;
    if (total !== null) {
      this.#rates = [...this.#rates, total].slice(-SAMPLES);
      draw(this.#rates);
    }
    byId("rate").textContent = total === null ? "–" : number(total, 1);
    byId("running").textContent = series ? number(sum(running)) : "–";
    byId("waiting").textContent = series ? number(sum(waiting)) : "–";
    byId("live-now").textContent = total === null ? "" : rate(total);
    const names = new Set([...Object.keys(models), ...Object.keys(running)]);
    for (const [name, row] of this.#rows) {
      if (names.has(name)) continue;
      row.node.remove();
      this.#rows.delete(name);
    }
    for (const name of names) {
      const row = this.#row(name);
      row.state.textContent = row.state.dataset.state = models[name]?.state ?? "ready";
      const facts = [
        name in running && `${number(running[name])} running`,
        name in waiting && `${number(waiting[name])} waiting`,
        name in running && rates && rate(rates[name] ?? 0),
      ];
      row.facts.textContent = facts.filter(Boolean).join(" · ");
      const used = of("engine_kv_cache_usage_ratio")[name];
      row.cache.hidden = used === undefined;
      row.meter.value = used ?? 0;
      row.used.textContent = used === undefined ? "" : share(used);
    }
  }

  #row(name) {
    let row = this.#rows.get(name);
    if (!row) {
      const [state, facts, used] = [element("span", { className: "state" }), element("p", { className: "facts" }), element("span")];
      const meter = element("meter", { min: 0, max: 1, ariaLabel: `KV cache of ${name}` });
      const cache = element("p", { className: "cache" }, "KV cache ", meter, used);
      const node = element("li", {}, element("p", { className: "name" }, element("span", {}, name), state), facts, cache);
      row = { node, state, facts, meter, cache, used };
      this.#rows.set(name, row);
      byId("models").append(node);
    }
    return row;
  }
}

/** Tokens per second of each model; a count that fell is that of a new engine. */
function speeds(before, tokens, elapsed) {
  const speed = ([name, value]) => {
    const earlier = before.tokens[name] ?? 0;
    return [name, (value >= earlier ? value - earlier : value) / elapsed];
  };
  return Object.fromEntries(Object.entries(tokens).map(speed));
}

function draw(rates) {
  const most = Math.max(...rates, 1);
  const points = rates.map((rate, index) => {
    const x = 120 - ((rates.length - 1 - index) * 120) / (SAMPLES - 1);
    return `${x.toFixed(1)},${(30 - (rate / most) * 27).toFixed(1)}`;
  });
  const [first] = points[0].split(",");
  const spark = byId("spark");
  spark.querySelector("polyline").setAttribute("points", points.join(" "));
  spark.querySelector("polygon").setAttribute("points", `${first},32 ${points.join(" ")} 120,32`);
  spark.setAttribute("aria-label", `Tokens per second in the last minute: now ${number(rates.at(-1), 1)}, at most ${number(Math.max(...rates), 1)}`);
}
