"""BERT."""

from autocompress.families.encoder import EncoderFamily

FAMILY = EncoderFamily(
    name="bert",
    layers="bert.encoder.layer",
    depth_key="num_hidden_layers",
    parts={
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "ffn_input": "intermediate.dense",
        "ffn_output": "output.dense",
        "ffn_norm": "output.LayerNorm",
        "block": "",
        "last": "",
    },
    embeddings="bert.embeddings",
    pooler="bert.pooler.dense",
    classifier="classifier",
)
