// How a message looks: its text, its reasoning folded, what it cost, what one can do with it, and what went wrong.

import { announce, element, find } from "./dom.js";
import { drawMarkdown } from "./markdown.js";
import { count, digits, plural, seconds } from "./words.js";

const NEAR_PIXELS = 80;
const NAMES = { user: "You", assistant: "Model" };

/** The view of one message. `actions` are functions by the words on their buttons. */
export class MessageView {
  constructor(message) {
    this.message = message;
    this.reasoning = element("div", { className: "text" });
    this.thoughts = element("details", { className: "reasoning", hidden: true },
      element("summary", {}, "Reasoning"), this.reasoning);
    this.text = element("div", { className: "text" });
    this.note = element("p", { className: "note", hidden: true });
    this.problem = element("div", { className: "problem", role: "alert", hidden: true });
    this.foot = element("div", { className: "foot" });
    const name = element("h2", { className: "who" }, NAMES[message.role]);
    this.node = element("article", { className: message.role, aria: { label: NAMES[message.role] } },
      name, this.thoughts, this.text, this.note, this.problem, this.foot);
  }

  /** Draw what the message holds by now. */
  draw({ streams = false } = {}) {
    const { text, reasoning, note } = this.message;
    followEnd(() => {
      drawPassage(this.reasoning, reasoning);
      if (this.message.role === "user") this.text.replaceChildren(text.text);
      else drawPassage(this.text, text);
      this.thoughts.hidden = !reasoning.text;
      this.thoughts.classList.toggle("thinks", streams && !text.text);
      this.note.textContent = note;
      this.note.hidden = !note;
      this.node.classList.toggle("streams", streams);
      this.node.setAttribute("aria-busy", streams);
    });
  }

  /** Draw what stands below a message that goes on no more. */
  finish(actions) {
    const { problem, usage, times } = this.message;
    followEnd(() => {
      this.problem.hidden = !problem;
      this.problem.replaceChildren(...(problem ? [element("b", {}, problem.what), ` ${problem.advice}`] : []));
      const buttons = Object.entries(actions).map(([word, act]) =>
        element("button", { type: "button", className: "quiet small", onclick: act }, word));
      this.foot.replaceChildren(...buttons, element("span", { className: "figures" }, figures(usage, times)));
    });
  }
}

function drawPassage(parent, passage) {
  drawMarkdown(parent, passage.text, passage.leaf);
  if (passage.tokens.length && !parent.hasAttribute("tabindex")) {
    parent.tabIndex = 0;
    parent.setAttribute("role", "group");
    parent.setAttribute("aria-label", "Answer; left and right arrow keys show how likely each token was");
  }
}

/** One line: tokens, times and what the prefix cache saved. */
function figures(usage, times) {
  const said = [];
  if (usage) said.push(plural(usage.completion_tokens, "token"));
  if (times) said.push(seconds(times.total), `first after ${seconds(times.first)}`);
  const streaming = times ? times.total - times.first : 0;
  if (usage?.completion_tokens > 1 && streaming > 0) {
    said.push(`${digits((usage.completion_tokens - 1) / streaming)} tokens/s`);
  }
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    said.push(`prompt ${count(usage.prompt_tokens)}, of these ${count(cached)} cached`);
  }
  return said.join(" · ");
}

/** Change what is shown; whoever looks at the end goes on looking at the end. */
export function followEnd(change) {
  const box = find("messages");
  const near = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_PIXELS;
  change();
  if (near) box.scrollTop = box.scrollHeight;
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied.");
  } catch {
    announce("The browser does not allow copying here.");
  }
}
