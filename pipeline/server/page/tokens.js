// The tokens of an answer: which range of its text each one is, how likely it was, and what else might have come.

import { element, find } from "./dom.js";
import { percent } from "./words.js";

const tokenOf = new WeakMap();

/** Text that grows, and the tokens that it came in; those that only finish a character later share their range. */
export class Passage {
  constructor(text = "") {
    this.text = text;
    this.tokens = [];
  }

  /** Add text, and the tokens up to its end: `{token, logprob, top_logprobs}`. The first may have given no text. */
  add(text, tokens) {
    const first = tokens.findIndex((_, index) => tokens.slice(index).map((one) => one.token).join("") === text);
    const pieces = first < 0 ? [tokens].filter((one) => one.length) : tokens.slice(first).map((one) => [one]);
    let end = this.text.length;
    for (const choices of pieces) {
      const start = end;
      end += first < 0 ? text.length : choices[0].token.length;
      this.tokens.push({ start, end, choices });
    }
    this.text += text;
  }

  /** Nodes for a range of the text: one for each token in it, or a text where none are known. */
  leaf = (start, end) => {
    const nodes = [];
    let at = start;
    for (const token of this.tokens.filter((one) => one.end > start && one.start < end)) {
      const [from, to] = [Math.max(at, token.start), Math.min(end, token.end)];
      if (from > at) nodes.push(this.text.slice(at, from));
      nodes.push(tokenSpan(token, this.text.slice(from, to)));
      at = to;
    }
    if (at < end) nodes.push(this.text.slice(at, end));
    return nodes;
  };
}

const probability = (choice) => Math.exp(choice.logprob);

function tokenSpan(token, text) {
  const span = element("span", { className: "token", tabIndex: -1 }, text);
  span.style.setProperty("--unsure", (1 - Math.min(...token.choices.map(probability))).toFixed(3));
  tokenOf.set(span, token);
  return span;
}

/** Show what is known of a token where the pointer or the focus is, and let arrow keys go from token to token. */
export function watchTokens(messages) {
  for (const kind of ["pointerover", "focusin"]) messages.addEventListener(kind, (event) => showTip(event.target));
  for (const kind of ["pointerleave", "focusout", "scroll"]) messages.addEventListener(kind, hideTip);
  messages.addEventListener("keydown", moveFocus);
}

function moveFocus(event) {
  const text = event.target.closest(".text");
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!text || !step || event.target.closest("pre:focus")) return;
  const tokens = [...text.querySelectorAll(".token")];
  const next = tokens[tokens.indexOf(event.target) + step] ?? (event.target === text && tokens.at(0));
  if (!next) return;
  event.preventDefault();
  next.focus({ focusVisible: true });
}

function showTip(span) {
  const token = tokenOf.get(span);
  hideTip();
  if (!token) return;
  const tip = find("token-tip");
  tip.replaceChildren(...token.choices.flatMap(choiceNodes));
  tip.hidden = false;
  span.setAttribute("aria-describedby", tip.id);
  const box = span.getClientRects()[0];
  const below = box.bottom + tip.offsetHeight + 12 < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${below ? box.bottom + 6 : box.top - tip.offsetHeight - 6}px`;
}

const hideTip = () => (find("token-tip").hidden = true);

function choiceNodes(choice) {
  const head = element("p", {}, element("b", {}, shown(choice.token)), ` ${percent(probability(choice))}`,
    element("small", {}, ` log-probability ${choice.logprob.toFixed(2).replace("-", "−")}`));
  const rows = (choice.top_logprobs ?? []).map((one) => alternative(one, one.token === choice.token));
  return [head, element("ol", { className: "alternatives" }, ...rows)];
}

function alternative(choice, chosen) {
  const bar = element("i", { className: "bar" });
  bar.style.width = percent(probability(choice));
  const track = element("span", { className: "track", ariaHidden: "true" }, bar);
  return element("li", { className: chosen ? "chosen" : "" }, element("code", {}, shown(choice.token)), track,
    element("span", { className: "number" }, percent(probability(choice))));
}

/** A token as one can see it: blanks and line ends too. */
const shown = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
