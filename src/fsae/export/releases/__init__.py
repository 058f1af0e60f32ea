"""The layouts in which other projects release dictionaries, one module each; every one is read, and none is written."""
