"""Byte-level BPE, trained on the captions of the run and saved with it; the `tokenizers` library does the work."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mmcl_jax import files

PAD, SOT, EOT, MASK = "<pad>", "<sot>", "<eot>", "<mask>"


class Tokenizer:
    """Text to ids: `<sot>` text `<eot>` `<pad>`...; ids 0, 1, 2 are `<pad>`, `<sot>`, `<eot>`.

    Args:
        backend: a `tokenizers.Tokenizer` whose vocabulary has the three special tokens, and may have `<mask>`.

    Attributes:
        mask: id of `<mask>`, which the op `mlm` needs; None without it.
        special: [3 or 4] int32, ids of the special tokens.
        ordinary: [V] int32, ids of all others.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend = backend
        backend.encode_special_tokens = True  # "<eot>" in a caption is text like any other
        self.pad, self.sot, self.eot = (backend.token_to_id(t) for t in (PAD, SOT, EOT))
        if None in (self.pad, self.sot, self.eot):
            raise ValueError(f"The tokenizer lacks one of the special tokens {PAD} {SOT} {EOT}; train it with `train`.")
        vocabulary = backend.get_vocab()
        self.mask = vocabulary.get(MASK)
        special = [self.pad, self.sot, self.eot] + ([] if self.mask is None else [self.mask])
        self.special = np.array(special, np.int32)
        self.ordinary = np.setdiff1d(np.array(list(vocabulary.values()), np.int32), self.special)

    def __reduce__(self):
        """Pickles (for worker processes) by way of __init__: the library's pickle forgets what was set there."""
        return Tokenizer, (self.backend,)

    def __eq__(self, other) -> bool:
        return isinstance(other, Tokenizer) and self.backend.to_str() == other.backend.to_str()

    def __len__(self) -> int:
        """Size of the vocabulary, special tokens included."""
        return self.backend.get_vocab_size()

    def encode(self, text: str, length: int, sot: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Text to a fixed number of ids.

        Long texts lose their end, but never `<eot>`: it is always the last real token.

        Args:
            text: any text; may be empty.
            length: N, number of ids.
            sot: whether `<sot>` comes first (SigLIP has none).

        Returns:
            ids [N] int32 and mask [N] bool, True for real tokens.
        """
        ids = self.backend.encode(text, add_special_tokens=False).ids
        ids = ([self.sot] * sot + ids)[: length - 1] + [self.eot]
        padded = np.full(length, self.pad, np.int32)
        padded[: len(ids)] = ids
        return padded, np.arange(length) < len(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids back to text, without special tokens."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, path: files.AnyPath) -> None:
        """Writes the tokenizer as one JSON file."""
        path.write_text(self.backend.to_str(pretty=True))


def train(texts: Iterable[str], vocab: int, lower: bool = True, mask: bool = False) -> Tokenizer:
    """Trains a byte-level BPE; any text can be encoded by it, unseen scripts as bytes.

    Args:
        texts: captions; the same captions give the same tokenizer.
        vocab: largest size of the vocabulary, special tokens and the 256 bytes included.
        lower: whether to lower-case, as CLIP and SigLIP do.
        mask: whether there is a `<mask>`, for the op `mlm`: it is the last id and counts within `vocab`.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    steps = [normalizers.NFC()] + ([normalizers.Lowercase()] if lower else [])
    backend.normalizer = normalizers.Sequence(steps + [normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - mask,
        special_tokens=[PAD, SOT, EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if mask:  # after the others, so that their ids are those that they have without it
        backend.add_special_tokens([MASK])
    return Tokenizer(backend)


def load(path: str | files.AnyPath) -> Tokenizer:
    """Reads a tokenizer that `save` wrote.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is not one.
    """
    path = files.path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no tokenizer at {path}.")
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text())
    except Exception as e:  # the library raises a bare Exception
        raise ValueError(f"{path} is not a tokenizer of the `tokenizers` library: {e}") from e
    return Tokenizer(backend)
