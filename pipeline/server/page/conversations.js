// Conversations, as this browser keeps them. Log-probabilities are left out: they would fill its storage.

const STORE = "penstock.conversations";
const TITLE_CHARACTERS = 48;

export class Conversations {
  constructor() {
    this.all = readStore();
    this.current = this.all[0] ?? this.begin();
    this.full = false;
  }

  /** Begin a conversation, or go on with the newest one where that is still empty. */
  begin() {
    if (!this.all.length || this.all[0].messages.length) {
      this.all.unshift({ id: crypto.randomUUID?.() ?? String(Math.random()), system: "", messages: [] });
    }
    this.current = this.all[0];
    return this.current;
  }

  choose(id) {
    this.current = this.all.find((one) => one.id === id) ?? this.current;
  }

  remove(id) {
    this.all = this.all.filter((one) => one.id !== id);
    if (this.current.id === id) this.current = this.all[0] ?? this.begin();
    this.save();
  }

  clear() {
    this.all = [];
    this.begin();
    this.save();
  }

  /** Write them down; what no longer fits stays in the page until it is closed. */
  save() {
    try {
      localStorage.setItem(STORE, JSON.stringify(this.all.filter((one) => one.messages.length || one.system).map(stored)));
      this.full = false;
    } catch {
      this.full = true;
    }
  }
}

export function titleOf(conversation) {
  const text = conversation.messages[0]?.text.text.trim().replace(/\s+/g, " ") ?? "";
  return text.length > TITLE_CHARACTERS ? `${text.slice(0, TITLE_CHARACTERS)}…` : text || "New conversation";
}

import { Passage } from "./tokens.js";

export function newMessage(role, text = "") {
  return { role, text: new Passage(text), reasoning: new Passage(), note: "", usage: null, times: null, problem: null };
}

function stored({ id, system, messages }) {
  const plain = messages.map(({ text, reasoning, ...others }) => ({ ...others, text: text.text, reasoning: reasoning.text }));
  return { id, system, messages: plain };
}

function readStore() {
  try {
    return JSON.parse(localStorage.getItem(STORE) ?? "[]").map(({ id, system, messages }) => ({
      id,
      system,
      messages: messages.map(({ text, reasoning, ...others }) => ({
        ...newMessage(others.role), ...others, text: new Passage(text), reasoning: new Passage(reasoning),
      })),
    }));
  } catch {
    return [];
  }
}
