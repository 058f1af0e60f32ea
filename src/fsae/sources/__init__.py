"""Sources of training vectors: documents, tokens, shards of activations and a resumable stream; and other data."""
