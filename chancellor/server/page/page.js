// The page: the conversation, the key, and what the user does.

import { Answer } from "./answer.js";
import { Problem, ask, events, key } from "./client.js";
import { Live } from "./live.js";
import * as settings from "./settings.js";
import { element } from "./words.js";

const byId = (id) => document.getElementById(id);
const question = byId("question");
let turns = []; // {question, answer, node, problem}
let running = null; // the AbortController of the answer that is coming

// --- the conversation

function submit() {
  const text = question.value;
  if (running || !text.trim() || !settings.areValid()) return;
  question.value = "";
  turns.at(-1)?.answer.settle();
  const heading = element("h3", { className: "hidden" }, `Question ${turns.length + 1}`);
  const asked = element("div", { className: "question", dir: "auto" }, text);
  const turn = { question: text, node: element("article", { className: "turn" }, heading, asked) };
  turns.push(turn);
  byId("welcome").hidden = true;
  byId("conversation").append(turn.node);
  answer(turn);
}

async function answer(turn) {
  if (running) return;
  turn.answer?.node.remove();
  turn.answer = new Answer();
  turn.problem = null;
  turn.node.append(turn.answer.node);
  const again = () => {
    question.focus();
    answer(turn);
  };
  const control = new AbortController();
  busy(control);
  follow(true);
  try {
    const response = await ask(request(turn), control.signal);
    const name = turn.answer.opened(response.headers);
    say(name ? `${name} answers` : "");
    await read(turn.answer, response);
    turn.answer.finished();
    say("The answer is complete");
  } catch (error) {
    if (control.signal.aborted) {
      turn.answer.stopped(again);
      say("Stopped");
    } else {
      turn.problem = explained(error, turn.answer);
      turn.answer.failed(turn.problem, again);
      refused(turn.problem);
    }
  } finally {
    busy(null);
  }
}

async function read(answer, response) {
  for await (const event of events(response.body)) {
    if (event === "[DONE]") return;
    const chunk = JSON.parse(event);
    if (chunk.error) throw Problem.of(chunk);
    answer.take(chunk);
  }
  throw Problem.lost(true);
}

function explained(error, answer) {
  if (error instanceof Problem) return error;
  return error instanceof SyntaxError ? Problem.unreadable() : Problem.lost(answer.text !== "");
}

/** What was answered before, and the question; questions without an answer are left out. */
function request(turn) {
  const messages = settings.systemMessages();
  for (const { question: asked, answer: given } of turns.slice(0, turns.indexOf(turn))) {
    if (given.text) messages.push({ role: "user", content: asked }, { role: "assistant", content: given.text });
  }
  messages.push({ role: "user", content: turn.question });
  return { ...settings.fields(), messages, stream: true, stream_options: { include_usage: true } };
}

function busy(control) {
  const [shown, gone] = control ? [byId("stop"), byId("ask")] : [byId("ask"), byId("stop")];
  const focused = document.activeElement === gone;
  running = control;
  shown.hidden = false;
  gone.hidden = true;
  if (focused) (control ? shown : question).focus();
}

function stop() {
  running?.abort();
  question.focus();
}

function startAnew() {
  stop();
  turns = [];
  byId("conversation").replaceChildren();
  byId("welcome").hidden = false;
}

/** Tell people who listen to the page. */
function say(text) {
  byId("said").textContent = text;
}

// --- the end of the page stays in sight while it grows, unless they read above

let following = false;
let top = 0;

function follow(yes) {
  following = yes;
  if (yes) scrollTo(0, document.documentElement.scrollHeight);
}

function scrolled() {
  const end = document.documentElement.scrollHeight - innerHeight;
  if (scrollY < top && scrollY < end - 8) following = false;
  else if (running && scrollY > end - 8) following = true;
  top = scrollY;
}

document.addEventListener("scroll", scrolled, { passive: true });
new ResizeObserver(() => following && follow(true)).observe(byId("conversation"));

// --- the key

async function loadModels() {
  try {
    await settings.loadModels();
  } catch (problem) {
    refused(problem);
  }
}

function refused(problem) {
  if (problem.status !== 401 && problem.status !== 403) return;
  byId("key-facts").textContent = key.value ? "The server does not take this key." : "The server wants a key. It is kept in this tab only.";
  if (byId("key-form").hidden) {
    byId("key-form").hidden = false;
    byId("key").focus();
  }
}

function useKey() {
  const text = byId("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(text)) {
    byId("key-facts").textContent = text ? "A key has letters, digits and signs of ASCII only." : "Enter the key first.";
    return;
  }
  key.value = text;
  byId("key").value = "";
  byId("key-form").hidden = true;
  byId("forget-key").hidden = false;
  question.focus();
  loadModels();
  live.look();
  if (turns.at(-1)?.problem?.status === 401) answer(turns.at(-1));
}

function forgetKey() {
  key.value = "";
  byId("forget-key").hidden = true;
  question.focus();
}

// --- what the user does

function on(id, event, work) {
  byId(id).addEventListener(event, work);
}

for (const [id, work] of [["ask-form", submit], ["key-form", useKey]]) {
  on(id, "submit", (event) => {
    event.preventDefault();
    work();
  });
}
on("question", "keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !event.isComposing) stop();
});
on("stop", "click", stop);
on("new", "click", startAnew);
on("forget-key", "click", forgetKey);
on("conversation", "click", (event) => {
  if (event.target.closest("summary")) following = false; // what they unfold stays where it is
});
byId("conversation").addEventListener("toggle", (event) => event.target.open && event.target.scrollIntoView({ block: "nearest" }), true);
on("welcome", "click", (event) => {
  if (event.target.tagName !== "BUTTON") return;
  question.value = event.target.textContent;
  question.focus();
});

const wide = matchMedia("(min-width: 60rem)");
const unfold = () => document.querySelectorAll(".panel").forEach((panel) => (panel.open = wide.matches));
wide.addEventListener("change", unfold);
unfold();
if (wide.matches) question.focus({ preventScroll: true }); // on a phone, the keyboard would cover half of the page
byId("forget-key").hidden = !key.value;
loadModels();
const live = new Live((states) => {
  settings.takeStates(states);
  if (running) turns.at(-1)?.answer.starting(Object.keys(states).filter((name) => states[name] === "starting"));
});
