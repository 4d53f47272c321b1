// The settings form: what it holds goes into each request, and stays in this browser; the key stays in the tab.

import { keepKey, readKey } from "./api.js";
import { find } from "./dom.js";

const STORE = "penstock.settings";
const ALTERNATIVES = 5;
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed", "presence_penalty", "frequency_penalty",
  "repetition_penalty"];
const SWITCHES = ["shading", "plain"];

const form = find("settings").elements;

/** Fill the form, and keep what changes; `keyChanged` hears of a new key, `systemChanged` of a new system prompt. */
export function openSettings({ keyChanged, systemChanged }) {
  const kept = JSON.parse(localStorage.getItem(STORE) ?? "{}");
  for (const name of NUMBERS) form[name].value = kept[name] ?? "";
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
  const values = Object.fromEntries(NUMBERS.map((name) => [name, form[name].value]));
  for (const name of SWITCHES) values[name] = form[name].checked;
  localStorage.setItem(STORE, JSON.stringify(values));
  document.documentElement.classList.toggle("shaded", values.shading);
}

export const showSystem = (text) => (form.system.value = text);

export const continuesText = () => form.plain.checked;

/** Continue texts from now on: what a model without a chat template can do. */
export function continueTexts() {
  form.plain.checked = true;
  keep();
}

/** The first field whose value cannot be sent, or undefined. */
export const wrongField = () => NUMBERS.map((name) => form[name]).find((field) => !field.checkValidity());

/** The path and the body of a request for the next message of a conversation. */
export function nextRequest(conversation, messages, model) {
  const body = { model };
  for (const name of NUMBERS) if (form[name].value !== "") body[name] = Number(form[name].value);
  if (continuesText()) {
    const prompt = messages.map((message) => message.text.text).join("");
    return ["v1/completions", { ...body, prompt, logprobs: ALTERNATIVES }];
  }
  const system = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  const told = messages.map(({ role, text }) => ({ role, content: text.text }));
  return ["v1/chat/completions", { ...body, messages: [...system, ...told], logprobs: true, top_logprobs: ALTERNATIVES }];
}
