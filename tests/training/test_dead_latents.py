import torch

from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern
from fsae.training.dead_latents import DeadLatents, resample
from tests.architectures import build, each_architecture, samples, twin

BATCH, D_SAE = 20, 13
DEAD = [2, 5, 11]
ALIVE = [latent for latent in range(D_SAE) if latent not in DEAD]


def test_tokens_are_counted_not_steps():
    dead = DeadLatents(3, after=10)
    # Latent 0 fires always, 1 never, 2 in the second batch.
    first = torch.tensor([[1.0, 0.0, 0.0]]).repeat(4, 1)
    second = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, -2.0]])
    dead.update(Codes(first))
    assert dead.tokens_since_fired.tolist() == [0, 4, 4]
    dead.update(Codes(second))
    assert dead.tokens_since_fired.tolist() == [0, 6, 0]
    dead.update(Codes(first))
    assert dead.tokens_since_fired.tolist() == [0, 10, 4]
    assert dead.indices.tolist() == []
    dead.refresh()
    assert dead.indices.tolist() == [1]


def test_an_entry_that_exists_and_is_zero_has_not_fired():
    dead = DeadLatents(3, after=1)
    codes = Codes(torch.tensor([0.5, 0.0]), Pattern.of_indices(torch.tensor([[0, 1]]), 3))
    dead.update(codes)
    assert dead.tokens_since_fired.tolist() == [0, 1, 1]


def trained(arch: str):
    """An autoencoder whose Adam has moments for everything, three dead latents, and a batch's record."""
    autoencoder = build(arch, d_sae=D_SAE, dtype=torch.float32)
    x = samples(BATCH, dtype=torch.float32)
    optimiser = torch.optim.Adam(autoencoder.parameters(), lr=1e-3)
    for _ in range(3):
        # The pre-activations reach what the codes do not.
        record = autoencoder(x)
        pre = record.pre_activations.dense()
        extra = sum(parameter.sum() for parameter in autoencoder.parameters())
        ((x - record.reconstruction).square().sum() + pre.square().sum() + extra).backward()
        optimiser.step()
        optimiser.zero_grad()
    dead = DeadLatents(D_SAE, after=100)
    dead.tokens_since_fired[DEAD] = 100
    return autoencoder, optimiser, dead, autoencoder(x)


def of_latents(name: str, tensor: torch.Tensor, latents: list[int]) -> torch.Tensor:
    return tensor[:, latents] if name == "W_enc" else tensor[latents]


@each_architecture
def test_dead_latents_start_over_and_the_others_stay_as_they_are(arch: str):
    autoencoder, optimiser, dead, record = trained(arch)
    before = twin(autoencoder)
    moments = {
        name: {key: optimiser.state[parameter][key].clone() for key in ("exp_avg", "exp_avg_sq")}
        for name, parameter in autoencoder.named_parameters()
    }
    generator = torch.Generator().manual_seed(0)
    assert resample(autoencoder, optimiser, dead, record, generator) == len(DEAD)
    for name, parameter in autoencoder.named_parameters():
        old = before.get_parameter(name)
        if name == "b_dec":
            assert torch.equal(parameter, old)
            continue
        assert torch.equal(of_latents(name, parameter, ALIVE), of_latents(name, old, ALIVE)), name
        assert (of_latents(name, parameter, DEAD) != of_latents(name, old, DEAD)).any(), name
        for key, moment in moments[name].items():
            now = optimiser.state[parameter][key]
            assert torch.equal(of_latents(name, now, ALIVE), of_latents(name, moment, ALIVE)), (name, key)
            assert (of_latents(name, moment, DEAD) != 0).all(), (name, key)
            assert (of_latents(name, now, DEAD) == 0).all(), (name, key)
    assert dead.tokens_since_fired[DEAD].tolist() == [0, 0, 0]
    assert dead.indices.numel() == 0


@each_architecture
def test_a_latent_drawn_anew_points_at_an_input(arch: str):
    autoencoder, optimiser, dead, record = trained(arch)
    encoder_norm = autoencoder.W_enc.norm(dim=0)[ALIVE].mean()
    decoder_norm = autoencoder.W_dec.norm(dim=1)[ALIVE].mean()
    resample(autoencoder, optimiser, dead, record, torch.Generator().manual_seed(0))
    inputs = autoencoder.encoder_input(record.inputs)
    inputs = inputs / inputs.norm(dim=1, keepdim=True)
    directions = autoencoder.W_dec[DEAD] / decoder_norm
    cosines = directions @ inputs.T
    assert torch.allclose(cosines.max(dim=1).values, torch.ones(3), atol=1e-5)
    assert torch.allclose(directions.norm(dim=1), torch.ones(3), atol=1e-5)
    share = 1.0 if "topk" in arch else 0.2
    assert torch.allclose(autoencoder.W_enc.T[DEAD], share * encoder_norm * directions, atol=1e-5)
    # So it is on for that input, as far as nothing else wins its place.
    pre = autoencoder(record.inputs).pre_activations.dense()
    places = cosines.argmax(dim=1)
    assert (pre[places, torch.tensor(DEAD)] > 0).all()


def test_the_worst_reconstructed_inputs_are_taken():
    autoencoder, optimiser, dead, record = trained("standard")
    record.reconstruction.data.copy_(record.inputs)
    record.reconstruction.data[7] += 10.0
    resample(autoencoder, optimiser, dead, record, torch.Generator().manual_seed(0))
    wanted = autoencoder.encoder_input(record.inputs)[7]
    cosines = torch.cosine_similarity(autoencoder.W_dec[DEAD], wanted.unsqueeze(0))
    assert torch.allclose(cosines, torch.ones(3), atol=1e-5)


@each_architecture
def test_without_dead_latents_nothing_changes(arch: str):
    autoencoder, optimiser, dead, record = trained(arch)
    dead.tokens_since_fired.zero_()
    before = twin(autoencoder)
    generator = torch.Generator().manual_seed(0)
    draws = generator.get_state()
    assert resample(autoencoder, optimiser, dead, record, generator) == 0
    assert torch.equal(generator.get_state(), draws)
    assert all(torch.equal(a, b) for a, b in zip(autoencoder.parameters(), before.parameters(), strict=True))


@each_architecture
def test_where_every_latent_is_dead_all_start_over(arch: str):
    autoencoder, optimiser, dead, record = trained(arch)
    dead.tokens_since_fired.fill_(100)
    assert resample(autoencoder, optimiser, dead, record, torch.Generator().manual_seed(0)) == D_SAE
    assert all(parameter.isfinite().all() for parameter in autoencoder.parameters())
    assert torch.allclose(autoencoder.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5)
