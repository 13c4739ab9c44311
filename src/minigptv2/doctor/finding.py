"""Defines a finding of the doctor: severity, what was found, what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from minigptv2.redacted_files import json_text

GOOD, WARNING, BAD = "ok", "warning", "BAD"
LEVELS = (GOOD, WARNING, BAD)


@dataclass(frozen=True)
class Finding:
    """The result of one check. `level` is one of LEVELS. `do` says how to fix it and is empty only for `ok`."""

    level: str
    about: str
    found: str
    do: str = ""

    def __post_init__(self) -> None:
        assert self.level in LEVELS and (self.do or self.level == GOOD), self


def render_findings(findings: list[Finding]) -> str:
    """A line per finding, followed by what to do, and the counts of each level at the end."""
    width = max((len(one.about) for one in findings), default=0)
    lines = []
    for one in findings:
        lines.append(f"{one.level:<8} {one.about:<{width}}  {one.found}")
        if one.do:
            lines.append(f"{'':8} {'':{width}}  -> {one.do}")
    counts = {level: sum(one.level == level for one in findings) for level in LEVELS}
    lines.append(f"{counts[GOOD]} ok, {counts[WARNING]} warning(s), {counts[BAD]} bad")
    return "\n".join(lines)


def findings_as_json(findings: list[Finding]) -> str:
    """The findings as a JSON list, for scripts and for comparing nodes."""
    return json_text([asdict(one) for one in findings])
