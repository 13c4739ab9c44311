"""Every corpus from a miniature in its own layout: what is kept, what is left out and why."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path

import pytest

from minigptv2.data.sources import CORPORA, Draft, Rejected
from minigptv2.data.sources.draft import finish
from minigptv2.data.sources.grit import Thresholds, grounded_turns
from minigptv2.data.sources.raw import read_plain_pickle, stream_json
from minigptv2.errors import DataError
from minigptv2.record import Record, from_json, to_json
from tests.data.miniatures import MINIATURES, Miniature


def read(root: Path, corpus: str, split: str) -> tuple[list[Record], Counter[str]]:
    """Records and reasons of a corpus's split."""
    records, reasons = [], Counter()
    for item in CORPORA[corpus].drafts(CORPORA[corpus].raw(root), split):
        sample, lost = finish(item) if isinstance(item, Draft) else (None, [item])
        records += [sample.record] if sample else []
        for one in lost:
            assert isinstance(one, Rejected)
            reasons[one.reason] += one.annotations
    return records, reasons


@pytest.mark.parametrize("miniature", MINIATURES, ids=lambda miniature: miniature.id)
def test_a_miniature_is_read_whole_and_what_is_left_out_is_told(tmp_path: Path, miniature: Miniature) -> None:
    miniature.make(tmp_path)
    records, reasons = read(tmp_path, miniature.corpus, miniature.split)
    assert reasons == Counter(miniature.dropped)
    assert len(records) == miniature.samples
    assert sum(len(r.turns) if r.separate else 1 for r in records) == miniature.annotations
    tasks = set(CORPORA[miniature.corpus].tasks)
    for record in records:
        assert record.source["corpus"] == miniature.corpus
        assert tasks == {"mixed"} or set(record.tasks) <= tasks
        assert from_json(to_json(record), "here") == record


def test_every_corpus_has_a_miniature() -> None:
    made_here = {name for name in CORPORA if name.startswith("toy_")} | {"photographs"}
    assert set(CORPORA) - made_here == {miniature.corpus for miniature in MINIATURES}


@pytest.mark.parametrize("corpus", sorted({miniature.corpus for miniature in MINIATURES}))
def test_missing_files_are_named_with_where_to_get_them(tmp_path: Path, corpus: str) -> None:
    row = CORPORA[corpus]
    with pytest.raises(DataError) as error:
        list(row.drafts(row.raw(tmp_path), next(iter(row.expected))))
    assert str(tmp_path) in str(error.value) and f"Get it: {row.download}" in str(error.value)


def test_a_pickle_that_would_run_something_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    for number, content in enumerate((Attack(), [{"a": Attack()}], Path("x"), {1, 2})):
        file = tmp_path / f"{number}.p"
        file.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(DataError, match=rf"{number}\.p: asks for "):
            read_plain_pickle(file)
    (tmp_path / "cut.p").write_bytes(pickle.dumps([1, "two"], protocol=2)[:-3])
    with pytest.raises(DataError, match="not a plain pickle"):
        read_plain_pickle(tmp_path / "cut.p")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_json_is_read_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("minigptv2.data.sources.raw._CHUNK", chunk)
    file = tmp_path / "a.json"
    file.write_text('{"skip": [1, {"x": "]"}], "items": [12, "ä,]", {"k": [1.5e3, null]}], "map": {"a": 1, "b": {}}} ')
    assert list(stream_json(file, "items")) == [("0", 12), ("1", "ä,]"), ("2", {"k": [1500.0, None]})]
    assert list(stream_json(file, "map")) == [("a", 1), ("b", {})]
    assert [name for name, _ in stream_json(file)] == ["skip", "items", "map"]
    with pytest.raises(DataError, match="has no 'nothing'"):
        list(stream_json(file, "nothing"))
    file.write_text('{"items": [1, 2')
    with pytest.raises(DataError, match=r"a\.json: not the JSON expected"):
        list(stream_json(file, "items"))


@pytest.mark.parametrize("corpus, split", [
    ("coco_caption", "train"), ("flickr30k_caption", "test"), ("nocaps", "val"), ("text_caps", "train"),
])  # fmt: skip
def test_a_reference_given_twice_counts_twice(corpus: str, split: str, tmp_path: Path) -> None:
    next(m for m in MINIATURES if (m.corpus, m.split) == (corpus, split)).make(tmp_path)
    answers = read(tmp_path, corpus, split)[0][0].turns[0].answers
    assert answers.count(answers[0]) == 2


def test_a_caption_that_looks_like_a_list_is_a_caption() -> None:
    caption, chunk = "[[dog] runs", [2, 5, 0.1, 0.1, 0.9, 0.9, 0.9]
    turns = grounded_turns(caption, {"caption": caption, "noun_chunks": f"[{chunk}]"}, Thresholds())
    assert turns[0].regions[0].phrases == ("dog",)
    assert grounded_turns(caption, {"noun_chunks": "[[oops"}, Thresholds()) == ()
