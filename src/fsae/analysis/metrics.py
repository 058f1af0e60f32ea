"""The held-out numbers that a report shows: in which order, and of which more or less is better."""

# What a reader looks at first; the table at a sweep's end has these.
MAIN = ("eval/fvu", "eval/l0", "eval/ce_recovered_zero", "eval/fisher_ratio", "eval/dead_share")

# The numbers in the table of jobs, in this order; the parquet table has all.
NUMBERS = (
    *MAIN,
    "eval/description_length",
    "eval/dense_share",
    "eval/code_correlation_excess",
    "eval/decoder_max_cosine",
    "eval/cosine",
    "eval/l2_ratio",
    "eval/best_fvu",
    "eval/pw_mcc",
    "eval/shared_share",
    "eval/mcc",
    "eval/f1",
    "eval/fvu_of_inputs",
)

# Whether more is better; None where that is not settled. Fewer latents or bits are better only at the same error, and
# whether codes should be less correlated or decoder rows less alike, which the penalty asks for, is what is studied.
MORE_IS_BETTER: dict[str, bool | None] = {
    "eval/fvu": False,
    "eval/l0": None,
    "eval/ce_recovered_zero": True,
    "eval/fisher_ratio": None,
    "eval/dead_share": False,
    "eval/description_length": None,
    "eval/dense_share": False,
    "eval/code_correlation_excess": None,
    "eval/decoder_max_cosine": None,
    "eval/cosine": True,
    # Best at 1.
    "eval/l2_ratio": None,
    "eval/best_fvu": False,
    "eval/pw_mcc": True,
    "eval/shared_share": True,
    "eval/mcc": True,
    "eval/f1": True,
    "eval/fvu_of_inputs": False,
}
