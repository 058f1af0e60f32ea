#!/bin/sh
# All arms of the study. An arm that has begun is resumed.
#
#     sh experiments/dictionaries/run.sh [FOLDER]          outputs/dictionaries by default
set -e
out=${1:-outputs/dictionaries}
. "$(dirname "$0")/../arm.sh"

# Recipes on the residual stream of SmolLM2, each at an l0 of 24 and 64, with five seeds.
smollm2="experiment=dictionaries/smollm2_small"
arm smollm2/batch_topk $smollm2 arch.k=24,64
arm smollm2/matryoshka $smollm2 arch.k=24,64 loss=matryoshka
arm smollm2/ortsae $smollm2 arch.k=24,64 penalty=orthogonal
arm smollm2/weight_norm $smollm2 arch.k=24,64 penalty=weight_norm
arm smollm2/fisher $smollm2 arch.k=24,64 penalty=fisher
arm smollm2/lista $smollm2 arch.k=24,64 arch=lista
arm smollm2/matching_pursuit $smollm2 arch.k=24,64 arch=matching_pursuit
# Thresholds alone move too slowly to reach a target in 290 steps.
arm smollm2/jumprelu $smollm2 arch=jumprelu arch.ste_to_input=true loss=jumprelu_target_l0_per_sample loss.sparsity.target=24,64
arm smollm2/random_decoder $smollm2 arch.k=24,64 trainer.frozen=decoder
arm smollm2/random $smollm2 arch.k=24,64 trainer.frozen=all

# Between sites: what the MLP of layer 3 computes, and an autoencoder of its output.
arm mlp/autoencoder $smollm2 arch.k=24,64 site=mlp_out
arm mlp/transcoder $smollm2 arch.k=24,64 layout=transcoder
arm mlp/skip_transcoder $smollm2 arch.k=24,64 layout=skip_transcoder

# The same recipes on known features; an l0 of 8.3 has as many features as there are.
synthetic="experiment=synth_sae_bench/small seed=1,2,3,4,5"
arm synthetic/batch_topk $synthetic arch.k=8,6
arm synthetic/matryoshka $synthetic arch.k=8,6 loss=matryoshka
arm synthetic/ortsae $synthetic arch.k=8,6 penalty=orthogonal
arm synthetic/weight_norm $synthetic arch.k=8,6 penalty=weight_norm
arm synthetic/fisher $synthetic arch.k=8,6 penalty=fisher
arm synthetic/lista $synthetic arch.k=8,6 arch=lista
arm synthetic/matching_pursuit $synthetic arch.k=8,6 arch=matching_pursuit
arm synthetic/jumprelu $synthetic arch=jumprelu arch.ste_to_input=true loss=jumprelu_target_l0_per_sample loss.sparsity.target=8,6
arm synthetic/random_decoder $synthetic arch.k=8,6 trainer.frozen=decoder
arm synthetic/random $synthetic arch.k=8,6 trainer.frozen=all

# What the latents of SmolLM2's residual stream are worth: probes on eight of the questions, to save time.
python -m fsae.evaluate "$out"/smollm2/* launcher=packed 'eval=[absorption,code,probing,mdl,stability]' 'eval.probing.k=[1,16]' \
    'eval.probing.sets=[7_hist_fig_ispolitician,21_headline_istrump,73_control-group,96_spam_is,105_click_bait,125_world_country_Italy,139_news_class_Politics,159_code_Python]'
