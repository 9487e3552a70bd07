"""RoBERTa: BERT's layers under another name."""

from dataclasses import replace

from autocompress.families import bert

FAMILY = replace(
    bert.FAMILY,
    name="roberta",
    layers="roberta.encoder.layer",
    embeddings="roberta.embeddings",
    pooler="classifier.dense",
    classifier="classifier.out_proj",
)
