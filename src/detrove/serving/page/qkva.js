// The tab "QKVA": the four tensors of an encoder layer as pictures; a cell of the picture shows where it looks.

import { bytes } from "./api.js";
import { heat, levelColour } from "./colours.js";
import { options } from "./why.js";

const at = (id) => document.getElementById(id);

export class Qkva {
  /** `ask({layer, head, level})` gets a layer from the service; `changed()` when there is something new to paint. */
  constructor(model, ask, changed) {
    Object.assign(this, { model, ask, changed });
    this.answer = null;
    this.cell = null;
    at("qkva-none").hidden = model.encoder.length > 0;
    at("qkva-controls").hidden = model.encoder.length === 0;
    options(at("qkva-layer"), model.encoder.map((_, layer) => String(layer + 1)));
    at("qkva-layer").value = String(model.encoder.length);
    this.listHeads();
    options(at("qkva-level"), ["1"]);
    at("qkva-level-label").hidden = true;
    at("qkva-layer").addEventListener("change", () => this.listHeads());
    for (const id of ["qkva-layer", "qkva-head", "qkva-level"]) at(id).addEventListener("change", () => this.load());
    at("qkva-norm").addEventListener("change", () => this.paintGrids());
  }

  get block() { return this.model.encoder[Number(at("qkva-layer").value) - 1]; }

  listHeads() {
    const heads = this.block?.num_heads ?? 1;
    options(at("qkva-head"), Array.from({ length: heads }, (_, head) => String(head + 1)));
  }

  clear() {
    this.answer = null;
    this.cell = null;
  }

  async load() {
    if (!this.block) return;
    const [layer, head, level] = ["qkva-layer", "qkva-head", "qkva-level"].map((id) => Number(at(id).value) - 1);
    const answer = await this.ask({ layer, head, level });
    if (!answer) return;
    const moved = !this.answer || this.answer.width !== answer.width || this.answer.height !== answer.height;
    this.answer = answer;
    this.looks = answer.attention ? bytes(answer.attention.values) : new Float32Array(bytes(answer.samples).buffer);
    this.raster = new Map(answer.rows.map((cell, place) => [cell, place]));
    options(at("qkva-level"), Array.from({ length: answer.num_levels }, (_, s) => String(s + 1)));
    at("qkva-level-label").hidden = answer.num_levels === 1;
    if (moved) this.cell = [Math.floor(answer.width / 2), Math.floor(answer.height / 2)];
    at("qkva-caption").textContent = answer.attention
      ? "Move over the picture, or use the arrow keys on it: bright cells are those that the marked cell looks at. Q, K and V show one "
        + "head's vectors in the picture's layout: cells of one colour point the same way (three principal components)."
      : "Move over the picture, or use the arrow keys on it: dots are the places that the marked cell reads, the larger the more they "
        + "count; colours are levels. Deformable attention has no keys: a cell's query says at once where to look.";
    this.paintGrids();
    this.changed();
  }

  /** Point at a place of the picture, given as shares of its sides. */
  point(x, y) {
    if (!this.answer) return;
    const { width, height } = this.answer;
    const [right, bottom] = this.covers;
    const [column, row] = [Math.floor((x / right) * width), Math.floor((y / bottom) * height)];
    this.goTo(Math.min(Math.max(column, 0), width - 1), Math.min(Math.max(row, 0), height - 1));
  }

  step(dx, dy) {
    if (!this.answer) return;
    const stride = this.answer.rows.length > 1 ? Math.max(1, this.answer.rows[1] - this.answer.rows[0]) : 1;
    const { width, height } = this.answer;
    this.goTo(Math.min(Math.max(this.cell[0] + dx * stride, 0), width - 1), Math.min(Math.max(this.cell[1] + dy * stride, 0), height - 1));
  }

  goTo(column, row) {
    if (this.cell[0] === column && this.cell[1] === row) return;
    this.cell = [column, row];
    this.paintGrids();
    this.changed();
  }

  get covers() { return this.answer.attention?.covers ?? [1, 1]; }

  /** The row of answers for the cell pointed at, or for the nearest one that is told. */
  get row() {
    const { width, rows } = this.answer;
    const exact = this.raster.get(this.cell[1] * width + this.cell[0]);
    if (exact !== undefined) return exact;
    const far = (cell) => Math.hypot((cell % width) - this.cell[0], Math.floor(cell / width) - this.cell[1]);
    return rows.reduce((best, cell, place) => (far(cell) < far(rows[best]) ? place : best), 0);
  }

  get told() {
    if (!this.answer) return "";
    const cell = this.answer.rows[this.row];
    return `${this.answer.name}: cell in column ${(cell % this.answer.width) + 1}, row ${Math.floor(cell / this.answer.width) + 1} `
      + `of ${this.answer.width} × ${this.answer.height}.` + (this.answer.attention ? ` Its largest attention is ${this.answer.attention.peaks[this.row].toFixed(3)}.` : "");
  }

  paint(pen) {
    pen.ground(true);
    if (!this.answer) return;
    const { width, height, rows } = this.answer;
    if (this.answer.attention) {
      const size = width * height;
      const map = Float32Array.from(this.looks.subarray(this.row * size, (this.row + 1) * size), (value) => value / 255);
      pen.heatMap(map, width, height, this.covers);
    } else this.paintSamples(pen);
    const cell = rows[this.row];
    const [w, h] = [(pen.picture.width * this.covers[0]) / width, (pen.picture.height * this.covers[1]) / height];
    pen.box([(cell % width) * w, Math.floor(cell / width) * h, w, h], "#ffffff", { thick: 2 });
  }

  paintSamples(pen) {
    const { num_levels: levels, num_points: points } = this.answer;
    const start = this.row * levels * points * 3;
    const dots = Array.from({ length: levels * points }, (_, i) => this.looks.subarray(start + 3 * i, start + 3 * i + 3));
    const most = Math.max(...dots.map((dot) => dot[2]), 1e-9);
    dots.forEach(([x, y, weight], i) => {
      pen.dot(x * pen.picture.width, y * pen.picture.height, 2 + 7 * Math.sqrt(weight / most), levelColour(Math.floor(i / points)), 0.85);
    });
  }

  paintGrids() {
    if (!this.answer) return;
    for (const name of ["query", "key", "value"]) {
      const canvas = at(`grid-${name}`);
      canvas.closest("figure").hidden = !this.answer[name];
      if (this.answer[name]) this.paintGrid(canvas, this.answer[name]);
    }
  }

  /** A cell is a square of pixels, so that the marked one can have an edge. */
  paintGrid(canvas, colours) {
    const { width, height } = this.answer;
    const rgb = bytes(colours.rgb);
    const norm = bytes(colours.norm);
    const size = Math.max(4, Math.ceil(160 / width));
    canvas.width = width * size;
    canvas.height = height * size;
    const context = canvas.getContext("2d");
    for (let i = 0; i < width * height; i++) {
      const colour = at("qkva-norm").checked ? heat(norm[i] / 255) : rgb.subarray(3 * i, 3 * i + 3);
      context.fillStyle = `rgb(${Array.from(colour, Math.round).join(",")})`;
      context.fillRect((i % width) * size, Math.floor(i / width) * size, size, size);
    }
    context.lineWidth = 2;
    for (const [style, inset] of [["#000", 1], ["#fff", 2.5]]) {
      context.strokeStyle = style;
      context.strokeRect(this.cell[0] * size + inset, this.cell[1] * size + inset, size - 2 * inset, size - 2 * inset);
    }
  }
}
