// Shows the image with its boxes and takes the region that a visitor marks, by pointer or by keyboard.

import { css, find, inkOn, make } from "./dom.js";

const STEP = 0.02;
const ARROWS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
const SMALLEST = 0.01;
const clamp = (x) => Math.min(1, Math.max(0, x));

export class Stage {
  /** `onRegion` gets each confirmed region as [left, top, right, bottom] in fractions of the image, or null. */
  constructor(onRegion) {
    this.root = find("#stage");
    this.frame = find("#stage .frame");
    this.layer = find("#stage .layer");
    this.picture = find("#stage img");
    this.message = find("#stage .message");
    this.draw = find("#draw");
    this.onRegion = onRegion;
    this.marks = [];
    this.region = null;
    this.start = null;
    this.draw.addEventListener("click", () => this.#setDrawing(!this.drawing));
    find("#clear").addEventListener("click", () => this.#take(null));
    this.#listen();
  }

  /** Show an image ({shown, width, height}), or none. */
  show(image) {
    this.root.classList.toggle("filled", Boolean(image));
    if (image) {
      this.picture.src = image.shown;
      this.frame.style.setProperty("--ratio", image.width / image.height);
    } else this.picture.removeAttribute("src");
    this.marks = [];
    this.region = null;
    this.#setDrawing(false);
    this.paint();
  }

  /** A line below the image. */
  say(text) {
    this.message.textContent = text;
  }

  /** Draw `marks`: a list of {phrase, boxes, color}. */
  mark(marks) {
    this.marks = marks;
    this.paint();
  }

  paint() {
    this.layer.replaceChildren();
    for (const { phrase, boxes, color } of this.marks) {
      for (const box of boxes) {
        const node = this.#put(box, { class: "box", "data-phrase": phrase });
        node.style.borderColor = css(color);
        if (phrase) node.append(label(phrase, box, color));
      }
    }
    if (this.region) this.#put(this.region, { class: "region" });
    find("#clear").disabled = !this.region;
  }

  #put(box, attributes) {
    const node = make("div", attributes);
    const [x1, y1, x2, y2] = box.map((side) => 100 * clamp(side));
    Object.assign(node.style, { left: `${x1}%`, top: `${y1}%`, width: `${x2 - x1}%`, height: `${y2 - y1}%` });
    this.layer.append(node);
    return node;
  }

  #setDrawing(on) {
    this.drawing = on;
    this.draw.setAttribute("aria-pressed", String(on));
    this.frame.classList.toggle("drawing", on);
  }

  #take(box) {
    this.region = box;
    this.paint();
    this.#setDrawing(false);
    this.onRegion(box);
  }

  #at(event) {
    const r = this.frame.getBoundingClientRect();
    return [clamp((event.clientX - r.left) / r.width), clamp((event.clientY - r.top) / r.height)];
  }

  #listen() {
    this.frame.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || (event.pointerType !== "mouse" && !this.drawing)) return;
      this.start = this.#at(event);
      this.frame.setPointerCapture(event.pointerId);
      this.frame.focus({ preventScroll: true });
      event.preventDefault();
    });
    this.frame.addEventListener("pointermove", (event) => {
      if (!this.start) return;
      this.region = span(this.start, this.#at(event));
      this.paint();
    });
    this.frame.addEventListener("pointerup", (event) => {
      if (!this.start) return;
      const box = span(this.start, this.#at(event));
      this.start = null;
      this.#take(box[2] - box[0] > SMALLEST && box[3] - box[1] > SMALLEST ? box : null);
    });
    this.frame.addEventListener("pointercancel", () => { this.start = null; this.#take(null); });
    this.frame.addEventListener("keydown", (event) => {
      if (!this.#key(event)) return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  /** Whether the key moved, resized, confirmed, began or removed a region. */
  #key(event) {
    if (event.key === "Enter" || event.key === " ") {
      if (this.region) this.#take(this.region);
      else { this.region = [0.3, 0.3, 0.7, 0.7]; this.paint(); }
      return true;
    }
    if (!this.region) return false;
    if (event.key === "Escape" || event.key === "Delete") { this.#take(null); return true; }
    if (!(event.key in ARROWS)) return false;
    this.region = (event.shiftKey ? resized : moved)(this.region, ...ARROWS[event.key]);
    this.paint();
    return true;
  }
}

function label(phrase, box, color) {
  const places = (box[1] < 0.08 ? " inside" : "") + (box[0] > 0.5 ? " left" : "");
  const node = make("span", { class: `name${places}`, dir: "auto" }, phrase);
  Object.assign(node.style, { background: css(color), color: inkOn(color) });
  return node;
}

const span = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
const resized = ([x1, y1, x2, y2], dx, dy) =>
  [x1, y1, Math.max(x1 + STEP, clamp(x2 + dx)), Math.max(y1 + STEP, clamp(y2 + dy))];

function moved([x1, y1, x2, y2], dx, dy) {
  const mx = Math.max(-x1, Math.min(1 - x2, dx)), my = Math.max(-y1, Math.min(1 - y2, dy));
  return [x1 + mx, y1 + my, x2 + mx, y2 + my];
}
