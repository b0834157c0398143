"""A hub on loopback: only what is needed is fetched, and what cannot be had is told."""

from pathlib import Path

from hub_server import Hub

FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights" * 9}
FIND = r"""
import os
from quire import hub
from quire.errors import UserError
for find in (hub.find_tokenizer, hub.find_model):
    for name in ("me/model", "me/other"):
        try:
            print(sorted(os.listdir(find(name))))
        except UserError as error:
            print(str(error).partition("\n")[0])
"""


def test_for_a_tokenizer_no_weights_are_fetched(tmp_path: Path) -> None:
    with Hub({"models/me/model": FILES}) as hub:
        hub.python("from quire import hub\nhub.find_tokenizer('me/model')", tmp_path)
        assert not any("safetensors" in asked for asked in hub.requests)
        offline = hub.python(FIND, tmp_path, HF_HUB_OFFLINE="1").stdout.splitlines()
        online = hub.python(FIND, tmp_path)
    # What is there without its weights is no model to somebody without a network.
    assert offline[0] == str(["config.json", "tokenizer.json"])
    assert offline[2].startswith("model 'me/model': no such folder, and the hub cannot be reached")
    _, nobody, model, _ = online.stdout.splitlines()
    assert model == str(sorted(FILES)), online.stderr
    assert nobody.startswith("model 'me/other': neither a folder nor a model on the hub"), online.stdout


def test_a_worker_that_cuts_texts_into_tokens_loads_nothing_that_learns(tmp_path: Path) -> None:
    heavy = {"torch", "transformers", "sklearn", "scipy"}
    code = f"import sys\nfrom pipelines import token_chunks\nprint({heavy} & {{*sys.modules}})"
    code += "\nfrom pipelines import tokenize\nprint({'torch', 'transformers'} & {*sys.modules})"
    with Hub() as hub:
        assert hub.python(code, tmp_path).stdout == "set()\nset()\n"
