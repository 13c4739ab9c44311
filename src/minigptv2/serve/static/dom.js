// Builds elements. Text becomes text nodes, so it is never markup.

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  copy: "M5 5V2h9v9h-3M2 5h9v9H2z",
  copied: "M2 8l4 4 8-9",
  boxes: "M1 1h8v8H1zM6 12v3h9V6h-3",
};

/** The element that matches `selector`. */
export const find = (selector) => document.querySelector(selector);

/** An element with attributes, event handlers (`on`) and children. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** A button that shows an icon and has `label` as its name and tooltip. */
export function iconButton(icon, label, click) {
  const button = make("button", { type: "button", class: "icon", "aria-label": label, title: label, on: { click } });
  setIcon(button, icon);
  return button;
}

/** Replace the icon of a button. */
export function setIcon(button, icon) {
  const image = document.createElementNS(SVG, "svg");
  image.setAttribute("viewBox", "0 0 16 16");
  image.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[icon]);
  image.append(path);
  button.replaceChildren(image);
}

/** A CSS color from [red, green, blue]. */
export const css = (color) => `rgb(${color.join(", ")})`;

/** Black or white, whichever has more contrast to `color` (relative luminance of WCAG 2). */
export function inkOn(color) {
  const [r, g, b] = color.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}
