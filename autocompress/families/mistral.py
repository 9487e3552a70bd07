"""Mistral: Llama's layers, with a sliding window."""

from dataclasses import replace

from autocompress.families import llama

FAMILY = replace(llama.FAMILY, name="mistral")
