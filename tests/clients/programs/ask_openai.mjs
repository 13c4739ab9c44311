// Asks by the npm package openai: whole, and streamed. Prints the texts and the boxes as JSON.
import OpenAI from "openai";

const [address, model, body] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "x", maxRetries: 0 });
const request = { model, messages: JSON.parse(body) };
const whole = await client.chat.completions.create(request);
let streamed = "";
let boxes = null;
for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  boxes = chunk.choices[0]?.delta.boxes ?? boxes;
}
const message = whole.choices[0].message;
console.log(JSON.stringify({ text: message.content, streamed, boxes: message.boxes, streamed_boxes: boxes }));
