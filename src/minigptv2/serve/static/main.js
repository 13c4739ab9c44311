// Connects the parts of the page. The conversation is kept here, in the browser: each question is one request with the
// image and all earlier turns.

import { asDataUrl, checkImage, loadExample, loadSettings, messages, stream } from "./api.js";
import { conversationJson, drawnImage, save } from "./download.js";
import { find, make } from "./dom.js";
import { Log } from "./log.js";
import { boxText } from "./markup.js";
import { Stage } from "./stage.js";

const question = find("#question");
const notice = (text) => { find("#notice").textContent = text; };

/** One conversation and the controls around it. */
class Chat {
  constructor(settings) {
    this.settings = settings;
    this.image = null; // {data, shown, width, height}
    this.turns = []; // {question, answer, state: running | done | stopped | failed, note, code}
    this.seed = 0;
    this.reading = 0;
    this.running = null; // an AbortController
    this.stage = new Stage((region) => this.#startIdentify(region));
    this.log = new Log(settings.colors, (marks) => this.#mark(marks),
      { retry: (turn) => this.#answer(turn), restart: (turn) => this.#restart(turn) });
    this.show();
  }

  /** Update everything that depends on the state. */
  show() {
    const { turns, running } = this, marked = this.stage.marks.length > 0;
    this.log.show(turns);
    find("#send").disabled = !question.value.trim();
    find("#send").hidden = Boolean(running);
    find("#stop").hidden = !running;
    find("#again").disabled = Boolean(running) || !turns.length;
    find("#new").disabled = !turns.length;
    find("#save-text").disabled = Boolean(running) || !turns.length;
    find("#save-image").disabled = !this.image || !marked;
    find("#mode").hidden = Boolean(this.image);
    question.placeholder = this.image ? "Ask about the image" : "Ask a question";
  }

  /** Start a conversation about an image file, or about none. False if the image was refused. */
  async choose(file) {
    const turn = ++this.reading;
    const limit = this.settings.image_bytes, mib = (bytes) => (bytes / 2 ** 20).toFixed(1);
    if (file.size > limit) {
      this.stage.say(`The file has ${mib(file.size)} MiB. The limit is ${mib(limit)} MiB.`);
      return false;
    }
    this.stage.say("Reading the image ...");
    try {
      const data = await asDataUrl(file);
      const checked = await checkImage(data);
      if (turn !== this.reading) return false; // another image was chosen meanwhile
      this.begin({ data, ...checked });
      if (this.#asksIdentify()) this.fill("");
      this.stage.say("");
      return true;
    } catch (error) {
      if (turn === this.reading) this.stage.say(`Image refused: ${error.message}`);
      return false;
    }
  }

  /** Delete the turns and start a conversation about `image`. */
  begin(image) {
    this.stop();
    this.running = null;
    if (image !== this.image) this.stage.show(image);
    [this.image, this.turns, this.seed] = [image, [], 0];
    this.stage.say("");
    notice("");
    this.log.choose(null);
    this.show();
  }

  ask() {
    const text = question.value.trim();
    if (this.running) return notice("An answer is in progress. Wait for it or stop it.");
    if (!text) return notice("Enter a question first.");
    const turn = { question: text, answer: "", state: "running", note: "", code: null };
    this.turns.push(turn);
    this.fill("");
    return this.#answer(turn);
  }

  /** Answer the last question again with another seed. Its answer stays until the new one begins. */
  again() {
    this.seed += 1;
    return this.#answer(this.turns.at(-1));
  }

  stop() {
    this.running?.abort();
  }

  fill(text) {
    question.value = text;
    resize();
    this.show();
  }

  async #answer(turn) {
    const before = { ...turn }, running = new AbortController();
    let finish = null, begun = false;
    Object.assign(turn, { state: "running", note: "", code: null });
    this.running = running;
    notice("");
    this.show();
    try {
      for await (const piece of stream(this.#body(turn), running.signal)) {
        if (!begun) { turn.answer = ""; begun = true; this.log.choose(turn); }
        turn.answer += piece.text;
        finish = piece.finish ?? finish;
        this.log.show(this.turns);
      }
      Object.assign(turn, { state: "done", note: finish === "length" ? "Cut at the maximum answer length." : "" });
    } catch (error) {
      this.#fail(turn, begun ? null : before, error);
    } finally {
      if (this.running === running) this.running = null;
    }
    if (!this.turns.includes(turn)) return;
    this.log.choose(turn);
    this.log.announce(turn);
    this.show();
  }

  /** Note why a turn has no complete answer. `before` is the turn as it was, if no new answer began. */
  #fail(turn, before, error) {
    if (error.name === "AbortError") Object.assign(turn, { state: "stopped", note: "Stopped." });
    else if (before && (before.state === "done" || before.state === "stopped")) { // the answer that was there stays
      Object.assign(turn, before);
      notice(`Not answered again: ${error.message}`);
    } else {
      const kept = error.status ? "" : " Your conversation is kept: try again when the server runs.";
      const reason = error.code === "context_length_exceeded" ? "The conversation is too long for the model: " : "Not answered: ";
      Object.assign(turn, { state: "failed", note: `${reason}${error.message}${kept}`, code: error.code });
    }
  }

  #body(turn) {
    const earlier = this.turns.slice(0, this.turns.indexOf(turn)).filter(({ state }) => state === "done" || state === "stopped");
    return {
      model: this.settings.name,
      messages: messages(earlier, turn.question, this.image?.data),
      temperature: find("#temperature").valueAsNumber,
      max_tokens: find("#tokens").valueAsNumber,
      seed: this.seed,
    };
  }

  #restart(turn) {
    this.begin(this.image);
    this.fill(turn.question);
    return this.ask();
  }

  #mark(marks) {
    this.stage.mark(this.image ? marks : []);
    this.show();
  }

  #asksIdentify = () => !question.value.trim() || question.value.trim().startsWith(this.settings.region_task);

  #startIdentify(region) {
    if (!region || !this.#asksIdentify()) return;
    this.startTask(this.settings.tasks.find((task) => task.identifier === this.settings.region_task));
  }

  /** Fill the question with the beginning of a task. A task about a region needs one. */
  startTask(task) {
    const { region } = this.stage;
    if (task.needs_region && !region) {
      notice("Draw a region on the image: drag with the mouse, or focus the image and press Enter.");
      this.fill(`${task.identifier} `);
    } else {
      notice("");
      this.fill(task.needs_region ? task.question.replace(this.settings.box_slot, boxText(region)) : task.question);
    }
    question.focus();
    question.setSelectionRange(question.value.length, question.value.length);
  }

  async startExample(example) {
    try {
      if (!example.image) this.begin(null);
      else if (!(await this.choose(await loadExample(example.image)))) return;
      this.fill(example.question);
      question.focus();
    } catch (error) {
      this.stage.say(error.message);
    }
  }
}

function resize() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

function listFields(settings) {
  document.title = `${settings.name} - minigptv2`;
  find("#name").textContent = settings.name;
  question.maxLength = settings.max_text;
  find("#temperature").max = settings.max_temperature;
  find("#tokens").max = settings.max_tokens;
  find("#tokens").value = Math.min(256, settings.max_tokens);
}

function listButtons(chat) {
  for (const task of chat.settings.tasks)
    find("#tasks").append(make("button", { type: "button", title: task.identifier, on: { click: () => chat.startTask(task) } }, task.label));
  for (const example of chat.settings.examples) {
    const image = example.image ? [make("img", { src: example.image, alt: "", loading: "lazy" })] : [];
    const words = make("span", { dir: "auto" }, example.question);
    find("#examples").append(make("button", { type: "button", class: "example", on: { click: () => chat.startExample(example) } }, ...image, words));
  }
}

function listenToFiles(chat) {
  const take = (files) => { if (files?.length) chat.choose(files[0]); };
  find("#file").addEventListener("change", (event) => { take([...event.target.files]); event.target.value = ""; });
  find("#other").addEventListener("click", () => find("#file").click());
  find("#remove").addEventListener("click", () => chat.begin(null));
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files;
    if (files?.length) { event.preventDefault(); take(files); }
  });
  document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    take(event.dataTransfer.files);
  });
}

function listenToButtons(chat) {
  question.addEventListener("input", () => { resize(); chat.show(); });
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    chat.ask();
  });
  find("#ask").addEventListener("submit", (event) => { event.preventDefault(); chat.ask(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") chat.stop(); });
  find("#stop").addEventListener("click", () => chat.stop());
  find("#again").addEventListener("click", () => chat.again());
  find("#new").addEventListener("click", () => { chat.begin(chat.image); question.focus(); });
  find("#save-text").addEventListener("click", () =>
    save(new Blob([conversationJson(chat.settings.name, chat.image, chat.turns)], { type: "application/json" }), "json"));
  find("#save-image").addEventListener("click", async () => save(await drawnImage(chat.stage.picture, chat.stage.marks), "png"));
}

async function start() {
  try {
    const settings = await loadSettings();
    const chat = new Chat(settings);
    listFields(settings);
    listButtons(chat);
    listenToFiles(chat);
    listenToButtons(chat);
    document.body.dataset.ready = "";
  } catch (error) {
    notice(`${error.message} Reload the page to try again.`);
  }
}

start();
