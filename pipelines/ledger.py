"""What every artefact below a root cost: processors, bytes, tokens and money, as a table and as a page.

    python -m pipelines.ledger root=artifacts [prices.cpu_hour=0.05] [prices.gpu_hour=2.5] [prices.currency=EUR]

Prices given here count for every stage, whatever its run was told; without them each keeps its own. The page is
`ledger.html` in the root, which a flow writes at its end, too. It is made as often as one likes.
"""

from pydantic import Field

from quire import accounts, config
from quire.artifact import KINDS
from quire.config import Prices
from quire.errors import UserError
from quire.storage import Storage


class LedgerConfig(config.Config):
    """What `pipelines.ledger` counts."""

    root: str
    kinds: tuple[str, ...] = Field(default=KINDS, min_length=1)
    prices: Prices | None = Field(default=None, description="for all stages; default: what each was run with")


CONFIG = LedgerConfig


def run(settings: LedgerConfig) -> accounts.Ledger:
    """Read the manifests and write the page. Raises UserError for an unknown kind, and where nothing is published."""
    unknown = sorted(set(settings.kinds) - set(KINDS))
    if unknown:
        raise UserError(f"kinds: {unknown[0]!r} is none of {', '.join(KINDS)}")
    return accounts.write(Storage(settings.root), settings.kinds, settings.prices and settings.prices.model_dump())


if __name__ == "__main__":
    config.main(CONFIG, run)
