#!/bin/sh
# Prints every figure of the study with its interval, from the runs of run.sh; writes the plots next to this file.
#
#     sh experiments/splinterp/tables.sh [FOLDER] > experiments/splinterp/tables.md
set -e
out=${1:-outputs/splinterp}
here=$(dirname "$0")
. "$here/../table.sh"

# Both methods, and every setting in which they differ.
trainers() {
    heading=$1
    shift
    table "$heading" paired "$@" --against trainer=adam --apart trainer.
}

echo "# SplInterp: all figures"
table "Start and rate" curves "$out"/lr/*/* --x trainer.lr --lines trainer arch.init_norm
table "Sample efficiency, as released" curves "$out"/share_released/*/* --x source.share --lines trainer arch.encoder_init
table "Sample efficiency" curves "$out"/share_repaired/*/* --x source.share --lines trainer --picture "$here/share.png"
trainers "Sample efficiency: all digits, by seeds" "$out"/share_repaired/1.00/* --metrics fvu
table "As many updates as all digits get" curves "$out"/share_updates/*/* --x source.share --lines trainer
table "A rate that falls to zero" curves "$out"/share_decay/*/* --x source.share --lines trainer
table "A ridge" curves "$out"/share_ridge/*/alpha --x trainer.alpha --lines source.share trainer.lr
table "A cost to move the decoder" curves "$out"/share_ridge/*/mu --x trainer.mu --lines source.share trainer.lr
table "A ridge, at as many updates as all digits get" curves "$out"/share_ridge/*/updates --x trainer.alpha \
    --lines source.share
table "Gradient descent at higher rates" curves "$out"/share_ridge/*/sgd --x trainer.lr --lines source.share
table "Gradient descent, its decoder solved for at the end" refit "$out"/share_repaired/*/sgd \
    "$out"/share_updates/*/sgd --lines source.share trainer.samples
table "Equal time" curves "$out"/alone/*/* --x seconds --lines trainer
table "Encoder updates a batch" curves "$out"/updates/*/* --x trainer.updates_per_batch --lines trainer
table "k" curves "$out"/k/* --x arch.k --lines trainer
table "Weight decay" curves "$out"/decay/* --x trainer.weight_decay --lines trainer
table "Costs to move the encoder" curves "$out"/costs --x trainer.mu_enc
table "Batch by batch, and streaming" curves "$out"/modes/* --x trainer.mu --lines trainer.encoder_batches
table "The Fisher term" curves "$out"/fisher/* --x loss.penalty.weight --lines trainer
table "The Fisher term: mean squared correlation of codes" curves "$out"/fisher/* --x loss.penalty.weight \
    --lines trainer --metric code_correlation
table "ReLU" curves "$out"/relu/* --x eval/l0 --lines trainer loss.sparsity.weight

bits="--x eval/description_length --lines arch arch.d_sae arch.k arch.rank"
table "Between k-means and local PCA: digits" curves "$out"/between/kmeans "$out"/between/*pca "$out"/between/sgd $bits
table "Between k-means and local PCA: the toy" curves "$out"/toy --x eval/description_length \
    --lines arch arch.expansion arch.k arch.rank
table "The toy's regions: samples whose support the power diagram says" curves "$out"/toy --x arch.expansion \
    --lines arch arch.k --metric diagram_agreement
python -m fsae.report "$out"/between/kmeans "$out"/between/*pca "$out"/between/sgd --out "$out/between/report" >&2
# TopK with 40 latents, one of them active, first seed.
cp "$out/toy/50/plots/regions.png" "$here/toy_regions.png"
cp "$out/toy/50/plots/voronoi_lift.png" "$here/toy_lift.png"
cp "$out/between/report/pictures/description_length_0.png" "$here/bits.png"

for data in mnist smollm2; do
    table "Regions of held-out samples, and samples whose support the power diagram says: $data" curves \
        "$out/geometry/$data" --x eval/regions --metric diagram_agreement
done

table "SmolLM2-135M-Instruct (Q4_1): rate" curves "$out"/smollm2_lr/* --x trainer.lr --lines trainer
for metric in fvu cosine ce_recovered_zero; do
    table "SmolLM2-135M-Instruct (Q4_1): sample efficiency, $metric" curves "$out"/smollm2_tokens/*/* --x source.tokens --lines trainer \
        --metric $metric
done
table "SmolLM2-135M-Instruct (Q4_1): equal time" curves "$out"/smollm2_alone/*/* --x seconds --lines trainer
for metric in fvu cosine ce_recovered_zero; do
    table "SmolLM2-135M-Instruct (Q4_1): k, $metric" curves "$out"/smollm2_k/* --x arch.k --lines trainer --metric $metric
done
table "SmolLM2-135M-Instruct (Q4_1): ReLU" curves "$out"/smollm2_relu/* --x eval/l0 --lines trainer loss.sparsity.weight
for arms in smollm2_tokens/6400 smollm2_tokens/25600 smollm2_released; do
    trainers "SmolLM2-135M-Instruct (Q4_1): both ways, by seeds: $arms" "$out/$arms"/* --metrics fvu cosine ce_recovered_zero
done
trainers "SmolLM2-135M-Instruct (Q4_1): last tokens, as released" "$out"/smollm2_last/* --metrics fvu cosine
