"""Vectors made of known features: x = sum_i c_i f_i, of which an autoencoder sees x alone.

Nothing is stored. Each batch is drawn from (seed, part, number of the batch), so that a position is one counter and a
run that is resumed sees the batches that it would have seen.
"""
