"""TRL's `SFTTrainer` on collated batches of a vision-language model; where TRL is installed."""

import pytest
import torch

from tests.collate.test_training import training_samples
from vecrope import collate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def trained(model, samples, collator, folder):
    """Return the losses, the gradients' norms and the numbers of tokens that are logged."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    from datasets import Dataset
    from real_support import make_tokenizer

    rows = [
        {name: torch.as_tensor(value).tolist() for name, value in sample.items()}
        for sample in samples
    ]
    names = sorted({name for row in rows for name in row})
    data = Dataset.from_list([{name: row.get(name) for name in names} for row in rows])
    arguments = trl.SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=3, logging_steps=1,
        learning_rate=1e-2, report_to="none", use_cpu=True, remove_unused_columns=False,
        save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant", bf16=False,
        padding_free=False, packing=False, dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False, max_length=None,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=data, data_collator=collator,
        processing_class=make_tokenizer([]),
    )  # fmt: skip
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [[entry[name] for entry in log] for name in ("loss", "grad_norm", "num_tokens")]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_losses_are_those_of_the_models_own_positions(packed, tiny_model, tmp_path):
    samples, spec = training_samples(tiny_model().config, 4)

    def floating(sample):
        return {
            name: torch.tensor(value) if value and name.startswith("pixel") else value
            for name, value in sample.items()
        }

    def ours(samples):
        return collate([floating(s) for s in samples], spec, pad_token_id=0, packed=packed)

    def theirs(samples):
        batch = collate([floating(s) for s in samples], spec, pad_token_id=0)
        own = ("position_ids", "rope_deltas")
        return {name: value for name, value in batch.items() if name not in own}

    got = trained(tiny_model(), samples, ours, tmp_path)
    want = trained(tiny_model(), samples, theirs, tmp_path)
    for ours_logged, theirs_logged in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(ours_logged, theirs_logged, rtol=1e-3, atol=1e-3)
    lengths = sum(len(sample["input_ids"]) for sample in samples)
    assert want[2] == pytest.approx([lengths, 2 * lengths, 3 * lengths])
    # TRL takes the second dimension of (4, 1, N) positions, the rows, for the number of tokens.
    assert got[2] == ([1, 2, 3] if packed else pytest.approx(want[2]))
