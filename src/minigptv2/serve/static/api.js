// Talks to the server: settings, the check of an image, and questions by the chat-completions API.

/** A request that the server refused, or that did not reach it (`status` 0). */
export class ServerError extends Error {
  constructor(message, { status = 0, code = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const GONE = "The server does not answer.";

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(GONE);
  }
  if (response.ok) return response;
  const said = await response.json().then((body) => body.error, () => null);
  const message = said?.message ?? `The server answered with status ${response.status}.`;
  throw new ServerError(message, { status: response.status, code: said?.code });
}

const post = (path, body, signal) => request(path,
  { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });

/** What the page needs to know about the server. */
export const loadSettings = async () => (await request("page/settings.json")).json();

/** The bytes of the image of an example. */
export const loadExample = async (address) => (await request(address)).blob();

/** `file` as a data: URL. The server reads the format from the bytes and not from the type given here. */
export function asDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(`data:image/png;base64,${reader.result.slice(reader.result.indexOf(",") + 1)}`);
    reader.onerror = () => reject(new ServerError("The browser could not read the file."));
    reader.readAsDataURL(file);
  });
}

/** The image as the server sees it: `shown` (a data: URL), `width` and `height`. */
export const checkImage = async (image) => (await post("page/image", { image })).json();

/** The pieces of an answer as they arrive, each {text} or, at the end, {finish}. */
export async function* stream(body, signal) {
  const response = await post("v1/chat/completions", { ...body, stream: true }, signal);
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(event.error.message, { status: 500, code: event.error.code });
    const { delta, finish_reason: finish } = event.choices[0];
    yield { text: delta.content ?? "", finish };
  }
  throw new ServerError("The connection ended before the answer did.");
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ServerError("The connection to the server was lost.");
    });
    if (done) return;
    const parts = (buffer + value).split("\n\n");
    buffer = parts.pop();
    for (const part of parts) yield part.replace(/^data: /, "");
  }
}

/** The messages of a conversation that ends with `question`. The image is part of the first one. */
export function messages(turns, question, image) {
  const texts = [...turns.flatMap((turn) => [turn.question, turn.answer]), question];
  return texts.map((text, number) => {
    if (number % 2) return { role: "assistant", content: text };
    const picture = number === 0 && image ? [{ type: "image_url", image_url: { url: image } }] : [];
    return { role: "user", content: [...picture, { type: "text", text }] };
  });
}
