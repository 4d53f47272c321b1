// A small line of the last half minute.

import { svgElement } from "./dom.js";

const POINTS = 60;
const [WIDTH, HEIGHT] = [88, 20];

export class Sparkline {
  constructor() {
    this.values = [];
    this.area = svgElement("polygon", { class: "area" });
    this.line = svgElement("polyline", { class: "line" });
    const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "sparkline", "aria-hidden": "true", preserveAspectRatio: "none" };
    this.node = svgElement("svg", box, this.area, this.line);
  }

  add(value) {
    this.values = [...this.values, value].slice(-POINTS);
    const most = Math.max(...this.values, 1e-9);
    const first = POINTS - this.values.length;
    const x = (index) => (((first + index) / (POINTS - 1)) * WIDTH).toFixed(1);
    const y = (one) => (HEIGHT - 1 - (one / most) * (HEIGHT - 3)).toFixed(1);
    const points = this.values.map((one, index) => `${x(index)},${y(one)}`);
    this.line.setAttribute("points", points.join(" "));
    this.area.setAttribute("points", [`${x(0)},${HEIGHT}`, ...points, `${WIDTH},${HEIGHT}`].join(" "));
  }
}
