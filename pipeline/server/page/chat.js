// The chat: sends messages, draws the answer as it comes, stops it, and asks for another one.

import { Problem, streamAnswer } from "./api.js";
import { Conversations, newMessage, titleOf } from "./conversations.js";
import { announce, element, find } from "./dom.js";
import { MessageView, copy, followEnd } from "./messages.js";
import { nextRequest, showSystem, wrongField } from "./settings.js";
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

  /** Draw the conversation, and the list of all. */
  show() {
    const { messages, system } = this.conversation;
    showSystem(system);
    const views = messages.map((message) => this.view(message));
    find("messages").replaceChildren(...(views.length ? views.map((view) => view.node) : [welcome()]));
    find("messages").scrollTop = find("messages").scrollHeight;
    this.showList();
  }

  showList() {
    const rows = this.conversations.all.map((one) => this.listRow(one));
    find("conversations").replaceChildren(...rows);
    if (this.conversations.full) announce("This browser's storage is full: delete conversations to keep new ones.");
  }

  listRow(conversation) {
    const title = titleOf(conversation);
    const chosen = conversation === this.conversation;
    const open = element("button", { type: "button", className: "open", title, onclick: () => this.choose(conversation.id) }, title);
    if (chosen) open.setAttribute("aria-current", "true");
    const gone = element("button", { type: "button", className: "quiet small", aria: { label: `Delete ${title}` },
      onclick: () => this.change(() => this.conversations.remove(conversation.id)) }, "×");
    return element("li", {}, open, gone);
  }

  choose(id) {
    this.change(() => this.conversations.choose(id));
  }

  /** Stop what streams, change the conversations, and show them. */
  change(work) {
    this.stop();
    work();
    this.show();
    find("prompt").focus();
  }

  view(message) {
    const view = new MessageView(message);
    view.draw();
    view.finish(this.actions(message));
    return view;
  }

  actions(message) {
    const found = { Copy: () => copy(message.text.text) };
    const last = this.conversation.messages.at(-1) === message;
    if (message.role === "assistant" && last) found[message.problem ? "Try again" : "Regenerate"] = () => this.again();
    return found;
  }

  /** Send a message, and stream the answer to it. */
  send(text) {
    const wrong = wrongField();
    if (this.stopping || !text.trim()) return false;
    if (wrong) {
      wrong.reportValidity();
      return false;
    }
    this.conversation.messages.push(newMessage("user", text));
    this.conversations.save();
    this.show();
    this.answer();
    return true;
  }

  /** Ask for another answer in place of the last one. */
  again() {
    if (this.stopping) return;
    this.conversation.messages.pop();
    this.show();
    this.answer();
  }

  stop() {
    this.stopping?.abort();
  }

  async answer() {
    const asked = this.conversation;
    const message = newMessage("assistant");
    const [path, body] = nextRequest(asked, asked.messages, this.model);
    asked.messages.push(message);
    const view = new MessageView(message);
    this.busy(new AbortController());
    followEnd(() => find("messages").append(view.node));
    try {
      await this.receive(view, streamAnswer(path, body, this.stopping.signal, (problem, left) => wait(view, problem, left)));
      announce(`The answer is complete: ${plural(message.usage?.completion_tokens ?? 0, "token")}.`);
    } catch (error) {
      if (error.name !== "AbortError") message.problem = plainProblem(error);
      message.note = error.name === "AbortError" ? "Stopped." : "";
      announce(message.problem ? `${message.problem.what} ${message.problem.advice}` : "Stopped.");
    } finally {
      this.busy(null);
      view.draw();
      view.finish(this.actions(message));
      this.conversations.save();
      this.showList();
    }
  }

  /** Take chunks as they come, and draw at most once a frame. */
  async receive(view, chunks) {
    const { message } = view;
    const started = performance.now();
    const elapsed = () => (performance.now() - started) / 1000;
    let frame = 0;
    const draw = () => {
      frame = 0;
      view.draw({ streams: true });
    };
    draw();
    try {
      for await (const chunk of chunks) {
        take(chunk, message);
        if (chunk.text || chunk.reasoning) message.times ??= { first: elapsed(), total: 0 };
        frame ||= requestAnimationFrame(draw);
      }
    } finally {
      cancelAnimationFrame(frame);
      if (message.times) message.times.total = elapsed();
    }
  }

  busy(stopping) {
    this.stopping = stopping;
    find("stop").hidden = !stopping;
    find("send").hidden = Boolean(stopping);
  }
}

function take(chunk, message) {
  message.note = "";
  message.usage = chunk.usage ?? message.usage;
  if (chunk.reasoning) message.reasoning.add(chunk.reasoning, chunk.tokens);
  else message.text.add(chunk.text, chunk.tokens);
  if (chunk.finish === "length") message.note = "It ends here because of the limit on tokens.";
}

function wait(view, problem, left) {
  const why = problem.status === 429 ? "Too many requests wait." : "The model is still loading.";
  view.message.note = `${why} Asking again in ${plural(left, "second")}.`;
  view.draw({ streams: true });
}

function plainProblem(error) {
  if (error instanceof Problem) return { what: error.message, advice: error.advice };
  return { what: `The page failed: ${error.message}`, advice: "Reload it, then try again." };
}

function welcome() {
  return element("div", { className: "welcome" },
    element("h2", {}, "Ask the model something"),
    element("p", {}, "Its weights flow from the disk through memory to the device while it answers. The line shows how."));
}
