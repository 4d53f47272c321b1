// The settings form: what it holds goes into each request, and stays in this browser; the key stays in the tab.

import { keepKey, readKey } from "./api.js";
import { find } from "./dom.js";

const STORE = "penstock.settings";
const ALTERNATIVES = 5;
const SWITCHES = ["shading", "plain"];

const form = find("settings").elements;
const fields = [...document.querySelectorAll(".fields input")];

/** Fill the form, and keep what changes; `keyChanged` hears of a new key, `systemChanged` of a new system prompt. */
export function openSettings({ keyChanged, systemChanged }) {
  const kept = JSON.parse(localStorage.getItem(STORE) ?? "{}");
  for (const field of fields) {
    Object.assign(field, { type: "number", value: kept[field.name] ?? "", placeholder: field.placeholder || "default" });
  }
  for (const name of SWITCHES) form[name].checked = kept[name] ?? false;
  form.key.value = readKey();
  form.key.addEventListener("change", () => {
    keepKey(form.key.value.trim());
    keyChanged();
  });
  form.system.addEventListener("input", () => systemChanged(form.system.value));
  find("settings").addEventListener("submit", (event) => event.preventDefault());
  find("settings").addEventListener("change", keep);
  keep();
}

function keep() {
  const values = Object.fromEntries(fields.map(({ name, value }) => [name, value]));
  for (const name of SWITCHES) values[name] = form[name].checked;
  localStorage.setItem(STORE, JSON.stringify(values));
  document.documentElement.classList.toggle("shaded", values.shading);
}

export const showSystem = (text) => (form.system.value = text);

/** Continue texts from now on: what a model without a chat template can do. */
export function continueTexts() {
  form.plain.checked = true;
  keep();
}

/** Whether all can be sent; if not, the browser says what is wrong. */
export const settingsAreRight = () => find("settings").reportValidity();

/** The path and the body of a request for the next message; a question that got no answer is left out. */
export function nextRequest({ system, messages }, model) {
  const body = { model: model || undefined };
  for (const { name, value } of fields) if (value !== "") body[name] = Number(value);
  const answered = messages.filter(({ text }, index) => text.text && messages[index + 1]?.text.text !== "");
  if (form.plain.checked) {
    const prompt = answered.map(({ text }) => text.text).join("");
    return ["v1/completions", { ...body, prompt, logprobs: ALTERNATIVES }];
  }
  const told = answered.map(({ role, text }) => ({ role, content: text.text }));
  if (system.trim()) told.unshift({ role: "system", content: system });
  return ["v1/chat/completions", { ...body, messages: told, logprobs: true, top_logprobs: ALTERNATIVES }];
}
