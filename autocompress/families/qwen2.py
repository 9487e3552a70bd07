"""Qwen2: Llama's layers, with biases on query, key and value."""

from dataclasses import replace

from autocompress.families import llama

FAMILY = replace(llama.FAMILY, name="qwen2")
