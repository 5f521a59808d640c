"""`gruard backtest` and `gruard tune`: the detector on recordings, with reports."""
