"""Asks by langchain-openai: whole, streamed, and in a batch. Prints the texts as JSON."""

import json
import sys

from langchain_openai import ChatOpenAI

address, model, messages = sys.argv[1:]
chat = ChatOpenAI(base_url=f"{address}/v1", api_key="x", model=model, temperature=0, max_retries=0)
conversation = json.loads(messages)
text = chat.invoke(conversation).content
streamed = "".join(part.content for part in chat.stream(conversation))
batch = [answer.content for answer in chat.batch([conversation, conversation])]
print(json.dumps({"text": text, "streamed": streamed, "batch": batch}))
