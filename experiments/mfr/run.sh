#!/bin/sh
# All arms of the study: about two hours on two cores. What was begun is gone on with.
#
#     sh experiments/mfr/run.sh [FOLDER]          outputs/mfr by default
set -e
out=${1:-outputs/mfr}
. "$(dirname "$0")/../arm.sh"

# Known features: two members.
synthetic="experiment=mfr_synthetic_small"
arm synthetic/weights $synthetic population.mutual.weight=0,24,100
arm synthetic/shuffled $synthetic population.mutual.weight=24 population.mutual.shuffled=true
arm synthetic/longer $synthetic population=single population.mutual.weight=0 trainer.tokens=4_000_000
arm synthetic/without_restarts $synthetic population.reinitialise.scope=none

# SmolLM2's first MLP: five members.
smollm2="experiment=mfr_smollm2_small"
arm smollm2/weights $smollm2 population.mutual.weight=0,4,16
arm smollm2/shuffled $smollm2 population.mutual.weight=4 population.mutual.shuffled=true
arm smollm2/longer $smollm2 population=single population.mutual.weight=0 trainer.tokens=1_500_000
arm smollm2_random/weights $smollm2 model.weights=random

# EEG: five members; the window itself, and the clean one from a noisy one.
eeg="experiment=mfr_eeg_small"
arm eeg/weights $eeg population.mutual.weight=0,10,100
arm eeg/shuffled $eeg population.mutual.weight=100 population.mutual.shuffled=true
arm eeg/longer $eeg population=single population.mutual.weight=0 trainer.tokens=250_000
arm eeg_denoised/weights $eeg source.noise_snr_db=0
