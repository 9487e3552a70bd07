"""Hardware profiles, and the devices behind them."""
