"""Make small adapters with PEFT on a small Llama and mT5; record the logits and rewards that they give.

    python tests/checkpoints/make_adapter_goldens.py

Needs torch, transformers and peft; the tests need only what it writes to `adapters/`: the base model,
a folder an adapter, and `recorded.npz` (tokens, and what each adapter gives for them). The mT5 is that of
`tests/models/goldens`.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

HERE = Path(__file__).parent / "adapters"
MT5 = Path(__file__).parents[1] / "models" / "goldens" / "mt5"
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "every": LoraConfig(r=3, lora_alpha=5, target_modules=EVERY, task_type="CAUSAL_LM"),
    "some": LoraConfig(
        r=4,
        lora_alpha=3,
        target_modules=["q_proj", "o_proj", "down_proj"],
        use_rslora=True,
        lora_dropout=0.1,
        task_type="CAUSAL_LM",
    ),
    "reward": LoraConfig(
        r=2, lora_alpha=4, target_modules=["v_proj", "up_proj"], task_type="SEQ_CLS"
    ),
    "mt5": LoraConfig(
        r=2, lora_alpha=3, target_modules=["q", "v", "o", "wi_1"], task_type="SEQ_2_SEQ_LM"
    ),
}
KINDS = {"reward": LlamaForSequenceClassification, "mt5": AutoModelForSeq2SeqLM}


def tokens():
    return np.random.default_rng(0).integers(3, 40, (3, 7))


def perturb(model, seed):
    """Give every weight of an adapter, and a head, a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert "lora_" in name or "score" in name
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


def start(name):
    place = MT5 if name == "mt5" else HERE / "base"
    return KINDS.get(name, LlamaForCausalLM).from_pretrained(place, dtype=torch.float32)


def outputs(model):
    """Logits; an encoder-decoder reads the tokens on both sides."""
    model.eval()
    given = {"input_ids": torch.tensor(tokens())}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = given["input_ids"]
    with torch.no_grad():
        return model(**given).logits.numpy()


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        tie_word_embeddings=False,
        pad_token_id=0,
        num_labels=1,
    )
    LlamaForCausalLM(config).save_pretrained(HERE / "base")
    (HERE / "base" / "generation_config.json").unlink()
    recorded = {"tokens": tokens()}
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        model = get_peft_model(start(name), settings)
        perturb(model, seed)
        model.peft_config["default"].base_model_name_or_path = "base"
        model.save_pretrained(HERE / name)
        again = PeftModel.from_pretrained(start(name), HERE / name)
        recorded[name] = outputs(model)
        assert np.array_equal(outputs(again), recorded[name])
        (HERE / name / "README.md").unlink()
    np.savez_compressed(HERE / "recorded.npz", **recorded)


if __name__ == "__main__":
    main()
