"""Asks by the Python package openai: whole, and streamed. Prints the texts and the boxes as JSON."""

import json
import sys

from openai import OpenAI

address, model, messages = sys.argv[1:]
client = OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0)
request = {"model": model, "messages": json.loads(messages)}
message = client.chat.completions.create(**request).choices[0].message
streamed, boxes = "", None
for chunk in client.chat.completions.create(**request, stream=True):
    delta = chunk.choices[0].delta
    streamed += delta.content or ""
    boxes = getattr(delta, "boxes", boxes)
print(json.dumps({"text": message.content, "streamed": streamed, "boxes": message.boxes, "streamed_boxes": boxes}))
