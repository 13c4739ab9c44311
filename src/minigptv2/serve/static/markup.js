// Reads the markup of questions and answers as `tasks/answers.py` and `boxes.py` do: `<p>phrase</p> {<x1><y1><x2><y2>}`.
// Boxes are fractions of the sides of the image: left, top, right, bottom.

const GRID = 100;
const BOX = /\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}/g;
const BOXES = String.raw`\{[^{}]*\}(?:<delim>\{[^{}]*\})*`;
const PHRASE = new RegExp(String.raw`<p>([^<]*)</p>(?:\s*(${BOXES}))?`, "g");
const BARE = new RegExp(BOXES, "g");
const UNFINISHED = /(?:<p>[^<]*(?:<[^>]*)?|\{[^}]*|<[^>]*)$/;

/** `text` in order, as {text} and {phrase, boxes}. `partial`: leave out markup that is not closed yet. */
export function pieces(text, partial = false) {
  if (partial) text = text.replace(UNFINISHED, "");
  const found = [];
  let position = 0;
  for (const match of text.matchAll(PHRASE)) {
    found.push(...withoutPhrases(text.slice(position, match.index)));
    const boxes = boxesOf(match[2] ?? "");
    found.push(boxes.length ? { phrase: match[1].trim(), boxes } : { text: match[1] });
    position = match.index + match[0].length;
  }
  return [...found, ...withoutPhrases(text.slice(position))];
}

/** The phrases of `text` that have boxes, each with a color of `colors` that is the same for the same phrase. */
export function colored(text, colors, partial = false) {
  const phrases = [];
  return pieces(text, partial).map((piece) => {
    if (!piece.boxes) return piece;
    if (!phrases.includes(piece.phrase)) phrases.push(piece.phrase);
    return { ...piece, color: colors[phrases.indexOf(piece.phrase) % colors.length] };
  });
}

/** A box as text on the grid. */
export function boxText(box) {
  return `{${box.map((side) => `<${Math.min(GRID, Math.max(0, Math.trunc(GRID * side)))}>`).join("")}}`;
}

function withoutPhrases(text) {
  const found = [];
  let position = 0;
  for (const match of text.matchAll(BARE)) {
    const boxes = boxesOf(match[0]);
    if (!boxes.length) continue;
    if (match.index > position) found.push({ text: text.slice(position, match.index) });
    found.push({ phrase: "", boxes });
    position = match.index + match[0].length;
  }
  return position < text.length ? [...found, { text: text.slice(position) }] : found;
}

function boxesOf(text) {
  const boxes = [...text.matchAll(BOX)].map((match) => match.slice(1).map(Number));
  const onGrid = boxes.filter((box) => Math.max(...box) <= GRID);
  return onGrid.map(([x1, y1, x2, y2]) =>
    [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)].map((side) => side / GRID));
}
