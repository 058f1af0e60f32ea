"""Vectors made of known features: x = sum_i c_i f_i; an autoencoder sees x only.

Nothing is stored. Each batch is drawn from (seed, part, number of the batch): a position is one counter, and a resumed
run sees the same batches as an uninterrupted one.
"""
