"""DistilBERT."""

from autocompress.families.encoder import EncoderFamily

FAMILY = EncoderFamily(
    name="distilbert",
    layers="distilbert.transformer.layer",
    depth_key="n_layers",
    parts={
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "attention_output": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "ffn_input": "ffn.lin1",
        "ffn_output": "ffn.lin2",
        "ffn_norm": "output_layer_norm",
        "block": "",
        "last": "",
    },
    embeddings="distilbert.embeddings",
    pooler="pre_classifier",
    classifier="classifier",
)
