// How a message looks: its text, its reasoning folded, what it cost, what one can do with it, and what went wrong.

import { announce, element, find } from "./dom.js";
import { drawMarkdown } from "./markdown.js";
import { count, digits, plural, seconds } from "./words.js";

const NEAR_PIXELS = 80;
const NAMES = { user: "You said", assistant: "The model answered" };

/** The view of one message. `actions` are functions by the words on their buttons. */
export class MessageView {
  constructor(message) {
    this.message = message;
    this.reasoning = element("div", { className: "text" });
    this.thoughts = element("details", { className: "reasoning", hidden: true },
      element("summary", {}, "Reasoning"), this.reasoning);
    this.text = element("div", { className: "text" });
    this.note = element("p", { className: "note", hidden: true });
    this.problem = element("div", { className: "problem", hidden: true });
    this.foot = element("div", { className: "foot" });
    const name = element("h2", { className: "hidden" }, NAMES[message.role]);
    const parts = [name, this.thoughts, this.text, this.note, this.problem, this.foot];
    this.node = element("article", { className: message.role }, ...parts);
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
      const button = ([word, act]) => element("button", { type: "button", className: "quiet small", onclick: act }, word);
      const buttons = Object.entries(actions).map(button);
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
  if (!usage || !times) return "";
  const { completion_tokens: made, prompt_tokens: asked, prompt_tokens_details: details } = usage;
  const said = [plural(made, "token"), seconds(times.total), `first after ${seconds(times.first)}`];
  if (made > 1) said.push(`${digits((made - 1) / (times.total - times.first))} tokens/s`);
  return [...said, `prompt ${count(asked)}, of these ${count(details?.cached_tokens ?? 0)} cached`].join(" · ");
}

/** Change what is shown; whoever looks at the end goes on looking at the end. */
export function followEnd(change) {
  const box = find("messages");
  const near = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_PIXELS;
  change();
  if (near) box.scrollTop = box.scrollHeight;
}

/** Copy a text; without TLS a browser has only the old way to do so. */
export async function copy(text, button) {
  const field = element("textarea", { value: text });
  document.body.append(field);
  field.select();
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else document.execCommand("copy");
  field.remove();
  button.textContent = "Copied";
  announce("Copied.");
}
