// The tab "Why this box": one query through the decoder, and what it looks at in every layer.

import { bytes } from "./api.js";
import { levelColour } from "./colours.js";

const at = (id) => document.getElementById(id);
const PATH = "rgb(86, 180, 233)";
const NOW = "rgb(230, 159, 0)";

export class Why {
  constructor(changed) {
    this.changed = changed;
    this.answer = null;
    for (const id of ["why-layer", "why-head", "why-level", "why-path", "why-parts"]) {
      at(id).addEventListener("input", () => this.update());
    }
  }

  clear() {
    this.answer = null;
    at("why-controls").hidden = true;
    at("why-what").textContent = "Click a box, or choose one from the list under Boxes.";
  }

  /** What the service says of a box. */
  show(answer) {
    this.answer = answer;
    const { layers } = answer;
    at("why-controls").hidden = false;
    const last = layers.at(-1);
    at("why-what").textContent = `${answer.category} ${last.score.toFixed(2)}: the answer of query ${answer.query} of ${answer.num_queries}.`
      + (answer.overlap !== null && answer.overlap < 0.9
        ? ` Seen whole, the picture gives a box that overlaps the one you clicked by ${Math.round(100 * answer.overlap)} %.` : "");
    at("why-layer").max = layers.length;
    at("why-layer").value = layers.length;
    const heads = last.samples ? last.samples.points.length : last.attention.peaks.length;
    options(at("why-head"), ["all", ...Array.from({ length: heads }, (_, head) => String(head + 1))]);
    const levels = last.samples?.points[0].length ?? 1;
    options(at("why-level"), ["all", ...Array.from({ length: levels }, (_, level) => String(level + 1))]);
    at("why-level-label").hidden = levels === 1;
    at("why-parts").hidden = !last.content;
    at("why-parts").querySelector("input").checked = true;
    this.update();
  }

  get layer() { return Number(at("why-layer").value) - 1; }
  get part() { return at("why-parts").querySelector(":checked").value; }

  update() {
    if (!this.answer) return;
    const { layers } = this.answer;
    at("why-layer-value").value = `${this.layer + 1} of ${layers.length}`;
    at("why-layers").replaceChildren(...layers.map((layer, place) => {
      const row = document.createElement("tr");
      if (place === this.layer) row.className = "now";
      for (const text of [place + 1, layer.score.toFixed(3), moved(layers, place)]) {
        row.insertCell().textContent = text;
      }
      return row;
    }));
    at("why-caption").textContent = this.caption;
    this.changed();
  }

  get caption() {
    const layer = this.answer.layers[this.layer];
    const start = layer.anchor ? (layer.anchor.length === 2 ? "The white dot is the point it starts from." : "The white box is the anchor it starts from.")
      : "This detector's queries have no anchors.";
    if (layer.samples) {
      return `Each dot is a place that the query reads, the larger the more it counts; colours are levels, from fine (orange) to coarse. ${start}`;
    }
    const what = { attention: "Bright cells are those that it reads most", content: "Where what the cells hold alone would lead it", position: "Where their place alone would lead it" }[this.part];
    return `${what}; each map is drawn up to its own largest value. ${start}`;
  }

  paint(pen) {
    const { layers } = this.answer;
    const layer = layers[this.layer];
    pen.ground(true);
    if (layer.samples) this.paintSamples(pen, layer.samples.points);
    else paintMaps(pen, layer[this.part], at("why-head").value);
    if (at("why-path").checked) {
      const boxes = layers.slice(0, this.layer + 1).map(({ bbox }) => bbox);
      boxes.slice(0, -1).forEach((box, place) => pen.box(box, PATH, { dashed: true, thick: 1.5, label: String(place + 1), faded: 0.85 }));
      const first = layers[0].anchor;
      pen.line([...(first ? [centre(first)] : []), ...boxes.map(centre)], PATH);
    }
    if (layer.anchor?.length === 4) pen.box(layer.anchor, "#ffffff", { dashed: true, thick: 1.5 });
    if (layer.anchor?.length === 2) pen.dot(...layer.anchor, 5, "#ffffff");
    pen.box(layer.bbox, NOW, { label: `${this.answer.category} ${layer.score.toFixed(2)}` });
  }

  paintSamples(pen, points) {
    const head = at("why-head").value;
    const level = at("why-level").value;
    const dots = [];
    points.forEach((levels, m) => levels.forEach((each, s) => each.forEach(([x, y, weight]) => {
      if ((head === "all" || Number(head) === m + 1) && (level === "all" || Number(level) === s + 1)) dots.push({ x, y, weight, s });
    })));
    const most = Math.max(...dots.map(({ weight }) => weight), 1e-9);
    dots.sort((a, b) => a.weight - b.weight);
    for (const { x, y, weight, s } of dots) pen.dot(x, y, 1.5 + 6 * Math.sqrt(weight / most), levelColour(s), 0.85);
  }

  get told() {
    if (!this.answer) return "";
    const { bbox: [x, y, w, h] } = this.answer.layers[this.layer];
    return `After layer ${this.layer + 1}: ${Math.round(w)} × ${Math.round(h)} pixels at (${Math.round(x)}, ${Math.round(y)}).`;
  }
}

/** One head's map, or the mean of all. */
function paintMaps(pen, maps, head) {
  const { height, width, peaks, covers } = maps;
  const values = bytes(maps.values);
  const size = height * width;
  const mean = new Float32Array(size);
  const heads = head === "all" ? peaks.keys() : [Number(head) - 1];
  for (const m of heads) for (let i = 0; i < size; i++) mean[i] += values[m * size + i] * peaks[m];
  const most = Math.max(...mean, 1e-12);
  pen.heatMap(mean.map((value) => value / most), width, height, covers);
}

const centre = (place) => (place.length === 2 ? place : [place[0] + place[2] / 2, place[1] + place[3] / 2]);

/** How far a layer moved the centre of the box before it, in pixels of the picture. */
function moved(layers, place) {
  const before = place ? layers[place - 1].bbox : layers[0].anchor;
  if (!before) return "–";
  const [[x, y], [u, v]] = [centre(before), centre(layers[place].bbox)];
  return `${Math.hypot(u - x, v - y).toFixed(1)} px`;
}

export function options(select, texts) {
  const before = select.value;
  select.replaceChildren(...texts.map((text) => new Option(text, text)));
  if (texts.includes(before)) select.value = before;
}
