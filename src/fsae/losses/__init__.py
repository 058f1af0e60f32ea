"""An objective as a sum of named terms over a forward record."""
