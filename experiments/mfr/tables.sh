#!/bin/sh
# Every figure of the study with its interval, of what run.sh left; the pictures go beside this file.
#
#     sh experiments/mfr/tables.sh [FOLDER] > experiments/mfr/tables.md
set -e
out=${1:-outputs/mfr}
here=$(dirname "$0")

compare() {
    printf '\n## %s\n\n' "$1"
    shift
    python -m experiments.paired "$@"
}

echo "# Mutual Feature Regularization: all figures"
none=population.mutual.weight=0
truth="fvu best_fvu mcc pw_mcc shared_share truth_of_shared truth_of_single truth_rank_correlation"
controls="--against $none population.size=5 --apart trainer.tokens population.mutual.shuffled"
compare "Synthetic, 4 of 512 features at a time, five members" "$out/synthetic_sparse" $controls --metrics $truth
python -m experiments.paired "$out/synthetic_sparse" $controls --metrics fvu mcc pw_mcc \
    --picture "$here/synthetic_sparse.png" >&2
compare "Synthetic, 32 of 512 features at a time, two members" "$out/synthetic" --against $none population.size=2 \
    --apart trainer.tokens --metrics $truth
compare "The same, as released" "$out/synthetic_released" --against $none --metrics $truth
language="fvu best_fvu ce_recovered_zero pw_mcc dead_share"
compare "SmolLM2's first MLP, five members" "$out/smollm2" $controls --metrics $language
compare "The same, as released" "$out/smollm2_released" --against $none --metrics $language
compare "SmolLM2 with random weights" "$out/smollm2_random" --against $none --metrics fvu best_fvu pw_mcc dead_share
windows="fvu best_fvu pw_mcc dead_share"
compare "EEG, five members" "$out/eeg" $controls --metrics $windows
compare "EEG, as released" "$out/eeg_released" --against $none --metrics $windows
compare "EEG, the clean window from a noisy one" "$out/eeg_denoised" --against $none --metrics fvu_of_inputs $windows
compare "EEG, starting over" "$out/eeg_restarts" --against population.reinitialise.scope=none --metrics $windows

# Of the first seed, without the term.
cp "$out/synthetic_sparse/weights/0/plots/sharing.png" "$here/sharing.png"
printf '\n## Runs in which something started over\n\n'
grep -l "start over" "$out"/*/*/*/run.log | sed "s|^$out/||" | cut -d/ -f1,2 | sort | uniq -c || true
