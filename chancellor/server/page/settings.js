// The settings: which model or policy, and how the model is to answer.

import { get } from "./client.js";
import { element, number } from "./words.js";

const ROUTED = "chancellor";
const byId = (id) => document.getElementById(id);
const [model, policy] = [byId("model"), byId("policy")];
const facts = new Map(); // of each model by its name: score, tier, scheme, engine, state

/** Fill the list of models. */
export async function loadModels() {
  const { data } = await (await get("v1/models")).json();
  for (const one of data) facts.set(one.id, one.chancellor ?? {});
  const chosen = model.value;
  const named = data.filter((one) => one.id !== ROUTED);
  model.replaceChildren(model.options[0], ...named.map((one) => element("option", { value: one.id })));
  if (facts.has(chosen)) model.value = chosen;
  label();
}

/** Take the state of each model's engine, by the model's name. */
export function takeStates(states) {
  const changed = Object.entries(states).filter(([name, state]) => facts.has(name) && facts.get(name).state !== state);
  for (const [name, state] of changed) facts.get(name).state = state;
  if (changed.length) label();
}

/** Whether they can be sent; what cannot is shown. */
export function areValid() {
  const form = byId("settings-form");
  if (form.checkValidity()) return true;
  byId("settings").open = true; // a closed one cannot show what is wrong
  form.reportValidity();
  return false;
}

/** The system's messages. */
export function systemMessages() {
  const content = byId("system").value.trim();
  return content ? [{ role: "system", content }] : [];
}

/** What they say in the body of a request; what is left empty is the server's to decide. */
export function fields() {
  const body = { model: model.value, chancellor: { decision: true } };
  if (model.value === ROUTED) body.chancellor.policy = policy.value;
  for (const [name, id] of [["temperature", "temperature"], ["max_tokens", "max-tokens"]]) {
    if (byId(id).value !== "") body[name] = byId(id).valueAsNumber;
  }
  return body;
}

function label() {
  for (const option of [...model.options].slice(1)) {
    const { trinity_score: score, tier, state } = facts.get(option.value) ?? {};
    option.textContent = [option.value, joined(score != null && number(score), tier, state)].filter(Boolean).join(" — ");
  }
  const { trinity_score: score, scheme, engine, tier, state } = facts.get(model.value) ?? {};
  const routed = model.value === ROUTED;
  const known = joined(score != null && `Trinity score ${number(score)}`, tier, scheme, engine, state);
  byId("model-facts").textContent = routed ? "Each question goes to the model that fits." : known;
  byId("settings-now").textContent = model.value;
  policy.disabled = !routed;
}

const joined = (...parts) => parts.filter(Boolean).join(" · ");

model.addEventListener("change", label);
byId("settings-form").addEventListener("submit", (event) => event.preventDefault());
label();
