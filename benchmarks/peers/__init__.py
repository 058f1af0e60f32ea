"""Training steps of fsae and of other libraries (peers): `python -m benchmarks.peers`."""
