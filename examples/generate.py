"""Text from an exported language model, without autocompress, torch or transformers.

python examples/generate.py FOLDER "some text" TOKENS
"""

import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else onnxruntime reports its use to Microsoft

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder, text, count = sys.argv[1:]
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.no_padding()
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
past = [item for item in session.get_inputs() if item.name.startswith("past_key_values")]
cache = [np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32) for item in past]
ids = read = tokenizer.encode(text).ids
for _ in range(int(count)):
    feed = {"input_ids": [read], "attention_mask": [[1] * len(ids)]}
    feed |= {item.name: value for item, value in zip(past, cache, strict=True)}
    logits, *cache = session.run(None, feed)
    read = [int(logits[0, -1].argmax())]
    ids = ids + read
print(tokenizer.decode(ids))
