#!/bin/sh
# SynthSAEBench on a small scale: about a quarter of an hour on two cores. An arm that has begun is resumed.
#
#     sh experiments/synth_sae_bench/run.sh [FOLDER]    outputs/synth_sae_bench by default
set -e
out=${1:-outputs/synth_sae_bench}
. "$(dirname "$0")/../arm.sh"

small() {
    name=$1
    shift
    arm "$name" --multirun experiment=synth_sae_bench/small 'eval=[vectors,truth]' seed=1,2 "$@"
}

small batch_topk arch=batch_topk arch.k=8,6
small jumprelu arch=jumprelu loss=jumprelu_target_l0 loss.sparsity.target=8,6
small standard arch=standard loss.sparsity.weight=0.2,0.4,0.8,1.6
# The control: decoders that stay random.
small control arch=batch_topk arch.k=8 trainer.frozen=decoder
python -m fsae.report "$out/batch_topk" "$out/jumprelu" "$out/standard" "$out/control"
