// The page: pictures come in, the three tabs look at the current one.

import { getModel, post } from "./api.js";
import { Boxes } from "./boxes.js";
import { setUpCamera } from "./camera.js";
import { Qkva } from "./qkva.js";
import { Pen, Stage } from "./stage.js";
import { Why } from "./why.js";

const at = (id) => document.getElementById(id);
const MOST_SHOWN = 300;
const TABS = ["boxes", "why", "qkva"];

const stage = new Stage(at("canvas"));
const pictures = []; // {file, bitmap, found, layers}
let current = null;
let tab = "boxes";
let boxes, why, qkva;

function tell(text, bad = false) {
  at("message").textContent = text;
  at("message").className = bad ? "bad" : "";
}

/** Run something that asks the service, telling what it is doing and what went wrong. */
async function trying(doing, work) {
  tell(doing);
  try {
    const answer = await work();
    tell("");
    return answer;
  } catch (error) {
    tell(error.message, true);
    return null;
  }
}

async function start() {
  document.body.classList.add("empty");
  const model = await trying("", getModel);
  if (!model) return;
  at("model").textContent = model.name;
  boxes = new Boxes(model, redraw, explain);
  why = new Why(redraw);
  qkva = new Qkva(model, askLayer, redraw);
  stage.paint = (pen) => views()[tab].paint(pen);
  at("tab-why").hidden = model.decoder.length === 0;
  at("tab-qkva").hidden = model.decoder.length === 0;
  setUpIntake();
  setUpTabs();
  setUpStage();
  setUpSaving();
}

const views = () => ({ boxes, why: why.answer ? why : boxes, qkva: qkva.answer ? qkva : boxes });

function redraw() {
  if (!current) return;
  stage.draw();
  at("told").textContent = views()[tab].told;
}

// pictures in ---------------------------------------------------------------------------------------------------------

function setUpIntake() {
  at("choose").addEventListener("click", () => at("files").click());
  at("files").addEventListener("change", () => {
    take([...at("files").files]);
    at("files").value = "";
  });
  setUpCamera(take, (text) => tell(text, true));
  const dragging = (on) => (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", on);
  };
  document.addEventListener("dragover", dragging(true));
  document.addEventListener("dragleave", dragging(false));
  document.addEventListener("drop", (event) => {
    dragging(false)(event);
    take([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => take([...event.clipboardData.files]));
}

async function take(files) {
  for (const file of files) await takeOne(file);
}

async function takeOne(file) {
  const picture = await trying(`Looking at ${file.name} …`, async () => {
    const answer = await post("/v1/detect", file, { threshold: 0, top_k: MOST_SHOWN });
    const bitmap = await createImageBitmap(file).catch(() => {
      throw new Error(`${file.name}: this browser cannot show such a picture; save it as JPEG or PNG`);
    });
    return { file, bitmap, found: answer, layers: new Map() };
  });
  if (!picture) return;
  pictures.push(picture);
  document.body.classList.remove("empty");
  at("work").hidden = false;
  listPicture(picture);
  go(picture);
}

function listPicture(picture) {
  const button = Object.assign(document.createElement("button"), { type: "button" });
  button.setAttribute("aria-label", picture.file.name);
  const canvas = document.createElement("canvas");
  canvas.height = 56;
  canvas.width = Math.min(140, Math.max(20, (56 * picture.bitmap.width) / picture.bitmap.height));
  canvas.getContext("2d").drawImage(picture.bitmap, 0, 0, canvas.width, canvas.height);
  button.append(canvas);
  button.addEventListener("click", () => go(picture));
  picture.button = button;
  const item = document.createElement("li");
  item.append(button);
  at("strip").append(item);
  at("strip").hidden = pictures.length < 2;
}

function go(picture) {
  current = picture;
  for (const one of pictures) one.button.setAttribute("aria-current", String(one === picture));
  why.clear();
  qkva.clear();
  if (tab === "why") tab = "boxes";
  at("canvas").setAttribute("aria-label", picture.file.name);
  stage.show(picture.bitmap);
  boxes.show(picture.found.annotations);
  choose(tab);
}

// tabs ----------------------------------------------------------------------------------------------------------------

function setUpTabs() {
  for (const name of TABS) at(`tab-${name}`).addEventListener("click", () => choose(name));
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const open = TABS.filter((name) => !at(`tab-${name}`).hidden);
    const next = open[(open.indexOf(tab) + step + open.length) % open.length];
    choose(next);
    at(`tab-${next}`).focus();
  });
  choose("boxes");
}

function choose(name) {
  tab = name;
  for (const one of TABS) {
    at(one).hidden = one !== name;
    at(`tab-${one}`).setAttribute("aria-selected", String(one === name));
    at(`tab-${one}`).tabIndex = one === name ? 0 : -1;
  }
  if (name === "qkva" && current && !qkva.answer) qkva.load();
  redraw();
}

async function explain(detection) {
  if (at("tab-why").hidden) return;
  const asked = current;
  const { bbox, category_id } = detection;
  const answer = await trying("Looking into it …", () => post("/v1/explain", asked.file, { bbox, category_id }));
  if (!answer || asked !== current) return;
  why.show(answer);
  choose("why");
  at("why-layer").focus({ preventScroll: true });
}

async function askLayer(fields) {
  const asked = current;
  const name = JSON.stringify(fields);
  if (!asked.layers.has(name)) {
    const answer = await trying("Looking into it …", () => post("/v1/attention", asked.file, fields));
    if (!answer) return null;
    asked.layers.set(name, answer);
  }
  return asked === current ? asked.layers.get(name) : null;
}

// the picture itself --------------------------------------------------------------------------------------------------

function setUpStage() {
  const canvas = at("canvas");
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = stage.placeOf(event);
    if (tab === "qkva") qkva.point(x / current.bitmap.width, y / current.bitmap.height);
    else if (tab === "boxes" && boxes.under([x, y]) !== boxes.lit) boxes.light(boxes.under([x, y]));
  });
  canvas.addEventListener("click", (event) => {
    const place = stage.placeOf(event);
    if (tab === "qkva") qkva.point(place[0] / current.bitmap.width, place[1] / current.bitmap.height);
    else if (boxes.under(place)) explain(boxes.under(place));
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (step) event.preventDefault();
    if (tab === "qkva" && step) qkva.step(...step);
    if (tab === "boxes" && step) lightNext(step[0] + step[1]);
    if (tab === "boxes" && event.key === "Enter" && boxes.lit) explain(boxes.lit);
  });
}

function lightNext(step) {
  const shown = boxes.shown;
  if (shown.length) boxes.light(shown[(shown.indexOf(boxes.lit) + step + shown.length) % shown.length]);
  if (boxes.lit) at("told").textContent = `${boxes.label(boxes.lit)}. Enter: why?`;
}

// what can be taken home ----------------------------------------------------------------------------------------------

function setUpSaving() {
  at("save-json").addEventListener("click", () => {
    const text = JSON.stringify({ ...current.found, annotations: boxes.shown }, null, 1);
    save(new Blob([text], { type: "application/json" }), ".json");
  });
  at("save-picture").addEventListener("click", async () => {
    const { width, height } = current.bitmap;
    const canvas = new OffscreenCanvas(width, height);
    boxes.paint(new Pen(canvas, current.bitmap, 1, Math.max(1, Math.max(width, height) / 900)));
    save(await canvas.convertToBlob({ type: "image/png" }), ".detections.png");
  });
}

function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = current.file.name.replace(/\.\w+$/, "") + ending;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

start();
