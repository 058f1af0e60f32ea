"""Training steps of ours and of the peers, side by side: `python -m benchmarks.peers`."""
