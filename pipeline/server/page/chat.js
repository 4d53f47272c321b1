// The chat: sends messages, draws the answer as it comes, stops it, and asks for another one.

import { streamAnswer } from "./api.js";
import { Conversations, newMessage, titleOf } from "./conversations.js";
import { announce, element, find } from "./dom.js";
import { MessageView, copy } from "./messages.js";
import { nextRequest, settingsAreRight, showSystem } from "./settings.js";
import { plural } from "./words.js";

export class Chat {
  constructor() {
    this.conversations = new Conversations();
    this.model = "";
    this.stopping = null;
  }

  get conversation() {
    return this.conversations.current;
  }

  /** Draw the conversation, and the list of all; give the view of the last message. */
  show() {
    const { messages, system } = this.conversation;
    showSystem(system);
    const views = messages.map((message) => new MessageView(message));
    find("messages").replaceChildren(...(views.length ? views.map((view) => view.node) : [welcome()]));
    for (const view of views) this.finish(view);
    find("messages").scrollTop = find("messages").scrollHeight;
    this.showList();
    return views.at(-1);
  }

  showList() {
    find("conversations").replaceChildren(...this.conversations.all.map((one) => this.listRow(one)));
    find("full").hidden = !this.conversations.full;
  }

  listRow(conversation) {
    const title = titleOf(conversation);
    const open = element("button", { type: "button", className: "open", title,
      onclick: () => this.change(() => this.conversations.choose(conversation)) }, title);
    if (conversation === this.conversation) open.setAttribute("aria-current", "true");
    const gone = element("button", { type: "button", className: "quiet small", aria: { label: `Delete ${title}` },
      onclick: () => this.change(() => this.conversations.remove(conversation)) }, "×");
    return element("li", {}, open, gone);
  }

  /** Stop what streams, change the conversations, and show them. */
  change(work) {
    this.stop();
    work();
    this.show();
    find("prompt").focus();
  }

  /** Draw a message that goes on no more, and what one can do with it. */
  finish(view) {
    const { message } = view;
    const actions = message.role === "assistant" ? { Copy: ({ target }) => copy(message.text.text, target) } : {};
    const word = actions.Copy && !message.problem ? "Regenerate" : "Try again";
    if (this.conversation.messages.at(-1) === message) actions[word] = () => this.again();
    view.draw();
    view.finish(actions);
  }

  /** Send a message, and stream the answer to it. */
  send(text) {
    if (this.stopping || !text.trim() || !settingsAreRight()) return false;
    this.conversation.messages.push(newMessage("user", text));
    this.answer();
    return true;
  }

  /** Ask for another answer in place of the last one. */
  again() {
    if (this.conversation.messages.at(-1).role === "assistant") this.conversation.messages.pop();
    this.answer();
  }

  stop() {
    this.stopping?.abort();
  }

  async answer() {
    const message = newMessage("assistant");
    const [path, body] = nextRequest(this.conversation, this.model);
    this.conversation.messages.push(message);
    this.conversations.save();
    const view = this.show();
    this.busy(new AbortController());
    try {
      const waiting = (problem, left) => wait(view, problem, left);
      await this.receive(view, streamAnswer(path, body, this.stopping.signal, waiting));
      announce(`The answer is complete: ${plural(message.usage?.completion_tokens ?? 0, "token")}.`);
    } catch (error) {
      if (error.name !== "AbortError") message.problem = plain(error);
      message.note = error.name === "AbortError" ? "Stopped." : "";
      announce(message.problem ? `${message.problem.what} ${message.problem.advice}` : "Stopped.");
    } finally {
      this.busy(null);
      this.finish(view);
      this.conversations.save();
      this.showList();
    }
  }

  /** Take chunks as they come, and draw so often that a fifth of the time goes into it. */
  async receive(view, chunks) {
    const { message } = view;
    const started = performance.now();
    const elapsed = () => (performance.now() - started) / 1000;
    let [timer, cost] = [0, 0];
    const draw = () => {
      const began = elapsed();
      view.draw({ streams: true });
      [timer, cost] = [0, elapsed() - began];
    };
    draw();
    try {
      for await (const chunk of chunks) {
        take(chunk, message);
        if (chunk.text || chunk.reasoning) message.times ??= { first: elapsed(), total: 0 };
        timer ||= setTimeout(draw, 16 + 4000 * cost);
      }
    } finally {
      clearTimeout(timer);
      if (message.times) message.times.total = elapsed();
    }
  }

  /** Show Stop in place of Send, or Send again; the focus goes along where its button has gone. */
  busy(stopping) {
    this.stopping = stopping;
    const [shown, gone] = stopping ? [find("stop"), find("send")] : [find("send"), find("stop")];
    const moves = [gone, document.body].includes(document.activeElement);
    [shown.hidden, gone.hidden] = [false, true];
    if (moves) shown.focus();
  }
}

function take(chunk, message) {
  message.usage = chunk.usage ?? message.usage;
  message.pending.push(...chunk.tokens);
  const text = chunk.reasoning || chunk.text;
  if (text) {
    message.note = "";
    message[chunk.reasoning ? "reasoning" : "text"].add(text, message.pending.splice(0));
  }
  if (chunk.finish === "length") message.note = "It ends here because of the limit on tokens.";
}

function wait(view, problem, left) {
  const why = problem.status === 429 ? "Too many requests wait." : "The model is still loading.";
  view.message.note = `${why} Asking again in ${plural(left, "second")}.`;
  view.draw({ streams: true });
}

const plain = ({ message, advice = "Reload the page, then try again." }) => ({ what: message, advice });

const welcome = () => element("p", { className: "welcome" }, "Ask the model something");
