"""Search in Python, pick by budget, run the chosen file in plain ONNX Runtime.

python examples/quickstart.py MODEL DATA RUN
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else onnxruntime reports its use to Microsoft

import onnxruntime
from tokenizers import Tokenizer

from autocompress import Limits, RequestUnmet, search


def main(model: str, data: str, run: str) -> None:
    result = search(
        model,
        data,
        hardware="cpu-1-thread",
        space="quantization-only",
        out=run,
        budget=Limits(max_drop=5.0),
    )
    for member in result.front.members:
        print(
            f"{member.id}: {member.latency_ms.value:.2f} ms, {member.speedup:.2f}x, drop "
            f"{member.quality.drop_reported:.2f} points"
        )
    try:
        best = result.front.pick(max_latency_ms=3.0)
    except RequestUnmet as reason:
        print(reason)
        return
    folder = Path(run) / best.path
    encoded = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(
        "a gripping, beautifully acted film"
    )
    values = {
        "input_ids": encoded.ids,
        "token_type_ids": encoded.type_ids,
        "attention_mask": encoded.attention_mask,
    }
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    [logits] = session.run(None, {item.name: [values[item.name]] for item in session.get_inputs()})
    print(f"{best.id} answers {logits.argmax()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
