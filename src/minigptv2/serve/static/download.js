// Saves the conversation as JSON, and the image with the boxes that are shown as PNG.

import { css, inkOn, make } from "./dom.js";
import { pieces } from "./markup.js";

const FONT = 15;

/** The conversation as a JSON text. Boxes are in pixels of the image. */
export function conversationJson(name, image, turns) {
  const size = image && { width: image.width, height: image.height };
  const shown = turns.map(({ question, answer, state }) => ({ question, answer, state, boxes: boxesOf(answer, image) }));
  return JSON.stringify({ model: name, picture: size, turns: shown }, null, 1);
}

function boxesOf(answer, image) {
  if (!image) return [];
  const [width, height] = [image.width, image.height];
  return pieces(answer).filter((piece) => piece.boxes).flatMap(({ phrase, boxes }) =>
    boxes.map(([x1, y1, x2, y2]) => ({ phrase, box: [x1 * width, y1 * height, x2 * width, y2 * height] })));
}

/** A PNG of `picture` (an image element) with `marks` drawn on it. */
export function drawnImage(picture, marks) {
  const canvas = make("canvas");
  [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0);
  const scale = Math.max(1, canvas.width / 640);
  for (const { phrase, boxes, color } of marks)
    for (const box of boxes) drawBox(pen, { phrase, box, color, scale });
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function drawBox(pen, { phrase, box, color, scale }) {
  const { width, height } = pen.canvas;
  const [x, y, x2, y2] = [box[0] * width, box[1] * height, box[2] * width, box[3] * height];
  pen.strokeStyle = pen.fillStyle = css(color);
  pen.lineWidth = 3 * scale;
  pen.strokeRect(x, y, x2 - x, y2 - y);
  if (!phrase) return;
  pen.font = `${FONT * scale}px sans-serif`;
  const wide = pen.measureText(phrase).width + 8 * scale, tall = (FONT + 6) * scale;
  const left = Math.max(0, Math.min(x, width - wide)), top = y >= tall ? y - tall : y;
  pen.fillRect(left, top, wide, tall);
  pen.fillStyle = inkOn(color);
  pen.fillText(phrase, left + 4 * scale, top + tall - 6 * scale);
}

/** Let the browser save `blob`. */
export function save(blob, ending) {
  const time = new Date().toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-");
  const link = make("a", { href: URL.createObjectURL(blob), download: `conversation-${time}.${ending}` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
