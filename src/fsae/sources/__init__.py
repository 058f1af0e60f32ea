"""Where training vectors come from: text to tokens to activations to a shuffled, scaled, resumable stream."""
