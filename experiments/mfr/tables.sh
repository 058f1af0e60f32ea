#!/bin/sh
# Prints every figure of the study with its interval, from the runs of run.sh; writes the plots next to this file.
#
#     sh experiments/mfr/tables.sh [FOLDER] > experiments/mfr/tables.md
set -e
out=${1:-outputs/mfr}
here=$(dirname "$0")
. "$here/../table.sh"

echo "# Mutual Feature Regularization: all figures"
none=population.mutual.weight=0
found="fvu best_fvu mcc pw_mcc"
shared="shared_share truth_of_shared truth_of_single truth_rank_correlation"
controls="--against $none population.size=5 --apart trainer.samples population.mutual.shuffled"
table "Synthetic, 4 of 512 features at a time, five members" paired "$out/synthetic_sparse" $controls --metrics $found \
    --picture "$here/synthetic_sparse.png"
table "The same: which latents are shared" paired "$out/synthetic_sparse" $controls --metrics $shared
table "Synthetic, 32 of 512 features at a time, two members" paired "$out/synthetic" --against $none population.size=2 \
    --apart trainer.samples --metrics $found $shared
table "The same, as released" paired "$out/synthetic_released" --against $none --metrics $found $shared
language="fvu best_fvu ce_recovered_zero pw_mcc dead_share"
table "First MLP of SmolLM2-135M-Instruct (Q4_1), five members" paired "$out/smollm2" $controls --metrics $language
table "The same, as released" paired "$out/smollm2_released" --against $none --metrics $language
without_text="fvu best_fvu pw_mcc dead_share"
table "SmolLM2-135M-Instruct with random weights" paired "$out/smollm2_random" --against $none --metrics $without_text
table "EEG, five members" paired "$out/eeg" $controls --metrics $without_text
table "EEG, as released" paired "$out/eeg_released" --against $none --metrics $without_text
table "EEG, the clean window from a noisy one" paired "$out/eeg_denoised" --against $none \
    --metrics fvu_of_inputs $without_text
table "EEG, resampling" paired "$out/eeg_restarts" --against population.reinitialise.scope=none \
    --metrics $without_text

# The first seed, without the term.
cp "$out/synthetic_sparse/weights/0/plots/sharing.png" "$here/sharing.png"
printf '\n## Runs in which latents were resampled\n\n'
grep -lE "(resampled|re-initialised) [0-9]+ latents?|start over" "$out"/*/*/*/run.log | sed "s|^$out/||" | cut -d/ -f1,2 | sort | uniq -c || true
