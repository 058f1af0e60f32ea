#!/bin/sh
# Every figure of the study with its interval, of what run.sh left; the pictures go beside this file.
#
#     sh experiments/splinterp/tables.sh [FOLDER] > experiments/splinterp/tables.md
set -e
out=${1:-outputs/splinterp}
here=$(dirname "$0")

compare() {
    printf '\n## %s\n\n' "$1"
    shift
    python -m "$@"
}

curves() {
    heading=$1
    shift
    compare "$heading" experiments.curves "$@"
}

# Both ways, and every setting in which they differ.
trainers() {
    heading=$1
    shift
    compare "$heading" experiments.paired "$@" --against trainer=adam --apart trainer.
}

echo "# SplInterp: all figures"
curves "Start and rate" "$out"/lr/*/* --x trainer.lr --lines trainer arch.init_norm
curves "Sample efficiency, as released" "$out"/share_released/*/* --x source.share --lines trainer arch.tied
curves "Sample efficiency" "$out"/share_repaired/*/* --x source.share --lines trainer --picture "$here/share.png"
trainers "Sample efficiency: all digits, by seeds" "$out"/share_repaired/1.00/* --metrics fvu
curves "As many updates as all digits get" "$out"/share_updates/*/* --x source.share --lines trainer
curves "A rate that falls to zero" "$out"/share_decay/*/* --x source.share --lines trainer
curves "A ridge" "$out"/share_ridge/*/alpha --x trainer.alpha --lines source.share trainer.lr
curves "A cost to move the decoder" "$out"/share_ridge/*/mu --x trainer.mu --lines source.share trainer.lr
curves "A ridge, at as many updates as all digits get" "$out"/share_ridge/*/updates --x trainer.alpha \
    --lines source.share
curves "Gradient descent at higher rates" "$out"/share_ridge/*/sgd --x trainer.lr --lines source.share
compare "Gradient descent, its decoder solved for at the end" experiments.refit "$out"/share_repaired/*/sgd \
    "$out"/share_updates/*/sgd --lines source.share trainer.tokens
curves "Equal time" "$out"/alone/*/* --x seconds --lines trainer
curves "Encoder updates a batch" "$out"/updates/*/* --x trainer.updates_per_batch --lines trainer
curves "k" "$out"/k/* --x arch.k --lines trainer
curves "Weight decay" "$out"/decay/* --x trainer.weight_decay --lines trainer
curves "Costs to move the encoder" "$out"/costs --x trainer.mu_enc
curves "Batch by batch, and streaming" "$out"/modes/* --x trainer.mu --lines trainer.encoder_batches
curves "The Fisher term" "$out"/fisher/* --x loss.fisher.weight --lines trainer
curves "The Fisher term: mean squared correlation of codes" "$out"/fisher/* --x loss.fisher.weight --lines trainer \
    --metric code_correlation
curves "ReLU" "$out"/relu/* --x eval/l0 --lines trainer loss.sparsity.weight

bits="--x eval/description_length --lines arch arch.d_sae arch.k arch.rank"
curves "Between k-means and local PCA: digits" "$out"/between/kmeans "$out"/between/*pca "$out"/between/sgd $bits
curves "Between k-means and local PCA: the toy" "$out"/toy --x eval/description_length \
    --lines arch arch.expansion arch.k arch.rank
curves "The toy's regions: samples whose support the power diagram says" "$out"/toy --x arch.expansion \
    --lines arch arch.k --metric diagram_agreement
python -m fsae.report "$out"/between/kmeans "$out"/between/*pca "$out"/between/sgd --out "$out/between/report" >&2
# TopK of 40 latents, one of them on, first seed.
cp "$out/toy/50/plots/regions.png" "$here/toy_regions.png"
cp "$out/toy/50/plots/voronoi_lift.png" "$here/toy_lift.png"
cp "$out/between/report/pictures/description_length_0.png" "$here/bits.png"

for data in mnist smollm2; do
    curves "Regions of held-out samples, and samples whose support the power diagram says: $data" "$out/geometry/$data" \
        --x eval/regions --metric diagram_agreement
done

curves "SmolLM2: rate" "$out"/smollm2_lr/* --x trainer.lr --lines trainer
for metric in fvu cosine ce_recovered_zero; do
    curves "SmolLM2: sample efficiency, $metric" "$out"/smollm2_tokens/*/* --x source.tokens --lines trainer \
        --metric $metric
done
curves "SmolLM2: equal time" "$out"/smollm2_alone/*/* --x seconds --lines trainer
for metric in fvu cosine ce_recovered_zero; do
    curves "SmolLM2: k, $metric" "$out"/smollm2_k/* --x arch.k --lines trainer --metric $metric
done
curves "SmolLM2: ReLU" "$out"/smollm2_relu/* --x eval/l0 --lines trainer loss.sparsity.weight
for arms in smollm2_tokens/6400 smollm2_tokens/25600 smollm2_released; do
    trainers "SmolLM2: both ways, by seeds: $arms" "$out/$arms"/* --metrics fvu cosine ce_recovered_zero
done
trainers "SmolLM2: last tokens, as released" "$out"/smollm2_last/* --metrics fvu cosine
