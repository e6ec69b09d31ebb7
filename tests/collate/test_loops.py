"""Real loops with tiny models: losses are those of the model's own positions."""

from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.collate.test_training import losses, training_samples
from vecrope import collate


class Samples(Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def test_a_data_loader_with_persistent_workers(tiny_model):
    samples, spec = training_samples(tiny_model().config, 8)
    collate_fn = partial(collate, spec=spec, pad_token_id=0, packed=True)
    loader = DataLoader(
        Samples(samples), batch_size=4, num_workers=2, persistent_workers=True,
        collate_fn=collate_fn,
    )  # fmt: skip
    epochs = [list(loader) for _ in range(2)]
    here = [collate_fn(samples[:4]), collate_fn(samples[4:])]
    for batches in epochs:
        for got, want in zip(batches, here, strict=True):
            assert got.keys() == want.keys()
            assert torch.equal(got["position_ids"], want["position_ids"])
    assert losses(tiny_model(), epochs[0] + epochs[1]) == losses(tiny_model(), here * 2)


def trained(model, samples, collator, folder):
    """Return the losses that transformers' Trainer logs for a few steps."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=3, logging_steps=1,
        learning_rate=1e-2, report_to="none", use_cpu=True, remove_unused_columns=False,
        save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
        include_num_input_tokens_seen="all",
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Samples(samples), data_collator=collator
    )
    trainer.train()
    log = trainer.state.log_history
    return [entry["loss"] for entry in log if "loss" in entry], log


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_the_trainer_of_transformers(packed, tiny_model, tmp_path):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    samples, spec = training_samples(tiny_model().config, 4)

    def own_positions(samples):
        batch = collate(samples, spec, pad_token_id=0)
        return {
            name: value
            for name, value in batch.items()
            if name not in ("position_ids", "rope_deltas")
        }

    collator = partial(collate, spec=spec, pad_token_id=0, packed=packed)
    ours, _ = trained(tiny_model(), samples, collator, tmp_path)
    theirs, _ = trained(tiny_model(), samples, own_positions, tmp_path)
    assert len(ours) == 3
    if packed:
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-4)
    else:
        assert ours == theirs
    assert ours[-1] < ours[0]
