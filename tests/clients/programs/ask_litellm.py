"""Asks by litellm: whole, and streamed. Prints the texts as JSON."""

import json
import sys

import litellm

address, model, messages = sys.argv[1:]
request = {
    "model": f"openai/{model}",
    "api_base": f"{address}/v1",
    "api_key": "x",
    "messages": json.loads(messages),
    "max_tokens": 4096,
    "temperature": 0.0,
}
text = litellm.completion(**request).choices[0].message.content
streamed = "".join(part.choices[0].delta.content or "" for part in litellm.completion(**request, stream=True))
print(json.dumps({"text": text, "streamed": streamed}))
