"""How a worker comes to die: Ray runs this in each process that it starts for a job that asks for it."""

import os
import signal
from pathlib import Path
from typing import Any


def at_checkpoints() -> None:
    """From now on a run named `...-k2` ends this process, as the kernel does when memory runs out, when it would write
    its first checkpoint; a letter for each time stands in `deaths` at the root."""
    from quire import checkpoint

    save = checkpoint.save

    def die(draft: Any, *others: Any) -> None:
        if not draft.name.endswith("-k2"):
            return save(draft, *others)
        with Path(draft.storage.root, "deaths").open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save = die
