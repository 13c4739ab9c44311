// Builds the elements of the page: the image with its boxes and the region, the conversation, the examples and the
// download. The data comes from `session.py`. Elements are built with textContent, so text is never markup.
(() => {
  "use strict";
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") node.className = value;
      else if (name === "on") for (const [event, f] of Object.entries(value)) node.addEventListener(event, f);
      else if (value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  };
  const clamp = (x) => Math.min(1, Math.max(0, x));
  const dark = (color) => {
    const [r, g, b] = color.match(/\d+/g).map(Number);
    return 0.299 * r + 0.587 * g + 0.114 * b < 140;
  };
  const shared = { boxes: [], alone: null, paint: () => {}, open: () => {} };

  // ---- The image --------------------------------------------------------------------------------------------------
  function stage(element, props, trigger, watch) {
    const limits = { bytes: props.max_bytes };
    const file = make("input", { type: "file", accept: "image/png,image/jpeg,image/webp", id: "picture-file",
      "aria-label": "Choose an image", on: { change: () => { read(file.files[0]); file.value = ""; } } });
    const pick = make("label", { class: "pick", for: "picture-file" },
      make("b", {}, "Choose an image"), make("span", {}, "or drop or paste one here (JPEG, PNG, WebP)"));
    const image = make("img", { alt: "The image of this conversation", draggable: "false" });
    const layer = make("div", { class: "layer", "aria-hidden": "true" });
    const frame = make("div", { class: "frame", tabindex: "0", role: "application",
      "aria-label": "Image. Press Enter to mark a region. Arrows move it, Shift with arrows resizes it, Enter confirms it, Escape removes it." }, image, layer);
    const draw = make("button", { type: "button", class: "tool", "aria-pressed": "false",
      on: { click: () => setDrawing(!drawing) } }, "Draw a region");
    const clear = make("button", { type: "button", class: "tool", on: { click: () => take(null) } }, "Remove region");
    const other = make("label", { class: "tool", for: "picture-file" }, "Other image");
    const tools = make("div", { class: "tools" }, draw, clear, other);
    const message = make("div", { class: "message", role: "status" });
    element.querySelector(".stage").append(file, pick, frame, tools, message);
    let region = null, drawing = false, start = null;

    const read = (blob) => {
      if (!blob) return;
      if (!/^image\/(png|jpeg|webp)$/.test(blob.type)) return say("The file is not a JPEG, PNG or WebP image.");
      if (blob.size > limits.bytes) return say(`The file has ${(blob.size / 2 ** 20).toFixed(1)} MiB. The limit is ${(limits.bytes / 2 ** 20).toFixed(0)} MiB.`);
      say("Reading the image ...");
      const reader = new FileReader();
      reader.onload = () => trigger("upload", { picture: reader.result });
      reader.readAsDataURL(blob);
    };
    const say = (text) => { message.textContent = text; };
    const setDrawing = (on) => {
      drawing = on;
      draw.setAttribute("aria-pressed", String(on));
      frame.classList.toggle("drawing", on);
    };
    const take = (box) => {
      region = box;
      paint();
      setDrawing(false);
      trigger("select", { region: box });
    };
    const put = (box, attributes, label) => {
      const node = make("div", attributes);
      const [x1, y1, x2, y2] = box.map((x) => 100 * clamp(x));
      Object.assign(node.style, { left: `${x1}%`, top: `${y1}%`, width: `${x2 - x1}%`, height: `${y2 - y1}%` });
      if (label) node.append(label);
      layer.append(node);
      return node;
    };
    const paint = () => {
      layer.replaceChildren();
      shared.boxes.forEach((item, index) => {
        if (shared.alone !== null && shared.alone !== index) return;
        for (const box of item.boxes) {
          const label = item.phrase && make("span", { class: "name" + (box[1] < 0.08 ? " inside" : "") + (box[0] > 0.5 ? " left" : "") }, item.phrase);
          const node = put(box, { class: "box", "data-phrase": item.phrase }, label);
          node.style.borderColor = item.color;
          if (label) Object.assign(label.style, { background: item.color, color: dark(item.color) ? "#fff" : "#000" });
        }
      });
      if (region) put(region, { class: "region" });
      clear.disabled = !region;
    };
    shared.paint = paint;
    const at = (event) => {
      const r = frame.getBoundingClientRect();
      return [clamp((event.clientX - r.left) / r.width), clamp((event.clientY - r.top) / r.height)];
    };
    const span = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
    frame.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || (event.pointerType !== "mouse" && !drawing)) return;
      start = at(event);
      frame.setPointerCapture(event.pointerId);
      frame.focus({ preventScroll: true });
      event.preventDefault();
    });
    frame.addEventListener("pointermove", (event) => {
      if (!start) return;
      region = span(start, at(event));
      paint();
    });
    const release = (event) => {
      if (!start) return;
      const box = span(start, at(event));
      start = null;
      take(box[2] - box[0] > 0.01 && box[3] - box[1] > 0.01 ? box : null);
    };
    frame.addEventListener("pointerup", release);
    frame.addEventListener("pointercancel", () => { start = null; take(null); });
    frame.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-0.02, 0], ArrowRight: [0.02, 0], ArrowUp: [0, -0.02], ArrowDown: [0, 0.02] }[event.key];
      if (event.key === "Enter" || event.key === " ") {
        if (region) take(region); else { region = [0.3, 0.3, 0.7, 0.7]; paint(); }
      } else if (region && step) {
        const [dx, dy] = step, [x1, y1, x2, y2] = region;
        if (event.shiftKey) region = [x1, y1, Math.max(x1 + 0.02, clamp(x2 + dx)), Math.max(y1 + 0.02, clamp(y2 + dy))];
        else {
          const mx = Math.max(-x1, Math.min(1 - x2, dx)), my = Math.max(-y1, Math.min(1 - y2, dy));
          region = [x1 + mx, y1 + my, x2 + mx, y2 + my];
        }
        paint();
      } else if (region && (event.key === "Escape" || event.key === "Delete")) take(null);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    document.addEventListener("paste", (event) => {
      const item = [...(event.clipboardData?.items || [])].find((each) => each.kind === "file");
      if (item) { event.preventDefault(); read(item.getAsFile()); }
    });
    for (const target of [pick, frame]) {
      target.addEventListener("dragover", (event) => { event.preventDefault(); target.classList.add("over"); });
      target.addEventListener("dragleave", () => target.classList.remove("over"));
      target.addEventListener("drop", (event) => {
        event.preventDefault();
        target.classList.remove("over");
        read(event.dataTransfer.files[0]);
      });
    }
    const show = () => {
      const { src = "", error = "" } = props.value || {};
      const filled = Boolean(src);
      element.querySelector(".stage").classList.toggle("filled", filled);
      if (image.getAttribute("src") !== src) {
        if (filled) image.setAttribute("src", src); else image.removeAttribute("src");
        shared.boxes = []; shared.alone = null;
        region = null;
      }
      say(error);
      paint();
    };
    watch("value", show);
    show();
  }

  // ---- The conversation -------------------------------------------------------------------------------------------
  function talk(element, props, trigger, watch) {
    const log = element.querySelector(".log");
    const announcement = element.querySelector(".said");
    let chosen = null;
    const build = (piece, turn, index, answer) => {
      if (piece.text !== undefined) return document.createTextNode(piece.text);
      const name = piece.phrase || (answer ? "here" : "this region");
      if (!answer) return make("span", { class: "chip" }, name);
      const button = make("button", { type: "button", class: "phrase",
        "aria-label": `${name}: show only its box`, "aria-pressed": String(chosen === turn && shared.alone === index),
        on: { click: () => choose(turn, chosen === turn && shared.alone === index ? null : index) } }, name);
      button.style.setProperty("--ink", piece.color);
      return button;
    };
    const marks = (turn) => (turn ? turn.answer.filter((piece) => piece.boxes) : []);
    const choose = (turn, alone) => {
      chosen = turn;
      shared.boxes = marks((props.value || [])[turn]);
      shared.alone = alone;
      shared.paint();
      render();
    };
    const copy = async (text, button) => {
      try { await navigator.clipboard.writeText(text); } catch {
        const area = make("textarea", {});
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    };
    const render = () => {
      const turns = props.value || [];
      const focused = log.contains(document.activeElement) ? [...log.querySelectorAll("button")].indexOf(document.activeElement) : -1;
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
      log.replaceChildren(...turns.map((turn, number) => {
        let index = 0;
        const words = turn.answer.map((piece) => build(piece, number, piece.boxes ? index++ : 0, true));
        const running = turn.state === "running";
        const answer = make("div", { class: "answer" + (running ? " running" : ""), "data-state": turn.state }, ...words);
        if (turn.note) answer.append(make("span", { class: "note" }, turn.note));
        const tools = make("div", { class: "tools" });
        if (!running && turn.plain) {
          tools.append(make("button", { type: "button", class: "tool", on: { click: (e) => copy(turn.plain, e.target) } }, "Copy"));
          if (index) tools.append(make("button", { type: "button", class: "tool", on: { click: () => choose(number, null) } }, index > 1 ? "Show all boxes" : "Show box"));
        }
        return make("div", { class: "turn" },
          make("div", { class: "question" }, ...turn.question.map((piece) => build(piece, number, 0, false))), answer, tools);
      }));
      if (!turns.length) log.append(make("p", { class: "empty" }, props.hint));
      if (focused >= 0) [...log.querySelectorAll("button")][focused]?.focus({ preventScroll: true });
      if (atEnd) log.scrollTop = log.scrollHeight;
    };
    let announced = "";
    const show = () => {
      const turns = props.value || [], last = turns.length - 1;
      chosen = last;
      shared.boxes = marks(turns[last]);
      shared.alone = null;
      shared.paint();
      render();
      const now = last >= 0 && turns[last].state !== "running" ? `${last} ${turns[last].plain} ${turns[last].note}` : "";
      if (now && now !== announced) announcement.textContent = turns[last].answer.map((p) => p.text ?? (p.phrase || "a box")).join("") + turns[last].note;
      announced = now;
    };
    watch("value", show);
    show();
  }

  // ---- Examples, download, keys -----------------------------------------------------------------------------------
  function examples(element, props, trigger) {
    const list = element.querySelector(".examples");
    (props.value || []).forEach((each, index) => {
      const image = each.src ? [make("img", { src: each.src, alt: "" })] : [];
      list.append(make("button", { type: "button", class: "example", on: { click: () => trigger("select", { index }) } },
        ...image, make("span", {}, each.question)));
    });
  }
  function courier(element, props, trigger, watch) {
    watch("value", () => {
      const { name, data } = props.value || {};
      if (!data) return;
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      const link = make("a", { href: URL.createObjectURL(new Blob([bytes], { type: "application/zip" })), download: name });
      document.body.append(link);
      link.click();
      setTimeout(() => { URL.revokeObjectURL(link.href); link.remove(); }, 1000);
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.querySelector("button#stop, #stop button")?.click();
  });
  window.minigptv2 = { stage, talk, examples, courier,
    focusQuestion: () => {
      const area = document.querySelector("#question textarea");
      if (area) { area.focus(); area.setSelectionRange(area.value.length, area.value.length); }
    } };
})();
