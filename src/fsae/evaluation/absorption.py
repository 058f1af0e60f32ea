"""`absorption`: whether latents for a first letter stay off in words that a more special latent takes over."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.downstream.controls import densities_in, random_directions
from fsae.evaluation.downstream.first_letters import prompts_of, words_of
from fsae.evaluation.downstream.letter_probes import LetterProbes, absorbed, letter_probes, main_latents, sparse_weights
from fsae.evaluation.downstream.text_activations import Positions, Reading, TextActivations, text_activations
from fsae.evaluation.downstream.text_codes import token_codes
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.kept import Tensors, digest_of_tensor, digest_of_texts, keeper
from fsae.evaluation.noise import mean_and_noise
from fsae.evaluation.subject import Subject
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.progress import Progress
from fsae.ranges import SEED, between
from fsae.seeds import generator_for

if TYPE_CHECKING:
    from scipy.sparse import csr_array

log = logging.getLogger(__name__)

# The control's name, and what it is.
_RANDOM = {"random": "random directions"}
# The most tokens of a prompt.
_PROMPT_TOKENS = 512


class Absorbed(NamedTuple):
    """Scores of one letter.

    Attributes:
        fraction: mean share of the letter's projection that other latents hold.
        full: share of the words in which no main latent is on and another latent holds the letter.
        splits: main latents.
    """

    fraction: float
    full: float
    splits: int


@dataclass(frozen=True, kw_only=True)
class Absorption(Evaluation, group="eval.absorption"):
    """Feature absorption in the spelling task (Chanin et al., arXiv 2409.14507), as SAEBench scores it.

    A probe on the activations finds the direction of each first letter. The main latents of a letter are those with
    which a sparse probe on codes detects it: one, or more if each further one raises the probe's F1 by `f1_jump`. In a
    word that the probe on activations detects, x . p is the letter's projection, and codes contribute
    f_i cos(p, W_dec[i]) |W_dec[i]| to it. The fraction absorbed is a / (a + m): m of the main latents, and a of the
    three other latents that contribute most, at most what is missing. It is 0 if the main latents hold all, or the
    others less than 40 % of the projection. Full absorption: no main latent is on, and one other holds at least 40 %.

    Differences from SAEBench: the activations are those of the dictionary's own site; examples in the prompts are drawn
    from all words and each word is read once; decoder rows need not have length 1; the sparse probe begins at zero; the
    draws are seeded; several splits of the words give the noise.

    Attributes:
        words: words that are read, at most. SAEBench reads the whole vocabulary; its number is not comparable.
        examples: words spelled in each prompt before the word in question.
        splits: divisions of the words into train and test parts; their standard deviation is the noise.
        test_share: share of the words in the test part.
        max_k: latents of the sparse probe, at most.
        f1_jump: by how much a further latent must raise the F1 to be a main latent.
        min_probe_f1: letters whose probe on activations has a lower F1 are left out.
        seed: of words, prompts and splits.
    """

    words: int = field(default=3000, metadata=between(least=200, most=1_000_000))
    examples: int = field(default=10, metadata=between(least=1, most=100))
    splits: int = field(default=3, metadata=between(least=1, most=100))
    test_share: float = field(default=0.2, metadata=between(above=0, below=1))
    max_k: int = field(default=10, metadata=between(least=1, most=100))
    f1_jump: float = field(default=0.03, metadata=between(least=0, most=1))
    min_probe_f1: float = field(default=0.6, metadata=between(least=0, most=1))
    seed: int = field(default=0, metadata=SEED)

    needs: ClassVar[frozenset[str]] = frozenset({"language_model", "one_site"})
    in_sweeps: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = {
        **accompanied("absorption", Meaning("absorbed share of first letters", better=Better.less), _RANDOM),
        **accompanied(
            "absorption_full",
            Meaning("share of words with full absorption", better=Better.less, shown=Shown.files),
            _RANDOM,
        ),
        **accompanied("absorption_splits", Meaning("main latents per first letter", shown=Shown.files), _RANDOM),
        "absorption_letters": Meaning("first letters with a good probe", shown=Shown.files),
        "absorption_probe_f1": Meaning("F1 of first letters' probes", shown=Shown.files),
    }

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's scores, and those of random directions of equal density.

        Raises:
            ValueError: no letter has a good probe, or the vocabulary has too few words.
        """
        text = subject.source.text
        assert text is not None
        words = words_of(text.model, self.words, self.seed)
        reading = Reading(positions=Positions.last, tokens=_PROMPT_TOKENS, from_end=True)
        prompts = prompts_of(words, self.examples, self.seed)
        read = text_activations(text, prompts, reading, "reading words", subject.heartbeat)
        whole = np.array([word.token == token for word, token in zip(words, read.ids.tolist(), strict=True)])
        if not whole.all():
            log.warning("%d of %d words are several tokens in a prompt, and left out", (~whole).sum(), len(whole))
            read = read.of_tokens(torch.from_numpy(whole))
        letters = np.array([word.letter for word, kept in zip(words, whole, strict=True) if kept])
        vectors = read.vectors.float().numpy()
        progress = Progress("probing first letters", self.splits * (1 + 2 * len(subject.autoencoders)), "steps")
        keep = keeper(text)
        shared = {
            "probes": "eval.absorption",
            "prompts": digest_of_texts(prompts),
            "letters": digest_of_tensor(torch.from_numpy(letters)),
        }
        probes = []
        for split in range(self.splits):
            content = shared | {"split": split, "test_share": self.test_share, "seed": self.seed}
            kept = keep(content, partial(self._probes, vectors, letters, split))
            probes.append(LetterProbes(**{name: tensor.numpy() for name, tensor in kept.items()}))
            progress.advance(1)
            subject.heartbeat()
        self._check(probes)
        found = [self._numbers(each, read, letters, probes, progress, subject) for each in subject.autoencoders]
        progress.close()
        return [Measured(own) for own in subject.by_run(found)]

    def _check(self, probes: Sequence[LetterProbes]) -> None:
        best = max(float(each.f1.max()) for each in probes)
        if any((each.f1 <= self.min_probe_f1).all() for each in probes):
            raise ValueError(
                f"eval.absorption: the activations do not distinguish first letters (the best probe has an F1 of "
                f"{best:.2f}, and {self.min_probe_f1:g} is asked for); choose another model or site, or lower "
                "eval.absorption.min_probe_f1"
            )

    def _probes(self, vectors: Float[np.ndarray, "words d_in"], letters: np.ndarray, split: int) -> Tensors:
        order = torch.randperm(len(letters), generator=generator_for(self.seed, "absorption", split)).numpy()
        test_count = max(1, round(self.test_share * len(letters)))
        test, train = np.sort(order[:test_count]), np.sort(order[test_count:])
        found = letter_probes(vectors, letters, train, test)
        return {name: torch.from_numpy(each) for name, each in found._asdict().items()}

    def _numbers(
        self,
        autoencoder: Autoencoder,
        read: TextActivations,
        letters: np.ndarray,
        probes: Sequence[LetterProbes],
        progress: Progress,
        subject: Subject,
    ) -> dict[str, float]:
        def beat() -> None:
            progress.advance(1)
            subject.heartbeat()

        codes = token_codes(autoencoder, read, subject.heartbeat)
        found = _means(self._scores(autoencoder, codes, read, letters, probes, beat), "")
        control = random_directions(autoencoder, densities_in(codes), read.vectors, self.seed)
        if control is not None:
            controlled = token_codes(control, read, subject.heartbeat)
            found |= _means(self._scores(control, controlled, read, letters, probes, beat), "_random")
        used = [each.f1 > self.min_probe_f1 for each in probes]
        found["absorption_letters"] = float(np.mean([each.sum() for each in used]))
        found["absorption_probe_f1"] = float(
            np.mean([each.f1[good].mean() for each, good in zip(probes, used, strict=True)])
        )
        return found

    def _scores(
        self,
        autoencoder: Autoencoder,
        codes: "csr_array",
        read: TextActivations,
        letters: np.ndarray,
        probes: Sequence[LetterProbes],
        beat: Callable[[], None],
    ) -> list[list[Absorbed]]:
        """Return the scores of the letters of each split; NaN if no latent is on in any word."""
        alive = np.flatnonzero(np.bincount(codes.indices, minlength=autoencoder.d_sae))
        rows = autoencoder.W_dec.detach().float().cpu().numpy()[alive]
        norms = np.linalg.norm(rows, axis=1)
        # Codes of a dictionary whose rows have length 1.
        folded = codes[:, alive].toarray() * norms
        units = rows / norms.clip(1e-12)[:, None]
        scores = []
        for each in probes:
            weights = sparse_weights(folded[each.train], letters[each.train])
            own = []
            for letter in np.flatnonzero(each.f1 > self.min_probe_f1):
                ranked = np.argsort(-weights[letter], kind="stable")[: self.max_k]
                if not len(alive):
                    own.append(Absorbed(np.nan, np.nan, 0))
                    continue
                main = main_latents(folded, letters == letter, each, ranked, self.f1_jump)
                chosen = each.test[each.found[letter]]
                direction = each.directions[letter]
                targets = read.vectors[torch.from_numpy(chosen)].float().numpy() @ direction
                fraction, full = absorbed(folded[chosen], units @ direction, targets, main)
                own.append(Absorbed(float(fraction.mean()), float(full.mean()), len(main)))
            scores.append(own)
            beat()
        return scores


def _means(scores: Sequence[Sequence[Absorbed]], suffix: str) -> dict[str, float]:
    """Return means over letters and splits, and the noise over splits."""
    found = {}
    for name, of in (("absorption", "fraction"), ("absorption_full", "full"), ("absorption_splits", "splits")):
        of_split = [float(np.mean([getattr(each, of) for each in split])) for split in scores]
        found |= {f"{name}{suffix}": float(np.mean(of_split))} if suffix else mean_and_noise(name, of_split)
    return found
