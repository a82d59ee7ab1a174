"""TRL's side of the comparison: its own trainers on the same model and tokens, driven step by step.

python their_side.py TASK FOLDER, where TASK is sft or dpo, and `model` makes the model; see `compare.py`.
Needs the packages of requirements.txt, and nothing of ours.
"""

import sys
import time
from importlib.metadata import version
from pathlib import Path

import case
import torch
from commands import peak_bytes, say, steps_to_do
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer


def make_model(folder):
    """Write a Hugging Face directory with random parameters, norms too."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**case.MODEL), dtype=torch.float32
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "model")


def word_tokenizer():
    """Return a tokenizer of which the trainers only read the special tokens: the documents are ids."""
    words = {f"<{i}>": i for i in range(case.MODEL["vocab_size"])}
    engine = Tokenizer(models.WordLevel(words, unk_token="<1>"))
    special = {"pad_token": "<0>", "bos_token": "<5>", "eos_token": "<7>"}
    return PreTrainedTokenizerFast(tokenizer_object=engine, **special)


class Driver(TrainerCallback):
    """Waits for the driver where a step begins, and answers where the next one begins."""

    def __init__(self, ready):
        self.ready = ready
        self.left = 0
        self.losses = []

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.left:
            if state.global_step:
                say(
                    seconds=time.perf_counter() - self.start,
                    cpu_seconds=time.process_time() - self.work,
                    losses=[float(loss) for loss in self.losses],
                    peak_bytes=peak_bytes(),
                )
            else:
                say(**self.ready())
            self.left = steps_to_do()
            if not self.left:
                sys.exit()
            self.losses.clear()
            self.start, self.work = time.perf_counter(), time.process_time()
        self.left -= 1


class Observed:
    """A trainer that keeps the losses that it computes."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.driver.losses.append(loss.detach())
        return loss


class Sft(Observed, SFTTrainer):
    pass


class Dpo(Observed, DPOTrainer):
    def _prepare_dataset(self, dataset, *args, **kwargs):
        # The documents are ids already; what comes here is what TRL itself makes of texts.
        return dataset


def seen(batch):
    """Return the real tokens of each row of a batch, and which of them are learnt."""
    learnt = batch["completion_mask"] if "completion_mask" in batch else batch["labels"] != -100
    return [
        (tokens[real].tolist(), mask[real].int().tolist())
        for tokens, real, mask in zip(
            batch["input_ids"], batch["attention_mask"].bool(), learnt, strict=True
        )
    ]


def main(task, folder):
    """Train as many steps as the driver says, again and again."""
    pairs = case.pairs_of(folder, task)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    settings = {
        "output_dir": str(folder / f"trl_{task}"),
        "learning_rate": case.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "adam_beta1": case.B1,
        "adam_beta2": case.B2,
        "max_grad_norm": case.CLIP_NORM,
        "weight_decay": 0.0,
        "max_steps": 1_000_000,
        "max_length": case.LENGTH,
        "pad_to_multiple_of": case.LENGTH,
        "train_sampling_strategy": "sequential",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if task == "sft":
        documents = [
            {
                "input_ids": pair["prompt"] + pair["chosen"],
                "completion_mask": [0] * len(pair["prompt"]) + [1] * len(pair["chosen"]),
            }
            for pair in pairs
        ]
        trainer, take = Sft, case.SEQUENCES
        args = SFTConfig(per_device_train_batch_size=take, completion_only_loss=True, **settings)
    else:
        documents = [{f"{name}_ids": ids for name, ids in pair.items()} for pair in pairs]
        trainer, take = Dpo, case.SEQUENCES // 2
        args = DPOConfig(
            per_device_train_batch_size=take,
            beta=case.BETA,
            precompute_ref_log_probs=True,
            **settings,
        )
    trainer = trainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(documents),
        processing_class=word_tokenizer(),
    )

    def ready():
        found = [seen(batch) for batch in trainer.get_train_dataloader()]
        names = [f"ref_{side}_logps" for side in ("chosen", "rejected")] if task == "dpo" else []
        return {
            "releases": {name: version(name) for name in ("trl", "transformers", "torch")},
            "batches": [case.fingerprint(rows) for rows in found],
            "tokens": sum(len(row[0]) for rows in found for row in rows) / len(found),
            "reference": [value for name in names for value in trainer.train_dataset[:take][name]],
        }

    trainer.driver = Driver(ready)
    trainer.add_callback(trainer.driver)
    trainer.train()


if __name__ == "__main__":
    if sys.argv[1] == "model":
        make_model(Path(sys.argv[2]))
    else:
        main(sys.argv[1], Path(sys.argv[2]))
