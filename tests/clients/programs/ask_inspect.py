"""Evaluates questions by inspect-ai with its defaults. Prints its accuracy and the answers as JSON."""

import base64
import json
import os
import sys
from pathlib import Path

address, model, file = sys.argv[1:]
os.environ.update({"OPENAI_BASE_URL": f"{address}/v1", "OPENAI_API_KEY": "x", "INSPECT_DISPLAY": "none"})

from inspect_ai import Task, eval  # noqa: E402
from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, get_model  # noqa: E402
from inspect_ai.scorer import exact  # noqa: E402
from inspect_ai.solver import generate  # noqa: E402


def sample(row: dict[str, str]) -> Sample:
    image = base64.b64encode(Path(row["image"]).read_bytes()).decode()
    parts = [ContentImage(image=f"data:image/png;base64,{image}"), ContentText(text=row["question"])]
    return Sample(input=[ChatMessageUser(content=parts)], target=row["answer"])


rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
task = Task(dataset=[sample(row) for row in rows], solver=[generate()], scorer=exact())
chat = get_model(f"openai/{model}", responses_api=False)
log = eval(task, model=chat, log_dir=str(Path(file).parent / "inspect"))[0]
assert log.status == "success", log.error
scores = {metric: value.value for metric, value in log.results.scores[0].metrics.items()}
print(json.dumps({"accuracy": scores["mean"], "texts": [each.output.completion for each in log.samples]}))
