#!/bin/sh
# All arms of the study. An arm that has begun is resumed.
#
#     sh experiments/dictionaries/run.sh [FOLDER]          outputs/dictionaries by default
set -e
out=${1:-outputs/dictionaries}
. "$(dirname "$0")/../arm.sh"

# `recipes NAME L0 AROUND OVERRIDES...` runs every recipe at this l0, and the baseline at several l0 around it, in folders
# below that name.
recipes() {
    name=$1
    l0=$2
    around=$3
    shift 3
    arm "$name/batch_topk" "$@" "arch.k=$around"
    arm "$name/matryoshka" "$@" "arch.k=$l0" loss=matryoshka
    arm "$name/ortsae" "$@" "arch.k=$l0" penalty=orthogonal
    arm "$name/weight_norm" "$@" "arch.k=$l0" penalty=weight_norm
    # As published, with rows of any norm, and its control.
    arm "$name/weight_regularised" "$@" "arch.k=$l0" loss=weight_regularised arch.decoder_norm=free
    arm "$name/free_rows" "$@" "arch.k=$l0" arch.decoder_norm=free
    arm "$name/fisher" "$@" "arch.k=$l0" penalty=fisher
    arm "$name/lista" "$@" "arch.k=$l0" arch=lista
    arm "$name/matching_pursuit" "$@" "arch.k=$l0" arch=matching_pursuit
    # Thresholds alone move too slowly to reach a target in a short training.
    jumprelu="arch=jumprelu arch.ste_to_input=true loss=jumprelu_target_l0_per_sample loss.sparsity.target=$l0"
    arm "$name/jumprelu" "$@" $jumprelu
    arm "$name/jumprelu_aux_k" "$@" $jumprelu +schema/loss@loss.auxiliary=aux_k loss.auxiliary.weight=0.03125
    arm "$name/random_decoder" "$@" "arch.k=$l0" trainer.frozen=decoder
    arm "$name/random" "$@" "arch.k=$l0" trainer.frozen=all
}

# On the residual stream of SmolLM2, with five seeds.
smollm2="experiment=dictionaries/smollm2_small"
recipes smollm2 40 32,40,56 $smollm2

# Top-AFA has the l0 that its inputs ask for, so BatchTopK is given l0 around it.
arm top_afa/top_afa $smollm2 arch=top_afa
arm top_afa/batch_topk $smollm2 arch.k=95,130,170

# Between sites: what the MLP of layer 3 computes, and an autoencoder of its output.
arm mlp/transcoder $smollm2 arch.k=32,40,56 layout=transcoder
arm mlp/skip_transcoder $smollm2 arch.k=40 layout=skip_transcoder
arm mlp/autoencoder $smollm2 arch.k=40 site=mlp_out

# A Jacobian pair around that MLP, and the same two autoencoders without the term.
arm pair $smollm2 layout=jacobian_pair arch=topk arch.k=32 population.jacobian.weight=0,512

# On known features; an l0 of 8.3 has as many features as there are.
known="experiment=synth_sae_bench/small seed=1,2,3,4,5"
recipes synthetic 7 6,7,9 $known

# Does a recipe's gain remain if rows may have any norm?
arm synthetic_free/batch_topk $known arch.decoder_norm=free arch.k=6,7,9
arm synthetic_free/lista $known arch.decoder_norm=free arch.k=7 arch=lista
arm synthetic_free/fisher $known arch.decoder_norm=free arch.k=7 penalty=fisher

# What the latents of SmolLM2's residual stream are worth. To save time: probes on eight of the questions, two tasks for
# circuits, one drawing of texts for influence, and for ravel one drawing of 60 countries whose masks are learned in half the
# steps on half the pairs, at twice the rate.
python -m fsae.evaluate "$out"/smollm2/* launcher=packed \
    'eval=[absorption,code,probing,mdl,decoder_projection,stability,amortisation,ood,concepts,circuits,influence,ravel]' \
    'eval.probing.k=[1,16]' \
    'eval.probing.sets=[7_hist_fig_ispolitician,21_headline_istrump,73_control-group,96_spam_is,105_click_bait,125_world_country_Italy,139_news_class_Politics,159_code_Python]' \
    'eval.circuits.tasks=[nounpp,within_rc]' 'eval.circuits.sizes=[]' eval.circuits.seeds=1 \
    eval.influence.prompts=4 eval.influence.steps=4 eval.influence.seeds=1 \
    eval.ravel.seeds=1 eval.ravel.entities=60 eval.ravel.pairs=24 eval.ravel.steps=16 eval.ravel.batch=12 eval.ravel.lr=0.2
