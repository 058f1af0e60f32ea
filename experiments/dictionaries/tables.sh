#!/bin/sh
# Prints every figure of the study with its interval, from the runs of run.sh.
#
#     sh experiments/dictionaries/tables.sh [FOLDER] > experiments/dictionaries/tables.md
set -e
out=${1:-outputs/dictionaries}
. "$(dirname "$0")/../table.sh"

echo "# Recipes for dictionaries: all figures"
vectors="fvu ce_recovered_zero dead_share code_correlation_excess decoder_max_cosine"
worth="probing_auc_k1 probing_auc_k16 absorption code_f1 code_beyond_token mdl_bits stability_mcc stability_found_share"
further="faithfulness faithfulness_latents influence_drop influence_drop_active influence_drop_random attribution_rank
    ood_shifted_k20 ood_answerable_k20 amortisation_gap amortisation_fvu"
edits="concepts_auroc concepts_hard ravel_disentanglement ravel_cause ravel_isolation ravel_with_error ravel_disentanglement_random ravel_disentanglement_none
    concepts_steering concepts_steering_concept concepts_steering_fluency concepts_steering_answer concepts_likelihood
    concepts_steering_random concepts_steering_diffmean"
table "Residual stream of SmolLM2-135M-Instruct (Q4_1), layer 3: reconstruction" recipes "$out/smollm2" \
    --against batch_topk --metrics $vectors
table "The same: what the latents are worth" recipes "$out/smollm2" --against batch_topk --metrics $worth
table "The same: circuits, other domains, and what encoders miss" recipes "$out/smollm2" --against batch_topk \
    --metrics $further
table "The same: concepts, edits of attributes (ravel), and steering towards concepts" recipes "$out/smollm2" --against batch_topk \
    --metrics $edits
table "Top-AFA and BatchTopK at its l0" recipes "$out/top_afa" --against batch_topk --metrics $vectors
table "MLP of layer 3" recipes "$out/mlp" --against transcoder --metrics $vectors
table "Jacobian pair around the MLP of layer 3" paired "$out/pair" --against population.jacobian.weight=0 \
    --metrics 0/fvu 1/fvu jacobian_above_005 jacobian_above_01 jacobian_above_015 jacobian_above_02 jacobian_mean
table "Known features" recipes "$out/synthetic" --against batch_topk --metrics fvu f1 mcc uniqueness dead_share
table "Known features, rows of any norm" recipes "$out/synthetic_free" --against batch_topk \
    --metrics fvu f1 mcc uniqueness dead_share
