"""On a GPU: the same numbers as on a CPU, in half precision, in as little memory as there is."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from quire import config, device, encoder, next_token, packing, schema
from quire.errors import UserError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here"),
]
VOCABULARY, LENGTH = 256, 32


def language_model() -> GPTNeoXForCausalLM:
    """The shape that `trainers.lm` trains, and its float32 weights."""
    shape = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=LENGTH,
        use_parallel_residual=True,
    )
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(shape).float()
    model.config.use_cache = False
    return model


def windows() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, VOCABULARY, (16, LENGTH)))


def losses_of_steps(place: str, count: int) -> tuple[list[float], GPTNeoXForCausalLM]:
    """The loss at every step, as the loop takes one: autocast in the device's precision, AdamW on float32."""
    model, batch = language_model().to(place).train(), windows().to(place)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    found = []
    for _ in range(count):
        with torch.autocast(place, torch.bfloat16, enabled=place == "cuda"):
            loss = next_token.mean_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append(loss.item())
    return found, model


needs_chunked_loss = pytest.mark.skipif(
    not hasattr(torch.nn.functional, "linear_cross_entropy"), reason=f"torch {torch.__version__} has no chunked loss"
)


@needs_chunked_loss
def test_training_in_bfloat16_learns_as_float32_on_a_cpu_and_keeps_float32_weights() -> None:
    if device.precision() != torch.bfloat16:
        pytest.skip("this GPU does not multiply bfloat16")
    (half, model), (whole, _) = losses_of_steps("cuda", 12), losses_of_steps("cpu", 12)
    assert whole[-1] < whole[0] - 0.2
    assert half == pytest.approx(whole, abs=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_losses_by_position_are_those_of_a_cpu() -> None:
    found = next_token.position_losses(language_model().cuda(), windows().numpy())  # in the GPU's own precision
    with torch.inference_mode():
        expected = next_token.token_losses(language_model().eval(), windows()).numpy()
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert found.mean() == pytest.approx(expected.mean(), abs=0.005)


def test_the_loop_refuses_weights_that_are_not_float32_and_trains_on_the_gpu() -> None:
    pytest.importorskip("pydantic")
    from quire import lm, loop
    from quire.loop_config import LoopConfig

    settings = LoopConfig(max_steps=1, learning_rate=0.1)
    model = lm.build_lm(lm.LmModel(layers=1, width=32, heads=2, mlp_width=64, max_positions=LENGTH), 64, 0).cuda()
    assert {p.dtype for group in loop.optimizer_for(model, settings).param_groups for p in group["params"]} == {
        torch.float32
    }
    with pytest.raises(UserError, match="is not float32: master weights must be"):
        loop.optimizer_for(model.bfloat16(), settings)


def texts() -> list[str]:
    draw = np.random.default_rng(1)
    words = sorted({word for topic in tiny.TOPICS.values() for word in topic})
    return [" ".join(draw.choice(words, draw.integers(1, 90))) for _ in range(300)]


@pytest.fixture(scope="module")
def on_cpu(encoder_folder: str) -> np.ndarray:
    """Embeddings of the texts by the same model in float32."""
    model = encoder.load_encoder(encoder_folder).cpu()
    tokens = encoder.tokenize(model, texts())
    with torch.inference_mode():
        made = [model(_features(ids, model))["sentence_embedding"][0].numpy() for ids in tokens]
    return np.stack(made)


def _features(ids: np.ndarray, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    padded, mask = packing.pad([ids], model.tokenizer.pad_token_id or 0)
    return {"input_ids": padded, "attention_mask": mask}


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_packed_embeddings_are_those_of_a_cpu(encoder_folder: str, on_cpu: np.ndarray, dtype: torch.dtype) -> None:
    model = encoder.load_encoder(encoder_folder, dtype=dtype)
    assert model.device.type == "cuda"
    autocast = None if dtype == torch.float32 else torch.float32  # weights in half precision need none
    made = encoder.encode_tokens(model, encoder.tokenize(model, texts()), packing.Budget(2_000), autocast=autocast)
    assert least_cosine(made, on_cpu) >= 0.995


@pytest.fixture
def little_memory() -> Iterator[None]:
    """This process may have 512 MiB of the GPU's memory, and no more."""
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 512 * 2**20) / whole)
    yield
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_that_the_memory_does_not_hold_is_split(
    encoder_folder: str, on_cpu: np.ndarray, little_memory: None
) -> None:
    model = encoder.load_encoder(encoder_folder)
    many = encoder.tokenize(model, texts()) * 100
    budget = packing.Budget(10**9)  # all in one batch: 30,000 texts of 92 tokens
    made = encoder.encode_tokens(model, many, budget)
    assert budget.lowered >= 1
    assert least_cosine(made, np.tile(on_cpu, (100, 1))) >= 0.995


def test_faiss_finds_the_same_neighbours_on_the_gpu() -> None:
    faiss = pytest.importorskip("faiss")
    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        pytest.skip("this FAISS has no GPU")
    from quire.neighbors import search

    draw = np.random.default_rng(0)
    rows = draw.normal(size=(5_000, 64)).astype(np.float32)
    groups = draw.integers(0, 500, 5_000)
    found, expected = (
        search(rows[:200], rows, k=10, query_groups=groups[:200], corpus_groups=groups, gpu=gpu)
        for gpu in (True, False)
    )
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@pytest.fixture
def ray_with_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A private Ray that finds this machine's GPUs by itself."""
    import ray

    root = str(Path(__file__).parents[1])
    environment = {"env_vars": {"PYTHONPATH": f"{root}:{root}/tests"}}
    folder = str(tmp_path_factory.mktemp("r", numbered=True))
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=folder, runtime_env=environment)
    yield
    ray.shutdown()


@pytest.fixture
def made_chunks(tmp_path: Path, encoder_folder: str, ray_with_gpus: None) -> Path:
    """A root with the chunks `c` of a small corpus."""
    from pipelines import token_chunks

    (tmp_path / "source").mkdir()
    lines = [json.dumps({"text": tiny.book("sea", f"{i}", 20)}) for i in range(20)]
    (tmp_path / "source" / "a.jsonl").write_text("\n".join(lines))
    given = ["name=c", f"source.folder={tmp_path / 'source'}", f"model={encoder_folder}", "max_tokens=60", "overlap=10"]
    token_chunks.run(config.load(token_chunks.CONFIG, None, [*given, f"runtime.root={tmp_path}"]))
    return tmp_path


def test_steps_use_the_gpu_unless_they_are_told_not_to_and_the_ledger_knows(
    made_chunks: Path, encoder_folder: str
) -> None:
    from pipelines import embed, index
    from quire.neighbors import built_for_gpus

    shared = [f"runtime.root={made_chunks}"]
    made, seconds = {}, {}
    for name, words in {"whole": (), "half": ("runtime.num_gpus=0.5",), "none": ("runtime.num_gpus=0",)}.items():
        given = [f"name={name}", "chunks=c", f"model={encoder_folder}", "precision=float32", *words, *shared]
        made[name] = embed.run(config.load(embed.CONFIG, None, given))
        given = [f"name={name}", f"embeddings={name}", *words, *shared]
        indexed = index.run(config.load(index.CONFIG, None, given))
        seconds[name] = [artifact.manifest["cost"]["gpu"] for artifact in (made[name], indexed)]
        assert indexed.manifest["facts"]["recall"]["by_num_probes"] == [[0, 1.0]]
    assert seconds["whole"][0] > 0 and seconds["half"][0] > 0 and seconds["none"] == [0, 0]
    assert (seconds["whole"][1] > 0) == built_for_gpus()
    matrices = [schema.matrix(artifact.read()["embedding"]) for artifact in made.values()]
    assert min(least_cosine(matrices[0], other) for other in matrices[1:]) > 0.9999
    told = [
        embed.estimate(config.load(embed.CONFIG, None, ["name=e", "chunks=c", f"model={encoder_folder}", *words]))
        for words in (shared, [*shared, "runtime.num_gpus=0"])
    ]
    assert ", 0 GPU hours" not in told[0] and ", 0 GPU hours" in told[1]
