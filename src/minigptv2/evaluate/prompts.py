"""Owns the questions of the benchmarks whose wording is not the first one of their task.

`{query}` is the slot of the question, statement or text. All other benchmarks ask the first wording in `tasks`, which
is also the published one for visual questions (`[vqa] Based on the image, respond to ...`) and for referring
expressions (`[refer] give me the location of ...`). Published wordings are those of Vision-CAIR/MiniGPT-4 at d94738a,
with their spelling.
"""

from __future__ import annotations

from minigptv2.tasks import TASKS
from minigptv2.tasks.base import QUERY_SLOT

VSR = "[vqa] Based on the image, is this statement true or false? {query}"
VIZWIZ = (
    "[vqa] The question is '{query}' Based on the image, answer the question with a single word or phrase. and reply "
    "'unanswerable' when the provided information is insufficient"
)
HATEFUL_MEMES = "This is an image writting '{query}'. Is this image hateful? Answer yes or no. Answer:"
"""Has no task identifier. The slot takes the text of the meme."""
CAPTION = "[caption] please describe this image?"


def wording(task: str, prompt: str | None) -> str:
    """The question's text with its slot: `prompt`, or the first wording of the task if it is None."""
    return TASKS[task].ask(QUERY_SLOT) if prompt is None else prompt
