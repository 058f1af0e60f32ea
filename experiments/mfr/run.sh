#!/bin/sh
# All arms of the study: about two hours on two cores. An arm that has begun is resumed.
#
#     sh experiments/mfr/run.sh [FOLDER]          outputs/mfr by default
set -e
out=${1:-outputs/mfr}
. "$(dirname "$0")/../arm.sh"

# One autoencoder, trained for as long as all members together.
alone="population.size=1 population.mutual.weight=0"

# The closest to the released autoencoder: tied, without AuxK, clipping or decay.
released="arch.encoder_init=tied arch.apply_b_dec_to_input=false loss.auxiliary.weight=0 trainer.clip_norm=null trainer.decay=0"

# Known features: two members, and MFR's weight of 1.
synthetic="experiment=mfr/synthetic_small"
arm synthetic/weights $synthetic population.mutual.weight=0,24
arm synthetic/longer $synthetic $alone trainer.samples=2_000_000
arm synthetic_released/weights $synthetic $released population.mutual.weight=0,24

# Few enough features at a time to be found, five members. MFR's 1 corresponds to 200 here.
sparse="source.active=4 arch.k=4 population.size=5"
arm synthetic_sparse/weights $synthetic $sparse population.mutual.weight=0,24,200
arm synthetic_sparse/shuffled $synthetic $sparse population.mutual.weight=24 population.mutual.shuffled=true
arm synthetic_sparse/longer $synthetic $sparse $alone trainer.samples=5_000_000

# The first MLP of SmolLM2-135M-Instruct (Q4_1): five members. MFR's 0.005 corresponds to 0.7 here, and to 309 on a model
# with random weights, whose activations are much smaller; both weights on both.
smollm2="experiment=mfr/smollm2_small"
arm smollm2/weights $smollm2 population.mutual.weight=0,4,300
arm smollm2/shuffled $smollm2 population.mutual.weight=4 population.mutual.shuffled=true
arm smollm2/longer $smollm2 $alone trainer.samples=1_500_000
arm smollm2_released/weights $smollm2 $released trainer.samples=150_000
arm smollm2_random/weights $smollm2 model.weights=random "eval=[vectors,agreement]" trainer.samples=150_000 \
    population.mutual.weight=0,4,300

# EEG: five members; the window itself, and the clean window from a noisy one, for which MFR's weight is half of 768.
eeg="experiment=mfr/eeg_small"
arm eeg/weights $eeg population.mutual.weight=0,100,768
arm eeg/shuffled $eeg population.mutual.weight=768 population.mutual.shuffled=true
arm eeg/longer $eeg $alone trainer.samples=250_000
arm eeg_released/weights $eeg $released
arm eeg_denoised/weights $eeg source.noise_snr_db=0 population.mutual.weight=0,384

# Resampling, which the targets above hardly ever cause: of single latents, at k / d_sae.
arm eeg_restarts/scopes $eeg population.mutual.weight=768 population.reinitialise.scope=none,latents \
    population.reinitialise.target_rate=null
