// The live line: what the five actors, their queues, slots, links and memories do, twice a second.

import { eventsOf, pause, request } from "./api.js";
import { element, find, setText } from "./dom.js";
import { Sparkline } from "./sparkline.js";
import { bytes, count, digits, percent, rate, seconds } from "./words.js";

const RETRY_MILLISECONDS = 2000;
const MOST_SLOTS = 24;
const ACTORS = {
  disk_reader: ["Disk reader", "reads"],
  pinned_stager: ["Pinned-memory stager", "hands on"],
  gpu_uploader: ["GPU uploader", "copies"],
  kv_swapper: ["KV swapper", "swaps"],
  compute_scheduler: ["Compute scheduler", "computes"],
};
const LINKS = { disk: "Disk", h2d: "Host to device", kv_in: "KV to device", kv_out: "KV from device" };
const PLACES = { device: "Device", host: "Host memory", disk: "Disk" };
const LAYERS = {
  weights: "weights that stay", moving: "weights that move", kv_used: "KV of requests", kv_cached: "KV cached", free: "KV free",
};
const STATES = { connecting: "connecting", loading: "loading", ready: "ready", draining: "ending", failed: "failed",
  lost: "no connection", locked: "needs a key" };

export class LiveLine {
  /** `ready` is called when a model is there to be asked. */
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
    setText(find("state"), STATES[state]);
    setText(find("bound"), sentence);
    find("live").classList.toggle("still", state !== "ready");
    const begins = state === "ready" && this.state !== "ready";
    this.state = state;
    if (begins) this.ready();
  }

  show(frame) {
    this.showState(frame.state, frame.says);
    if (frame.state !== "ready") return;
    showTiles(frame);
    for (const actor of frame.actors) this.row("actors", actor.name, actorRow).show(actor);
    for (const link of frame.links) this.row("links", link.name, linkRow).show(link);
    for (const budget of frame.budgets) this.row("slots", budget.place, slotsRow).show(budget);
    for (const tier of frame.tiers) this.row("tiers", tier.place, tierRow).show(tier);
  }

  /** The row of a list that shows this, made when it is first there. */
  row(list, name, make) {
    const key = `${list} ${name}`;
    if (!this.rows[key]) {
      this.rows[key] = make(name);
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
  const list = find("tiles");
  if (!list.children.length) {
    list.append(...Object.keys(tiles).map((name) => element("div", {}, element("dt", {}, name), element("dd"))));
  }
  Object.values(tiles).forEach((text, index) => setText(list.children[index].lastChild, text));
}

/** An actor behind its queue: the share of time in which it worked, hatched that in which it waited. */
function actorRow(name) {
  const [label, verb] = ACTORS[name];
  const [busy, waits] = [element("i", { className: "bar" }), element("i", { className: "bar waits" })];
  const [queue, said] = [cells("queue"), element("span", { className: "number" })];
  const node = element("li", {}, queue.node,
    element("div", { className: "row" }, element("span", {}, label), said),
    element("div", { className: "track", ariaHidden: "true" }, busy, waits));
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

/** Places side by side: full, still read by the device, and free. Of many only a share is drawn. */
function cells(noun) {
  const node = element("span", { className: `cells ${noun}` });
  const show = (full, cooling, all) => {
    const drawn = Math.min(all, MOST_SLOTS);
    const scaled = (number) => Math.round((number * drawn) / Math.max(all, 1));
    while (node.children.length > drawn) node.lastChild.remove();
    while (node.children.length < drawn) node.append(element("i"));
    [...node.children].forEach((cell, index) => {
      cell.className = index < scaled(full) ? "full" : index < scaled(full + cooling) ? "cooling" : "";
    });
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", `${noun}: ${full} of ${all}`);
    node.title = `${noun}: ${full} of ${all}`;
  };
  return { node, show };
}

function linkRow(name) {
  const [number, line] = [element("span", { className: "number" }), new Sparkline()];
  const node = element("li", { className: "link" }, element("span", {}, LINKS[name]), line.node, number);
  const show = ({ bytes_per_second }) => {
    node.classList.toggle("absent", bytes_per_second === null);
    setText(number, bytes_per_second === null ? "none" : rate(bytes_per_second));
    line.add(bytes_per_second ?? 0);
  };
  return { node, show };
}

function slotsRow(place) {
  const [number, slots] = [element("span", { className: "number" }), cells("slots")];
  const node = element("li", {},
    element("div", { className: "row" }, element("span", {}, PLACES[place] ?? place), number), slots.node);
  const show = ({ held, cooling, slots: all }) => {
    setText(number, `${held} of ${all}${cooling ? `, ${cooling} still read` : ""}`);
    slots.show(held, cooling, all);
  };
  return { node, show };
}

/** What lies in one place, as shares of all that may: the longest bar is not the largest place. */
function tierRow(place) {
  const [number, track] = [element("span", { className: "number" }), element("div", { className: "track tall", ariaHidden: "true" })];
  const node = element("li", {},
    element("div", { className: "row" }, element("span", {}, PLACES[place] ?? place), number), track);
  const bars = Object.fromEntries(Object.keys(LAYERS).map((layer) => [layer, element("i", { className: `bar ${layer}` })]));
  track.append(...Object.values(bars));
  const show = (tier) => {
    const all = Object.keys(LAYERS).reduce((sum, layer) => sum + tier[layer], 0);
    for (const [layer, bar] of Object.entries(bars)) {
      bar.style.width = `${(100 * tier[layer]) / Math.max(all, 1)}%`;
      bar.title = `${LAYERS[layer]}: ${bytes(tier[layer])}`;
    }
    setText(number, tierWords(tier));
    node.classList.toggle("absent", all === 0);
  };
  return { node, show };
}

function tierWords(tier) {
  const kv = tier.kv_used + tier.kv_cached + tier.free;
  const parts = [[tier.weights, "stay"], [tier.moving, "move"], [kv, "KV"]].filter(([size]) => size);
  return parts.map(([size, noun]) => `${bytes(size)} ${noun}`).join(" · ") || "nothing";
}

function drawLegend() {
  const entries = Object.entries(LAYERS).map(([layer, words]) =>
    element("li", {}, element("i", { className: `bar ${layer}`, ariaHidden: "true" }), words));
  find("tiers-legend").replaceChildren(...entries);
}
