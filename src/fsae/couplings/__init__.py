"""Terms between members of a population, or between their records."""
