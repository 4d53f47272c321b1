// Puts the page together: the chat, the settings, the live line, the look, and the keys.

import { request } from "./api.js";
import { Chat } from "./chat.js";
import { find } from "./dom.js";
import { LiveLine } from "./live.js";
import { continueTexts, openSettings } from "./settings.js";
import { watchTokens } from "./tokens.js";

const THEME = "penstock.theme";
const THEMES = { auto: "light dark", light: "light", dark: "dark" };
const phone = matchMedia("(max-width: 760px)");

const chat = new Chat();
const live = new LiveLine(learnModel);

/** Ask what is served, once it is there; a model without a chat template can only continue texts. */
async function learnModel() {
  const models = await (await request("v1/models")).json();
  chat.model = models.data[0].id;
  find("model").textContent = chat.model;
  document.title = `${chat.model} · Penstock`;
  const properties = await (await request("props")).json();
  if (properties.chat_template === null) continueTexts();
}

function openComposer() {
  const prompt = find("prompt");
  const submit = (event) => {
    event.preventDefault();
    if (chat.send(prompt.value)) prompt.value = "";
  };
  find("composer").addEventListener("submit", submit);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  });
  find("stop").addEventListener("click", () => chat.stop());
}

function openConversations() {
  find("new").addEventListener("click", () => {
    showDrawer(false);
    chat.change(() => chat.conversations.begin());
  });
  find("clear").addEventListener("click", () => {
    if (confirm("Delete all conversations that this browser keeps?")) chat.change(() => chat.conversations.clear());
  });
  find("conversations").addEventListener("click", () => showDrawer(false));
  addEventListener("storage", () => {
    chat.conversations.reread();
    chat.showList();
  });
}

function showDrawer(shown) {
  document.body.classList.toggle("drawer-open", shown);
  find("drawer-button").setAttribute("aria-expanded", shown);
}

function openDrawer() {
  find("drawer-button").addEventListener("click", () => showDrawer(!document.body.classList.contains("drawer-open")));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (chat.stopping) chat.stop();
    else showDrawer(false);
  });
}

function openTheme() {
  let theme = localStorage.getItem(THEME) ?? "auto";
  const show = () => {
    document.documentElement.style.colorScheme = THEMES[theme];
    Object.assign(find("theme"), { textContent: `◐ ${theme}`, title: `Colours: ${theme}` });
    localStorage.setItem(THEME, theme);
  };
  find("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    theme = names[(names.indexOf(theme) + 1) % names.length];
    show();
  });
  show();
}

const foldLive = () => (find("live").firstElementChild.open = !phone.matches);

openSettings({
  keyChanged: () => live.restart(),
  systemChanged: (text) => {
    chat.conversation.system = text;
    chat.conversations.save();
  },
});
openComposer();
openConversations();
openDrawer();
openTheme();
watchTokens(find("messages"));
phone.addEventListener("change", foldLive);
foldLive();
chat.show();
live.restart();
find("prompt").focus();
