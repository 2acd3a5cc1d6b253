// The picture, and what is drawn over it. Everything is given in pixels of the picture; the stage knows the scale.

import { heat, inkOn } from "./colours.js";

export class Stage {
  constructor(canvas) {
    this.canvas = canvas;
    this.picture = null;
    this.paint = () => {};
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
  }

  /** Show a picture (an ImageBitmap); `paint(pen)` draws over it, whenever needed. */
  show(picture) {
    this.picture = picture;
    this.draw();
  }

  draw() {
    if (!this.picture) return;
    const { width, height } = this.picture;
    const room = this.canvas.parentElement.clientWidth;
    const tallest = Math.max(240, window.innerHeight * (room < 700 ? 0.6 : 0.82));
    const shown = Math.min(room / width, tallest / height);
    const density = window.devicePixelRatio || 1;
    this.canvas.style.width = `${width * shown}px`;
    this.canvas.style.height = `${height * shown}px`;
    this.canvas.width = Math.max(1, Math.round(width * shown * density));
    this.canvas.height = Math.max(1, Math.round(height * shown * density));
    this.paint(new Pen(this.canvas, this.picture, this.canvas.width / width, density));
  }

  /** The place of a pointer event in pixels of the picture. */
  placeOf(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.picture.width,
      ((event.clientY - box.top) / box.height) * this.picture.height,
    ];
  }
}

export class Pen {
  constructor(canvas, picture, scale, density) {
    Object.assign(this, { picture, scale, density, context: canvas.getContext("2d") });
    this.width = canvas.width;
    this.height = canvas.height;
  }

  ground(grey = false) {
    this.context.drawImage(this.picture, 0, 0, this.width, this.height);
    if (!grey) return;
    this.context.globalCompositeOperation = "saturation";
    this.context.fillStyle = "hsl(0, 0%, 50%)";
    this.context.fillRect(0, 0, this.width, this.height);
    this.context.globalCompositeOperation = "source-over";
  }

  /** A box [x, y, w, h] between two dark hairlines, which keep it visible on any ground. */
  box([x, y, w, h], colour, { label = "", dashed = false, thick = 2.5, faded = 1 } = {}) {
    const [left, top, width, height] = [x, y, w, h].map((value) => value * this.scale);
    const line = thick * this.density;
    this.context.globalAlpha = faded;
    this.context.setLineDash([]);
    this.context.strokeStyle = "#000";
    this.context.lineWidth = line + 2 * this.density;
    this.context.strokeRect(left, top, width, height);
    this.context.setLineDash(dashed ? [3 * line, 2 * line] : []);
    this.context.strokeStyle = colour;
    this.context.lineWidth = line;
    this.context.strokeRect(left, top, width, height);
    this.context.setLineDash([]);
    if (label) this.tag(label, left, top, colour);
    this.context.globalAlpha = 1;
  }

  /** Text in a box of its own, above a place in canvas pixels and inside the picture. */
  tag(text, left, top, colour) {
    const size = 13 * this.density;
    this.context.font = `600 ${size}px system-ui, "DejaVu Sans", sans-serif`;
    const width = this.context.measureText(text).width + 8 * this.density;
    const height = size * 1.35;
    const x = Math.min(Math.max(left, 0), Math.max(this.width - width, 0));
    const y = top - height >= 0 ? top - height : Math.min(Math.max(top, 0), this.height - height);
    this.context.fillStyle = colour;
    this.context.fillRect(x, y, width, height);
    this.context.fillStyle = inkOn(colour);
    this.context.textBaseline = "middle";
    this.context.fillText(text, x + 4 * this.density, y + height / 2);
  }

  dot(x, y, radius, colour, faded = 1) {
    this.context.globalAlpha = faded;
    this.context.beginPath();
    this.context.arc(x * this.scale, y * this.scale, radius * this.density, 0, 2 * Math.PI);
    this.context.fillStyle = colour;
    this.context.fill();
    this.context.lineWidth = this.density;
    this.context.strokeStyle = "#000";
    this.context.stroke();
    this.context.globalAlpha = 1;
  }

  line(points, colour) {
    for (const [width, style] of [[4, "#000"], [2, colour]]) {
      this.context.beginPath();
      points.forEach(([x, y], i) => this.context[i ? "lineTo" : "moveTo"](x * this.scale, y * this.scale));
      this.context.lineWidth = width * this.density;
      this.context.strokeStyle = style;
      this.context.stroke();
    }
  }

  /** Shares (h x w, 0 to 1) as heat; the map covers so much of the picture: its last cells may stick out. */
  heatMap(shares, width, height, covers, strength = 0.75) {
    const cells = new ImageData(width, height);
    shares.forEach((share, i) => {
      cells.data.set([...heat(share), 255 * strength * Math.sqrt(share)], 4 * i);
    });
    const small = new OffscreenCanvas(width, height);
    small.getContext("2d").putImageData(cells, 0, 0);
    this.context.imageSmoothingEnabled = true;
    this.context.drawImage(small, 0, 0, this.width * covers[0], this.height * covers[1]);
  }
}
