"""Defines a benchmark and its protocols. `benchmarks` lists all of them.

A protocol is a complete way to measure a benchmark: the split, the question, the prompt style and the scoring rule.
`published` is the one of the published evaluation (Vision-CAIR/MiniGPT-4 at d94738a), which gave the published results.
`official` is the one of the data set's own scorer. Published results are those printed in arXiv:2310.09478, in its
tables of VQA and of referring expression comprehension, for the model after stage 2 and after stage 3 ("chat").
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from minigptv2.errors import ConfigError
from minigptv2.evaluate.prompts import wording
from minigptv2.evaluate.rules import RULES, Rule
from minigptv2.prompt import PromptStyle

PAPER = "arXiv:2310.09478"
STAGE_2, CHAT_MODEL = "MiniGPT-v2", "MiniGPT-v2-chat"
PUBLISHED, OFFICIAL, REPAIRED, TURNS = "published", "official", "repaired", "turns"
"""Names of protocols. `repaired` is CHAIR with all synonyms of its list, `turns` that of held-out shards."""


@dataclass(frozen=True)
class Published:
    """A published result: the model, the value in percent, and where it was printed."""

    model: str
    value: float
    where: str


@dataclass(frozen=True)
class Protocol:
    """A way to measure a benchmark: a split of its corpus, a scoring rule, and how the questions are asked.

    `prompt` replaces the task's first wording unless it is None. `query` names the fact of a question that fills the
    slot of `prompt`. If it is empty, the question or phrase of the turn does. `leave_out` names a fact: questions where
    it is `true` are left out.
    """

    rule: str
    split: str
    prompt: str | None = None
    query: str = ""
    leave_out: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: the task whose turns of a corpus are asked, and its protocols by name, of which one is chosen.

    `protocol` is the chosen one. `heading` is the title, with a slot `{split}`. `max_new_tokens` is the longest answer.
    `scale` turns shares into printed values: percent, and CIDEr times 100. `results` are the published results, which
    only the published protocol can reach.
    """

    name: str
    heading: str
    corpus: str
    task: str
    source: str
    protocols: dict[str, Protocol] = field(hash=False)
    protocol: str
    max_new_tokens: int = 20
    results: tuple[Published, ...] = ()
    scale: float = 100.0

    def under(self, protocol: str) -> Benchmark:
        """The benchmark with another chosen protocol. Raises `ConfigError` if it does not have that one."""
        if protocol not in self.protocols:
            offered = " and ".join(self.protocols)
            raise ConfigError(f"benchmark {self.name} has no protocol '{protocol}'; it has {offered}")
        return replace(self, protocol=protocol)

    @property
    def chosen(self) -> Protocol:
        """The chosen protocol."""
        return self.protocols[self.protocol]

    @property
    def split(self) -> str:
        """The split whose questions are asked."""
        return self.chosen.split

    @property
    def prompt(self) -> str | None:
        """The question with its slot `{query}`, or None for the task's first wording."""
        return self.chosen.prompt

    @property
    def scoring(self) -> Rule:
        """The rule that scores the answers."""
        return RULES[self.chosen.rule]

    @property
    def best(self) -> float:
        """The highest value of the headline metric, as printed."""
        return self.scoring.best * self.scale

    @property
    def wording(self) -> str:
        """The question's text, with the slot `{query}`."""
        return wording(self.task, self.prompt)

    @property
    def title(self) -> str:
        """The title, with the split of the chosen protocol."""
        return self.heading.replace("{split}", self.split)

    def style(self, given: PromptStyle | None, trained: PromptStyle = PromptStyle.TRAINED) -> PromptStyle:
        """The prompt style: the given one, or the published one for the published protocol, else `trained`."""
        if given is not None:
            return given
        return PromptStyle.PUBLISHED if self.protocol == PUBLISHED else trained

    def comparable(self, style: PromptStyle) -> tuple[Published, ...]:
        """The published results that stand beside a value measured with this prompt style. None but under the
        published protocol with its prompt style."""
        return self.results if self.protocol == PUBLISHED and style is PromptStyle.PUBLISHED else ()
