"""Make `texts.json`, `heldout.jsonl.gz`, `judge.json` and `judge.safetensors` from the public IMDB reviews.

    python scripts/make_texts.py --reviews FOLDER --out FOLDER [--seed 0]

FOLDER holds `train_pos.jsonl.gz` and `train_neg.jsonl.gz`, a review per line: {"id", "rating", "label", "text"}.
Reviews of a film have neighbouring ids, so roles are dealt to blocks of neighbours: what the judge learns from shares
neither a review nor, but for a block's edges, a film with what is fitted, validated or held out.
"""

import argparse
import codecs
import gzip
import json
import random
import re
from pathlib import Path

WORDS = 60
"""Length of an excerpt: the end of a review, where the verdict is."""
SIZES = {"fit": 300, "validation": 100, "heldout": 250}
"""Texts a side."""
BLOCKS = {"fit": 60, "validation": 20, "heldout": 20}
"""Blocks of 50 neighbouring reviews a role may draw from; the judge learns from the others."""

FILM = re.compile(
    r"\b(film|movie|actor|actress|acting|cast|scene|plot|story|director|directed|episode|series|show|watch|character|"
    r"cinema|documentary|cartoon|comedy|drama|dvd|video|tv)",
    re.I,
)
APP = re.compile(
    r"\b(this app|apps?|application|play ?store|app ?store|whats ?app|(un|re)install\w*|statuses|my phone|smartphones?|"
    r"(latest|last|recent|new) update)\b",
    re.I,
)
# Slurs are dropped from what is shown to people. Rot13, so that the file itself can be read in company.
SLURS = re.compile(
    codecs.decode(
        "avttre|avttn|snttbg|snt|snttl|ergneq|ergneqrq|puvax|xvxr|fcvp|genaal|"
        "qlxr|cnxv|jrgonpx|tbbx|juber|fyhg|phag|ovgpu|ubzb|wnc|arteb",
        "rot13",
    ).join((r"\b(", r")s?\b")),
    re.I,
)


def is_film_review(text: str) -> bool:
    """False for the reviews of phone apps that have slipped into copies of the set: app words, or no film word."""
    return bool(FILM.search(text)) and not APP.search(text)


def clean(text: str) -> str:
    """One line of text: tags out, Windows-1252 dashes and quotes (C1 controls in the set) made real, spaces single."""
    text = re.sub(r"</?[a-zA-Z][^<>]{0,20}>", " ", text)
    text = re.sub("[\x80-\x9f]", lambda c: c[0].encode("latin-1").decode("cp1252", "replace"), text)
    return " ".join(text.split())


def is_fit_to_show(text: str) -> bool:
    """Whether a text holds no slur, markup, address or broken character."""
    return text.isprintable() and not SLURS.search(text) and not re.search(r"[<>\ufffd]|https?:|www\.", text)


def read_reviews(folder: Path) -> dict[str, list[dict]]:
    """Film reviews by label ("pos", "neg"), ordered by id; of several with the same words only the first is kept."""
    seen: set[str] = set()
    reviews: dict[str, list[dict]] = {}
    for label in ("pos", "neg"):
        with gzip.open(folder / f"train_{label}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = sorted((json.loads(line) for line in lines), key=lambda row: row["id"])
        reviews[label] = []
        for row in rows:
            text = clean(row["text"])
            words = " ".join(re.findall(r"\w+", text.lower()))
            if words not in seen and is_film_review(text):
                seen.add(words)
                reviews[label].append({**row, "text": text})
    return reviews


def deal(reviews: dict[str, list[dict]], rng: random.Random) -> dict[str, dict[str, list[dict]]]:
    """Give each block of neighbouring ids one role, the same for both labels."""
    blocks = list(range(1 + max(row["id"] for rows in reviews.values() for row in rows) // 50))
    rng.shuffle(blocks)
    role_of = dict.fromkeys(blocks, "judge")
    for role, count in BLOCKS.items():
        role_of.update((blocks.pop(), role) for _ in range(count))
    dealt: dict[str, dict[str, list[dict]]] = {role: {"pos": [], "neg": []} for role in (*BLOCKS, "judge")}
    for label, rows in reviews.items():
        for row in rows:
            dealt[role_of[row["id"] // 50]][label].append(row)
    return dealt


def excerpts(rows: list[dict], count: int, rng: random.Random) -> list[str]:
    """The last words of `count` reviews of 100 to 250 words with a decided rating (1, 2, 9 or 10 of 10).

    Chosen by length and by the author's own rating alone: no classifier has a say in it.
    """
    ends = []
    for row in rows:
        words = row["text"].split(" ")
        if row["rating"] in (1, 2, 9, 10) and 100 <= len(words) <= 250:
            end = " ".join(words[-WORDS:])
            if is_fit_to_show(end) and is_film_review(row["text"]):
                ends.append(end)
    return rng.sample(sorted(set(ends)), count)


def window(text: str, rng: random.Random) -> str:
    """30 to 60 neighbouring words of a review, since the judge is to judge continuations of about that length."""
    words, length = text.split(" "), rng.randint(30, 60)
    start = rng.randrange(max(1, len(words) - length + 1))
    return " ".join(words[start : start + length])


def make_judge(rows: dict[str, list[dict]], out: Path, rng: random.Random, terms: int) -> None:
    """Fit TF-IDF and logistic regression on each review and a window of it; write vocabulary and numbers."""
    import numpy as np
    from safetensors.numpy import save
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    labelled = [(row["text"], int(label == "pos")) for label in ("pos", "neg") for row in rows[label]]
    samples = [*labelled, *((window(text, rng), label) for text, label in labelled)]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=terms)
    features = vectorizer.fit_transform([text for text, _ in samples])
    model = LogisticRegression(C=1.0, max_iter=300).fit(features, [label for _, label in samples])
    record = {
        "ngram_range": [1, 2],
        "sublinear_tf": True,
        "bias": round(float(model.intercept_[0]), 6),
        "trained_on": f"{len(rows['pos']):,} positive and {len(rows['neg']):,} negative IMDB training reviews (Maas et "
        "al. 2011), each whole and as one random window of 30 to 60 words; none of them is the source of an excerpt in "
        "texts.json or a review in heldout.jsonl.gz, nor in the same block of 50 neighbouring reviews",
        "vocabulary": vectorizer.get_feature_names_out().tolist(),
    }
    (out / "judge.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    numbers = {"idf": vectorizer.idf_.astype(np.float32), "weight": model.coef_[0].astype(np.float16)}
    (out / "judge.safetensors").write_bytes(save(numbers))


def main(reviews: Path, out: Path, seed: int = 0, terms: int = 25_000) -> None:
    """Write texts.json, heldout.jsonl.gz and the judge to `out`."""
    rng = random.Random(seed)
    dealt = deal(read_reviews(reviews), rng)
    sides = {"desired": "pos", "undesired": "neg"}
    texts = {
        role: {side: excerpts(dealt[role][label], SIZES[role], rng) for side, label in sides.items()}
        for role in ("fit", "validation")
    }
    (out / "texts.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    heldout = [
        {"text": row["text"], "label": int(label == "pos")}
        for label in ("pos", "neg")
        for row in rng.sample([row for row in dealt["heldout"][label] if is_fit_to_show(row["text"])], SIZES["heldout"])
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in heldout)
    # No time stamp in the archive: the same seed gives the same bytes.
    (out / "heldout.jsonl.gz").write_bytes(gzip.compress(lines.encode("utf-8"), mtime=0))
    make_judge(dealt["judge"], out, rng, terms)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the texts and the judge of the embedded default.")
    parser.add_argument("--reviews", type=Path, required=True, help="folder of train_{pos,neg}.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--terms", type=int, default=25_000, help="size of the judge's vocabulary")
    main(**vars(parser.parse_args()))
