"""What repeats: chunks that occur in many works, and documents that are editions or copies of one work.

Both kinds compare words only (lower-case runs of letters and digits of any script), so that line breaks,
quotation marks, dashes and case make no difference.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import xxhash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from quire.errors import UserError

# Measured on 65 novels by 31 authors (2,080 pairs of works): exact Jaccard similarity of the sets of word
# shingles.
#
#   words in a shingle                        1     2     3     4     5     6     8
#   two different works, highest            .471  .182  .063  .017  .004  .001  .000
#   10 % of the words wrong, lowest         .266  .570  .559  .480  .408  .354  .266
#   last 20 % cut off, lowest               .848  .822  .805  .799  .797  .798  .798
#   both, lowest                            .288  .519  .466  .406  .348  .299  .231
#
# Four words are the most that leave all copies above .4: the threshold of .2 is half of what a bad, cut scan
# keeps, and 12 times what two works of one author reach. An estimate from 128 hashes has a standard error of
# .035 at .2: estimated, the 2,080 pairs reach .047 at most, the bad copies .33 at least.
SHINGLE_SIZE = 4
NUM_HASHES = 128
THRESHOLD = 0.2

# Two hashes a band: a pair at similarity s becomes a candidate with probability 1 - (1 - s^2)^64, that is .93
# at the threshold, .99999 at .4 and .02 at the .017 of unrelated novels.
BAND_SIZE = 2

_NO_SHINGLE = np.uint32(0xFFFFFFFF)
_ASCII_WORDS = bytes(c if c >= 128 or chr(c).isalnum() else ord(" ") for c in range(256))


def chunk_fingerprints(texts: Sequence[str]) -> np.ndarray:
    """XXH3-64 of each text's words joined by one blank: (n,) uint64.

    A text without a single word (only signs) is hashed as it stands, so that such texts do not look alike.
    """
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(b" ".join(_words(t)) or t.encode()) for t in texts), np.uint64, len(texts))


def repeated(fingerprints: np.ndarray, works: Sequence[str], threshold: int) -> np.ndarray:
    """Chunks whose fingerprint occurs in MORE than `threshold` distinct works: (n,) bool.

    Repeats within one work never count. `fingerprints` (n,) uint64, `works` n work ids.
    """
    if len(fingerprints) != len(works):
        raise UserError(f"{len(fingerprints)} fingerprints but {len(works)} works: give one work for each chunk")
    if not len(works):
        return np.zeros(0, bool)
    work = pa.array(works).dictionary_encode().indices.to_numpy().astype(np.int64)
    distinct, index = np.unique(fingerprints, return_inverse=True)
    num_works = int(work.max()) + 1
    seen = np.unique(index * num_works + work)
    return np.bincount(seen // num_works, minlength=len(distinct))[index] > threshold


def minhash(text: str, *, num_hashes: int = NUM_HASHES, shingle_size: int = SHINGLE_SIZE) -> np.ndarray:
    """MinHash signature of the text's word shingles: (num_hashes,) uint32 (Broder 1997).

    The share of equal places of two signatures estimates the Jaccard similarity of the two shingle sets. A
    text shorter than one shingle is one shingle; a text without words gives a signature that resembles
    nothing.
    """
    hashes = shingles(text, shingle_size)
    if not len(hashes):
        return np.full(num_hashes, _NO_SHINGLE)
    # Multiply and add modulo 2^64, the high half kept: pairwise independent, and no division (Dietzfelbinger
    # 1996). The parameters are hashes of 1, 2, 3 ... and so the same in every version of every library.
    parameters = mixed(np.arange(1, 2 * num_hashes + 1, dtype=np.uint64))
    signature = np.empty(num_hashes, np.uint64)
    permuted = np.empty_like(hashes)
    for i in range(num_hashes):
        np.multiply(hashes, parameters[2 * i] | np.uint64(1), out=permuted)
        permuted += parameters[2 * i + 1]
        signature[i] = permuted.min()
    return (signature >> np.uint64(32)).astype(np.uint32)


def shingles(text: str, size: int) -> np.ndarray:
    """Hashes of the text's distinct runs of `size` words, ascending: (m,) uint64; (0,) for a text without words.

    A text shorter than one run is one run.
    """
    words = _words(text)
    if not words:
        return np.zeros(0, np.uint64)
    hash_of = {word: xxhash.xxh3_64_intdigest(word) for word in set(words)}
    hashes = np.fromiter(map(hash_of.__getitem__, words), np.uint64, len(words))
    size = min(size, len(words))
    found = np.zeros(len(words) - size + 1, np.uint64)
    for i in range(size):
        found *= np.uint64(0x9E3779B97F4A7C15)  # any odd number: order matters, "a b" is not "b a"
        found += hashes[i : len(hashes) - size + 1 + i]
    return np.unique(mixed(found))


def shared(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the smaller of two sets of `shingles` that the other holds, too; 0 when one is empty."""
    small, large = (a, b) if len(a) <= len(b) else (b, a)
    if not len(small):
        return 0.0
    place = np.minimum(np.searchsorted(large, small), len(large) - 1)
    return float((large[place] == small).mean())


def similar_documents(ids: Sequence[str], signatures: np.ndarray, threshold: float = THRESHOLD) -> list[list[str]]:
    """Groups of two or more documents that are one work, sorted: editions, repeated downloads, poor scans.

    Candidates share a band of their signatures; a candidate pair joins when at least `threshold` of all
    places agree; groups are what is connected. `signatures` (n, num_hashes) uint32. A short piece inside a
    large collection has a small Jaccard similarity and is not found.
    """
    if len(set(ids)) != len(ids):
        raise UserError(f"{len(ids) - len(set(ids))} of {len(ids)} document ids repeat: give each document once")
    if not 0 < threshold <= 1:
        raise UserError(f"threshold = {threshold}: give a similarity above 0 and up to 1 (default {THRESHOLD})")
    if not len(ids):
        return []
    # Exact copies share one row, or a file downloaded a thousand times would make half a million pairs.
    distinct, row = np.unique(signatures, axis=0, return_inverse=True)
    left, right = _similar_rows(distinct, threshold)
    links = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(distinct), len(distinct)))
    cluster = connected_components(links, directed=False)[1][row.reshape(-1)]
    groups: dict[int, list[str]] = {}
    for document_id, key, signature in zip(ids, cluster.tolist(), signatures, strict=True):
        if (signature != _NO_SHINGLE).any():
            groups.setdefault(key, []).append(document_id)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def work_ids(ids: Sequence[str], signatures: np.ndarray, threshold: float = THRESHOLD) -> dict[str, str]:
    """document_id -> work_id, the smallest document_id among the documents that are the same work."""
    works = {document_id: document_id for document_id in ids}
    for group in similar_documents(ids, signatures, threshold):
        works.update(dict.fromkeys(group, group[0]))
    return works


def _words(text: str) -> list[bytes]:
    text = text.lower()
    if not text.isascii():
        # A novel has a few kinds of foreign signs: blanking each is twice as fast as one regular expression.
        for sign in sorted(set(text)):
            if not (sign.isascii() or sign.isalnum()):
                text = text.replace(sign, " ")
    return text.encode().translate(_ASCII_WORDS).split()


def mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _similar_rows(signatures: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows that share a band and agree in at least `threshold` of all places.

    Rows sorted by band stand next to the rows they share it with, so comparing each with its 1st, 2nd ...
    follower needs memory for one row each, however many candidates there are.
    """
    edges = [(np.zeros(0, np.intp), np.zeros(0, np.intp))]
    num_equal = int(np.ceil(threshold * signatures.shape[1] - 1e-9))
    for first in range(0, signatures.shape[1] - BAND_SIZE + 1, BAND_SIZE):
        band = np.zeros(len(signatures), np.uint64)
        for column in range(first, first + BAND_SIZE):
            band = (band << np.uint64(32)) | signatures[:, column]
        order = np.argsort(band, kind="stable")
        band = band[order]
        left = np.arange(len(band) - 1)
        for step in range(1, len(band)):
            left = left[left + step < len(band)]
            left = left[band[left] == band[left + step]]
            if not len(left):
                break
            a, b = order[left], order[left + step]
            alike = (signatures[a] == signatures[b]).sum(axis=1) >= num_equal
            edges.append((a[alike], b[alike]))
    return np.concatenate([a for a, _ in edges]), np.concatenate([b for _, b in edges])
