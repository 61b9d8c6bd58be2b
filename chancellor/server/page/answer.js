// One answer: its text as it comes, which model gave it and why, and what it took.

import { details } from "./details.js";
import { element, number, rate, seconds } from "./words.js";

/** Appends text to a node once a frame, however often it comes. */
class Writer {
  #node;
  #pending = "";
  #frame = 0;

  constructor(node) {
    this.#node = node;
  }

  write(text) {
    this.#pending += text;
    this.#frame ||= requestAnimationFrame(() => this.flush());
  }

  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (this.#pending) this.#node.append(this.#pending); // a string becomes a text node, never HTML
    this.#pending = "";
  }
}

export class Answer {
  text = "";
  #starting = [];
  #began = performance.now();
  #clock;
  #usage = null;
  #finish = null;
  #report = null;

  constructor() {
    this.head = element("p", { className: "head" });
    this.thoughts = element("div", { className: "thoughts-text", dir: "auto" });
    this.thinking = element("details", { className: "more", hidden: true }, element("summary", {}, "Reasoning"), this.thoughts);
    this.body = element("div", { className: "text", dir: "auto", ariaLive: "polite", ariaBusy: "true" });
    this.waiting = element("p", { className: "waiting" }, "Waiting for the first token…");
    this.foot = element("div", { className: "foot" });
    this.node = element("div", { className: "answer" }, this.head, this.thinking, this.body, this.waiting, this.foot);
    this.writer = new Writer(this.body);
    this.thinker = new Writer(this.thoughts);
    this.#clock = setInterval(() => this.#tick(), 1000);
  }

  /** Show what the headers tell, before the first token. */
  opened(headers) {
    const model = decoded(headers.get("x-chancellor-model"));
    const score = headers.get("x-chancellor-trinity-score");
    const level = headers.get("x-chancellor-complexity");
    const reason = decoded(headers.get("x-chancellor-reason"));
    if (model) this.head.append(element("strong", { className: "model" }, model));
    if (score) this.head.append(element("span", { className: "chip", title: "Trinity score" }, "Trinity ", number(Number(score))));
    if (level) this.head.append(complexity(level));
    // The usual reasons begin with what the mark before them says already.
    if (reason) this.head.append(element("span", { className: "reason", dir: "auto" }, reason.replace(`${level} complexity: `, "")));
    return model;
  }

  /** Tell which engines are starting, as long as there is no token: that can take a minute. */
  starting(models) {
    this.#starting = models;
  }

  /** Take one chunk of the stream. */
  take(chunk) {
    const choice = chunk.choices?.[0];
    if (choice?.delta?.reasoning_content) {
      this.thinking.hidden = false;
      this.thinker.write(choice.delta.reasoning_content);
      this.#begun("Thinking…");
    }
    if (choice?.delta?.content) {
      this.text += choice.delta.content;
      this.writer.write(choice.delta.content);
      this.#begun("");
    }
    this.#finish = choice?.finish_reason ?? this.#finish;
    this.#usage = chunk.usage ?? this.#usage;
    this.#report = chunk.chancellor ?? this.#report;
  }

  /** The whole answer is there. */
  finished() {
    this.#end();
    const metrics = this.#report?.metrics;
    const last = metrics?.fallbacks?.at(-1);
    if (this.#finish === "length") this.foot.append(note("It ends here because max. tokens, or the model's context, is used up."));
    if (!this.text) this.foot.append(note("The answer is empty."));
    if (last) this.foot.append(note(`Something failed on the way, so that ${last.to} answered. The reasons are below.`));
    this.foot.append(figures(metrics, this.#usage));
    if (this.#report) this.foot.append(details(this.#report));
  }

  /** The user has stopped it. */
  stopped(again) {
    this.#end();
    const after = seconds((performance.now() - this.#began) / 1000);
    this.foot.append(note(`Stopped after ${after}.`), this.#again(again, 0));
  }

  /** There is no answer, or only the part that has come. */
  failed(problem, again) {
    this.#end();
    const said = element("p", { className: "said", dir: "auto" }, problem.message);
    const advice = element("p", { hidden: !problem.advice }, problem.advice);
    this.foot.append(element("div", { className: "problem", role: "alert" }, said, advice), this.#again(again, problem.retryAt));
  }

  /** It is no longer the newest: it cannot be asked for again. */
  settle() {
    this.foot.querySelector(".again")?.remove();
  }

  #again(again, retryAt) {
    const button = element("button", { type: "button", className: "again", onclick: again }, "Ask again");
    const wait = () => {
      const left = Math.ceil((retryAt - Date.now()) / 1000);
      button.disabled = left > 0;
      button.textContent = left > 0 ? `Ask again in ${number(left)} s` : "Ask again";
      if (left > 0) setTimeout(wait, 250);
    };
    wait();
    return button;
  }

  #begun(what) {
    if (this.#clock) clearInterval(this.#clock);
    this.#clock = 0;
    this.waiting.textContent = what;
    this.waiting.hidden = !what;
  }

  #tick() {
    const passed = Math.round((performance.now() - this.#began) / 1000);
    const starting = this.#starting.length ? ` (starting: ${this.#starting.join(", ")})` : "";
    this.waiting.textContent = `Waiting for the first token… ${number(passed)} s${starting}`;
  }

  #end() {
    this.#begun("");
    this.writer.flush();
    this.thinker.flush();
    this.body.ariaBusy = "false";
  }
}

/** Three bars, as many filled as the question is hard. */
function complexity(level) {
  const bars = element("span", { className: "bars", ariaHidden: "true" }, element("i"), element("i"), element("i"));
  const chip = element("span", { className: "chip complexity" }, bars, `${level} complexity`);
  chip.dataset.level = level;
  return chip;
}

function figures(metrics, usage) {
  const tokens = metrics?.output_tokens ?? usage?.completion_tokens;
  const parts = [
    tokens != null && `${number(tokens)} tokens`,
    metrics?.tokens_per_s != null && rate(metrics.tokens_per_s),
    metrics?.time_to_first_token_s != null && `first token after ${seconds(metrics.time_to_first_token_s)}`,
  ];
  return element("p", { className: "figures" }, parts.filter(Boolean).join(" · "));
}

const note = (text) => element("p", { className: "note" }, text);

function decoded(text) {
  try {
    return decodeURIComponent(text ?? "");
  } catch {
    return text;
  }
}
