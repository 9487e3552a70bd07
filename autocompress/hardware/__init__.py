"""Hardware profiles and how latency is measured under them."""
