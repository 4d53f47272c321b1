// The live line: what the five actors, their queues, slots, links and memories do, twice a second.

import { eventsOf, pause, request } from "./api.js";
import { element, find, setText } from "./dom.js";
import { Sparkline } from "./sparkline.js";
import { bytes, count, digits, percent, rate, seconds } from "./words.js";

const RETRY_MILLISECONDS = 2000;
const MOST_CELLS = 24;
const LAYERS = {
  weights: "weights that stay", moving: "weights that move",
  kv_used: "KV in use", kv_cached: "KV cached", kv_free: "KV free",
};
const ROWS = { sections: sectionRow, actors: actorRow, links: linkRow, budgets: slotsRow, tiers: tierRow };
const STATES = { lost: "no connection", locked: "needs a key" };

export class LiveLine {
  /** `ready` is called when a model is there to be asked, and again where it fails. */
  constructor(ready) {
    this.ready = ready;
    this.state = "connecting";
    this.following = new AbortController();
    this.rows = {};
    drawLegend();
    document.addEventListener("visibilitychange", () => (document.hidden ? this.following.abort() : this.restart()));
  }

  /** Follow the feed anew: with another key, or as the page is seen again. */
  restart() {
    this.following.abort();
    this.following = new AbortController();
    this.follow(this.following.signal).catch((error) => {
      if (error.name !== "AbortError") throw error;
    });
  }

  async follow(signal) {
    for (;;) {
      try {
        const response = await request("live", { signal });
        for await (const data of eventsOf(response)) if (data !== "[DONE]") this.show(JSON.parse(data));
      } catch (error) {
        if (error.name === "AbortError") throw error;
        this.showState(error.status === 401 ? "locked" : "lost", `${error.message} ${error.advice ?? ""}`);
        if (error.status === 401) return;
      }
      await pause(RETRY_MILLISECONDS, signal);
    }
  }

  showState(state, sentence) {
    find("state").dataset.state = state;
    setText(find("state"), STATES[state] ?? state);
    setText(find("bound"), sentence);
    find("live").classList.toggle("still", state !== "ready");
    const begins = state === "ready" && this.state !== "ready";
    this.state = state;
    if (begins) this.ready().catch(() => (this.state = "lost"));
  }

  show(frame) {
    this.showState(frame.state, frame.says);
    if (frame.state !== "ready") return;
    showTiles(frame);
    for (const list in ROWS) for (const one of frame[list]) this.row(list, one).show(one);
  }

  /** The row of a list that shows this, made when it is first there. */
  row(list, one) {
    const key = `${list} ${one.label}`;
    if (!this.rows[key]) {
      this.rows[key] = ROWS[list](one);
      find(list).append(this.rows[key].node);
    }
    return this.rows[key];
  }
}

function showTiles({ requests, tokens_per_second, pass_seconds }) {
  const tiles = {
    "tokens/s": digits(tokens_per_second),
    "a pass": pass_seconds === null ? "–" : seconds(pass_seconds),
    "in the pass": count(requests.running),
    waiting: count(requests.waiting),
  };
  const tile = ([name, text]) => element("div", {}, element("dt", {}, name), element("dd", {}, text));
  find("tiles").replaceChildren(...Object.entries(tiles).map(tile));
}

/** A section: for which share of the time passes waited for it. */
function sectionRow({ label }) {
  const [bar, said] = [element("i", { className: "bar" }), number()];
  const node = element("li", {}, element("div", { className: "row" }, label, said), track(bar));
  const show = ({ waited }) => setText(said, (bar.style.width = percent(waited)));
  return { node, show };
}

/** An actor behind its queue: the share of time in which it worked, hatched that in which it waited. */
function actorRow({ label, verb }) {
  const [busy, waits] = [element("i", { className: "bar" }), element("i", { className: "bar waits" })];
  const [queue, said] = [cells("queue"), number()];
  const node = element("li", {}, queue.node, element("div", { className: "row" }, label, said), track(busy, waits));
  const show = (actor) => {
    node.classList.toggle("absent", actor.busy === null);
    busy.style.width = percent(actor.busy ?? 0);
    waits.style.width = percent(Math.min(actor.waiting ?? 0, 1 - (actor.busy ?? 0)));
    setText(said, actor.busy === null ? "nothing to do: all KV stays" : doing(verb, actor));
    queue.show(actor.queue?.depth ?? 0, 0, actor.queue?.capacity ?? 0);
  };
  return { node, show };
}

function doing(verb, { busy, waiting }) {
  if (busy >= 0.005) return `${verb} ${percent(busy)}`;
  return waiting >= 0.005 ? `waits ${percent(waiting)}` : "at rest";
}

const number = () => element("span", { className: "number" });
const track = (...bars) => element("div", { className: "track", ariaHidden: "true" }, ...bars);

/** Places side by side: full, still read by the device, and free. Of many only a share is drawn. */
function cells(noun) {
  const node = element("span", { className: `cells ${noun}`, role: "img" });
  const show = (full, cooling, all) => {
    const drawn = Math.min(all, MOST_CELLS);
    const scaled = (places) => Math.round((places * drawn) / Math.max(all, 1));
    while (node.children.length > drawn) node.lastChild.remove();
    while (node.children.length < drawn) node.append(element("i"));
    [...node.children].forEach((cell, index) => {
      cell.className = index < scaled(full) ? "full" : index < scaled(full + cooling) ? "cooling" : "";
    });
    node.title = `${noun}: ${full} full, ${cooling} still read, ${all} in all`;
  };
  return { node, show };
}

function linkRow({ label }) {
  const [said, line] = [number(), new Sparkline()];
  const node = element("li", {}, label, line.node, said);
  const show = ({ bytes_per_second }) => {
    node.classList.toggle("absent", bytes_per_second === null);
    setText(said, bytes_per_second === null ? "none" : rate(bytes_per_second));
    line.add(bytes_per_second ?? 0);
  };
  return { node, show };
}

function slotsRow({ label }) {
  const [said, slots] = [number(), cells("slots")];
  const node = element("li", {}, element("div", { className: "row" }, label, said), slots.node);
  const show = ({ held, cooling, slots: all }) => {
    setText(said, `${held + cooling} of ${all}`);
    slots.show(held, cooling, all);
  };
  return { node, show };
}

/** What lies in one place, as shares of all that may: a longer bar is no larger place. */
function tierRow({ label }) {
  const said = number();
  const bars = Object.keys(LAYERS).map((layer) => element("i", { className: `bar ${layer}` }));
  const node = element("li", {}, element("div", { className: "row" }, label, said), track(...bars));
  const show = (tier) => {
    const sizes = Object.keys(LAYERS).map((layer) => tier[layer]);
    const all = sizes.reduce((sum, size) => sum + size, 0);
    bars.forEach((bar, index) => {
      bar.style.width = `${(100 * sizes[index]) / Math.max(all, 1)}%`;
      bar.title = `${Object.values(LAYERS)[index]}: ${bytes(sizes[index])}`;
    });
    setText(said, tierWords(tier));
  };
  return { node, show };
}

function tierWords({ weights, moving, kv_used, kv_cached, kv_free }) {
  const parts = [["weights", weights + moving], ["KV", kv_used + kv_cached + kv_free]].filter(([, size]) => size);
  return parts.map(([noun, size]) => `${noun} ${bytes(size)}`).join(" · ") || "nothing";
}

function drawLegend() {
  const entry = ([layer, words]) => element("li", {}, element("i", { className: `bar ${layer}` }), words);
  find("tiers-legend").append(...Object.entries(LAYERS).map(entry));
}
