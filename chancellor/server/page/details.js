// Why this model, and what its answer took: the server's report of one answer, as tables.

import { count, element, mebibytes, number, seconds, share } from "./words.js";

/** Make the part that unfolds below an answer. */
export function details({ complexity, decision, metrics }) {
  const parts = [];
  if (complexity) parts.push(heading("Complexity"), judged(complexity));
  if (decision) parts.push(heading("Decision"), element("p", {}, `${decision.model}: ${decision.reason} (policy ${decision.policy}).`), candidates(decision));
  if (metrics) parts.push(heading("Metrics"), measured(metrics));
  if (metrics?.fallbacks?.length) parts.push(heading("Fallbacks"), fallbacks(metrics.fallbacks));
  return element("details", { className: "more why" }, element("summary", {}, "Why this model, and what it took"), ...parts);
}

const heading = (text) => element("h4", {}, text);

function judged({ level, probability, reasons, analyzer }) {
  const chance = probability == null ? "" : `, ${share(probability)} likely to need a strong model`;
  return element("p", {}, element("strong", {}, level), `${chance}: ${reasons.join("; ")} (analyzer ${analyzer}).`);
}

function candidates({ model, candidates: all }) {
  const columns = ["Model", "Verdict", "Score", "Tier", "Parameters", "Ready in"];
  const rows = all.map((one) => {
    const row = element(
      "tr",
      {},
      element("th", { scope: "row" }, one.model),
      element("td", { className: "verdict" }, one.reason),
      cell(one.trinity_score, number),
      element("td", {}, one.tier ?? "–"),
      cell(one.parameters, count),
      cell(one.start_s, (value) => (value === 0 ? "runs" : seconds(value))),
    );
    row.dataset.verdict = one.model === model ? "chosen" : one.eligible ? "eligible" : "rejected";
    return row;
  });
  return table("Candidates", columns, rows);
}

const cell = (value, as) => element("td", { className: "number" }, value == null ? "–" : as(value));

function table(name, columns, rows) {
  const head = element("tr", {}, ...columns.map((one) => element("th", { scope: "col" }, one)));
  const grid = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  // It scrolls by itself where it is too wide, so it has to be within reach of the keyboard.
  return element("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: name }, grid);
}

function measured(metrics) {
  const rows = [
    ["Engine", metrics.engine, String],
    ["Quantization", metrics.engine ? metrics.quantization ?? "none" : null, String],
    ["Time to first token", metrics.time_to_first_token_s, seconds],
    ["Inference time", metrics.inference_time_s, seconds],
    ["Tokens in", metrics.input_tokens, number],
    ["Tokens out", metrics.output_tokens, number],
    ["Tokens/s", metrics.tokens_per_s, number],
    ["Memory of the process", metrics.process_memory_mib, mebibytes],
    ["GPU memory", metrics.gpu_memory_mib, mebibytes],
    ["GPU utilization", metrics.gpu_utilization, share],
  ];
  const known = rows.filter(([, value]) => value != null);
  const pairs = known.map(([name, value, as]) => element("div", {}, element("dt", {}, name), element("dd", {}, as(value))));
  return element("dl", { className: "metrics" }, ...pairs);
}

function fallbacks(steps) {
  const items = steps.map((one) =>
    element("li", {}, element("strong", {}, `${one.from} → ${one.to}`), ` (${one.step}, after ${seconds(one.seconds_lost ?? 0)}): ${one.reason}`),
  );
  return element("ol", {}, ...items);
}
