"""What every artefact below a root cost: processors, bytes, tokens and money, as a table and as a page.

    python -m pipelines.ledger root=artifacts [prices.cpu_hour=0.05] [prices.gpu_hour=2.5] [prices.currency=EUR]

Prices given here count for every stage, whatever its run was told; without them each keeps its own. The page is
`ledger.html` in the root. It is made from the manifests alone, as often as one likes, and is no artefact: seconds stand
on it, and an artefact's files are the same bytes whenever they are made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from quire import config, ledger
from quire.artifact import DRAFT, KINDS, MANIFEST
from quire.config import Prices
from quire.errors import UserError
from quire.storage import Storage

PAGE = "ledger.html"


class LedgerConfig(config.Config):
    """What `pipelines.ledger` counts."""

    root: str
    kinds: tuple[str, ...] = Field(default=KINDS, min_length=1)
    prices: Prices | None = Field(default=None, description="for all stages; default: what each was run with")


CONFIG = LedgerConfig


@dataclass(frozen=True)
class Ledger:
    """Costs by artefact in the order in which they were made, and what is not done yet."""

    storage: Storage
    costs: Mapping[str, Mapping[str, Any]]
    unfinished: list[str]

    def told(self, started: float) -> str:
        """For the terminal."""
        lines = [ledger.table({stage: {"cost": cost} for stage, cost in self.costs.items()})]
        lines += [f"unfinished and not counted: {', '.join(self.unfinished)}"] if self.unfinished else []
        return "\n".join([*lines, self.storage.uri(PAGE)])


def run(settings: LedgerConfig) -> Ledger:
    """Read the manifests and write the page. Raises UserError for an unknown kind, and where nothing is published."""
    unknown = sorted(set(settings.kinds) - set(KINDS))
    if unknown:
        raise UserError(f"kinds: {unknown[0]!r} is none of {', '.join(KINDS)}")
    storage = Storage(settings.root)
    found = [f"{kind}/{name}" for kind in settings.kinds for name in storage.files(kind) if name.count("/") == 1]
    manifests = [storage.read_json(name) for name in found if name.endswith(f"/{MANIFEST}")]
    done = {f"{manifest['kind']}/{manifest['name']}" for manifest in manifests}
    begun = {name.removesuffix(f"/{DRAFT}") for name in found if name.endswith(f"/{DRAFT}")}
    if not manifests:
        raise UserError(f"root = {settings.root!r}: nothing is published there; give the root of a flow or a step")
    prices = settings.prices and settings.prices.model_dump()
    costs = {
        f"{manifest['kind']}/{manifest['name']}": ledger.priced(manifest["cost"], prices)
        for manifest in sorted(manifests, key=lambda manifest: manifest["ended"])
    }
    made = Ledger(storage, costs, sorted(begun - done))
    storage.write_bytes(PAGE, ledger.page(storage.uri(), costs, made.unfinished).encode())
    return made


if __name__ == "__main__":
    config.main(CONFIG, run)
