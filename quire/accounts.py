"""What every artefact below a root cost, from the manifests alone: a table, and the page `ledger.html` in the root.

The page is no artefact: seconds stand on it, and an artefact's files are the same bytes whenever they are made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire import ledger
from quire.artifact import DRAFT, KINDS, MANIFEST
from quire.errors import UserError
from quire.storage import Storage


@dataclass(frozen=True)
class Ledger:
    """Costs by artefact in the order in which they were made, and what is not done yet."""

    storage: Storage
    costs: Mapping[str, Mapping[str, Any]]
    unfinished: list[str]

    @property
    def uri(self) -> str:
        """Where the page is."""
        return self.storage.uri(ledger.PAGE)

    def told(self, started: float) -> str:
        """For the terminal."""
        lines = [ledger.table({stage: {"cost": cost} for stage, cost in self.costs.items()})]
        lines += [f"unfinished and not counted: {', '.join(self.unfinished)}"] if self.unfinished else []
        return "\n".join([*lines, self.uri])


def write(storage: Storage, kinds: Sequence[str] = KINDS, prices: Mapping[str, Any] | None = None) -> Ledger:
    """Read the manifests below the root and write the page; with `prices` every stage counts by them.

    Raises UserError where nothing is published.
    """
    found = [f"{kind}/{name}" for kind in kinds for name in storage.files(kind) if name.count("/") == 1]
    manifests = [storage.read_json(name) for name in found if name.endswith(f"/{MANIFEST}")]
    done = {f"{manifest['kind']}/{manifest['name']}" for manifest in manifests}
    begun = {name.removesuffix(f"/{DRAFT}") for name in found if name.endswith(f"/{DRAFT}")}
    if not manifests:
        raise UserError(f"root = {storage.root!r}: nothing is published there; give the root of a flow or a step")
    costs = {
        f"{manifest['kind']}/{manifest['name']}": ledger.priced(manifest["cost"], prices)
        for manifest in sorted(manifests, key=lambda manifest: manifest["ended"])
    }
    made = Ledger(storage, costs, sorted(begun - done))
    storage.write_bytes(ledger.PAGE, ledger.page(storage.uri(), costs, made.unfinished).encode())
    return made
