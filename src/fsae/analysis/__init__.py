"""Analysis of finished runs: tables, comparisons, pictures and the report. No torch."""
