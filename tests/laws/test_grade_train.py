"""train.py, its picture, utils.py and first weights: what is wrong, what has been changed, what is right."""

# ruff: noqa: E501  # sources of others
from __future__ import annotations

from pathlib import Path

import pytest
from grade_solutions import BASE, TRAIN, edited, judged

HERE = TRAIN.replace("from datasets import load_dataset\n", "").replace("from transformers import AutoTokenizer\n", "")
DATA = 'return torch.load(f"./datasets/tinystories_10pct_chunk_size_{chunk_size}.pt")'
CLIP = "norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)"
STEP = "        optimizer.step()\n"
SAVE = "fig.savefig(save_path)\n"
UTILS = (Path(__file__).parents[2] / "reference" / "utils.py").read_text(encoding="utf-8")

WRONG = {
    "no zero_grad": edited(HERE, ("        optimizer.zero_grad()\n", "")),
    "no clipping": edited(HERE, (CLIP, 'norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))')),
    "clipping after the step": edited(HERE, (STEP, ""), (CLIP, f"optimizer.step()\n        {CLIP}")),
    "norm after clipping": edited(
        HERE, (CLIP, f"{CLIP}\n        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()")
    ),
    "no optimizer step": edited(HERE, (STEP, "")),
    "norms summed": edited(
        HERE, (CLIP, f"norm = sum(p.grad.norm() for p in model.parameters())\n        {CLIP.replace('norm = ', '')}")
    ),
    "clipping by value": edited(
        HERE,
        (
            CLIP,
            "norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()\n        torch.nn.utils.clip_grad_value_(model.parameters(), limit)",
        ),
    ),
}
LOADER = "loader = torch.utils.data.DataLoader(data, batch_size=batch_size)"
SAME = "        batch = batch.to(device)\n"
WRONG |= {
    "one batch for ever": edited(HERE, (SAME, "        batch = data[:batch_size].to(device)\n")),
    "batches overlap": edited(HERE, (SAME, "        batch = data[step:step + batch_size].to(device)\n")),
    "batches of another size": edited(HERE, (SAME, "        batch = batch[:1].to(device)\n")),
    "no gradient at the step": edited(
        HERE, (STEP, "        optimizer.zero_grad()\n" + STEP), (CLIP, "norm = torch.zeros(())")
    ),
}
CHANGED = {
    "NAdam": edited(HERE, ("torch.optim.AdamW", "torch.optim.NAdam")),
    "SGD": edited(HERE, ("torch.optim.AdamW", "torch.optim.SGD")),
    "not comparable": edited(HERE, (STEP, "        for group in optimizer.param_groups:\n            group['lr'] = learning_rate * (1 - 0.1 * step)\n" + STEP)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are written into the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_in_the_loop_is_named(name: str) -> None:
    result = judged(BASE, "train", train=WRONG[name])["train"]
    assert result.outcome == "failed"
    assert result.diagnosis is not None
    assert name in (result.diagnosis.id, *result.diagnosis.equivalent)
    assert "step" in result.broken[0].symptom


@pytest.mark.parametrize("name", CHANGED)
def test_another_optimizer_is_changed_not_wrong(name: str) -> None:
    result = judged(BASE, "train", train=CHANGED[name])["train"]
    assert result.outcome == "passed"
    assert name in result.notes[0].symptom


def test_right_ones() -> None:
    for source in (
        HERE,
        edited(HERE, (LOADER, LOADER.replace(")", ", shuffle=True)"))),
        edited(
            HERE, ("    plot_results(losses, grad_norms,", "    return losses, grad_norms\n    (losses, grad_norms,")
        ),
    ):
        results = judged(BASE, "train", "plot", train=source)
        assert [result.outcome for result in results.values()] == ["passed", "passed"]
        assert not results["train"].notes


def test_a_graph_that_is_kept_is_a_note() -> None:
    result = judged(BASE, "train", train=edited(HERE, ("losses.append(loss.item())", "losses.append(loss)")))["train"]
    assert result.outcome == "passed"
    assert "memory" in result.notes[0].symptom


def test_an_error_after_what_counts_is_a_note() -> None:
    """train.py is judged by what it recorded, the picture by the file that was written."""
    source = edited(HERE, ('    plot_results(losses, grad_norms, "losses_and_grad_norms.png")\n',
                           '    plot_results(losses, grad_norms, "losses_and_grad_norms.png")\n    torch.save({}, "nowhere/model.pt")\n'),
                    ("    plt.close(fig)\n", "    plt.close(figure)\n"))  # fmt: skip
    results = judged(BASE, "train", "plot", train=source)
    assert [result.outcome for result in results.values()] == ["passed", "passed"]
    assert all("after the" in result.notes[0].symptom for result in results.values())


def test_pictures(tmp_path: Path) -> None:
    early = (
        "fig, (a, b) = plt.subplots(1, 2)",
        "fig = plt.figure()\n    fig.savefig(save_path)\n    a, b = fig.subplots(1, 2)",
    )
    blank = edited(HERE, ("    " + SAVE, ""), early)
    for source, outcome in ((HERE, "passed"), (blank, "failed"), (edited(HERE, (SAVE, "pass\n")), "failed"),
        (edited(HERE, ("    b.plot(grad_norms)\n", "")), "failed"), (edited(HERE, ("b.plot(grad_norms)", "b.plot(losses)")), "failed"),
    ):  # fmt: skip
        for path in tmp_path.glob("*.png"):
            path.unlink()
        assert judged(BASE, "plot", train=source)["plot"].outcome == outcome


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('("W_q", "W_k", "W_v")', '("W_k", "W_q", "W_v")', "order of q, k, v"),
        ('part in ("attn.c_attn", "attn.c_proj", ', 'part in ("attn.c_attn", ', "not transposed"),
        ('"ln_1": "pre_layer_norm"', '"ln_1": "post_layer_norm"', "norms swapped"),
    ],
)
def test_wrong_converters(old: str, new: str, word: str) -> None:
    source = edited(UTILS, (old, new))
    if "ln_1" in old:
        source = edited(source, ('"ln_2": "post_layer_norm"', '"ln_2": "pre_layer_norm"'))
    result = judged(BASE, "converter", utils=source)["converter"]
    assert result.outcome == "failed"
    assert result.diagnosis is not None
    assert word in " ".join(result.diagnosis.names)


def test_a_right_converter_and_masks_as_a_note() -> None:
    assert judged(BASE, "converter", utils=UTILS)["converter"].outcome == "passed"
    more = edited(
        UTILS, ("    return converted\n", "    converted['mask'] = converted['lm_head.weight']\n    return converted\n")
    )
    result = judged(BASE, "converter", utils=more)["converter"]
    assert result.outcome == "passed"
    assert "mask" in result.notes[0].symptom
