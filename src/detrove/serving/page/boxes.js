// The tab "Boxes": what was found, above a score and of some classes.

import { classColour } from "./colours.js";

const at = (id) => document.getElementById(id);

export class Boxes {
  /** `changed()` after every choice; `chosen(detection)` when one is to be explained. */
  constructor(model, changed, chosen) {
    Object.assign(this, { model, changed, chosen });
    this.hidden = new Set();
    this.detections = [];
    this.lit = null;
    this.places = new Map(model.categories.map((category, place) => [category.id, place]));
    this.names = new Map(model.categories.map(({ id, name }) => [id, name]));
    this.setUpThreshold();
    at("found").addEventListener("keydown", (event) => this.walk(event));
  }

  setUpThreshold() {
    const hasStored = Object.keys(this.model.thresholds).length > 0;
    at("stored-label").hidden = !hasStored;
    at("stored").checked = hasStored;
    at("threshold").value = 0.5;
    at("threshold").addEventListener("input", () => {
      at("stored").checked = false;
      this.update();
    });
    at("stored").addEventListener("change", () => this.update());
  }

  /** Detections of another picture, the surest first. */
  show(detections) {
    this.detections = detections;
    this.lit = null;
    this.update();
  }

  least(detection) {
    if (at("stored").checked) return this.model.thresholds[detection.category_id] ?? 0.5;
    return Number(at("threshold").value);
  }

  name = (detection) => this.names.get(detection.category_id);
  colour = (detection) => classColour(this.places.get(detection.category_id));
  label = (detection) => `${this.name(detection)} ${detection.score.toFixed(2)}`;
  get sure() { return this.detections.filter((one) => one.score >= this.least(one)); }
  get shown() { return this.sure.filter((one) => !this.hidden.has(one.category_id)); }

  update() {
    at("threshold-value").value = at("stored").checked ? "stored" : Number(at("threshold").value).toFixed(2);
    this.listClasses();
    this.list();
    this.changed();
  }

  listClasses() {
    const counts = new Map();
    for (const one of this.sure) counts.set(one.category_id, (counts.get(one.category_id) ?? 0) + 1);
    const focused = document.activeElement?.dataset?.category;
    at("class-list").replaceChildren(...this.model.categories.filter(({ id }) => counts.has(id) || this.hidden.has(id)).map(({ id, name }) => {
      const label = document.createElement("label");
      label.className = "check";
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: !this.hidden.has(id) });
      box.dataset.category = id;
      box.addEventListener("change", () => {
        this.hidden[box.checked ? "delete" : "add"](id);
        this.update();
      });
      label.append(box, swatch(classColour(this.places.get(id))), `${name} (${counts.get(id) ?? 0})`);
      return label;
    }));
    if (focused) at("class-list").querySelector(`[data-category="${focused}"]`)?.focus();
  }

  list() {
    at("found").replaceChildren(...this.shown.map((one) => {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      const name = Object.assign(document.createElement("span"), { className: "name", textContent: this.name(one) });
      const score = Object.assign(document.createElement("span"), { className: "score", textContent: one.score.toFixed(2) });
      button.append(swatch(this.colour(one)), name, score);
      button.setAttribute("aria-label", `${this.label(one)}: why?`);
      button.addEventListener("click", () => this.chosen(one));
      button.addEventListener("focus", () => this.light(one));
      button.addEventListener("mouseenter", () => this.light(one));
      const item = document.createElement("li");
      item.append(button);
      return item;
    }));
  }

  light(detection) {
    this.lit = detection;
    this.changed();
  }

  /** Up and down the list. */
  walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...at("found").querySelectorAll("button")];
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
  }

  /** The smallest shown box around a place: of boxes within boxes, the inner one can be reached. */
  under([x, y]) {
    const around = this.shown.filter(({ bbox: [left, top, w, h] }) => x >= left && x <= left + w && y >= top && y <= top + h);
    return around.sort((a, b) => a.area - b.area)[0] ?? null;
  }

  paint(pen, labels = true) {
    pen.ground();
    const shown = this.shown;
    // the surest last, so that it lies on top
    for (const one of [...shown].reverse()) {
      if (one !== this.lit) pen.box(one.bbox, this.colour(one), { label: labels && shown.length <= 60 ? this.label(one) : "" });
    }
    if (shown.includes(this.lit)) pen.box(this.lit.bbox, this.colour(this.lit), { label: this.label(this.lit), thick: 4.5 });
  }

  get told() {
    const counts = this.shown.length === 1 ? "1 detection" : `${this.shown.length} detections`;
    return `${counts} shown. Click a box to see why it is there.`;
  }
}

function swatch(colour) {
  const mark = Object.assign(document.createElement("span"), { className: "swatch" });
  mark.style.backgroundColor = colour;
  return mark;
}
