"""Layouts of other projects, and the Hugging Face hub: what a finished run is published as."""
