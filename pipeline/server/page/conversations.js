// Conversations, as this browser keeps them. Log-probabilities are left out: they would fill its storage.

import { Passage } from "./tokens.js";

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
      this.all.unshift({ id: Date.now(), system: "", messages: [] });
    }
    this.current = this.all[0];
    return this.current;
  }

  /** Take over what another tab has written; the conversation that is shown here stays. */
  reread() {
    this.all = [this.current, ...readStore().filter(({ id }) => id !== this.current.id)];
  }

  choose(conversation) {
    this.current = conversation;
  }

  remove(conversation) {
    this.all = this.all.filter((one) => one !== conversation);
    if (this.current === conversation) this.current = this.all[0] ?? this.begin();
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
      localStorage.setItem(STORE, JSON.stringify(this.all.map(stored)));
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

export function newMessage(role, text = "") {
  const rest = { pending: [], note: "", usage: null, times: null, problem: null };
  return { role, text: new Passage(text), reasoning: new Passage(), ...rest };
}

function stored({ messages, ...others }) {
  return { ...others, messages: messages.map((one) => ({ ...one, text: one.text.text, reasoning: one.reasoning.text })) };
}

function readStore() {
  try {
    return JSON.parse(localStorage.getItem(STORE) ?? "[]").map(({ messages, ...others }) => ({
      ...others,
      messages: messages.map((one) => ({ ...one, text: new Passage(one.text), reasoning: new Passage(one.reasoning) })),
    }));
  } catch {
    return [];
  }
}
