"""Encodes text to token ids and back, with a SentencePiece `tokenizer.model` or a Hugging Face `tokenizer.json`.

`tokenizer.model` is read by `sentencepiece`, because `transformers` treats repeated spaces differently and the
published prompt contains some. Text is never parsed for special tokens: `</s>` in a question does not become the end
token. `prompt` adds the sentence marks by id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.files import disguise_in
from minigptv2.foreign_files import open_regular, parse_json, read_bounded
from minigptv2.tokenizer_json import MAX_BYTES, checked_tokenizer

SENTENCE_MARKS = (("<s>", "</s>"), ("<|im_start|>", "<|im_end|>"))
"""Begin and end marks in a `tokenizer.json`, by family: LLaMA-2, SmolLM2. The first pair that exists is used."""
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
CACHED_TEXTS = 10_000
"""The number of texts whose token ids are kept."""
CACHED_LENGTH = 100
"""The longest text whose token ids are kept, in characters. A character takes up to 40 bytes (4 in the text, 36 for an
id), so the cache of `CACHED_TEXTS` takes up to 40 MB. Longer texts hardly repeat."""


class _Backend(Protocol):
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def piece(self, number: int) -> str | None: ...


class Tokenizer:
    """Encodes and decodes text. Has the ids of `<s>` and `</s>`, the vocabulary size and the SHA-256 of the file."""

    def __init__(
        self, backend: _Backend, *, bos_id: int, eos_id: int, vocab_size: int, path: Path, data: bytes
    ) -> None:
        self._backend = backend
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.vocab_size = vocab_size
        self.path = path
        self.data = data
        """The content of the file, as it was read."""
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._encode_cached = lru_cache(maxsize=CACHED_TEXTS)(self._encode)

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of `text`, with the leading space that SentencePiece adds, without `<s>` and `</s>`."""
        return self._encode_cached(text) if len(text) <= CACHED_LENGTH else self._encode(text)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the first `</s>`, without sentence marks."""
        kept = []
        for token in ids:
            if token == self.eos_id:
                break
            if token != self.bos_id:
                kept.append(int(token))
        return self._backend.decode(kept).strip()

    def piece(self, number: int) -> str | None:
        """The piece with an id, as the file spells it. None if there is none."""
        return self._backend.piece(number) if 0 <= number < self.vocab_size else None

    def differences_from(self, other: Tokenizer) -> str | None:
        """How this tokenizer differs from `other`, with both hashes. None if their files have the same content."""
        if self.sha256 == other.sha256 or self._content() == other._content():
            return None
        size = max(self.vocab_size, other.vocab_size)
        first = next((n for n in range(size) if self.piece(n) != other.piece(n)), None)
        hashes = f"sha256 {self.sha256[:16]} instead of {other.sha256[:16]}"
        if first is None:
            return f"{hashes}; the pieces are equal, but not the file's format or rules"
        return (
            f"{hashes}; the first id that differs is {first}: {self.piece(first)!r} instead of {other.piece(first)!r}"
        )

    def _content(self) -> Any:
        """What the file says: the parsed JSON, whose layout does not matter, or the bytes."""
        return parse_json(self.data) if self.path.suffix == ".json" else self.data


class CharacterTokenizer(Tokenizer):
    """Uses each character as a token, to show prompts without a tokenizer file. Lengths are in characters."""

    def __init__(self) -> None:
        self._backend = _Characters()
        self.bos_id, self.eos_id, self.vocab_size = 0, 1, 2 + 0x110000
        self.path, self.data, self.sha256 = Path(), b"", ""
        self._encode_cached = lru_cache(maxsize=CACHED_TEXTS)(self._encode)


class _Characters:
    def encode(self, text: str) -> list[int]:
        return [2 + ord(character) for character in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(token - 2) for token in ids)

    def piece(self, number: int) -> str | None:
        return chr(number - 2) if number > 1 else None


class _SentencePiece:
    def __init__(self, processor: Any, file: Path) -> None:
        self._processor = processor
        self._file = file

    def encode(self, text: str) -> list[int]:
        with _as_checkpoint_error(self._file):
            return self._processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        with _as_checkpoint_error(self._file):
            return self._processor.decode(ids)

    def piece(self, number: int) -> str | None:
        with _as_checkpoint_error(self._file):
            return self._processor.id_to_piece(number)


class _HuggingFace:
    def __init__(self, tokenizer: Any, file: Path) -> None:
        self._tokenizer = tokenizer
        self._file = file

    def encode(self, text: str) -> list[int]:
        with _as_checkpoint_error(self._file):
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        with _as_checkpoint_error(self._file):
            return self._tokenizer.decode(ids, skip_special_tokens=False)

    def piece(self, number: int) -> str | None:
        return self._tokenizer.id_to_token(number)


@contextmanager
def _as_checkpoint_error(file: Path) -> Iterator[None]:
    """Raise errors of a tokenizer library as `CheckpointError`. A panic of Rust code is no `Exception`."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(f"{file}: not a valid tokenizer: {error}") from error
        raise


def find_tokenizer_file(path: str | Path) -> Path:
    """The tokenizer file at `path`, which is the file or its folder. `tokenizer.model` is preferred.

    Raises `ConfigError` if there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    for name in TOKENIZER_FILES:
        if (path / name).is_file():
            return path / name
    raise ConfigError(f"no tokenizer at {path}: expected {' or '.join(TOKENIZER_FILES)}. Set model.tokenizer.")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer at `path`: a `tokenizer.model`, a `tokenizer.json`, or a folder with one of them.

    The file is read once, and a file of a folder has to lie in it (`foreign_files`). Raises `CheckpointError` for a
    damaged file and `ConfigError` for one without known sentence marks.
    """
    file = find_tokenizer_file(path)
    folder = None if file == Path(path) else Path(path)
    with open_regular(file, CheckpointError, folder=folder) as stream:
        if disguise := disguise_in(stream, binary=file.suffix == ".model"):
            raise CheckpointError(f"{file} is {disguise}; expected a tokenizer")
        data = read_bounded(stream, file, CheckpointError, limit=MAX_BYTES)
    return _load_sentencepiece(file, data) if file.suffix == ".model" else _load_json(file, data)


def _load_sentencepiece(file: Path, data: bytes) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_proto=data)
    except (RuntimeError, OSError, ValueError) as error:  # ValueError: text in it that is not UTF-8
        raise CheckpointError(f"{file}: not a valid SentencePiece model") from error
    if processor.bos_id() < 0 or processor.eos_id() < 0:
        raise ConfigError(f"{file} has no marks for the begin and the end of a sentence")
    return Tokenizer(
        _SentencePiece(processor, file),
        bos_id=processor.bos_id(),
        eos_id=processor.eos_id(),
        vocab_size=processor.vocab_size(),
        path=file,
        data=data,
    )


def _load_json(file: Path, data: bytes) -> Tokenizer:
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    try:
        document = checked_tokenizer(data)
    except ValueError as error:
        raise CheckpointError(f"{file}: not a valid tokenizer: {error}") from error
    with _as_checkpoint_error(file):
        tokenizer = HuggingFaceTokenizer.from_str(json.dumps(document))
    marks = [(tokenizer.token_to_id(begin), tokenizer.token_to_id(end)) for begin, end in SENTENCE_MARKS]
    bos_id, eos_id = next((pair for pair in marks if None not in pair), (None, None))
    if bos_id is None or eos_id is None:
        known = " or ".join(" and ".join(pair) for pair in SENTENCE_MARKS)
        raise ConfigError(f"{file} has no known sentence marks; expected {known}")
    # Added tokens are matched in any text before tokenization, so '</s>' in a caption would become the end token.
    with _as_checkpoint_error(file):
        tokenizer = HuggingFaceTokenizer.from_str(json.dumps({**document, "added_tokens": []}))
    return Tokenizer(
        _HuggingFace(tokenizer, file),
        bos_id=bos_id,
        eos_id=eos_id,
        vocab_size=tokenizer.get_vocab_size(),
        path=file,
        data=data,
    )


def train_tokenizer(texts: Iterable[str], output: Path, vocab_size: int) -> Path:
    """Train a small LLaMA-like BPE on `texts` and write `<output>/tokenizer.json`. Returns the file.

    Digits are separate tokens and unknown characters become bytes. It is used where nothing can be downloaded.
    `vocab_size` includes `<unk>`, `<s>`, `</s>` and the 256 bytes.
    """
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = HuggingFaceTokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[chr(code) for code in range(33, 127)] + ["▁"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    output.mkdir(parents=True, exist_ok=True)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = []
    file = output / "tokenizer.json"
    file.write_text(json.dumps(document, ensure_ascii=False))
    return file
