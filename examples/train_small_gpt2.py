"""A small GPT-2 of one's own, to try the compression of decoders on: 6 layers, trained on movie
reviews.

python examples/train_small_gpt2.py MODEL DATA [STEPS]

Writes the reviews as DATA (a .jsonl file), and the model with its byte-level BPE tokenizer into the
folder MODEL. It learns from the split that autocompress itself trains on, so validation and test
are as new to it as to the models made from it. 5,000 steps, the default, take about 25 minutes on
one core.
"""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from autocompress import demo
from autocompress.tasks.data import load_documents

VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS = 4096, 128, 256, 6, 8
BATCH, LEARNING_RATE, WARM_UP = 8, 1e-3, 100
END = "<|endoftext|>"


def write_reviews(target: Path) -> None:
    """The IMDB reviews of the demo's data package, a JSON object per line."""
    with demo.reviews_file().open(encoding="utf-8", newline="") as file:
        reviews = [row["text"] for row in csv.DictReader(file) if row["source"] == "imdb"]
    target.write_text(
        "".join(json.dumps({"text": review}) + "\n" for review in reviews), encoding="utf-8"
    )


def tokenizer_for(texts: list[str]) -> PreTrainedTokenizerFast:
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(
        texts, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=learner._tokenizer, eos_token=END, model_max_length=CONTEXT
    )  # type: ignore[no-untyped-call]


def main(model_folder: str, data: str, steps: str = "5000") -> None:
    if not Path(data).exists():
        write_reviews(Path(data))
    texts = load_documents(data).train
    tokenizer = tokenizer_for(texts[:5000])
    encoded = tokenizer([text + END for text in texts], verbose=False)["input_ids"]
    stream = torch.tensor([token for ids in encoded for token in ids])
    print(f"{len(texts)} reviews, {len(stream)} tokens")

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True
    )
    total, losses, started = int(steps), [], time.monotonic()
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / total)),
    )
    starts = np.random.default_rng(0)
    for step in range(total):
        batch = torch.stack(
            [stream[i : i + CONTEXT] for i in starts.integers(0, len(stream) - CONTEXT, BATCH)]
        )
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == total:
            perplexity = math.exp(sum(losses[-100:]) / len(losses[-100:]))
            print(
                f"step {step + 1} of {total}: training perplexity {perplexity:.1f}, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
    model.save_pretrained(model_folder)
    tokenizer.save_pretrained(model_folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
