"""An exported folder without autocompress, torch or transformers: onnxruntime and tokenizers are
enough.

python examples/run_exported.py FOLDER "some text"
"""

import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else onnxruntime reports its use to Microsoft

import onnxruntime
from tokenizers import Tokenizer

folder, text = sys.argv[1:]
encoded = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text)
values = {
    "input_ids": encoded.ids,
    "token_type_ids": encoded.type_ids,
    "attention_mask": encoded.attention_mask,
}
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
[logits] = session.run(None, {item.name: [values[item.name]] for item in session.get_inputs()})
print(logits.argmax(), logits.tolist())
