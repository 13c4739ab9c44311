// Shows the conversation: questions, answers with colored phrases, notes, and the buttons of each answer.

import { css, find, iconButton, make, setIcon } from "./dom.js";
import { colored, pieces } from "./markup.js";

const HINT = "Choose an image, then ask about it. The buttons below start a question for one of the tasks of the model. " +
  "A question without a task starts a free conversation. Phrases with a box are colored. Click one to show only its box.";
const AT_END_PX = 80;

export class Log {
  /** `colors` are those of boxes, `onMarks` gets the boxes to draw, `actions` has `retry` and `restart`. */
  constructor(colors, onMarks, actions) {
    this.root = find("#log");
    this.announcement = find("#announcement");
    this.colors = colors;
    this.onMarks = onMarks;
    this.actions = actions;
    this.nodes = new Map();
    this.chosen = null;
    this.alone = null;
  }

  /** Show `turns`. Only turns that changed are built again. */
  show(turns) {
    const atEnd = this.root.scrollHeight - this.root.scrollTop - this.root.clientHeight < AT_END_PX;
    const grown = turns.length > this.nodes.size;
    for (const [turn, { node }] of this.nodes) if (!turns.includes(turn)) { node.remove(); this.nodes.delete(turn); }
    if (turns.length) this.root.querySelector(".empty")?.remove();
    else if (!this.root.children.length) this.root.append(make("p", { class: "empty" }, HINT));
    for (const turn of turns) this.#update(turn, turn === turns.at(-1));
    if (grown) this.#scrollToLast();
    else if (atEnd) this.root.scrollTop = this.root.scrollHeight;
  }

  /** Draw the boxes of a turn: all of them, or the phrase number `alone` only. */
  choose(turn, alone = null) {
    const before = this.chosen;
    this.chosen = turn;
    this.alone = alone;
    const marks = turn ? this.#marks(turn) : [];
    this.onMarks(alone === null ? marks : [marks[alone]]);
    for (const each of [before, turn]) if (each && this.nodes.has(each)) this.#press(each);
  }

  /** Say a finished answer to screen readers, and scroll to the reason if it failed. */
  announce(turn) {
    if (turn.state === "failed") this.root.scrollTop = this.root.scrollHeight;
    const words = pieces(turn.answer).map((piece) => piece.text ?? (piece.phrase || "a box"));
    this.announcement.textContent = `${words.join("")} ${turn.note}`;
  }

  /** The phrases with boxes of a turn. */
  #marks = (turn) => colored(turn.answer, this.colors, turn.state === "running").filter((piece) => piece.boxes);

  #update(turn, last) {
    const key = JSON.stringify([turn.answer, turn.state, turn.note, turn.code, last]);
    const known = this.nodes.get(turn);
    if (known?.key === key) return;
    const node = known?.node ?? make("div", { class: "turn" });
    node.replaceChildren(this.#question(turn), this.#answer(turn), this.#tools(turn, last));
    if (!known) this.root.append(node);
    this.nodes.set(turn, { node, key });
    this.#press(turn);
  }

  #question(turn) {
    const parts = pieces(turn.question).map((piece) =>
      piece.text ?? make("span", { class: "chip" }, piece.phrase || "this region"));
    return make("div", { class: "question", dir: "auto" }, ...parts);
  }

  #answer(turn) {
    const running = turn.state === "running";
    const answer = make("div", { class: `answer${running ? " running" : ""}`, dir: "auto", "data-state": turn.state });
    let number = 0;
    for (const piece of colored(turn.answer, this.colors, running))
      answer.append(piece.boxes ? this.#phrase(turn, piece, number++) : piece.text);
    if (turn.note) answer.append(make("span", { class: "note", dir: "auto" }, turn.note));
    return answer;
  }

  #phrase(turn, piece, number) {
    const name = piece.phrase || "here";
    const click = () => this.choose(turn, this.chosen === turn && this.alone === number ? null : number);
    const button = make("button", { type: "button", class: "phrase", "aria-label": `${name}: show only its box`, on: { click } }, name);
    button.style.setProperty("--ink-of-box", css(piece.color));
    return button;
  }

  #press(turn) {
    this.nodes.get(turn).node.querySelectorAll(".phrase").forEach((phrase, number) =>
      phrase.setAttribute("aria-pressed", String(this.chosen === turn && this.alone === number)));
  }

  #tools(turn, last) {
    const tools = make("div", { class: "tools" });
    if (turn.state === "running") return tools;
    if (turn.answer) {
      const copy = iconButton("copy", "Copy", () => copyText(turn.answer).then(() => setIcon(copy, "copied")));
      tools.append(copy);
    }
    const count = this.#marks(turn).length;
    if (count) tools.append(iconButton("boxes", count > 1 ? "Show all boxes" : "Show box", () => this.choose(turn)));
    if (turn.state === "failed" && last) {
      const full = turn.code === "context_length_exceeded";
      tools.append(make("button", { type: "button", class: "retry", on: { click: () => this.actions.retry(turn) } }, "Try again"));
      if (full) tools.append(make("button", { type: "button", class: "restart", on: { click: () => this.actions.restart(turn) } }, "Ask in a new conversation"));
    }
    return tools;
  }

  #scrollToLast() {
    const last = this.root.lastElementChild;
    if (last) this.root.scrollTop = last.offsetTop - 10;
  }
}

async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea"); // without TLS, browsers offer no clipboard to other hosts than this machine
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
