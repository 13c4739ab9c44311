"""What is parsed from the messages of `srun` and the output of `scontrol`."""

from __future__ import annotations

from datetime import datetime

import pytest

from minigptv2.cluster.slurm import nodes_blamed_by_srun, nodes_that_failed


@pytest.mark.parametrize(
    ("messages", "nodes"),
    [
        ("", []),
        ("srun: error: node2: task 1: Exited with exit code 1\nsrun: error: node1: task 0: Terminated\n", []),
        ("srun: error: node2: task 1: Killed\nsrun: error: node1: task 0: Killed\n", ["node2"]),
        ("srun: error: gpu[07-08]: tasks 8-15: Bus error\n", ["gpu07", "gpu08"]),
        ("srun: error: node1: task 0: Killed\nsrun: error: Node failure on node2\n", ["node2"]),
    ],
)
def test_messages_of_srun_name_the_node_at_fault(messages: str, nodes: list[str]) -> None:
    assert nodes_blamed_by_srun(messages) == nodes


def test_nodes_that_are_down_or_have_restarted_have_failed() -> None:
    template = "NodeName={} State={} BootTime=2026-11-25T02:00:00 SlurmdStartTime={} LastBusyTime=2026-11-25T02:33:08"
    text = "\n".join(
        [
            template.format("a", "IDLE", "2026-11-25T02:32:48"),
            template.format("b", "DOWN*+CLOUD", "2026-11-25T02:32:48"),
            template.format("c", "ALLOCATED", "2026-11-25T04:00:00"),
            template.format("d", "IDLE*", "None"),
        ]
    )
    assert nodes_that_failed(text, datetime(2026, 11, 25, 3).timestamp()) == ["b", "c", "d"]
